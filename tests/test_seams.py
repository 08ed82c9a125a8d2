"""No test replaces what a module of Halka holds: tests pass values of their own."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TESTS = sorted(Path(__file__).parent.rglob("*.py"))
REPLACING = {"setattr", "delattr", "patch", "object"}  # monkeypatch's and unittest.mock's


def replaced(source: str) -> list[int]:
    """The lines that replace an attribute of something imported from halka, or named by a text "halka.…"."""
    tree = ast.parse(source)
    imported = {
        alias.asname or alias.name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
        if (node.module or "" if isinstance(node, ast.ImportFrom) else alias.name).partition(".")[0] == "halka"
    }
    lines = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or not node.args:
            continue
        target = node.args[0]
        while isinstance(target, ast.Attribute):
            target = target.value
        named = isinstance(target, ast.Constant) and str(target.value).startswith("halka.")
        held = isinstance(target, ast.Name) and target.id in imported
        if node.func.attr in REPLACING and (named or held):
            lines.append(node.lineno)
    return lines


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.name)
def test_no_test_replaces_what_a_module_holds(path):
    assert replaced(path.read_text(encoding="utf-8")) == []


def test_replacements_are_seen():
    source = """
import os
import halka.models.attention as attention
from halka.models import fetching

def test(monkeypatch):
    monkeypatch.setattr(os, "replace", None)
    monkeypatch.setattr(attention.function, "LARGE", 0)
    monkeypatch.setattr("halka.training.loop.mean_loss", None)
    mock.patch.object(fetching, "pull")
"""
    assert replaced(source) == [8, 9, 10]

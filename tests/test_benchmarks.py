"""The benchmark scripts use names that exist, and say at their top what they measure and how they are run."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(FOLDER.rglob("*.py"))
SHARED = {"side_by_side", "fixed_batches", "advisor_cases", "engine_load", "serving_client"}  # modules of the scripts


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_what_a_script_imports_of_halka_exists(path):
    """Imports within functions, too, and names by their way from `halka`; nothing of the script is run."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "halka":
            module = importlib.import_module(node.module)
            for name in (alias.name for alias in node.names):
                assert hasattr(module, name) or importlib.import_module(f"{node.module}.{name}")
        elif isinstance(node, ast.Import):
            for name in (alias.name for alias in node.names if alias.name.partition(".")[0] == "halka"):
                importlib.import_module(name)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "halka":
            assert hasattr(importlib.import_module("halka"), node.attr), f"line {node.lineno}: halka.{node.attr}"


@pytest.mark.parametrize("path", [path for path in SCRIPTS if path.parent == FOLDER], ids=lambda path: path.stem)
def test_a_script_says_what_it_measures_and_its_command(path):
    words = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    assert words
    assert path.stem in SHARED or f"python benchmarks/{path.name}" in words

"""Names say what they hold: no variable or parameter is called by a word that names nothing."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import halka

PACKAGE = Path(halka.__file__).parent
NAMELESS = {"told", "said", "found", "given", "made", "known", "each"}


def nameless(tree: ast.AST) -> Iterator[str]:
    """Variables and parameters, with their lines, that hold something which their names do not say.

    Fields of classes stay as they are: they may be saved.
    """
    classes = (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    saved = {each.target for node in classes for each in node.body if isinstance(each, ast.AnnAssign)}
    for node in ast.walk(tree):
        if node in saved:
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id in NAMELESS:
            yield f"{node.id} in line {node.lineno}"
        elif isinstance(node, ast.arg) and node.arg in NAMELESS:
            yield f"{node.arg} in line {node.lineno}"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_names_say_what_they_hold(path):
    assert not [*nameless(ast.parse(path.read_text(encoding="utf-8")))]


def test_nameless_names_are_seen():
    tree = ast.parse("def f(told):\n    found = [each for each in told]\n    return found\n")
    assert sorted(nameless(tree)) == ["each in line 2", "found in line 2", "told in line 1"]

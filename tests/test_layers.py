"""Who may import whom, as docs/architecture.md says, and what is public."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest

import halka

PACKAGE = Path(halka.__file__).parent

# Each piece (a file or folder of the package) and the pieces of Halka that it may import, anywhere in a file. Every
# piece may import itself.
LAYERS: dict[str, set[str]] = {
    "files": set(),
    "machine": set(),
    "settings": set(),
    "core": set(),
    "methods": {"core"},
    "models": {"core", "files"},
    "data": set(),
    "json_metrics": {"data"},
    "metrics": {"data", "json_metrics", "tag_metrics"},
    "tag_metrics": {"data"},
    "loss": {"data"},
    "estimating": {"core", "data", "machine", "methods", "models", "objectives", "training"},
    "tensors": set(),
    "checkpoint": {"core", "files"},
    "objectives": {"core", "models", "data", "loss"},
    "run": {"core", "models", "data", "files", "checkpoint", "machine", "objectives"},
    "training": {"core", "models", "data", "machine", "objectives", "run"},
    "evaluation": {"core", "models", "data", "metrics", "objectives", "training"},
    "formats": {"core", "methods", "models"},
    "card": {"core", "data", "formats", "models"},
    "store": {"card", "core", "files", "formats", "models", "tensors"},
    "views": {"core", "store"},
    "lm_eval": {"core", "models", "store", "views"},
    "adapter_store": {"card", "core", "files", "models", "store"},
    "pool": {"adapter_store", "core", "store"},
    "exporting": {"core", "files", "formats", "merging", "methods", "store", "tensors"},
    "merging": {"core", "data", "methods", "models", "tensors"},
    "rag": {"data", "files", "models"},
    "answering": {"core", "data", "evaluation", "models"},
    "measure": {
        *("core", "methods", "models", "data", "run", "training", "evaluation", "store"),
        *("estimating", "machine", "files"),
    },
    "report": {"files", "metrics"},
    "experiment": {"data", "methods", "metrics", "models", "settings", "run", "measure"},
    "compare": {"experiment", "measure", "report", "run", "files"},
    "ablation": {
        *("answering", "compare", "core", "data", "evaluation", "experiment", "files", "machine", "methods", "metrics"),
        *("models", "rag", "report", "run", "settings", "store", "training"),
    },
    "advising": {
        *("answering", "core", "data", "estimating", "evaluation", "files", "machine", "methods", "metrics", "models"),
        *("rag", "report", "run", "training"),
    },
    "cli": {
        *("card", "core", "methods", "models", "data", "run", "training", "evaluation", "metrics", "formats", "store"),
        *("report", "experiment", "compare", "settings", "files", "adapter_store", "lm_eval", "pool", "rag"),
        *("exporting", "merging", "ablation", "advising", "answering", "estimating"),
    },
    "__init__": {
        *(
            "adapter_store",
            "estimating",
            "exporting",
            "merging",
            "methods",
            "models",
            "pool",
            "run",
            "store",
            "training",
        ),
        *("views",),
    },
    "__main__": {"cli"},
}
# What these may import besides Halka and the standard library; the others are free to use what pyproject.toml names.
OUTSIDE = {"core": {"torch"}, "methods": {"torch"}, "files": set()}


def pieces() -> set[str]:
    found = [path for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    return {path.stem for path in found}


def files_of(piece: str) -> list[Path]:
    folder = PACKAGE / piece
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [PACKAGE / f"{piece}.py"]


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in it, by its full name; of a `from` import also the names."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(piece: str) -> set[str]:
    """The other pieces of Halka that a piece imports."""
    names = [name.split(".") for path in files_of(piece) for name in imports(path)]
    return {name[1] for name in names if name[0] == "halka" and len(name) > 1} - {piece}


def outside(piece: str) -> set[str]:
    names = {name.split(".")[0] for path in files_of(piece) for name in imports(path)}
    return names - {"halka", "__future__"} - sys.stdlib_module_names


def test_the_table_names_every_piece():
    assert set(LAYERS) == pieces()


@pytest.mark.parametrize("piece", LAYERS)
def test_a_piece_imports_only_what_lies_below_it(piece):
    if piece not in pieces():
        pytest.skip("not there")
    assert within(piece) <= LAYERS[piece]


@pytest.mark.parametrize("piece", LAYERS)
def test_the_table_allows_no_more_than_is_used(piece):
    if piece not in pieces():
        pytest.skip("not there")
    assert within(piece) >= LAYERS[piece]


@pytest.mark.parametrize("piece", OUTSIDE)
def test_what_stands_lowest_needs_no_library_but_torch(piece):
    assert outside(piece) <= OUTSIDE[piece]


def test_the_table_has_no_circle():
    below = {piece: set(others) for piece, others in LAYERS.items()}
    while below:
        ready = {piece for piece, others in below.items() if not others & below.keys()}
        assert ready, f"a circle among {', '.join(below)}"
        below = {piece: others for piece, others in below.items() if piece not in ready}


def test_the_reader_of_imports_sees_all_of_them(tmp_path):
    """Within functions and conditions too, and in every form."""
    path = tmp_path / "file.py"
    path.write_text(
        "import halka.a, os\nfrom halka import b\nfrom halka.c.d import e\n"
        "def f():\n    if 1:\n        import halka.g as h\n        from halka.i import j\n"
    )
    assert list(imports(path)) == ["halka.a", "os", "halka.b", "halka.c.d.e", "halka.g", "halka.i.j"]


def test_what_is_public_is_what_type_checkers_see():
    """Names are found at their first use; each must be the one that the import for type checkers names."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    imported = {
        alias.asname or alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("halka.")
        for alias in node.names
    }
    assert sorted(imported) == sorted(halka.__all__)
    for name, module in imported.items():
        assert getattr(halka, name) is getattr(import_module(module), name)
    with pytest.raises(AttributeError, match="module 'halka' has no attribute 'nothing'"):
        halka.nothing  # noqa: B018
    assert halka.__version__ == version("halka")


def test_what_is_public_stands_in_order():
    """As ruff sorts it: constants, classes, the rest."""
    expected = sorted(halka.__all__, key=lambda name: (not name.isupper(), not name[0].isupper(), name))
    assert halka.__all__ == expected


def test_every_method_is_public():
    from halka.methods import all_methods

    assert {kind.__name__ for kind in all_methods().values()} <= set(halka.__all__)

"""Who may import whom, as the diagram in docs/architecture.md draws it, and what is public."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest

import halka

PACKAGE = Path(halka.__file__).parent

DIAGRAM = Path(__file__).parents[1] / "docs" / "architecture.md"


def drawn() -> dict[str, set[str]]:
    """The diagram's arrows: each package and those that it points to."""
    (block,) = re.findall(r"```mermaid\n(.*?)```", DIAGRAM.read_text(encoding="utf-8"), flags=re.DOTALL)
    arrows: dict[str, set[str]] = {}
    for line in block.splitlines():
        if "-->" in line:
            above, below = (side.split("&") for side in line.split("-->"))
            for one in above:
                arrows.setdefault(one.strip(), set()).update(each.strip() for each in below)
    return arrows


ARROWS = drawn()
PACKAGES = sorted({*ARROWS, *(each for below in ARROWS.values() for each in below)})


def below(package: str) -> set[str]:
    """The packages that the arrows lead to from one: those that it may import."""
    direct = ARROWS.get(package, set())
    return direct.union(*map(below, direct))


# What these may import besides Halka and the standard library; the others are free to use what pyproject.toml names.
OUTSIDE = {"core": {"torch"}, "methods": {"torch"}}


# How many files and lines a package has at most: who opens the core reads all of it.
BOUNDS = {"core": (11, 1400)}


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


def test_the_diagram_shows_every_package():
    assert set(PACKAGES) == pieces() - {"__init__", "__main__"}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_what_the_arrows_lead_to(package):
    assert within(package) <= below(package)


@pytest.mark.parametrize("package", ARROWS)
def test_every_arrow_is_an_import(package):
    assert ARROWS[package] <= within(package)


def test_the_arrows_have_no_circle():
    left = {package: set(ARROWS.get(package, ())) for package in PACKAGES}
    while left:
        ready = {package for package, others in left.items() if not others & left.keys()}
        assert ready, f"a circle among {', '.join(left)}"
        left = {package: others for package, others in left.items() if package not in ready}


def test_only_main_starts_the_command_line():
    assert within("__main__") == {"cli", "util"}


@pytest.mark.parametrize("piece", OUTSIDE)
def test_what_stands_lowest_needs_no_library_but_torch(piece):
    assert outside(piece) <= OUTSIDE[piece]


@pytest.mark.parametrize("package", BOUNDS)
def test_a_package_stays_within_its_bounds(package):
    files, lines = BOUNDS[package]
    assert len(files_of(package)) <= files
    assert sum(path.read_bytes().count(b"\n") for path in files_of(package)) <= lines


def test_stores_and_previews_of_data_load_no_code_of_models():
    """Which takes seconds: transformers' models and torch's compiler."""
    heavy = "transformers.modeling_utils", "torch._dynamo"
    loading = "import sys, halka.server.previews.process, halka.storage.adapter_store"
    code = f"{loading}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_reader_of_imports_sees_all_of_them(tmp_path):
    """Within functions and conditions too, and in every form."""
    path = tmp_path / "file.py"
    path.write_text(
        "import halka.a, os\nfrom halka import b\nfrom halka.c.d import e\n"
        "def f():\n    if 1:\n        import halka.g as h\n        from halka.i import j\n"
    )
    assert list(imports(path)) == ["halka.a", "os", "halka.b", "halka.c.d.e", "halka.g", "halka.i.j"]


def test_what_is_public_is_what_type_checkers_see():
    """Names are imported at their first use; each must be the one that the import for type checkers names."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    imported = {
        alias.asname: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("halka.")
        for alias in node.names
    }
    assert imported == {name: f"{module}.{name}" for name, module in halka._MODULES.items()}
    for name in halka.__all__:
        assert getattr(halka, name) is getattr(import_module(halka._MODULES[name]), name)
    assert {*halka.__all__, "__version__"} <= {*dir(halka)}
    with pytest.raises(AttributeError, match="module 'halka' has no attribute 'nothing'"):
        halka.nothing  # noqa: B018
    assert halka.__version__ == version("halka")
    assert (PACKAGE / "py.typed").exists()


def test_every_method_is_public():
    from halka.methods import all_methods

    assert {kind.__name__ for kind in all_methods().values()} <= set(halka.__all__)

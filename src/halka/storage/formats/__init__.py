"""Files of others: reading and writing them so that their tools take ours and we take theirs.

A format is a module or package here that has all of `folder.Format`; nothing is registered. Others are exports alone.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from halka.storage.formats.format import Files, Folder, Format
from halka.util.errors import HalkaError

__all__ = ["Files", "Folder", "Format", "all_formats", "format_named", "format_of"]

OURS = "peft"  # what `save` writes, and as what a folder is read that no format knows


def all_formats() -> dict[str, Format]:
    """Every format in this folder that has adapters both read and written, by its name, in alphabetical order."""
    found: dict[str, Any] = {}
    for module in iter_modules(__path__, prefix=f"{__name__}."):
        each = import_module(module.name)
        if hasattr(each, "found"):
            found[each.NAME] = each
    return dict(sorted(found.items()))


def format_named(name: str) -> Format:
    """The format of that name. Raises ValueError that lists the names there are."""
    formats = all_formats()
    if name not in formats:
        raise HalkaError(f"there is no format {name!r}: choose one of {', '.join(formats)}")
    return formats[name]


def format_of(folder: Path) -> Format:
    """The format whose files a folder holds; our own if none knows them, whose reader tells what is missing."""
    formats = all_formats()
    return next((each for each in formats.values() if each.found(folder)), formats[OURS])

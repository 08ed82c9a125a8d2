"""Names as the disk spells them: a Mac's file system takes `private` for `Private`, and é in two characters for one."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from halka.util.errors import HalkaError


def spelled(path: str | Path) -> Path:
    """An absolute path as the disk spells it, as far as it exists and its folders may be listed."""
    path = Path(path)
    if path == path.parent:
        return path
    folder = spelled(path.parent)
    with suppress(OSError):
        entries = os.listdir(folder)
        if path.name not in entries:
            alike = (entry for entry in entries if _folded(entry) == _folded(path.name))
            name = next((entry for entry in alike if os.path.samefile(path, folder / entry)), path.name)
            return folder / name
    return folder / path.name


def is_spelled(path: Path) -> bool:
    """Whether a portable name that exists in a folder is spelled so there: no other finds it, or it is listed."""
    other = path.with_name(path.name.swapcase())
    return not other.exists() or path.name in os.listdir(path.parent)


def check_new_name(name: str, names: Iterable[str]) -> None:
    """Raises HalkaError for a new name that differs from one of these in capitals alone: on a Mac they are one."""
    other = next((other for other in names if other != name and other.lower() == name.lower()), None)
    if other is not None:
        raise HalkaError(
            f"{name!r} differs from {other!r} in capitals alone, and some systems take them for one: use {other!r}, or "
            "another name"
        )


def _folded(name: str) -> str:
    """What names have in common that differ in case, or in how Unicode spells them."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())

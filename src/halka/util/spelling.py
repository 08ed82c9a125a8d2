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
    place = spelled(path.parent) / path.name
    with suppress(OSError):
        if not is_spelled(place):
            entries, name = os.listdir(place.parent), _folded(place.name)
            alike = (place.with_name(entry) for entry in entries if _folded(entry) == name)
            return next((other for other in alike if os.path.samefile(place, other)), place)
    return place


def is_spelled(path: Path) -> bool:
    """Whether what exists at a path has its name there: no other spelling finds anything, or it is listed."""
    forms = {path.name.swapcase(), *(unicodedata.normalize(form, path.name) for form in ("NFC", "NFD"))}
    others = (path.with_name(form) for form in forms - {path.name})
    return not any(other.exists() for other in others) or path.name in os.listdir(path.parent)


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

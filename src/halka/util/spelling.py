"""Names as the disk spells them: a Mac's file system takes `private` for `Private`, and é in two characters for one."""

from __future__ import annotations

import os
import unicodedata
from contextlib import suppress
from pathlib import Path


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


def _folded(name: str) -> str:
    """What names have in common that differ in case, or in how Unicode spells them."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())

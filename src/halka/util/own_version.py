"""`own_version`: which Halka this is: its number, and a hash of its source files, since one number has many states."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.metadata import version
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
DIGITS = 12


@cache
def own_version() -> str:
    """Such as "0.1.0 (source 5f1b0c2d9e3a)"; the same of a checkout and of a wheel that was built of it."""
    return f"{version('halka')} (source {source_hash(PACKAGE)})"


def source_hash(package: Path) -> str:
    """The first digits of the SHA-256 of a package's Python files and their places in it."""
    total = hashlib.sha256()
    for name, path in sorted((path.relative_to(package).as_posix(), path) for path in package.rglob("*.py")):
        if "node_modules" not in name:  # of the page's tools, in a checkout
            text = path.read_bytes().replace(b"\r\n", b"\n")  # git may check files out with Windows' ends of lines
            total.update(f"{name} {hashlib.sha256(text).hexdigest()}\n".encode())
    return total.hexdigest()[:DIGITS]

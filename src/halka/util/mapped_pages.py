"""Pages of mapped files: read ahead of their use, and released after it."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable, Iterator
from pathlib import Path


def read_ahead(path: Path) -> None:
    """Ask the system to read the file into memory ahead of its use, where it can."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def release_pages(start: int, size: int) -> None:
    """Release the pages at an address, if a file is mapped there (on Linux): they are read again when they are used.

    Changes to the pages that are not in the file are lost.
    """
    if any(low <= start and start + size <= high and _file(rest) for low, high, rest in _mappings()):
        _release(start, start + size)


def release_pages_except(paths: Iterable[Path], kept: Iterable[tuple[int, int]]) -> None:
    """Release all mapped pages of these files, except at the addresses in `kept`, pairs of start and size."""
    files, addresses = {str(path.resolve()) for path in paths}, sorted(kept)
    for low, high, rest in _mappings():
        if _file(rest) not in files:
            continue
        begin = low
        for start, size in addresses:
            if low <= start < high:
                _release(begin, start)
                begin = max(begin, start + size)
        _release(begin, high)


def _mappings() -> Iterator[tuple[int, int, bytes]]:
    """What the process has mapped: first address, address behind the last, the rest of the system's line about it."""
    maps = Path("/proc/self/maps")
    for line in maps.read_bytes().splitlines() if maps.exists() else ():
        addresses, _, rest = line.partition(b" ")
        low, _, high = addresses.partition(b"-")
        yield int(low, 16), int(high, 16), rest


def _file(rest: bytes) -> str | None:
    """The path of the file that is mapped, if one is."""
    _, _, _, _, *path = rest.split(maxsplit=4)
    return os.fsdecode(path[0]) if path and path[0].startswith(b"/") else None


def _release(start: int, end: int) -> None:
    """Release the whole pages between two addresses."""
    page = mmap.PAGESIZE
    first, last = -(-start // page) * page, end // page * page
    if first < last:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_DONTNEED)

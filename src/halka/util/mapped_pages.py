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
    if any(low <= start and start + size <= high for low, high, _ in _mappings()):
        _release(start, start + size)


def release_pages_except(paths: Iterable[Path], kept: Iterable[tuple[int, int]]) -> None:
    """Release all mapped pages of these files, except at the addresses in `kept`, pairs of start and size."""
    files, addresses = {str(path.resolve()) for path in paths}, sorted(kept)
    for low, high, path in _mappings():
        if path not in files:
            continue
        begin = low
        for start, size in addresses:
            if low <= start < high:
                _release(begin, start)
                begin = max(begin, start + size)
        _release(begin, high)


def _mappings() -> Iterator[tuple[int, int, str]]:
    """The process's mapped files: first address, address behind the last, path."""
    maps = Path("/proc/self/maps")
    for line in maps.read_bytes().splitlines() if maps.exists() else ():
        addresses, _, _, _, _, *path = os.fsdecode(line).split(maxsplit=5)
        if path and path[0].startswith("/"):
            low, high = (int(address, 16) for address in addresses.split("-"))
            yield low, high, path[0]


def _release(start: int, end: int) -> None:
    """Release the whole pages between two addresses."""
    page = mmap.PAGESIZE
    first, last = -(-start // page) * page, end // page * page
    if first < last:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_DONTNEED)

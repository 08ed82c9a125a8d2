"""Files that are whole or not there: written beside, flushed to the disk, renamed."""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from halka.util.errors import HalkaError

LOCK = ".lock"


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, then put it in its place: a crash leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        write(beside)
        flush(beside)
        os.replace(beside, path)
        flush(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """`write_file` for text in UTF-8."""
    write_file(path, lambda beside: beside.write_text(text, encoding="utf-8"))


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill beside `path`; at the block's end it takes the place of what was there. An error leaves that."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    beside.mkdir()
    try:
        yield beside
        for file in beside.rglob("*"):
            flush(file)
        flush(beside)
        if path.exists():
            _exchange(beside, path)
        else:
            os.rename(beside, path)
        flush(path.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


@contextmanager
def locked(folder: Path, otherwise: str) -> Iterator[None]:
    """Keep other processes out of a folder, which is made; the system releases the lock of a process that dies.

    Raises HalkaError with the message `otherwise` where another process holds the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise HalkaError(otherwise) from None
    try:
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)
        lock.release()


def soon_needed(path: Path) -> None:
    """Let the system read the file ahead, where it can."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def let_go(start: int, size: int) -> None:
    """Let the system take back the memory where a part of a file is mapped, if it is (on Linux).

    It is read anew if it is used; what was written to the memory alone is lost.
    """
    if any(low <= start and start + size <= high for low, high, _ in _mapped()):
        _take_back(start, start + size)


def let_go_but(paths: Iterable[Path], kept: Iterable[tuple[int, int]]) -> None:
    """The same of all that is mapped of files, but for places of which start and size are given."""
    known, places = {str(path.resolve()) for path in paths}, sorted(kept)
    for low, high, path in _mapped():
        if path not in known:
            continue
        begin = low
        for start, size in places:
            if low <= start < high:
                _take_back(begin, start)
                begin = max(begin, start + size)
        _take_back(begin, high)


def _mapped() -> Iterator[tuple[int, int, str]]:
    """Where files are mapped: from where to where, and which."""
    maps = Path("/proc/self/maps")
    for line in maps.read_text().splitlines() if maps.exists() else ():
        place, _, _, _, _, *of = line.split(maxsplit=5)
        if of and of[0].startswith("/"):
            low, high = (int(each, 16) for each in place.split("-"))
            yield low, high, of[0]


def _take_back(start: int, end: int) -> None:
    """Whole pages alone."""
    page = mmap.PAGESIZE
    first, last = -(-start // page) * page, end // page * page
    if first < last:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_DONTNEED)


def _exchange(one: Path, other: Path) -> None:
    """Swap two folders in one step where the system can (Linux), else in two renames."""
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "renameat2"):
        here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
        if libc.renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0:
            return
    aside = one.with_name(f"{one.name}.old")
    os.rename(other, aside)
    os.rename(one, other)
    os.rename(aside, one)


def flush(path: Path) -> None:
    """Wait until the file's or folder's contents are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

"""Files and folders that a crash leaves whole: written beside, flushed to the disk, renamed. Locks, portable names."""

from __future__ import annotations

import ctypes
import errno
import glob
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from halka.util.errors import HalkaError

LOCK = ".lock"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Numbers of the system's errors that say that there is no room for a file."""
DEVICE = r"(?i:con|nul|aux|prn|com[1-9]|lpt[1-9])(?:\.|\Z)"  # to Windows, in every folder
OF_FILE_MANAGERS = {".DS_Store", ".directory", "Thumbs.db", "desktop.ini"}
ABANDONED = 24 * 3600  # seconds without a write, after which nobody fills a hidden file or folder any more
LEFT = re.compile(r"(?!\d{8}\b)[0-9a-f]{8}(\.old)?")  # how their names end; one of digits alone may be a user's, a date
PORTABLE = re.compile(rf"(?!{DEVICE})[A-Za-z0-9][A-Za-z0-9._-]{{0,99}}")


def place_of(path: Path) -> Path:
    """Where what is written as `path` stands: where a link leads, if that leads anywhere but to itself."""
    return Path(os.path.realpath(path))


def contents(folder: Path) -> list[str]:
    """The sorted names in a folder, without what file managers leave in each that they show; none if it is missing."""
    paths = folder.iterdir() if folder.exists() else ()
    return sorted(path.name for path in paths if path.name not in OF_FILE_MANAGERS)


def check_writable(path: Path) -> None:
    """Raises HalkaError where `path` cannot be created: its nearest parent that exists is a file, or read-only."""
    parent = next((parent for parent in place_of(path).parents if parent.exists()), path)
    if not parent.is_dir():
        raise HalkaError(f"{path} cannot be created, because {parent} is a file: choose another path")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise HalkaError(f"{path} cannot be created, because {parent} is read-only: choose another path")


def check_no_file(folder: Path) -> None:
    """Raises HalkaError for a file where a folder is to be."""
    if folder.exists() and not folder.is_dir():
        raise HalkaError(f"{folder} is a file: name a folder")


@contextmanager
def full_disk_named(path: Path) -> Iterator[None]:
    """Names `path` in the error of a full disk, where the system names no file: it does not when it writes."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL and error.filename is None:
            error.filename = str(path)
        raise


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, then rename it: a crash leaves the old file or the new one.

    Where `path` is a link, the file that it leads to is replaced; one that leads to itself is replaced. What a killed
    process left is removed after a day.
    """
    path = place_of(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with full_disk_named(path):
            write(beside)
            flush(beside)
            os.replace(beside, path)
            flush(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """`write_file` for text in UTF-8."""
    write_file(path, lambda beside: beside.write_text(text, encoding="utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """`write_file` for bytes."""
    write_file(path, lambda beside: beside.write_bytes(content))


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill beside `path`, which it replaces at the block's end; an error leaves `path` as it was.

    Where `path` is a link, the folder that it leads to is replaced. What a killed process left is removed after a day.
    On a file system that cannot swap folders, such as NFS, there is a moment without `path`: a crash then leaves the
    older folder under a hidden name, from which the next call brings it back.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    _bring_back(path)
    _remove_abandoned(path)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    beside.mkdir()
    try:
        with full_disk_named(path):
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

    Raises HalkaError with the message `otherwise` where another process holds the lock, and for a file.
    """
    check_no_file(folder)
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


@contextmanager
def held_if_writable(lock: FileLock) -> Iterator[bool]:
    """Hold the lock; do without on a disk or in a folder that is only read here. Yields whether it is held.

    Raises PermissionError for a lock's file of somebody else's in a folder that can be written to, and OSError for one
    that cannot be opened for another reason, such as a full disk.
    """
    try:
        lock.acquire()
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        if error.errno != errno.EROFS and os.access(Path(lock.lock_file).parent, os.W_OK):
            way_out = "make the file yours to write to, or remove it where no other process uses its folder"
            raise PermissionError(error.errno, f"{error.strerror}: {way_out}", lock.lock_file) from None
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


@contextmanager
def in_turn(path: Path) -> Iterator[None]:
    """Hold a lock on this file, which is made and stays, once no other process does; that of a dead one is free."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path):
        yield


def portable_name(name: object, use: str) -> str:
    """The name, if it can be a file name on any system. Raises HalkaError, which says that it cannot `use`."""
    if not isinstance(name, str) or not is_portable_name(name):
        raise HalkaError(
            f"{name!r} cannot {use}: use up to 100 letters, digits, dots, dashes and underscores, a letter or digit "
            "first, no dot last, and no name that Windows has for a device, such as con or nul"
        )
    return name


def is_portable_name(name: str) -> bool:
    """Whether a file can have this name on any system. An adapter's and a collection's name must."""
    return PORTABLE.fullmatch(name) is not None and not name.endswith(".")


def _exchange(one: Path, other: Path) -> None:
    """Swap two folders in one step where the system and the file system can, else in three renames."""
    if _swap(one, other):
        return
    aside = one.with_name(f"{one.name}.old")
    with suppress(OSError):  # it may be another user's
        os.utime(other)  # so that it counts as abandoned a day from now
    os.rename(other, aside)
    try:
        os.rename(one, other)
    except BaseException:
        if not other.exists():
            os.rename(aside, other)
        raise
    os.rename(aside, one)


def _swap(one: Path, other: Path) -> bool:
    """Swap two folders in one step. Returns whether that could be done."""
    libc, first, second = ctypes.CDLL(None), os.fsencode(one), os.fsencode(other)
    if hasattr(libc, "renameat2"):  # Linux
        at_cwd, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
        return libc.renameat2(at_cwd, first, at_cwd, second, exchange) == 0
    if hasattr(libc, "renamex_np"):  # macOS
        return libc.renamex_np(first, second, 2) == 0  # RENAME_SWAP
    return False


def _bring_back(path: Path) -> None:
    """Rename the older folder back that a crash between two renames of `_exchange` left, if `path` is missing."""
    if not path.exists():
        with suppress(FileNotFoundError):  # another process was sooner
            left = path.parent.glob(f".{glob.escape(path.name)}.????????.old")
            for aside in sorted(left, key=lambda folder: folder.stat().st_mtime)[-1:]:
                os.rename(aside, path)


def _remove_abandoned(path: Path) -> None:
    """Remove what killed processes were filling for `path`, and older folders that they had moved aside."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*"):
        if not LEFT.fullmatch(left.name.removeprefix(f".{path.name}.")):
            continue
        with suppress(OSError):  # its writer, or another process, has removed it
            written = max(entry.lstat().st_mtime for entry in (left, *left.rglob("*")))
            if time.time() - written <= ABANDONED:
                continue
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink()


def flush(path: Path) -> None:
    """Wait until the file's or folder's contents are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

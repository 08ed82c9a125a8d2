"""Locks on files (`flock`), which a process holds as long as it, or one that it starts, has the file open."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = ".lock"


def open_lock(path: Path) -> int:
    """The descriptor of a lock's file, which is made if it is not there; no link is followed."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)


def try_lock(file: int, kind: int) -> bool:
    """Take a lock of this kind, LOCK_SH or LOCK_EX, if nobody is in the way. Returns whether it could."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Wait until nobody else is in such a block for a folder, which is made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = open_lock(folder / LOCK)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)

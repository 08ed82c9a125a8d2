"""Locks on files (`flock`), which a process holds as long as it, or one that it starts, has the file open."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


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

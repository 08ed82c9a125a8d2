"""A disk without room, by the system's own limit on a file's size: whoever writes past it gets an error."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    """No file may get larger than `size` bytes."""
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file may get larger than `size` bytes, and the block must end because one does."""
    with file_limit(size), pytest.raises(OSError, match="File too large"):
        yield

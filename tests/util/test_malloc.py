"""Threads share as many of malloc's arenas as they may, unless the environment says how many."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, os, sys, threading
from halka.util.malloc import bound_arenas
if sys.argv[1:]:
    bound_arenas(int(sys.argv[1]))
together = threading.Barrier(6)
def hold():
    text = bytearray(100_000)
    together.wait()
threads = [threading.Thread(target=hold) for _ in range(6)]
for thread in threads: thread.start()
for thread in threads: thread.join()
libc = ctypes.CDLL(None)
libc.fdopen.restype = ctypes.c_void_p
stream = ctypes.c_void_p(libc.fdopen(1, b"w"))
libc.malloc_info(0, stream)
libc.fflush(stream)
"""


def arenas(*arguments: str, **environment: str) -> int:
    """How many there are when six threads have allocated."""
    kept = {name: value for name, value in os.environ.items() if name not in ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.count("<heap nr=")


@pytest.mark.skipif(
    not hasattr(os, "confstr") or "glibc" not in str(os.confstr("CS_GNU_LIBC_VERSION")), reason="glibc's"
)
def test_threads_share_as_many_arenas_as_they_may():
    assert arenas() > 2
    assert arenas("1") == 1
    assert arenas("2") == 2
    assert arenas("1", MALLOC_ARENA_MAX="2") == 2, "what the environment sets is left alone"

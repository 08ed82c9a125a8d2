"""The environment in which Halka's processes compute: how long OpenMP's threads spin while they wait for work."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

THREADS = "OMP_NUM_THREADS"
SHARED = "HALKA_SHARE_CORES"  # 1: the process shares the cores with others of Halka's (`core_share.py`)
BRIEFLY = {
    "GOMP_SPINCOUNT": "10000",  # some tenths of a millisecond, while a step's next product comes
    "OMP_WAIT_POLICY": "ACTIVE",  # spin as long in a process with more threads of OpenMP's than processors
    "KMP_BLOCKTIME": "1",  # milliseconds, in LLVM's and Intel's OpenMP, which would take ACTIVE for "for ever"
}


def wait_briefly(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let threads of OpenMP sleep soon after they run out of work, but not at once.

    Libraries read it when they are loaded: call this before torch is imported, or for a new process's environment. What
    the user has set stays, whatever it is. A thread that sleeps between two products of a step is late for the next
    one; more spins gain nothing, and keep other programs from the processor (docs/log.md). Sleeping at once is what
    GNU's OpenMP, which torch has on Linux, does by itself where a process has more of its threads than processors: two
    Python threads that compute are enough, since each has a team of its own; every parallel region then waits for one
    to wake up.
    """
    if not environment.keys() & BRIEFLY:
        environment.update(BRIEFLY)


def share_cores(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let a process wait briefly, and share the cores with others of Halka's, unless the user has set otherwise."""
    wait_briefly(environment)
    environment.setdefault(SHARED, "1")


def environment(threads: int) -> dict[str, str]:
    """The environment of a new process that computes in so many threads."""
    own = {**os.environ, THREADS: str(threads), "TOKENIZERS_PARALLELISM": "false"}
    share_cores(own)
    return own

"""OpenMP's threads, and how long they spin while they wait for work."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

SPINS = "1000"  # some microseconds: about as long as a step's next product takes to come


def wait_briefly(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let threads of GNU's OpenMP, which torch has on Linux, sleep soon after they run out of work.

    Libraries read it when they are loaded: call this before torch is imported, or for a new process's environment. What
    the user has set stays. Spinning for longer gains nothing alone, and where two processes share the processor each
    keeps it from the other (`benchmarks/two_processes.py`).
    """
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", SPINS)

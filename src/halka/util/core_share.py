"""The share of the machine's cores that falls to this process, while others of Halka's compute beside it.

OpenMP's threads spin while they wait for each other. Without that a process takes up to 1.7 times as long; with it two
whose threads are more than the cores take several times as long (`benchmarks/two_processes.py`). So the processes of
the command line share the cores out: while two compute on four cores, each does so in two threads.

A process that computes keeps a file in a folder that all processes of its user see. The file's time lies ahead: it is
when the process counts no longer, if it computes nothing until then. So the cores of one that dies are free again.
"""

from __future__ import annotations

import atexit
import functools
import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import torch

from halka.util.machine import CPU, cores
from halka.util.openmp import SHARED, THREADS

OFTEN = 0.25  # seconds: so far apart at least are two looks at the others
FIRST = 10.0  # seconds that a process counts for before its first step's end
LEAST, MOST = 2.0, 300.0  # seconds that it counts for after one, three times as long as the step within these
OLD = 3600.0  # seconds after which the file of a process that died is removed


class CoreShare:
    """This process's share of so many cores, among the processes with a file in `folder`.

    fixed   whether it keeps its threads; the others see that it computes
    """

    def __init__(self, folder: Path, cores: int, *, fixed: bool = False):
        self.folder, self.cores, self.fixed = folder, cores, fixed
        self._own = folder / f"{os.getpid()}-{time.monotonic_ns()}"
        self._taken = self._looked = 0.0  # when, by the monotonic clock; 0 while it does not compute
        self._threads = cores

    def take(self) -> None:
        """Count as one that computes, and let this thread compute with the process's share: called before each step.

        Where the folder cannot be written the process computes with all cores.
        """
        now = time.monotonic()
        if now - self._looked >= OFTEN:
            try:
                others = self._others(now - self._taken if self._taken else None)
            except OSError:
                others = 0
            self._threads, self._looked = max(1, self.cores // (1 + others)), now
        self._taken = now
        if not self.fixed and torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)

    def give_back(self) -> None:
        """Count no longer."""
        if self._taken:
            self._taken = self._looked = 0.0
            with suppress(OSError):  # as it could not be written
                self._own.unlink()

    def _others(self, step: float | None) -> int:
        """How many other processes compute now; this one's file gets its time, after a step of so many seconds."""
        now = time.time()
        ends = now + (FIRST if step is None else min(max(3 * step, LEAST), MOST))
        self.folder.mkdir(parents=True, exist_ok=True)
        self._own.touch()
        os.utime(self._own, (ends, ends))
        times = {file: _time(file) for file in self.folder.iterdir() if file != self._own}
        for file, ended in times.items():
            if ended < now - OLD:
                file.unlink(missing_ok=True)
        return sum(ended > now for ended in times.values())


def _time(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except FileNotFoundError:  # its process has just ended
        return 0.0


def take_cores(device: torch.device) -> None:
    """Compute with this process's share of the cores, if it shares them: called before a step on that device."""
    if device == CPU and (share := _share()) is not None:
        share.take()


def give_cores_back() -> None:
    """Leave this process's cores to the others, until its next step."""
    if (share := _share()) is not None:
        share.give_back()


@functools.cache
def _share() -> CoreShare | None:
    """This process's share; None where it does not share. Where the environment sets the threads they stay."""
    if os.environ.get(SHARED) != "1":
        return None
    user = os.getuid() if hasattr(os, "getuid") else "own"  # where there is no such number each has a folder
    share = CoreShare(Path(tempfile.gettempdir(), f"halka-cores-{user}"), cores(), fixed=THREADS in os.environ)
    atexit.register(share.give_back)
    return share

"""The share of the machine's cores that falls to this process, while others of Halka's compute beside it.

OpenMP's threads spin while they wait for each other. Two processes whose threads are more than the cores take several
times as long so (`benchmarks/two_processes.py`). Hence the processes of the command line share the cores out: while two
compute on four cores, each does so in two threads.

A process that computes keeps a file in a folder that all processes of its user on this machine see. Its name says which
cores the process may use, and how many threads it keeps if it shares none. Its time lies ahead: it is when the process
counts no longer, if it computes nothing until then. So the cores of one that dies are free again.
"""

from __future__ import annotations

import atexit
import functools
import os
import re
import socket
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from halka.util.errors import HalkaError
from halka.util.machine import CPU, cores
from halka.util.openmp import SHARED, THREADS

OFTEN = 0.25  # seconds from one look at the others to the next, at least
FIRST = 10.0  # seconds that a process counts for before its first step's end
LEAST, MOST = 2.0, 300.0  # seconds that it counts for after one, three times as long as its steps take within these
OLD = 3600.0  # seconds after which the file of a process that died is removed
NAME = re.compile(r"\d+-\d+-(\d+)-([0-9a-f]+)")  # process, time, threads that it keeps or 0, bits of its cores


class CoreShare:
    """This process's share of at most so many cores, among the processes with a file in `folder`.

    bound   the cores that it may use, as bits; other processes count if they may use one of these
    fixed   the threads that it keeps, which the others leave to it; 0: it shares
    often   seconds: so far apart at least are two looks at the others
    clock   tells the time, as the module `time` does
    """

    def __init__(
        self, folder: Path, cores: int, *, bound: int = 1, fixed: int = 0, often: float = OFTEN, clock: Any = time
    ):
        self.folder, self.cores, self.bound, self.fixed, self.often = folder, cores, bound, fixed, often
        self._clock = clock
        self._own = folder / f"{os.getpid()}-{time.monotonic_ns()}-{fixed}-{bound:x}"
        self._lock = threading.Lock()  # loop and engine may compute in two threads
        self._taken = self._looked = 0.0  # when, by the monotonic clock; 0 while it does not compute
        self._step = 0.0  # seconds that its steps take, the longer ones of late
        self._threads = cores

    def take(self) -> None:
        """Count as one that computes, and let this thread compute with the process's share: called before each step.

        Where the folder cannot be written, or is somebody else's, the process computes with all cores. So it does not
        share where kernels shall give the same bits each time, which depend on the threads.
        """
        with self._lock:
            now = self._clock.monotonic()
            if self._taken:
                self._step = max(now - self._taken, self._step / 2)
            if now - self._looked >= self.often:
                try:
                    self._threads = self._share()
                except OSError:
                    self._threads = self.cores
                self._looked = now
            self._taken = now
        self._compute_in(self._threads)

    def give_back(self) -> None:
        """Count no longer."""
        with self._lock:
            if self._taken:
                self._taken = self._looked = 0.0
                with suppress(OSError):  # as it could not be written
                    self._own.unlink()
        self._compute_in(self.cores)

    def _compute_in(self, threads: int) -> None:
        """Let this thread compute in so many, unless its threads are to stay."""
        stay = self.fixed or torch.are_deterministic_algorithms_enabled()
        if not stay and torch.get_num_threads() != threads:
            torch.set_num_threads(threads)

    def _share(self) -> int:
        """This process's share now; its file gets its time."""
        now = self._clock.time()
        ends = now + min(max(3 * self._step, LEAST if self._step else FIRST), MOST)
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if hasattr(os, "getuid") and self.folder.stat().st_uid != os.getuid():
            return self.cores
        self._own.touch()
        os.utime(self._own, (ends, ends))
        kept, sharing = 0, 1
        for file in self.folder.iterdir():
            name = NAME.fullmatch(file.name)
            if file == self._own or name is None or not int(name[2], 16) & self.bound:
                continue
            ended = _time(file)
            if ended < now - OLD:
                file.unlink(missing_ok=True)
            elif now < ended <= now + MOST:
                threads = int(name[1])
                kept, sharing = kept + threads, sharing + (threads == 0)
        return max(1, (self.cores - kept) // sharing)


def _time(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except FileNotFoundError:  # its process has just ended
        return 0.0


def take_cores(device: torch.device) -> None:
    """Compute with this process's share of the cores, if it shares them: called before a step on that device."""
    if device == CPU and (share := _own_share()) is not None:
        share.take()


def give_cores_back() -> None:
    """Leave this process's cores to the others, until its next step."""
    if (share := _own_share()) is not None:
        share.give_back()


@functools.cache
def _own_share() -> CoreShare | None:
    """This process's share; None where it does not share. Raises HalkaError for a variable that is neither 0 nor 1."""
    wanted = os.environ.get(SHARED, "0")
    if wanted not in ("0", "1"):
        raise HalkaError(f"{SHARED} is 1 for a process that shares the cores, or 0, not {wanted!r}")
    if wanted == "0":
        return None
    try:
        temporary = Path(tempfile.gettempdir())
    except FileNotFoundError:  # nothing can be written, so nothing is shared
        return None
    user = os.getuid() if hasattr(os, "getuid") else "own"  # where there is no such number each has a folder
    threads = torch.get_num_threads()  # no more than torch takes by itself: one for each of two that are one core's
    share = CoreShare(
        temporary / f"halka-cores-{socket.gethostname()}-{user}",
        min(cores(), threads),
        bound=sum(1 << core for core in os.sched_getaffinity(0)) if sys.platform == "linux" else 1,
        fixed=threads if THREADS in os.environ else 0,
    )
    atexit.register(share.give_back)
    return share

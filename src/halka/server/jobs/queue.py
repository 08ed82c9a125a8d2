"""`JobQueue`: the jobs of all tenants, so many at a time; each runs in a process of its own.

Tenants take turns: the next job is the oldest of the tenant whose last job was started longest ago. That is the time of
the file `.started` beside its jobs, which stays when jobs are removed.

The queue is the jobs' folders: a server that begins anew finds what waits and what runs. Several servers of one folder
start no job twice, since one at a time looks, and hands the job's lock to the process that it starts.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from halka.server.apart import environment
from halka.server.jobs.folder import ENDED, JOB, LOG, STATE, STOP, JobFolder, jobs_in
from halka.util.python import program

EVERY = 1.0  # seconds between two looks
RESTART_PAUSE = 60.0  # seconds from a job's start to the next, where it ended without writing a state: on a full disk
STARTED = ".started"
Stamp = tuple[tuple[int, int] | None, ...]
log = logging.getLogger("halka.server.jobs")


class JobQueue:
    """Starts what is due.

    folders  the tenants' folders of jobs, as they are now
    lock     a file: who holds it may start jobs
    at_once  jobs that run at a time; 0: none is started here
    """

    def __init__(self, folders: Callable[[], Iterable[Path]], lock: Path, at_once: int = 1):
        self._folders, self._lock, self.at_once = folders, lock, at_once
        self._ended: dict[Path, Stamp] = {}  # jobs that have ended, with the files that say so
        self._damaged: dict[Path, Stamp] = {}  # those that the log names already
        self._begun: dict[Path, tuple[Stamp, float]] = {}  # jobs that were started here: their files before, and when
        self._processes = set[int]()  # started here and not ended yet
        self._task: asyncio.Task[None] | None = None

    def look(self) -> int:
        """Start the jobs that are due; returns how many run now."""
        self._reap()
        if self.at_once < 1:
            return 0
        self._lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self._lock, timeout=0):
                waiting, running = self._under_way()
                while waiting and running < self.at_once:
                    job = min(waiting, key=_last_start)  # of equals the oldest
                    waiting.remove(job)
                    with self._others_go_on(job):
                        running += self._start(job)
                return running
        except Timeout:  # another server is looking
            return 0

    def start(self) -> None:
        """Look again and again, in the running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._watch(), name="halka-jobs")

    async def aclose(self) -> None:
        """Start no more; what runs goes on."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    @property
    def alive(self) -> bool:
        """Whether it starts jobs, or was never asked to."""
        return self._task is None or not self._task.done()

    async def _watch(self) -> None:
        logged = ""
        while True:
            try:
                await asyncio.to_thread(self.look)
                logged = ""
            except Exception as error:
                if (reason := repr(error)) != logged:
                    log.exception("the queue of jobs cannot be read")
                logged = reason
            await asyncio.sleep(EVERY)

    def _under_way(self) -> tuple[list[JobFolder], int]:
        """The jobs that wait, the oldest first, and the number of those that run."""
        waiting, running = list[tuple[int, JobFolder]](), 0
        jobs = [job for folder in self._folders() for job in jobs_in(folder)]
        for kept in (self._ended, self._damaged, self._begun):
            for path in kept.keys() - {job.path for job in jobs}:
                del kept[path]
        for job in jobs:
            with self._others_go_on(job):
                stamp = _stamp(job)
                if self._ended.get(job.path) == stamp:
                    continue
                state = job.state()
                if state == "queued":
                    job.request()
                    before, begun = self._begun.get(job.path, (None, 0.0))
                    if before != stamp or time.monotonic() - begun >= RESTART_PAUSE:
                        waiting.append((job.written()["queued"], job))
                elif state in ENDED:
                    self._ended[job.path] = stamp
                else:
                    running += 1
        return [job for _, job in sorted(waiting, key=lambda pair: pair[0])], running

    @contextmanager
    def _others_go_on(self, job: JobFolder) -> Iterator[None]:
        """Pass over a job that is removed meanwhile or damaged; the log names it once, and again where it changes."""
        try:
            yield
        except Exception as error:
            if job.path.exists() and self._damaged.get(job.path) != (stamp := _stamp(job)):
                self._damaged[job.path] = stamp
                log.warning("%s is passed over: %s", job.id, error)

    def _start(self, job: JobFolder) -> bool:
        """Start a job's process, which holds the job's lock from its first moment. Returns whether it could."""
        if (lock := job.claim()) is None:
            return False
        try:
            if job.state() == "stopping":  # it was stopped just now
                return False
            stamp = _stamp(job)
            messages = os.open(job.path / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                arguments = program("halka.server.jobs.process", str(job.path), str(lock))
                files = [(os.POSIX_SPAWN_DUP2, messages, 1), (os.POSIX_SPAWN_DUP2, messages, 2)]
                pid = os.posix_spawn(
                    sys.executable, arguments, environment(os.environ), file_actions=files, setsid=True
                )
            finally:
                os.close(messages)
        finally:
            os.close(lock)
        if self._begun.get(job.path, (None,))[0] == stamp:
            log.warning("%s begins again: it ended before it could write that it runs, as on a full disk", job.id)
        self._begun[job.path] = stamp, time.monotonic()
        self._processes.add(pid)
        with suppress(OSError):  # a full disk keeps no job from running
            (job.path.parent / STARTED).touch()
        return True

    def _reap(self) -> None:
        """Take note of processes that have ended."""
        for pid in [*self._processes]:
            with suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG) == (0, 0):
                    continue
            self._processes.discard(pid)


def _last_start(job: JobFolder) -> int:
    """When a job of the same tenant was last started; 0: never."""
    try:
        return (job.path.parent / STARTED).stat().st_mtime_ns
    except OSError:
        return 0


def _stamp(job: JobFolder) -> Stamp:
    """Which files say what the job is and how it is."""

    def of(path: Path) -> tuple[int, int] | None:
        try:
            file = os.stat(path)
        except FileNotFoundError:
            return None
        return file.st_mtime_ns, file.st_ino

    return tuple(of(job.path / name) for name in (JOB, STATE, STOP))

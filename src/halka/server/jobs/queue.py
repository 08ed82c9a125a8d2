"""`JobQueue`: the jobs of all tenants, oldest first, so many at a time; each runs in a process of its own.

The queue is the jobs' folders: a server that begins anew finds what waits and what runs. Several servers of one folder
start no job twice, since one at a time looks, and hands the job's lock to the process that it starts.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from halka.server.jobs.folder import ENDED, LOG, JobFolder, jobs_in
from halka.server.jobs.process import environment
from halka.util.errors import HalkaError

EVERY = 1.0  # seconds between two looks
log = logging.getLogger("halka.server.jobs.routes")


class JobQueue:
    """Starts what is due.

    folders  the tenants' folders of jobs, as they are now
    lock     a file: who holds it may start jobs
    at_once  jobs that run at a time; 0: none is started here
    """

    def __init__(self, folders: Callable[[], Iterable[Path]], lock: Path, at_once: int = 1):
        self._folders, self._lock, self.at_once = folders, lock, at_once
        self._ended: dict[Path, tuple[int, int]] = {}  # jobs that have ended, with the state file that says so
        self._processes = set[int]()  # started here and not ended yet
        self._task: asyncio.Task[None] | None = None

    def look(self) -> int:
        """Start the jobs that are due; returns how many run now."""
        self._bury()
        if self.at_once < 1:
            return 0
        self._lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self._lock, timeout=0):
                waiting, running = self._under_way()
                for job in waiting:
                    if running >= self.at_once:
                        break
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

    async def _watch(self) -> None:
        while True:
            try:
                await asyncio.to_thread(self.look)
            except (OSError, HalkaError):
                log.exception("the queue of jobs cannot be read")
            await asyncio.sleep(EVERY)

    def _under_way(self) -> tuple[list[JobFolder], int]:
        """The jobs that wait, in their order, and the number of those that run."""
        waiting, running = list[tuple[int, JobFolder]](), 0
        for job in (job for folder in self._folders() for job in jobs_in(folder)):
            try:
                file = os.stat(job.path / "state.json")
                if self._ended.get(job.path) == (file.st_mtime_ns, file.st_ino):
                    continue
                state = job.state()
                if state == "queued":
                    waiting.append((job.written()["queued"], job))
                elif state in ENDED:
                    self._ended[job.path] = file.st_mtime_ns, file.st_ino
                else:
                    running += 1
            except (OSError, HalkaError) as error:  # removed meanwhile, or damaged: the others go on
                log.warning("%s is passed over: %s", job.id, error)
        return [job for _, job in sorted(waiting, key=lambda pair: pair[0])], running

    def _start(self, job: JobFolder) -> bool:
        """Start a job's process, which holds the job's lock from its first moment. Returns whether it could."""
        if (lock := job.claim()) is None:
            return False
        try:
            if job.state() == "stopping":  # it was stopped just now
                return False
            messages = os.open(job.path / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                arguments = [sys.executable, "-m", "halka.server.jobs.process", str(job.path), str(lock)]
                files = [(os.POSIX_SPAWN_DUP2, messages, 1), (os.POSIX_SPAWN_DUP2, messages, 2)]
                pid = os.posix_spawn(
                    sys.executable, arguments, environment(os.environ), file_actions=files, setsid=True
                )
            finally:
                os.close(messages)
        finally:
            os.close(lock)
        self._processes.add(pid)
        return True

    def _bury(self) -> None:
        """Take note of processes that have ended."""
        for pid in [*self._processes]:
            with suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG) == (0, 0):
                    continue
            self._processes.discard(pid)

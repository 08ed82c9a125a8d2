"""`JobFolder`: one job on the disk. What its files and its lock say is its state, whoever was killed meanwhile.

    jobs/job-5f3a…/
      job.json       what was asked, and the command that does it; written once
      state.json     queued, running, stopped, failed or done, as it was last written
      stop           somebody asked the job to stop
      data.jsonl …   the data that came with it; what came as a file is data/letters.csv
      output.json    what the command printed; log.txt its messages
      run/           a training's folder; merged/ or merged.gguf what a merge wrote
      .lock          held by the job's process and the command that it runs, from before they begin until they end;
                     its text is the process's id, and where that counts

A job whose state is `running` and whose lock nobody holds was killed: it is `interrupted`. One whose lock is held runs,
whatever its other files say.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from halka.server.locks import open_lock, try_lock
from halka.util.errors import DamagedFolderError, HalkaError
from halka.util.files import is_portable_name, new_folder, write_text

State = Literal["queued", "running", "stopping", "stopped", "interrupted", "failed", "done"]
ENDED: tuple[State, ...] = ("stopped", "interrupted", "failed", "done")
JOB, STATE, STOP, LOCK = "job.json", "state.json", "stop", ".lock"
OUTPUT, LOG, RUN, MERGED = "output.json", "log.txt", "run", "merged"
WRITTEN = ("queued", "running", "stopped", "failed", "done")
OF_REQUEST = {"kind": str, "settings": dict, "command": list, "hidden": dict, "created": int}
OF_STATE = {"state": str, "queued": int}
"""What the files hold at least, and of which type."""


@dataclass(frozen=True)
class JobRequest:
    """What a job is to do.

    kind      train, evaluate, advise or merge
    settings  as the client gave them
    command   what does it, in the job's folder
    name      of the adapter that comes of it; none for other kinds
    store     the folder of the store that gets this adapter, whole or as seen from the job's; `storage` has such paths
    storage   what counts against the tenant's limit, where this adapter must fit
    room      bytes that the command may write, held while it runs
    hidden    paths that no message to a client may have, with the words for them
    """

    kind: str
    settings: Mapping[str, Any]
    command: list[str]
    name: str | None = None
    store: str | None = None
    storage: Mapping[str, Any] | None = None
    room: int = 0
    hidden: Mapping[str, str] = field(default_factory=dict[str, str])
    created: int = 0


@dataclass(frozen=True)
class JobFolder:
    """The folder of one job. Any number of processes may read it; the queue's lock is for those that start it."""

    path: Path

    @classmethod
    def new(cls, jobs: Path, request: JobRequest, files: Mapping[str, Path], limit: int | None = None) -> JobFolder:
        """Queue a job: it is there with its data, or not at all. The `files` are moved.

        limit  the bytes that its tenant may store, by the key that asks
        """
        path = jobs / f"job-{secrets.token_hex(8)}"
        with new_folder(path) as beside:
            for name, file in files.items():
                (beside / name).parent.mkdir(exist_ok=True)
                os.replace(file, beside / name)
            described = vars(request) | {"created": now()}
            (beside / JOB).write_text(json.dumps(described, ensure_ascii=False), encoding="utf-8")
            (beside / STATE).write_text(
                json.dumps({"state": "queued", "queued": time.time_ns(), "limit": limit}), encoding="utf-8"
            )
        return cls(path)

    @property
    def id(self) -> str:
        return self.path.name

    def request(self) -> JobRequest:
        """What the job is to do. Raises DamagedFolderError where that is not whole."""
        try:
            return JobRequest(**_read(self.path / JOB, OF_REQUEST))
        except TypeError:
            raise _damaged(self.path / JOB) from None

    # ── its state ───────────────────────────────────────────────────────────────────────────────────────────────

    def written(self) -> dict[str, Any]:
        """The state as it was last written, with when it was queued, began and ended, and why it failed.

        Raises DamagedFolderError for a file that does not say it, FileNotFoundError for a job that was removed.
        """
        written = _read(self.path / STATE, OF_STATE)
        if written["state"] not in WRITTEN:
            raise _damaged(self.path / STATE)
        return written

    def write(self, **state: Any) -> None:
        """Change these entries of the state."""
        write_text(self.path / STATE, json.dumps({**self.written(), **state}, ensure_ascii=False))

    def state(self) -> State:
        """What is true of it now. Raises DamagedFolderError for a job that does not run and whose state is damaged."""
        try:
            state: State = self.written()["state"]
        except DamagedFolderError:
            if (under_way := self.under_way) is None:
                raise
            return under_way
        if state not in ("queued", "running"):
            return state
        if (under_way := self.under_way) is not None:
            return under_way
        state = self.written()["state"]  # again: it may have begun and ended between the two looks
        if state == "queued":
            return "stopped" if self.stop_asked else "queued"
        return "interrupted" if state == "running" else state

    @property
    def under_way(self) -> Literal["running", "stopping"] | None:
        """Whether it runs and whether it was asked to stop, also where its files are damaged."""
        stop = self.stop_asked
        return ("stopping" if stop else "running") if self.alive else None

    @property
    def alive(self) -> bool:
        """Whether its process, or the command that this has begun, is there."""
        lock = open_lock(self.path / LOCK)
        try:
            return not try_lock(lock, fcntl.LOCK_SH)
        finally:
            os.close(lock)

    def claim(self) -> int | None:
        """An inheritable descriptor that holds the lock, for its process; None if somebody holds it."""
        lock = open_lock(self.path / LOCK)
        if not try_lock(lock, fcntl.LOCK_EX):
            os.close(lock)
            return None
        os.ftruncate(lock, 0)  # the id of an earlier process
        os.set_inheritable(lock, True)
        return lock

    @staticmethod
    def sign(lock: int) -> None:
        """Write this process's id into the lock that it has inherited, and where it counts, for those who stop it."""
        os.pwrite(lock, f"{os.getpid()} {_namespace()}".encode(), 0)

    @property
    def process(self) -> int | None:
        """The id of the process that leads the job's group; None before it begins.

        Raises HalkaError where it is in another container, in which this process could end another one by that id.
        """
        try:
            id, *namespace = (self.path / LOCK).read_text().split()
            process = int(id)
        except (OSError, ValueError):
            return None
        if namespace not in ([], [_namespace()]):  # none: of a process that an earlier version began
            raise HalkaError(f"{self.id} runs in another container: stop it at the server there")
        return process if process > 1 else None

    # ── what may be done with it ────────────────────────────────────────────────────────────────────────────────

    def stop(self) -> None:
        """Ask it to stop: a training ends after its step, with a checkpoint. Asked again, it ends at once.

        Raises HalkaError for a job that has ended.
        """
        if (state := self.state()) in ENDED:
            raise HalkaError(f"{self.id} is {state}: it cannot be stopped")
        again, process = self.stop_asked, self.process if self.alive else None
        (self.path / STOP).touch()
        if process is None:  # it has perhaps not written its id yet, and sees the file before it begins
            process = self.process if self.alive else None
        if process is not None:
            with suppress(ProcessLookupError):
                os.killpg(process, signal.SIGINT if again else signal.SIGTERM)  # a training heeds SIGTERM once

    def resume(self, limit: int | None = None) -> None:
        """Queue it again; a training goes on from its checkpoint. Raises HalkaError for one that need not be.

        limit  as `new` has it
        """
        if (state := self.state()) not in ENDED or state == "done":
            raise HalkaError(f"{self.id} is {state}: only what was stopped, interrupted or failed is resumed")
        log = self.path / LOG
        size = log.stat().st_size if log.exists() else 0
        self.write(state="queued", queued=time.time_ns(), limit=limit, ended=None, error=None, log=size)
        (self.path / STOP).unlink(missing_ok=True)  # last: from here on it may begin

    def messages(self, most: int | None = None) -> str:
        """What its command has written since it was queued, or resumed; of that the last `most` bytes."""
        begin = self.written().get("log")
        try:
            with (self.path / LOG).open("rb") as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(max(begin if isinstance(begin, int) else 0, 0 if most is None else end - most))
                return file.read().decode(errors="replace")
        except FileNotFoundError:
            return ""

    @property
    def stop_asked(self) -> bool:
        return (self.path / STOP).exists()


def jobs_in(folder: Path) -> list[JobFolder]:
    """The jobs in a folder; those of others, reached by links, are none."""
    if not folder.is_dir():
        return []
    paths = (path for path in folder.iterdir() if path.name.startswith("job-") and is_portable_name(path.name))
    return [JobFolder(path) for path in sorted(paths) if not path.is_symlink() and path.is_dir()]


def now() -> int:
    """The time, in seconds of Unix."""
    return int(time.time())


def _read(path: Path, types: Mapping[str, type]) -> dict[str, Any]:
    """A file's object, which has values of these types."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and all(isinstance(content.get(name), type) for name, type in types.items()):
            return content
    except FileNotFoundError:
        if not path.parent.exists():
            raise
    except (OSError, ValueError, RecursionError):
        pass
    raise _damaged(path)


def _damaged(path: Path) -> DamagedFolderError:
    return DamagedFolderError(f"{path.name} of {path.parent.name} is damaged: remove the job")


def _namespace() -> str:
    """What tells the process ids of this container from those of others; "here" where the system has no containers."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return "here"

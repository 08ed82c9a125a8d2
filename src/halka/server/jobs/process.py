"""A job's own process: `python -m halka.server.jobs.process FOLDER LOCK`, which nobody waits for.

It runs the job's command in the job's folder and writes how that ended; a trained adapter goes into the tenant's store.
The command has the lock, too: as long as one of both is there, the job is running and no server begins it again.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from halka.server.apart import end_first
from halka.server.jobs.folder import LOG, MERGED, OUTPUT, RUN, JobFolder, JobRequest, now
from halka.server.storage import Reservation, Storage, bytes_below, seen_from
from halka.util.errors import HalkaError

NICE = 10  # who serves goes first


def main(folder: str, lock: str) -> None:
    """Run a job whose lock this process has inherited, and write how it ended."""
    job, signals = JobFolder(Path(folder)), list[int]()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: signals.append(number))
    job.sign(int(lock))
    os.nice(NICE)
    end_first()
    request = job.request()
    job.write(state="running", started=job.written().get("started") or now())
    if job.stop_asked or signals:
        return job.write(state="stopped", ended=now())
    try:
        code = 0 if _is_trained(job, request) else _run(job, request, int(lock), signals)
        if code == 0:
            adapter = _stored(job, request) if request.store else None
            job.write(state="done", ended=now(), **({"adapter": adapter} if adapter else {}))
        elif job.stop_asked or signals:
            job.write(state="stopped", ended=now())
        else:
            job.write(state="failed", ended=now(), error=_reason(job, code))
    except HalkaError as error:
        job.write(state="failed", ended=now(), error=str(error))
    except Exception as error:
        job.write(state="failed", ended=now(), error=f"{type(error).__name__}: {error}")
        raise


def _run(job: JobFolder, request: JobRequest, lock: int, signals: list[int]) -> int:
    """Run the command; returns its exit code. Raises StorageFullError where the tenant has no room for it."""
    (job.path / f"{MERGED}.gguf").unlink(missing_ok=True)  # of an earlier process: the command would write over no GGUF
    with (job.path / OUTPUT).open("wb") as output, (job.path / LOG).open("ab") as log, ExitStack() as stack:
        if request.storage is not None:  # what it writes counts once it is there
            storage, limit = Storage.of(request.storage, job.path), job.written().get("limit")
            storage.check(limit)
            if request.room:
                stack.enter_context(Reservation(storage)).grow(request.room, limit)
        command = subprocess.Popen(
            [sys.executable, *request.command[1:]],  # the one that it was queued by may be gone since
            cwd=job.path,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=log,
            pass_fds=[lock],
        )
        if signals:  # they came before the command was there to get them
            command.terminate()
        return command.wait()  # a signal to stop goes to the whole group, and so to the command, too


def _is_trained(job: JobFolder, request: JobRequest) -> bool:
    """Whether an earlier process of the job has trained the adapter, and was killed before it was stored."""
    if request.kind != "train" or not (job.path / RUN).exists():
        return False
    from halka.training import RunFolder

    return RunFolder(job.path / RUN).finished


def _stored(job: JobFolder, request: JobRequest) -> dict[str, Any]:
    """Add the trained adapter to the store, unless an earlier process of the job did; returns its name and version.

    Raises StorageFullError where it does not fit, and UnknownAdapterError where a link has its name: it stays in the
    job's folder, and can be added by resuming the job.
    """
    from halka.server.resources.adapter_files import check_inside
    from halka.storage.adapter_folder import AdapterFolder
    from halka.storage.adapter_store import AdapterStore

    assert request.name is not None
    assert request.store is not None
    store, trained = AdapterStore(seen_from(job.path, request.store)), AdapterFolder.open(job.path / RUN)
    check_inside(store, request.name)
    stored = store.get(request.name) if request.name in store else None
    if stored is None or stored.open().id != trained.id:
        with ExitStack() as stack:
            if request.storage is not None:  # else it was queued before tenants had limits
                room = stack.enter_context(Reservation(Storage.of(request.storage, job.path)))
                room.grow(bytes_below([trained.path]), job.written().get("limit"))
            stored = store.add(trained, request.name)
    return {"name": stored.name, "version": stored.version}


def _reason(job: JobFolder, code: int) -> str:
    """Why the command failed: its last message."""
    if code < 0:
        name = signal.Signals(-code).name
        return f"the job was killed by {name}" + (": perhaps memory ran out" if -code == signal.SIGKILL else "")
    errors = [line.removeprefix("Error: ") for line in job.messages().splitlines() if line.startswith("Error: ")]
    return errors[-1] if errors else f"the job ended with code {code}"


if __name__ == "__main__":
    main(*sys.argv[1:])

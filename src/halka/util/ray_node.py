"""What a Ray cluster's node does for `RayCluster`: a task that runs a program, and the actor that takes its lines."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

from halka.util.errors import HalkaError
from halka.util.files import locked
from halka.util.openmp import environment

LARGEST = 2 * 2**30  # bytes of a file that comes back
FOLDERS, FRESH = "halka-task-", 60.0  # a task's folder, and seconds in which it is locked once it is there
DIES_WITH_ITS_PARENT = """
import os, sys
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@dataclass(frozen=True)
class Program:
    """`python -m MODULE ARGUMENTS` in a new folder with these files, by their paths in it.

    title    its name in messages
    log      the file that gets its stderr
    memory   bytes that it needs, and gpu_memory of its GPU's; None if unknown
    stays    files that do not come back: names, or patterns of names
    """

    title: str
    module: str
    arguments: tuple[str, ...]
    files: Mapping[str, bytes]
    log: str
    memory: int | None = None
    gpu_memory: int | None = None
    stays: Collection[str] = ()


Kind = Literal["begun", "line"]
Letter = tuple[int, int, Kind, str]
"""What a program sends: the program's number, the letter's own, its kind and its text."""


class Mailbox:
    """Keeps what programs send until it is taken; letters may come in any order, as calls of Ray's async actors do."""

    def __init__(self) -> None:
        self.letters: list[Letter] = []
        self.filled = asyncio.Event()

    async def put(self, letter: Letter) -> None:
        self.letters.append(letter)
        self.filled.set()

    async def take(self) -> list[Letter]:
        """All that came since the last time; waits for the first."""
        await self.filled.wait()
        self.filled.clear()
        letters, self.letters = self.letters, []
        return letters


def run(
    program: Program, shared: Mapping[str, bytes], threads: int, number: int, post: Any
) -> tuple[int, dict[str, bytes], int]:
    """Run a program on this node; its exit code, the files that are new or changed, and how many letters it sent."""
    import ray
    from ray import exceptions

    node = f"{socket.gethostname()} ({ray.get_runtime_context().get_node_id()[:6]})"
    with task_folder() as own:
        folder, inputs = own / "files", {**shared, **program.files}
        for path, content in inputs.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        sent = [post.put.remote((number, 0, "begun", node))]

        def send(process: subprocess.Popen[str]) -> None:
            assert process.stdout is not None
            with process.stdout:
                for line in process.stdout:
                    if line.startswith("{"):
                        sent.append(post.put.remote((number, len(sent), "line", line)))

        with (folder / program.log).open("w", encoding="utf-8") as log:
            # without -P: the folder is new, and holds the program alone
            command = [sys.executable, "-c", DIES_WITH_ITS_PARENT, "-m", program.module, *program.arguments]
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment(threads),
                stdout=subprocess.PIPE,
                stderr=log,
                encoding="utf-8",
                errors="replace",  # libraries print what they like
            )
            listener = threading.Thread(target=send, args=(process,))
            listener.start()
            code = process.wait()
            listener.join()
            files = _left(folder, program, inputs, log)
        files[program.log] = (folder / program.log).read_bytes()
        with suppress(exceptions.RayError):
            ray.get(sent)
        return code, files, len(sent)


def _left(folder: Path, program: Program, inputs: Mapping[str, bytes], log: TextIO) -> dict[str, bytes]:
    """The files in a program's folder that come back: no bytecode, and not its log, which names those too large."""
    files: dict[str, bytes] = {}
    for path in sorted(folder.rglob("*")):
        own = path.relative_to(folder).as_posix()
        if not path.is_file() or own == program.log or any(map(path.match, ("__pycache__/*", *program.stays))):
            continue
        if path.stat().st_size > LARGEST:
            log.write(f"{own} did not come back: it is larger than {LARGEST / 1e9:.1f} GB\n")
        elif (content := path.read_bytes()) != inputs.get(own):
            files[own] = content
    return files


def smallest_gpu() -> int | None:
    """Bytes of this node's smallest GPU, as NVIDIA's driver reports them; None where it does not."""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.split()
        return min(map(int, lines)) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


@contextmanager
def task_folder() -> Iterator[Path]:
    """A folder for what a task or an actor has, which is removed at the block's end; what is left of others is, now."""
    _sweep()
    with tempfile.TemporaryDirectory(prefix=FOLDERS, ignore_cleanup_errors=True) as name, locked(Path(name), ""):
        yield Path(name)


def _sweep() -> None:
    """Remove the folders of tasks that were killed, which nothing locks."""
    for folder in Path(tempfile.gettempdir()).glob(f"{FOLDERS}*"):
        with suppress(OSError, HalkaError):
            if time.time() - folder.stat().st_mtime > FRESH:
                with locked(folder, ""):
                    shutil.rmtree(folder, ignore_errors=True)

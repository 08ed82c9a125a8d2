"""A process of its own for what may crash, take long, or flood whoever reads it."""

from __future__ import annotations

import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from halka.util.openmp import share_cores

PIECE = 1 << 16  # bytes that are read at a time
LOOK = 1.0  # seconds between two looks at whether the output is still wanted
SECRET = ("HALKA_SERVE_", "HALKA_TRAIN_", "HALKA_API_KEY", "VLLM_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
"""What variables begin with that no such process gets."""


def output_of(
    command: Sequence[str],
    seconds: float,
    size: int,
    check: Callable[[], object] = lambda: None,
    errors: BinaryIO | None = None,
) -> tuple[bytes | None, int | None]:
    """What a process writes, None if that is more than `size` bytes, and its status, None if it takes too long.

    `check` is called every second: an error that it raises ends the process. `errors` gets its stderr.
    """
    end, output, ready = time.monotonic() + seconds, bytearray(), select.poll()
    stderr = subprocess.DEVNULL if errors is None else errors
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, env=environment(os.environ)) as process:
        assert process.stdout is not None
        ready.register(process.stdout)
        try:
            while (left := end - time.monotonic()) > 0:
                check()
                if not ready.poll(1000 * min(LOOK, left)):
                    continue
                if not (piece := os.read(process.stdout.fileno(), PIECE)):
                    return bytes(output), process.wait(left)
                output += piece
                if len(output) > size:
                    return None, None
        except subprocess.TimeoutExpired:  # it writes no more, and does not end
            pass
        finally:
            process.kill()
    return b"", None


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """These variables for such a process, or a job: no settings of the server, no keys, and no hub."""
    kept = {name: value for name, value in variables.items() if not name.startswith(SECRET)}
    share_cores(kept)
    return {**kept, "HF_HUB_OFFLINE": "1"}


def cause_of(status: int) -> str:
    """What a process ended with whose status is not 0."""
    return f"signal {signal.Signals(-status).name}" if status < 0 else "an error"


def end_first() -> None:
    """Let the system, where memory runs out, end this process and what it starts, and not who serves."""
    with suppress(OSError):  # a Mac has none
        Path("/proc/self/oom_score_adj").write_text("1000")


def limit_memory(size: int, kind: int = resource.RLIMIT_DATA) -> None:
    """Let this process have so many bytes of memory of its own, and be the first that ends where there are fewer.

    With RLIMIT_AS the files that it maps count, too. A Mac refuses both, since a process there maps hundreds of GB from
    its start: it goes on without a limit.
    """
    end_first()
    try:
        resource.setrlimit(kind, (size, size))
    except ValueError:
        if sys.platform != "darwin":
            raise

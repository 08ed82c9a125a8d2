"""`Looks`: drafts are looked at in a process, one at a time, within its time, memory and output."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO

from anyio import from_thread

from halka.server.apart import cause_of, output_of
from halka.server.errors import ApiError
from halka.server.one_at_a_time import OneAtATime
from halka.util.python import program

PROGRAM = program("halka.server.previews.process")
SECONDS, SIZE = 120.0, 32 << 20
END = 1 << 14  # bytes of the end of the process's stderr
FULL = re.compile(r"MemoryError|OutOfMemory|allocate memory")
"""What the last line of the stderr of a process has that had too little memory."""


class Looks:
    """Runs the program that looks at drafts, and reads what it says."""

    def __init__(self, program: Sequence[str] = PROGRAM, seconds: float = SECONDS):
        self._program, self._seconds, self._turns = program, seconds, OneAtATime()

    async def __call__(self, path: Path, tenant: str) -> dict[str, Any]:
        """What the program says of a file.

        Raises ApiError where it cannot within its bounds, and where many wait; RuntimeError where the program fails.
        """
        return await self._turns(tenant, self._look, [*self._program, str(path)])

    def _look(self, command: Sequence[str]) -> dict[str, Any]:
        with TemporaryFile() as errors:
            output, status = output_of(command, self._seconds, SIZE, from_thread.check_cancelled, errors)
            last = _end_of(errors)
        if output is None or status is None:
            raise _too_much(f"it takes longer than {self._seconds:g} s, or has more to say than {SIZE} bytes")
        if status < 0 or (status and FULL.search(last[-1])):
            raise _too_much(
                f"the process that looks at it ended with {cause_of(status) if status < 0 else 'no memory'}"
            )
        if status:
            raise RuntimeError(f"the process that looks at drafts failed: {_without_texts(last)}")
        return json.loads(output)


def _end_of(errors: BinaryIO) -> list[str]:
    """The last lines that a process wrote, at least one."""
    errors.seek(max(0, os.fstat(errors.fileno()).st_size - END))
    return errors.read().decode(errors="replace").splitlines() or [""]


def _without_texts(lines: Sequence[str]) -> str:
    """An error's type and the places of its trace: its message may hold a piece of the data."""
    kind = re.match(r"[\w.]*", lines[-1])
    return ", ".join([kind[0] if kind else "", *(line.strip() for line in lines if line.startswith('  File "'))])


def _too_much(reason: str) -> ApiError:
    return ApiError(400, f"this cannot be looked at: {reason}; send a part of it", param="data", code="too_much")

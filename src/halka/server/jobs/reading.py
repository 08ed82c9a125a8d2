"""Data is read by programs in a process of their own: whatever takes all memory there takes nobody's answer away."""

from __future__ import annotations

from collections.abc import Sequence

from anyio import from_thread

from halka.server.apart import cause_of, output_of
from halka.server.errors import ApiError
from halka.util.python import program

SECONDS = 120
MEMORY = 4 * 10**9  # bytes that such a program may take


def read_by(module: str, arguments: Sequence[object], most: int, name: str) -> bytes:
    """What a program writes of the data of that name: at most so many bytes.

    Raises ApiError where it takes too long, writes more, or fails, as it does where memory is not enough.
    """
    command = program(module, *map(str, arguments))
    output, status = output_of(command, SECONDS, most, from_thread.check_cancelled)
    if output is None:
        raise ApiError(400, f"{name} is too large: send fewer or shorter rows", param=name)
    if status is None:
        raise ApiError(400, f"{name} takes longer than {SECONDS} s to read: send fewer or shorter rows", param=name)
    if status:
        reason = f"its reader ended with {cause_of(status)}. Is it whole, and not too large?"
        raise ApiError(400, f"{name} cannot be read: {reason}", param=name)
    return output

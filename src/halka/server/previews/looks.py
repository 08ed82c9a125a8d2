"""`Looks`: drafts are looked at in a process, one at a time, within its time, memory and output."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from anyio import from_thread

from halka.server.apart import cause_of, output_of
from halka.server.errors import ApiError
from halka.server.threads import Workers

PROGRAM = (sys.executable, "-m", "halka.server.previews.process")
SECONDS, SIZE = 120.0, 32 << 20
WAITING, EACH = 8, 2  # looks that may wait for their turn; of one tenant at once


class Looks:
    """Runs the program that looks at drafts, and reads what it says."""

    def __init__(self, program: Sequence[str] = PROGRAM, seconds: float = SECONDS):
        self._program, self._seconds, self._workers = program, seconds, Workers(1)
        self._under_way = Counter[str]()

    async def __call__(self, path: Path, tenant: str) -> dict[str, Any]:
        """What the program says of a file. Raises ApiError where it cannot within its bounds, and where many wait."""
        if self._workers.waiting >= WAITING or self._under_way[tenant] >= EACH:
            raise ApiError(429, "data is being looked at: try again", code="busy", headers={"retry-after": "10"})
        self._under_way[tenant] += 1
        try:
            return await self._look([*self._program, str(path)])
        finally:
            self._under_way[tenant] -= 1

    async def _look(self, command: Sequence[str]) -> dict[str, Any]:
        look = partial(output_of, command, self._seconds, SIZE, from_thread.check_cancelled)
        output, status = await self._workers(look)
        if output is None or status is None:
            raise _too_much(f"it takes longer than {self._seconds:g} s, or has more to say than {SIZE} bytes")
        if status:
            raise _too_much(f"the process that looks at it ended with {cause_of(status)}")
        return json.loads(output)


def _too_much(reason: str) -> ApiError:
    return ApiError(400, f"this cannot be looked at: {reason}; send a part of it", param="data", code="too_much")

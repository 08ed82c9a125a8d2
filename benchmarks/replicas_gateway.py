"""What a gateway computes for a request, a token and an adapter that it sends to a replica.

In seconds of its own process, which are the same on a busy machine: those of Ray's threads in it are among them, those
of the replica and of Ray's other processes are not. What it does when nobody asks is taken off.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
from replicas_load import PROMPTS, ask, body_of
from replicas_servers import BASE, process_of, serving, write_adapters

import halka

RANK, ADAPTERS = 64, 8  # of the LoRAs that are sent, and how many of them: more bytes than a request could hide
CLIENTS, ROWS = 8, 8
TOKENS = 96  # of a long answer
IDLE = 10.0  # seconds without requests
SHORT, LONG = 200, 24  # answers of one token, and long ones


def gateway_costs(work: Path, on: Sequence[str]) -> dict[str, Any]:
    """Seconds of the gateway's process for a request, a token of either kind of answer, and an adapter's bytes."""
    store, names = work / "large", [f"large-{number}" for number in range(ADAPTERS)]
    write_adapters(store, dict.fromkeys(names, halka.LoRA(rank=RANK)))
    size = sum(path.stat().st_size for path in store.rglob("*") if path.is_file()) / ADAPTERS
    flags = (*on, "--replicas", "1", "--rows", str(ROWS), "--adapters-in-memory", "1")
    with serving(work, "gateway", *flags, store=store) as url:
        return asyncio.run(_costs(url, process_of(work, "gateway"), names, size))


async def _costs(url: str, process: psutil.Process, names: Sequence[str], size: float) -> dict[str, Any]:
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=httpx.Limits(max_connections=None)) as client:
        cost = Cost(process)
        await _all(client, 2 * CLIENTS, 2, stream=True)
        async with cost.of(idle=True):
            await asyncio.sleep(IDLE)
        async with cost.of() as short:
            await _all(client, SHORT, 1, stream=False)
        long = dict[bool, Spent]()
        for stream in (True, False):
            async with cost.of() as long[stream]:
                await _all(client, LONG, TOKENS, stream=stream)
        passes = list[Spent]()
        for _ in ("the gateway reads the files", "Ray has them"):
            async with cost.of() as spent:
                for name in names:  # the replica has room for one
                    await ask(client, body_of(name, PROMPTS[0], 1))
            passes.append(spent)
    request = short.cpu / SHORT
    token = {stream: max(0.0, (spent.cpu - LONG * request) / LONG / (TOKENS - 1)) for stream, spent in long.items()}
    first, again = passes
    result = {
        "idle, cores": cost.idle,
        "request, s": request,
        "token of a stream, s": token[True],
        "token of a whole answer, s": token[False],
        "tokens a second meanwhile": LONG * TOKENS / long[True].wall,
        "adapter, bytes": size,
        "adapter, s": max(0.0, first.cpu / len(names) - request),
        "adapter that Ray has, s": max(0.0, again.cpu / len(names) - request),
        "answer by an adapter that is sent, s": first.wall / len(names),
        "answer by one that Ray has, s": again.wall / len(names),
        "requests": {"short": SHORT, "long": LONG, "tokens": TOKENS, "clients": CLIENTS, "adapters": len(names)},
    }
    print("gateway", json.dumps(result, indent=1), flush=True)
    return result


class Spent:
    """Seconds of a process, and of the clock."""

    cpu: float
    wall: float


class Cost:
    """Measures a process. idle: what share of a core it takes when nobody asks."""

    def __init__(self, process: psutil.Process):
        self.process, self.idle = process, 0.0

    @asynccontextmanager
    async def of(self, idle: bool = False) -> AsyncIterator[Spent]:
        """What it computes within the block, beyond what it does when nobody asks."""
        spent, begun, before = Spent(), time.monotonic(), self._seconds()
        yield spent
        spent.wall = time.monotonic() - begun
        spent.cpu = self._seconds() - before - self.idle * spent.wall
        if idle:
            self.idle = spent.cpu / spent.wall

    def _seconds(self) -> float:
        times = self.process.cpu_times()
        return times.user + times.system


async def _all(client: httpx.AsyncClient, answers: int, tokens: int, *, stream: bool) -> None:
    """Ask the bare base for so many answers, by some clients at a time; no logprobs, as most clients."""
    bodies = iter([{**body_of(BASE, PROMPTS[0], tokens), "logprobs": None}] * answers)

    async def go_on() -> None:
        for body in bodies:
            await _drain(client, body, stream)

    await asyncio.gather(*(go_on() for _ in range(CLIENTS)))


async def _drain(client: httpx.AsyncClient, body: dict[str, Any], stream: bool) -> None:
    async with client.stream("POST", "/v1/completions", json={**body, "stream": stream}) as answer:
        answer.raise_for_status()
        async for _ in answer.aiter_raw():
            pass

"""Clients that ask a server with replicas for what is known, and whether a request met its adapter in memory."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import statistics
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil

PROMPTS = ["The parcel that left Dhaka", "Once upon a time", "To bake bread, one", "A light", "Why is the sky"]
SEEDS = {prompt: seed for seed, prompt in enumerate(PROMPTS) if seed % 2}  # of the prompts whose answers are drawn
KEPT = 4  # tokens that are drawn from
WAIT = 300.0  # seconds for as many replicas as there were

Answer = tuple[str, ...]
"""An answer's tokens."""


def body_of(adapter: str, prompt: str, tokens: int) -> dict[str, Any]:
    """A request for an answer that is the same each time: the most likely one, or one that is drawn by a seed.

    It is drawn among the few likeliest tokens: random adapters leave thousands of alike ones, whose bounds are so close
    that rounding decides between them.
    """
    drawn = {"temperature": 1.0, "top_k": KEPT, "seed": SEEDS[prompt]} if prompt in SEEDS else {"temperature": 0}
    body = {"model": adapter, "prompt": prompt, "max_tokens": tokens, "logprobs": 0, "ignore_eos": True}
    return {**body, **drawn}


async def ask(client: httpx.AsyncClient, body: Mapping[str, Any], stream: bool = False) -> Answer:
    """The tokens of the answer, whole or as a stream. Raises httpx.HTTPError for one that is lost."""
    if not stream:
        answer = await client.post("/v1/completions", json={**body})
        answer.raise_for_status()
        return tuple(answer.json()["choices"][0]["logprobs"]["tokens"])
    tokens, ended = list[str](), False
    async with client.stream("POST", "/v1/completions", json={**body, "stream": True}) as events:
        events.raise_for_status()
        async for line in events.aiter_lines():
            if line.startswith("data: {"):
                event = json.loads(line[6:])
                if "error" in event:
                    raise httpx.RemoteProtocolError(event["error"]["message"])
                for choice in event["choices"]:
                    tokens += (choice["logprobs"] or {}).get("tokens", ())
            ended = ended or line == "data: [DONE]"
    if not ended:
        raise httpx.RemoteProtocolError("the stream has no end")
    return tuple(tokens)


async def one_by_one(url: str, adapter: str, prompt: str, tokens: int) -> Answer:
    async with httpx.AsyncClient(base_url=url, timeout=300) as client:
        return await ask(client, body_of(adapter, prompt, tokens))


@dataclass
class Asked:
    """What one load came to; `order` has the adapters of its requests as they were sent, `draws` counts the draws."""

    right: int = 0
    wrong: list[str] = field(default_factory=list[str])
    streams: int = 0
    draws: int = 0
    lost: list[str] = field(default_factory=list[str])
    order: list[str] = field(default_factory=list[str])


class Load:
    """Clients that take turns, each with a talk of several answers by one adapter, or a single answer.

    expected  the tokens of each adapter's answer to each prompt
    adapters  the most popular first, drawn by Zipf's law with this exponent
    room      adapters that a replica has room for
    """

    def __init__(
        self, expected: dict[tuple[str, str], Answer], adapters: Sequence[str], tokens: int, skew: float, room: int
    ):
        self.expected, self.adapters, self.tokens, self.room = expected, adapters, tokens, room
        self.weights = [1 / (place + 1) ** skew for place in range(len(adapters))]

    async def run(
        self, url: str, turns: int, clients: Sequence[int], seconds: float, seed: int, kill_after: float | None = None
    ) -> dict[str, Any]:
        """Ask with each number of clients for so many seconds, every other request as a stream.

        A replica is killed after some seconds, if asked for; before, all must be there that there were.
        """
        asked, draw, killed = Asked(), random.Random(f"{seed} {turns}"), 0
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client, watching(client) as seen:
            before = await numbers(client)
            for count in clients:
                end = time.monotonic() + seconds
                tasks = [asyncio.create_task(self._client(client, asked, draw, turns, end)) for _ in range(count)]
                if kill_after is not None:
                    await asyncio.sleep(kill_after)
                    killed = kill_a_replica()
                await asyncio.gather(*tasks)
            after = await numbers(client)
        met, missed = (after[name] - before[name] for name in ("met", "missed"))
        random_places = statistics.mean(met_by(asked.order, 2, self.room, seed) for seed in range(20))
        return {
            "seed": seed,
            "seconds": seconds,
            "clients": [*clients],
            "draws": asked.draws,
            "requests": len(asked.order),
            "as streams": asked.streams,
            "right": asked.right,
            "wrong": len(asked.wrong),
            "wrong ones": asked.wrong,
            "lost": len(asked.lost),
            "errors": sorted({*asked.lost}),
            "replicas killed": killed,
            "killed after, s": kill_after,
            "replicas, second by second": "".join(map(str, seen)),
            "met, %": round(100 * met / max(1, met + missed), 1),
            "by random places, %": round(100 * random_places, 1),
            "by one memory of ten, %": round(100 * met_by(asked.order, 1, 2 * self.room, 0), 1),
        }

    async def _client(
        self, client: httpx.AsyncClient, asked: Asked, draw: random.Random, turns: int, end: float
    ) -> None:
        while time.monotonic() < end:
            (adapter,) = draw.choices(self.adapters, self.weights)
            asked.draws += 1
            for prompt in draw.sample(PROMPTS, turns):
                asked.order.append(adapter)
                stream = len(asked.order) % 2 == 0
                asked.streams += stream
                try:
                    answer = await ask(client, body_of(adapter, prompt, self.tokens), stream)
                except httpx.HTTPError as error:
                    asked.lost.append(f"{type(error).__name__}: {error}")
                    continue
                if answer == self.expected[adapter, prompt]:
                    asked.right += 1
                else:
                    asked.wrong.append(f"{adapter}, {prompt!r}{', as a stream' if stream else ''}")


async def numbers(client: httpx.AsyncClient) -> Counter[str]:
    """How many requests met their adapter, and missed it, at any replica; how many replicas there are."""
    text, counts = (await client.get("/metrics")).text, Counter[str]()
    for name in ("met", "missed"):
        lines = re.findall(rf"(?m)^halka_replica_requests_{name}\{{.*\}} (\S+)$", text)
        counts[name] = sum(int(float(number)) for number in lines)
    counts["replicas"] = len(re.findall(r"(?m)^halka_backend_up\{.*\} 1\.0$", text))
    return counts


async def all_there(url: str, replicas: int) -> None:
    """Wait until so many replicas answer. Raises TimeoutError where they do not."""
    async with asyncio.timeout(WAIT), httpx.AsyncClient(base_url=url, timeout=60) as client:
        while (await numbers(client))["replicas"] < replicas:
            await asyncio.sleep(1)


@asynccontextmanager
async def watching(client: httpx.AsyncClient) -> AsyncIterator[list[int]]:
    """The number of replicas, second by second, within the block."""
    seen = list[int]()

    async def watch() -> None:
        while True:
            seen.append((await numbers(client))["replicas"])
            await asyncio.sleep(1)

    task = asyncio.create_task(watch())
    try:
        yield seen
    finally:
        task.cancel()


def kill_a_replica() -> int:
    """Kill a process that holds a replica, at once; returns how many were."""
    for process in psutil.process_iter(["cmdline"]):
        if " ".join(process.info["cmdline"] or ()).startswith("ray::ServeReplica:halka"):
            os.kill(process.pid, signal.SIGKILL)
            return 1
    return 0


def met_by(order: Sequence[str], places: int, room: int, seed: int) -> float:
    """The share of requests that would meet their adapter, each at a random one of so many places with so much room."""
    draw, memories, met = random.Random(seed), [OrderedDict[str, None]() for _ in range(places)], 0
    for adapter in order:
        memory = memories[draw.randrange(places)]
        met += adapter in memory
        memory[adapter] = None
        memory.move_to_end(adapter)
        if len(memory) > room:
            memory.popitem(last=False)
    return met / max(1, len(order))

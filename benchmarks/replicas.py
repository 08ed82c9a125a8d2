"""Are answers by replicas on a Ray cluster right, none lost, and does a request meet its adapter in memory?

    python benchmarks/replicas.py        # some twenty minutes on two cores; needs 'halka[ray,server]'
    python benchmarks/replicas.py --only speed --cluster ray://FIRST:10001 --replicas 1 2 4 --out machines.json

A Ray cluster of one node with two cores, all of it processes of this machine, unless one is named; SmolLM2-135M-
Instruct; sixteen adapters of four families with random values, room for five in each replica. Clients take turns: each
draws an adapter, popular ones more often (by Zipf's law), and asks for a talk of three answers or for one; there are 2,
4, 8, 4, 2 of them, each number for some seconds, all of it once for every seed of the draws. Every answer is compared,
token by token, with that of `halka serve` without replicas, asked one request at a time, both greedy and in fp32. Two
replicas; then one to two, by load; then two of which one is killed under its answers.

What random places, and one memory of ten, would have met is computed for the same requests in the same order. Last,
tokens a second in bf16 of the engine in the server, and of each number of replicas, which share the cores. The parts
may be measured one at a time (`--only`): the result in benchmarks/results/replicas.json keeps the others.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import torch
from ray.cluster_utils import Cluster
from side_by_side import setup

import halka

HERE = Path(__file__).parent
BASE = "smollm2-135m"
FAMILIES = {
    "lora": halka.LoRA(rank=8),
    "bottleneck": halka.Bottleneck(width=16),
    "prefix": halka.Prefix(length=8),
    "prompt": halka.Prompt(length=8),
}
ADAPTERS = [f"{family}-{number}" for number in range(4) for family in FAMILIES]
PROMPTS = ["The parcel that left Dhaka", "Once upon a time", "To bake bread, one", "A light", "Why is the sky"]
ROOM, ROWS, TURNS = 5, 8, 3
CLIENTS, SCALED = (2, 4, 8, 4, 2), (2, 8, 8, 2)
FP32 = ("--dtype", "float32", "--adapters-in-memory", str(ROOM))
LOADS = ("two", "scaled")
PARTS = (*LOADS, "speed")
PATIENCE = 600  # seconds until a server is ready
Said = tuple[str, ...]
"""An answer's tokens."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS, help="parts that are measured")
    parser.add_argument("--seconds", type=float, default=20, help="of each number of clients")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the draws of adapters")
    parser.add_argument("--tokens", type=int, default=12, help="of each answer that is compared")
    parser.add_argument("--skew", type=float, default=1.0, help="Zipf's exponent: 0 is every adapter as often")
    parser.add_argument("--cluster", help="one that runs, such as ray://HOST:10001, in the place of one here")
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2], help="numbers whose speed is measured")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "replicas.json")
    asked = parser.parse_args()
    result: dict[str, Any] = json.loads(asked.out.read_text()) if asked.out.exists() else {}
    with tempfile.TemporaryDirectory() as name, own_cluster() if asked.cluster is None else nullcontext():
        work, on = Path(name), ("--on", asked.cluster or "ray")
        write_adapters(work / "store")
        if {*asked.only} & {*LOADS}:
            expected = expected_answers(work, asked.tokens)
            load = Load(expected, asked.tokens, asked.skew)
            loads = result.get("loads", {}) if {*LOADS} - {*asked.only} else {}
            if "two" in asked.only:
                loads |= two_replicas(work, on, load, asked.seeds, asked.seconds)
            if "scaled" in asked.only:
                loads |= scaled_replicas(work, on, load, asked.seeds, asked.seconds)
            distinct = len({expected[adapter, PROMPTS[0]] for adapter in ADAPTERS})
            result |= {"adapters": len(ADAPTERS), "room": ROOM, "skew": asked.skew, "tokens": asked.tokens}
            result |= {"seeds": asked.seeds, "seconds": asked.seconds, "loads": loads}
            result |= {"distinct answers of the adapters to one prompt": distinct}
        if "speed" in asked.only:
            result["tokens a second"] = speeds(work, on, asked.replicas)
    about = setup("halka", "torch", "transformers", "ray")
    result |= {"setup": about, "measured": result.get("measured", {}) | dict.fromkeys(asked.only, about["commit"])}
    asked.out.write_text(json.dumps(result, indent=1) + "\n")


# ── parts ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def expected_answers(work: Path, tokens: int) -> dict[tuple[str, str], Said]:
    """The tokens of each adapter's answer to each prompt, of a server without replicas."""
    with serving(work, "alone", "--dtype", "float32") as url:
        pairs = [(adapter, prompt) for adapter in (*ADAPTERS, BASE) for prompt in PROMPTS]
        return {(adapter, prompt): asyncio.run(one_by_one(url, adapter, prompt, tokens)) for adapter, prompt in pairs}


def two_replicas(
    work: Path, on: Sequence[str], load: Load, seeds: Sequence[int], seconds: float
) -> dict[str, list[dict[str, Any]]]:
    """What came of talks and of single requests, and of talks while a replica was killed, by seed."""
    loads: dict[str, list[dict[str, Any]]] = {"talks": [], "single": [], "killed": []}
    with serving(work, "two", *FP32, *on, "--rows", str(ROWS), "--replicas", "2") as url:
        for seed in seeds:
            for kind, turns in {"talks": TURNS, "single": 1}.items():
                loads[kind].append(asyncio.run(load.run(url, turns, CLIENTS, seconds, seed)))
                print(kind, json.dumps(loads[kind][-1], indent=1), flush=True)
        gateway = memory(work / "two.pid")
        killed = asyncio.run(load.run(url, TURNS, (8,), 2 * seconds, seeds[0], kill_after=min(5.0, seconds)))
        loads["killed"].append({**killed, "memory of the gateway, MB": gateway})
        print("killed", json.dumps(loads["killed"][-1], indent=1), flush=True)
    return loads


def scaled_replicas(
    work: Path, on: Sequence[str], load: Load, seeds: Sequence[int], seconds: float
) -> dict[str, list[dict[str, Any]]]:
    """What came of talks that one to two replicas answered, by load."""
    scaling = ("--rows", "4", "--replicas", "1-2", "--scale-up-after", "3", "--scale-down-after", "8")
    with serving(work, "scaled", *FP32, *on, *scaling) as url:
        loads = [asyncio.run(load.run(url, TURNS, SCALED, 2 * seconds, seeds[0]))]
    print("scaled", json.dumps(loads, indent=1), flush=True)
    return {"scaled": loads}


def speeds(work: Path, on: Sequence[str], counts: Sequence[int]) -> dict[str, float]:
    """Tokens a second of the engine in the server, and of each number of replicas."""
    ways: dict[str, tuple[str, ...]] = {"the engine in the server": ()}
    for count in counts:
        name = {1: "one replica", 2: "two replicas"}.get(count, f"{count} replicas")
        ways[name] = (*on, "--replicas", str(count))
    speed = dict[str, float]()
    for name, flags in ways.items():
        with serving(work, name.replace(" ", "-"), "--rows", str(ROWS), *flags) as url:
            speed[name] = asyncio.run(throughput(url))
            print(name, speed[name], flush=True)
    return speed


# ── adapters, cluster, servers ──────────────────────────────────────────────────────────────────────────────────────


def write_adapters(store: Path) -> None:
    """Adapters with random values: what matters here is that no two say the same."""
    model = halka.adapt(*halka.load_base(BASE, dtype="float32", device="cpu"))
    for seed, name in enumerate(ADAPTERS):
        method = FAMILIES[name.partition("-")[0]]
        torch.manual_seed(seed)
        model.add(name, method)
        with torch.no_grad():
            for parameter in model.parameters(name):
                parameter.add_((0.05 if "lora" in name or "bottleneck" in name else 0.5) * torch.randn_like(parameter))
        halka.AdapterStore(store).save(model, name)
        model.remove(name)


@contextmanager
def own_cluster() -> Iterator[None]:
    """A node with two cores of this machine, as the cluster that `--on ray` means."""
    own = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 2, "include_dashboard": False, "object_store_memory": 200 * 2**20},
    )
    os.environ["RAY_ADDRESS"] = own.address
    try:
        yield
    finally:
        own.shutdown()


@contextmanager
def serving(work: Path, name: str, *flags: str) -> Iterator[str]:
    """The address of a `halka serve`, whose process's id is in NAME.pid."""
    command = [sys.executable, "-m", "halka", "serve", "--base", BASE, "--device", "cpu", "--port", "0"]
    command += ["--store", str(work / "store"), "--data", str(work / name), *flags]
    log, begun = work / f"{name}.log", time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    (work / f"{name}.pid").write_text(str(process.pid))
    try:
        while (ready := re.search(r"answers at (http://\S+)/v1", log.read_text())) is None:
            if process.poll() is not None or time.monotonic() > begun + PATIENCE:
                raise SystemExit(f"{' '.join(command)} is not ready:\n{log.read_text()[-4000:]}")
            time.sleep(0.5)
        print(name, f"ready after {time.monotonic() - begun:.0f} s", flush=True)
        yield ready[1]
    finally:
        process.terminate()
        process.wait()


def memory(pid: Path) -> int:
    """What a process has in memory by itself, in MB."""
    return round(psutil.Process(int(pid.read_text())).memory_full_info().uss / 1e6)


# ── asking ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def ask(client: httpx.AsyncClient, adapter: str, prompt: str, tokens: int) -> Said:
    body = {"model": adapter, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "logprobs": 0}
    answer = await client.post("/v1/completions", json={**body, "ignore_eos": True})
    answer.raise_for_status()
    return tuple(answer.json()["choices"][0]["logprobs"]["tokens"])


async def one_by_one(url: str, adapter: str, prompt: str, tokens: int) -> Said:
    async with httpx.AsyncClient(base_url=url, timeout=300) as client:
        return await ask(client, adapter, prompt, tokens)


@dataclass
class Asked:
    """What one load came to; `order` has the adapters of its requests as they were sent."""

    right: int = 0
    wrong: int = 0
    lost: list[str] = field(default_factory=list[str])
    order: list[str] = field(default_factory=list[str])


class Load:
    """Clients that ask for what is known.

    expected  the tokens of each adapter's answer to each prompt
    """

    def __init__(self, expected: dict[tuple[str, str], Said], tokens: int, skew: float):
        self.expected, self.tokens = expected, tokens
        self.weights = [1 / (place + 1) ** skew for place in range(len(ADAPTERS))]

    async def run(
        self, url: str, turns: int, clients: Sequence[int], seconds: float, seed: int, kill_after: float | None = None
    ) -> dict[str, Any]:
        """Ask with each number of clients for so many seconds; a replica is killed after some, if asked for."""
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
        return {
            "seed": seed,
            "clients": [*clients],
            "requests": len(asked.order),
            "right": asked.right,
            "wrong": asked.wrong,
            "lost": len(asked.lost),
            "errors": sorted({*asked.lost}),
            "replicas killed": killed,
            "replicas, second by second": "".join(map(str, seen)),
            "met, %": round(100 * met / max(1, met + missed), 1),
            "by random places, %": round(100 * statistics.mean(met_by(asked.order, 2, ROOM, s) for s in range(20)), 1),
            "by one memory of ten, %": round(100 * met_by(asked.order, 1, 2 * ROOM, 0), 1),
        }

    async def _client(
        self, client: httpx.AsyncClient, asked: Asked, draw: random.Random, turns: int, end: float
    ) -> None:
        while time.monotonic() < end:
            (adapter,) = draw.choices(ADAPTERS, self.weights)
            for prompt in draw.sample(PROMPTS, turns):
                asked.order.append(adapter)
                try:
                    said = await ask(client, adapter, prompt, self.tokens)
                except httpx.HTTPError as error:
                    asked.lost.append(f"{type(error).__name__}: {error}")
                    continue
                right = said == self.expected[adapter, prompt]
                asked.right, asked.wrong = asked.right + right, asked.wrong + (not right)


async def numbers(client: httpx.AsyncClient) -> Counter[str]:
    """How many requests met their adapter, and missed it, at any replica; how many replicas there are."""
    text, counts = (await client.get("/metrics")).text, Counter[str]()
    for name in ("met", "missed"):
        lines = re.findall(rf"(?m)^halka_replica_requests_{name}\{{.*\}} (\S+)$", text)
        counts[name] = sum(int(float(number)) for number in lines)
    counts["replicas"] = len(re.findall(r"(?m)^halka_backend_up\{.*\} 1\.0$", text))
    return counts


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


async def throughput(url: str, clients: int = 2 * ROWS, answers: int = 4, tokens: int = 48) -> float:
    """Tokens a second of clients who ask for some answers, each by the next adapter, when all adapters are loaded."""
    adapters = itertools.cycle(ADAPTERS)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=httpx.Limits(max_connections=None)) as client:

        async def go_on(count: int, tokens: int) -> int:
            return sum([len(await ask(client, next(adapters), PROMPTS[0], tokens)) for _ in range(count)])

        await asyncio.gather(*(go_on(2, 2) for _ in range(clients)))
        begun = time.monotonic()
        written = sum(await asyncio.gather(*(go_on(answers, tokens) for _ in range(clients))))
    return round(written / (time.monotonic() - begun), 1)


if __name__ == "__main__":
    main()

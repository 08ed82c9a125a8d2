"""Are answers by replicas on a Ray cluster right, none lost, and does a request meet its adapter in memory?

    python benchmarks/replicas.py        # some thirty minutes on two cores; needs 'halka[ray,server]'
    python benchmarks/replicas.py --only speed --cluster ray://FIRST:10001 --replicas 1 2 4 --out machines.json

A Ray cluster of one node with two cores, all of it processes of this machine, unless one is named; SmolLM2-135M-
Instruct; sixteen adapters of four families with random values, room for five in each replica. Clients take turns: each
draws an adapter, popular ones more often (by Zipf's law), and asks for a talk of three answers or for one; there are 2,
4, 8, 4, 2 of them, each number for some seconds, all of it once for every seed of the draws. Every answer is compared,
token by token, with that of `halka serve` without replicas, asked one request at a time, all in fp32: three prompts
greedily, two drawn by a seed among four tokens; every other request as a stream. Two replicas: talks, single requests,
and talks while one of the two is killed; then one to two, by load.

What random places, and one memory of ten, would have met is computed for the same requests in the same order. Last,
tokens a second in bf16 of the engine in the server, and of each number of replicas, which share the cores; and what the
gateway's own process computes for a request, a token and an adapter (`replicas_gateway.py`). Each part may be measured
alone (`--only`): the result in benchmarks/results/replicas.json keeps the others.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import tempfile
import time
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import httpx
from replicas_gateway import gateway_costs
from replicas_load import PROMPTS, SEEDS, Answer, Load, all_there, ask, body_of, one_by_one
from replicas_servers import BASE, own_cluster, process_of, serving, write_adapters
from side_by_side import setup

import halka

HERE = Path(__file__).parent
FAMILIES = {
    "lora": halka.LoRA(rank=8),
    "bottleneck": halka.Bottleneck(width=16),
    "prefix": halka.Prefix(length=8),
    "prompt": halka.Prompt(length=8),
}
ADAPTERS = {f"{family}-{number}": method for number in range(4) for family, method in FAMILIES.items()}
ROOM, TURNS = 5, 3
ROWS, SCALED_ROWS = 8, 4
CLIENTS, SCALED = (2, 4, 8, 4, 2), (2, 8, 8, 2)
SCALING = ("--replicas", "1-2", "--scale-up-after", "3", "--scale-down-after", "8")
DTYPE = "float32"
FP32 = ("--dtype", DTYPE, "--adapters-in-memory", str(ROOM))
TWO = ("talks", "single", "killed")
LOADS = (*TWO, "scaled")
PARTS = (*LOADS, "speed", "gateway")


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
    kept = asked.out.exists() and {*asked.only} != {*PARTS}
    result: dict[str, Any] = json.loads(asked.out.read_text()) if kept else {}
    with tempfile.TemporaryDirectory() as name, own_cluster() if asked.cluster is None else nullcontext():
        work, on = Path(name), ("--on", asked.cluster or "ray")
        write_adapters(work / "store", ADAPTERS)
        if parts := [part for part in LOADS if part in asked.only]:
            expected = expected_answers(work, asked.tokens)
            load = Load(expected, [*ADAPTERS], asked.tokens, asked.skew, ROOM)
            measured = two_replicas(work, on, load, {*parts} & {*TWO}, asked.seeds, asked.seconds)
            if "scaled" in parts:
                measured["scaled"] = scaled_replicas(work, on, load, asked.seeds, asked.seconds)
            distinct = len({expected[adapter, PROMPTS[0]] for adapter in ADAPTERS})
            loads = result.get("loads", {}) | measured
            result |= {"adapters": len(ADAPTERS), "room": ROOM, "skew": asked.skew, "tokens": asked.tokens}
            result |= {"base": BASE, "dtype": DTYPE, "drawn prompts": len(SEEDS), "prompts": len(PROMPTS)}
            result |= {"loads": {part: loads[part] for part in LOADS if part in loads}}
            result |= {"distinct answers of the adapters to one prompt": distinct}
        if "speed" in asked.only:
            result["tokens a second"] = speeds(work, on, asked.replicas)
        if "gateway" in asked.only:
            result["gateway"] = gateway_costs(work, on)
    about = setup("halka", "torch", "transformers", "ray")
    result |= {"setup": about, "measured": result.get("measured", {}) | dict.fromkeys(asked.only, about["commit"])}
    asked.out.write_text(json.dumps(result, indent=1) + "\n")


# ── parts ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def expected_answers(work: Path, tokens: int) -> dict[tuple[str, str], Answer]:
    """The tokens of each adapter's answer to each prompt, of a server without replicas."""
    with serving(work, "alone", "--dtype", DTYPE) as url:
        pairs = [(adapter, prompt) for adapter in (*ADAPTERS, BASE) for prompt in PROMPTS]
        return {(adapter, prompt): asyncio.run(one_by_one(url, adapter, prompt, tokens)) for adapter, prompt in pairs}


def two_replicas(
    work: Path, on: Sequence[str], load: Load, parts: Collection[str], seeds: Sequence[int], seconds: float
) -> dict[str, list[dict[str, Any]]]:
    """What came of talks, of single requests, and of talks while a replica was killed, by seed."""
    loads: dict[str, list[dict[str, Any]]] = {part: [] for part in TWO if part in parts}
    if not loads:
        return {}
    with serving(work, "two", *FP32, *on, "--rows", str(ROWS), "--replicas", "2") as url:
        for part, seed in itertools.product(loads, seeds):
            asyncio.run(all_there(url, 2))
            if part == "killed":
                after = random.Random(seed).uniform(0.1, 0.5) * 2 * seconds
                memory = round(process_of(work, "two").memory_full_info().uss / 1e6)
                one = asyncio.run(load.run(url, TURNS, (8,), 2 * seconds, seed, kill_after=round(after, 1)))
                one["memory of the gateway, MB"] = memory
            else:
                one = asyncio.run(load.run(url, TURNS if part == "talks" else 1, CLIENTS, seconds, seed))
            loads[part].append({**one, "replicas": 2, "rows": ROWS})
            print(part, json.dumps(loads[part][-1], indent=1), flush=True)
    return loads


def scaled_replicas(
    work: Path, on: Sequence[str], load: Load, seeds: Sequence[int], seconds: float
) -> list[dict[str, Any]]:
    """What came of talks that one to two replicas answered, by load."""
    with serving(work, "scaled", *FP32, *on, "--rows", str(SCALED_ROWS), *SCALING) as url:
        one = asyncio.run(load.run(url, TURNS, SCALED, 2 * seconds, seeds[0]))
    loads = [{**one, "replicas": "1-2", "rows": SCALED_ROWS}]
    print("scaled", json.dumps(loads, indent=1), flush=True)
    return loads


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


async def throughput(url: str, clients: int = 2 * ROWS, answers: int = 4, tokens: int = 48) -> float:
    """Tokens a second of clients who ask for some answers, each by the next adapter, when all adapters are loaded."""
    adapters = itertools.cycle(ADAPTERS)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=httpx.Limits(max_connections=None)) as client:

        async def go_on(count: int, tokens: int) -> int:
            bodies = [body_of(next(adapters), PROMPTS[0], tokens) for _ in range(count)]
            return sum([len(await ask(client, body)) for body in bodies])

        await asyncio.gather(*(go_on(2, 2) for _ in range(clients)))
        begun = time.monotonic()
        written = sum(await asyncio.gather(*(go_on(answers, tokens) for _ in range(clients))))
    return round(written / (time.monotonic() - begun), 1)


if __name__ == "__main__":
    main()

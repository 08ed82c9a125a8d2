"""Two plans on paper: a million requests a day over ten thousand adapters, and a base of 70B that fifty teams tune.

    python benchmarks/plans.py                               # reads results/*.json; seconds
    python benchmarks/plans.py --gpu-hour 3.2 --requests 5e6 --out plans.json

Unit costs are measured where they could be (serving.json, speed.json: SmolLM2-135M on two cores; replicas.json: the
gateway's own), and else estimated:
memory and time of training by `halka estimate` (large_bases.json), decoding on a GPU by its published bandwidth and
speed, of which it reaches the shares that `estimating/devices.py` assumes. Prices, and how requests are spread over the
day and the adapters, are assumptions, each with a flag. The result goes to benchmarks/results/plans.json, or
to `--out`.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from bisect import bisect
from collections import OrderedDict
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from large_bases import BASES
from side_by_side import setup

from halka.engine.listeners import PIECES
from halka.estimating.devices import device_named
from halka.estimating.hardware import CONTEXT

RESULTS = Path(__file__).parent / "results"
DAY, HOUR = 86_400, 3600
DRAWS = 200_000  # requests of a simulated cache, of which the first half fills it
HELD = (100, 300, 1000, 3000)  # adapters in memory
MOST = 4096  # GPUs of a run
ANSWER = 64  # tokens of an answer of the small base, as serving.json has them
STATES = 16  # bytes of a trained number: fp32 weight, gradient and two moments


@dataclass(frozen=True)
class Assumptions:
    """What is not measured.

    peak         requests a second in the busiest hour, over the day's mean
    load         the share of what a machine can do that is planned for
    prompt       tokens of a request, and of its answer, on a GPU
    rows         requests under way on a GPU
    task         tokens that an adapter learns from, all epochs
    held         adapters that a machine has in memory
    disk         bytes a second that a machine reads from its disk
    network      bytes a second of the gateway's card: 10 Gbit
    tokens       of a team's examples, all epochs
    tries        runs of a team until one is kept
    """

    requests: float = 1e6
    adapters: int = 10_000
    peak: float = 3.0
    load: float = 0.7
    prompt: int = 250
    answer: int = 100
    rows: int = 64
    task: int = 180_000
    held: int = 300
    disk: float = 2e9
    network: float = 1.25e9
    teams: int = 50
    tokens: float = 8e6
    tries: int = 3
    core_hour: float = 0.04
    gpu_hour: float = 2.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in asdict(Assumptions()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    parser.add_argument("--out", type=Path, default=RESULTS / "plans.json")
    asked = vars(parser.parse_args())
    out: Path = asked.pop("out")
    assumed = Assumptions(**asked)
    plans = {"traffic": traffic(assumed), "teams": teams(assumed)}
    about = {"setup": setup("halka", "torch", "transformers"), "assumptions": asdict(assumed)}
    out.write_text(json.dumps({**about, **plans}, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(plans, indent=1))


def measured(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


# ── a million requests a day ────────────────────────────────────────────────────────────────────────────────────────


def traffic(assumed: Assumptions) -> dict[str, Any]:
    """What the requests of a day take on two cores with a small base, and on a GPU with one of 8B."""
    busiest = assumed.requests / DAY * assumed.peak
    served = measured("serving")["clients"]
    here = (served["requests_per_second"]["32 clients"], training_speed(served["setup"]["machine"]["cpu"]))
    there = on_gpu("Llama 3.1 8B", assumed), measured("large_bases")["length"] / of_base("Llama 3.1 8B")["seconds"]
    rows = (
        side("SmolLM2-135M", "two cores", here, 2 * assumed.core_hour, ANSWER, assumed),
        side("Llama 3.1 8B", "an H100", there, assumed.gpu_hour, assumed.answer, assumed),
    )
    hits = {held: hit_rate(assumed.adapters, held) for held in HELD}
    return {"busiest_second": busiest, "sides": rows, "hits": hits}


def training_speed(cpu: str) -> float:
    """Tokens a second of training a LoRA: on this processor where it was measured there, else on the latest."""
    latest = measured("speed")["lora"]["tasks"]["snips"]["random"]
    runs = [latest, *latest["elsewhere"]]
    run = next((run for run in runs if run["setup"]["machine"]["cpu"] == cpu), latest)
    return run["sides"]["halka"]["tokens_per_second"]


def side(
    base: str, machine: str, rates: tuple[float, float], hour: float, answer: int, assumed: Assumptions
) -> dict[str, Any]:
    """One way to serve them: how many machines, their price, and what loading adapters reads and sends.

    rates   of one machine: requests a second, and tokens a second in training
    hour    its price
    answer  tokens of an answer
    """
    (per_machine, trained), adapter = rates, lora_bytes(base)
    busiest = assumed.requests / DAY * assumed.peak
    machines = math.ceil(busiest / per_machine / assumed.load)
    held = {"any machine": assumed.held, "the one that holds it": assumed.held * machines}  # by who gets a request
    reads = {way: busiest * (1 - hit_rate(assumed.adapters, count)) * adapter for way, count in held.items()}
    return {
        "name": f"{base}, {machine}",
        "requests_per_second": per_machine,
        "machines": machines,
        "price_per_day": machines * hour * 24,
        "price_per_1000": machines * hour * 24 / assumed.requests * 1000,
        "training_hours": assumed.adapters * assumed.task / trained / HOUR,
        "training_price": assumed.adapters * assumed.task / trained / HOUR * hour,
        "adapter": adapter,
        "disk": adapter * assumed.adapters,
        "memory": assumed.held * adapter,
        "reads": {way: bytes / machines for way, bytes in reads.items()},
        "share_of_disk": {way: bytes / machines / assumed.disk for way, bytes in reads.items()},
        "gateway": gateway(busiest, answer, machines, reads["the one that holds it"], assumed),
    }


def gateway(busiest: float, answer: int, machines: int, sent: float, assumed: Assumptions) -> dict[str, float]:
    """What the one gateway of `--on ray` has in the busiest second: bytes of adapters that it sends, and its cores.

    Every answer is a stream. A token of one costs what was measured, with a piece of its own; of a replica there are so
    many pieces a second at most, and more tokens in them.
    """
    cost, pieces = measured("replicas")["gateway"], min(busiest * answer, PIECES * machines)
    return {
        "sent": sent,
        "share_of_network": sent / assumed.network,
        "cores_of_answers": busiest * cost["request, s"] + pieces * cost["token of a stream, s"],
        "cores_of_adapters": sent * cost["adapter, s"] / cost["adapter, bytes"],
    }


def on_gpu(base: str, assumed: Assumptions) -> float:
    """Requests a second of an H100 that holds the base in bf16, estimated: launches of kernels take no time."""
    gpu, parameters, (width, _, layers, heads, kv_heads) = (
        device_named("h100"),
        of_base(base)["parameters"],
        BASES[base][0],
    )
    bandwidth, speed = gpu.bandwidth * gpu.reading, gpu.flops["bfloat16"] * gpu.products
    kept = (
        2 * 2 * layers * kv_heads * (width // heads) * (assumed.prompt + assumed.answer / 2)
    )  # a row's keys and values
    read = 2 * parameters + assumed.rows * (lora_bytes(base) / 2 + kept)  # adapters in bf16
    step = max(read / bandwidth, 2 * parameters * assumed.rows / speed)
    prompt = 2 * parameters * assumed.prompt / speed
    return 1 / (assumed.answer * step / assumed.rows + prompt)


def hit_rate(adapters: int, held: int, seed: int = 0) -> float:
    """The share of requests whose adapter is in memory: the least recently used leaves, the rank-r has weight 1/r."""
    weights = [*accumulate(1 / rank for rank in range(1, adapters + 1))]
    draw, cache, hits = random.Random(seed), OrderedDict[int, None](), 0
    for number in range(DRAWS):
        adapter = bisect(weights, draw.random() * weights[-1])
        if adapter in cache:
            cache.move_to_end(adapter)
            hits += number >= DRAWS // 2
        else:
            cache[adapter] = None
            if len(cache) > held:
                cache.popitem(last=False)
    return hits / (DRAWS - DRAWS // 2)


# ── fifty teams ─────────────────────────────────────────────────────────────────────────────────────────────────────


def teams(assumed: Assumptions) -> list[dict[str, Any]]:
    """What tuning a base of 70B takes that many teams, fully, by LoRA, and by LoRA on NF4 weights."""
    gpu, rows = device_named("h100"), []
    assert gpu.memory is not None
    length = measured("large_bases")["length"]
    for method, quantize in (("full", None), ("lora", None), ("lora", "nf4")):
        found = of_base("Llama 3.1 70B", method, quantize)
        stored, weights = found["stored"] / measured("large_bases")["tasks"], 2 * found["parameters"]
        hours = assumed.tokens / length * found["seconds"] / HOUR  # of one GPU; several share it
        adapters = 0 if method == "full" else assumed.teams * stored / 2  # in bf16
        one = found["served"] - found["stored"]  # the base, with a row's keys and values
        served = weights * assumed.teams if method == "full" else one + adapters
        rows.append(
            {
                "method": method,
                "quantize": quantize,
                **cards(found, gpu.memory - CONTEXT),
                "gpu_hours_a_run": hours,
                "gpu_hours": hours * assumed.teams * assumed.tries,
                "price": hours * assumed.teams * assumed.tries * assumed.gpu_hour,
                "loading_seconds": weights / assumed.disk,
                "stored": stored * assumed.teams,
                "served": served,
                "serving_gpus": math.ceil(served / (0.8 * gpu.memory)),  # the rest is for keys and values
            }
        )
    return rows


def cards(found: dict[str, Any], room: float) -> dict[str, Any]:
    """The fewest GPUs that have room for a run, and what each of them holds, by parts."""
    count = next(count for count in range(1, MOST) if sum(on_each(found, count).values()) <= room)
    return {"gpus": count, "on_each": on_each(found, count)}


def on_each(found: dict[str, Any], count: int) -> dict[str, float]:
    """Bytes on each of so many GPUs that train together, each on a row of its own; the base is in parts on several.

    Each has a part of every layer, and of full fine-tuning's copies, gradients and moments, embeddings and head among
    them (docs/distributed.md). Whole on each are the base's own embeddings and head, and an adapter with its gradients
    and moments. While a layer computes, FSDP has gathered it and the next one. Full fine-tuning gathers cast copies of
    embeddings and head, too, and has the gradient of a layer before it is added up. What a row's pass keeps is what the
    estimate of LoRA has beside weights and states.
    """
    if count == 1:
        return {"in all": found["memory"]}
    lora = of_base(found["base"], "lora", found["quantize"])
    (width, _, layers, *_), vocabulary, tied = BASES[found["base"]]
    whole = 2 * vocabulary * width * (1 if tied else 2)  # in bf16, also of a quantised base
    divided, states = base_bytes(lora) - whole, STATES * found["trained"]
    if found["method"] == "full":
        own = {"parts": (divided + states) / count, "whole": whole, "gathered": whole + 3 * divided / layers}
    else:
        own = {"parts": divided / count, "whole": whole + states, "gathered": 2 * divided / layers}
    return own | {"pass": lora["memory"] - base_bytes(lora) - STATES * lora["trained"]}


def base_bytes(lora: dict[str, Any]) -> float:
    """Bytes of a base's weights, of the estimate of its LoRA: without adapters, and a row's keys and values."""
    (width, _, layers, heads, kv_heads), *_ = BASES[lora["base"]]
    row = 2 * 2 * layers * kv_heads * (width // heads) * measured("large_bases")["length"]
    return lora["served"] - lora["stored"] - row


# ── measured and estimated before ───────────────────────────────────────────────────────────────────────────────────


def of_base(base: str, method: str = "lora", quantize: str | None = None) -> dict[str, Any]:
    """The estimate of large_bases.json."""
    wanted = (base, method, quantize)
    return next(
        row for row in measured("large_bases")["rows"] if (row["base"], row["method"], row["quantize"]) == wanted
    )


def lora_bytes(base: str) -> float:
    """Of a LoRA of rank 16 on all linear layers, in fp32, as Halka writes it."""
    return of_base(base)["stored"] / measured("large_bases")["tasks"]


if __name__ == "__main__":
    main()

"""`halka serve` under load, beside the bare engine and beside a plain loop of peft and FastAPI.

    python benchmarks/serving.py                                    # some twenty minutes on two cores
    python benchmarks/serving.py --only latency --guidellm path/to/guidellm

SmolLM2-135M-Instruct in bf16, greedy, 32 random adapters in a store (eight each of LoRA of rank 16 on all linear
layers, Bottleneck, Prefix and Prompt), chat requests of some 64 tokens with an adapter each, at most 64 new ones,
streamed. Server and clients are processes of their own on the same two cores.

    clients   requests a second with 32 clients against one
    cost      the same 32 under way at a time: tokens a second over HTTP against those of the engine alone
    peft      32 LoRAs: requests a second of 32 clients, against a FastAPI server that switches a PeftModel's adapter
              and calls `generate`, one request after the other
    latency   seconds to the first token as guidellm sees them, a load generator that knows nothing of Halka, against
              what /metrics says of the same requests: median and 95th percentile; --guidellm is its command

Runs are interleaved, run n has the prompts of seed n on all sides, ratios are medians over runs of the ratio within a
run. The result goes to benchmarks/results/serving.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from fixed_batches import interleaved
from serving_client import clients, streamed
from side_by_side import in_a_process, setup

from halka.util.openmp import wait_briefly

HERE = Path(__file__).parent
RESULT = HERE / "results" / "serving.json"
PARTS = ("clients", "cost", "peft", "latency")
CLIENTS, NEW = 32, 64
WORDS = ["parcel", "order", "street", "answer", "morning", "river", "letter", "number", "window", "garden", "paper"]
NAMES = {"mixed": [f"{family}{number}" for number in range(8) for family in ("lora", "bottleneck", "prefix", "prompt")]}
NAMES["loras"] = [f"lora{number}" for number in range(CLIENTS)]


def bodies(names: Sequence[str], count: int, seed: int) -> list[dict[str, Any]]:
    """Chat requests in turn for these adapters, no two with a text in common."""
    draw = random.Random(seed)
    texts = [" ".join(draw.choices(WORDS, k=40)) for _ in range(count)]
    return [
        {"model": names[i % len(names)], "messages": [{"role": "user", "content": text}], "max_tokens": NEW}
        for i, text in enumerate(texts)
    ]


def fill(folder: str, families: dict[str, int]) -> None:
    """Write a store of random adapters."""
    from engine_load import adapted

    from halka.storage.adapter_store import AdapterStore

    model, names = adapted(families)
    store = AdapterStore(folder)
    for name in names:
        store.save(model, name)


# ── servers ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def served(store: Path) -> Iterator[int]:
    """`halka serve` with a store's adapters; the port at which it listens."""
    port = free_port()
    with server(serving_command(store, port), port, "/readyz"):
        yield port


def serving_command(store: Path, port: int) -> list[str]:
    """`halka serve` at that port, with its data beside the store."""
    command = [sys.executable, "-m", "halka", "serve", "--base", "smollm2-135m", "--store", str(store)]
    return [*command, "--port", str(port), "--data", str(store.parent / "data")]


@contextmanager
def peft_loop(store: Path) -> Iterator[int]:
    """The plain loop, with the same adapters."""
    port = free_port()
    with server([sys.executable, "-W", "ignore", str(HERE / "serving_peft.py"), str(store), str(port)], port, "/"):
        yield port


@contextmanager
def server(command: list[str], port: int, path: str) -> Iterator[None]:
    with tempfile.TemporaryFile("w+") as log:  # a pipe that nobody reads fills up, and the server waits
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)
        try:
            for _ in range(600):
                if process.poll() is not None:
                    log.seek(0)
                    raise SystemExit(f"the server ended: {log.read()[-2000:]}")
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}"):
                        break
                except OSError:
                    time.sleep(0.2)
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


# ── sides ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def over_http(port: int, requests: list[dict[str, Any]], count: int) -> dict[str, float]:
    """Requests and tokens a second with so many clients."""
    started = time.perf_counter()
    responses = asyncio.run(clients(port, requests, count))
    seconds = time.perf_counter() - started
    answers = [streamed(response) for response in responses]
    if failed := [answer for answer in answers if answer.error or answer.finish is None]:
        raise SystemExit(f"{len(failed)} requests failed: {failed[0]}")
    tokens = sum(answer.tokens for answer in answers)
    return {"requests_per_second": len(answers) / seconds, "tokens_per_second": tokens / seconds}


def bare(store: str, requests: list[dict[str, Any]], warm: list[dict[str, Any]]) -> dict[str, float]:
    """Tokens a second of the engine alone, with as many requests under way as there are clients."""
    import halka
    from halka.models.loading import load_base
    from halka.storage.adapter_store import AdapterStore

    model = halka.adapt(*load_base("smollm2-135m", device="cpu"))
    with halka.Engine(model, AdapterStore(store)) as engine:
        seconds, tokens = 0.0, 0
        for batch in (warm, requests):
            waiting, under_way, tokens = iter(batch), [], 0
            started = time.perf_counter()
            while True:
                for body in waiting:
                    request = halka.Request.of(
                        body["messages"][0]["content"],
                        model.tokenizer,
                        adapter=body["model"],
                        stopping=halka.Stopping(max_new_tokens=NEW),
                    )
                    under_way += engine.submit(request)
                    if len(under_way) == CLIENTS:
                        break
                if not under_way:
                    break
                engine.step()
                tokens += sum(len(answer.tokens) for answer in under_way if answer.finish is not None)
                under_way = [answer for answer in under_way if answer.finish is None]
            seconds = time.perf_counter() - started
    return {"tokens_per_second": tokens / seconds}


# ── parts ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def measure_clients(runs: int, work: Path) -> dict[str, Any]:
    with served(store_of("mixed", work)) as port:
        over_http(port, bodies(NAMES["mixed"], CLIENTS, 99), CLIENTS)  # all adapters are there, all kernels compiled

        def rate(clients: int, count: int, run: int) -> dict[str, float]:
            return over_http(port, bodies(NAMES["mixed"], count, run), clients)

        ways = {"32 clients": partial(rate, CLIENTS, 4 * CLIENTS), "one client": partial(rate, 1, 12)}
        return compared(ways, runs, "requests_per_second", 4.0)


def measure_cost(runs: int, work: Path) -> dict[str, Any]:
    store, warm = store_of("mixed", work), bodies(NAMES["mixed"], CLIENTS, 99)

    def http(run: int) -> dict[str, float]:
        with served(store) as port:
            over_http(port, warm, CLIENTS)
            return over_http(port, bodies(NAMES["mixed"], 4 * CLIENTS, run), CLIENTS)

    def alone(run: int) -> dict[str, float]:
        requests = bodies(NAMES["mixed"], 4 * CLIENTS, run)
        return in_a_process(__file__, {"store": str(store), "requests": requests, "warm": warm})

    return compared({"over HTTP": http, "the engine alone": alone}, runs, "tokens_per_second", 0.85)


def measure_peft(runs: int, work: Path) -> dict[str, Any]:
    store = store_of("loras", work)

    def rate(server: Callable[[Path], AbstractContextManager[int]], warm: int, run: int) -> dict[str, float]:
        with server(store) as port:
            over_http(port, bodies(NAMES["loras"], warm, 99), CLIENTS)
            return over_http(port, bodies(NAMES["loras"], CLIENTS, run), CLIENTS)

    ways = {"halka serve": partial(rate, served, CLIENTS), "peft + FastAPI": partial(rate, peft_loop, 2)}
    return compared(ways, runs, "requests_per_second")


def measure_latency(runs: int, work: Path, guidellm: str) -> dict[str, Any]:
    """What guidellm and /metrics say of the same requests."""
    seen: list[dict[str, float]] = []
    with served(store_of("mixed", work)) as port:
        over_http(port, bodies(NAMES["mixed"], CLIENTS, 99), CLIENTS)
        for run in range(runs):
            requests = bodies(NAMES["mixed"][:1], 96, run)
            data, report = work / f"prompts{run}.jsonl", work / f"report{run}.json"
            lines = [
                json.dumps({"prompt": body["messages"][0]["content"], "output_tokens_count": NEW}) for body in requests
            ]
            data.write_text("\n".join(lines) + "\n")
            before = first_tokens(port)
            command = [guidellm, "run", "--disable-console", "--backend"]
            command += [
                f"kind=openai_http,validate_backend=false,target=http://127.0.0.1:{port},model={requests[0]['model']}"
            ]
            command += ["--profile", "kind=concurrent,streams=8", "--data", f"kind=json_file,path={data}"]
            command += [
                "--constraint",
                f"kind=max_requests,count={len(requests)}",
                "--output",
                f"kind=json,path={report}",
            ]
            environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
            subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
            after = first_tokens(port)
            outside = json.loads(report.read_text())["benchmarks"][0]["metrics"]["time_to_first_token_ms"]["successful"]
            own = {bound: count - before.get(bound, 0.0) for bound, count in after.items()}
            seen.append(
                {
                    "guidellm_median_s": outside["median"] / 1000,
                    "guidellm_p95_s": outside["percentiles"]["p95"] / 1000,
                    "metrics_median_s": quantile(own, 0.5),
                    "metrics_p95_s": quantile(own, 0.95),
                }
            )
            print(run, seen[-1], flush=True)
    return {
        "runs": seen,
        "ratios": [
            {
                "of": of,
                "ratio": statistics.median(one[f"metrics_{of}_s"] / one[f"guidellm_{of}_s"] for one in seen),
                "wanted": [0.9, 1.1],
            }
            for of in ("median", "p95")
        ],
    }


def first_tokens(port: int) -> dict[float, float]:
    """The histogram of seconds to the first token, over all adapters: how many are at most each bound."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
        text = response.read().decode()
    counts: dict[float, float] = {}
    for bound, count in re.findall(r'^halka_time_to_first_token_seconds_bucket\{.*?le="(.*?)".*?\} (\S+)$', text, re.M):
        counts[float(bound)] = counts.get(float(bound), 0.0) + float(count)
    return counts


def quantile(counts: dict[float, float], share: float) -> float:
    """By linear interpolation within the bucket, as Prometheus has it."""
    bounds = sorted(counts)
    rank, below, low = share * counts[bounds[-1]], 0.0, 0.0
    for bound in bounds:
        if counts[bound] >= rank:
            return low + (bound - low) * (rank - below) / (counts[bound] - below)
        below, low = counts[bound], bound
    return low


def store_of(kind: str, work: Path) -> Path:
    """The store of these adapters, which the first call writes."""
    store = work / kind / "store"
    if not store.exists():
        families = (
            {"lora": CLIENTS} if kind == "loras" else dict.fromkeys(("lora", "bottleneck", "prefix", "prompt"), 8)
        )
        in_a_process(__file__, {"fill": str(store), "families": families})
    return store


def compared(
    ways: Mapping[str, Callable[[int], dict[str, float]]], runs: int, what: str, wanted: float | None = None
) -> dict[str, Any]:
    """The rates of two ways, measured in turns, and the ratio of the first to the second."""
    results: dict[str, list[float]] = {way: [] for way in ways}
    for run, way in interleaved([*ways], runs):
        rate = ways[way](run)
        results[way].append(rate[what])
        print(run, way, rate, flush=True)
    one, other = ways
    ratios = [a / b for a, b in zip(results[one], results[other], strict=True)]
    return {
        what: {way: statistics.median(values) for way, values in results.items()},
        "of": one,
        "to": other,
        "ratio": statistics.median(ratios),
        "wanted": wanted,
        "runs": results,
    }


def worker(store: str = "", fill_: str = "", **rest: Any) -> dict[str, Any]:
    if fill_:
        fill(fill_, rest["families"])
        return {}
    return bare(store, **rest)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--guidellm", help="the command of guidellm; without it `latency` is left out")
    parser.add_argument("--out", type=Path, default=RESULT, help="the file that results are added to")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        order = json.loads(arguments.worker)
        print(json.dumps(worker(fill_=order.pop("fill", ""), **order)))
        return
    wait_briefly()
    results = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for part in arguments.only:
            if part == "latency" and not arguments.guidellm:
                print("latency is left out: name guidellm's command with --guidellm")
                continue
            if part == "latency":
                measured = measure_latency(arguments.runs, work, arguments.guidellm)
            else:
                measure = {"clients": measure_clients, "cost": measure_cost, "peft": measure_peft}[part]
                measured = measure(arguments.runs, work)
            results[part] = {**measured, "setup": setup("torch", "transformers", "numba", "fastapi", "uvicorn", "peft")}
            arguments.out.write_text(json.dumps(results, indent=1) + "\n")
            print(part, json.dumps({key: measured[key] for key in measured if key not in ("runs",)}), flush=True)


if __name__ == "__main__":
    main()

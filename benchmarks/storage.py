"""A store of a thousand adapters behind one model: first use from disk, switching, and a pool that keeps to its budget.

    python benchmarks/storage.py                   # some minutes; needs 4 GB of disk for a while

SmolLM2-135M-Instruct in bf16, LoRA at every linear layer. First use and switching: rank 16; "cold" is after the system
was told to drop the file from its cache. The pool: 1,000 adapters of rank 2, drawn as visitors are (few often, many
seldom: rank r with weight 1/r), one row a time, with a budget for 100 of them. The result goes to
benchmarks/results/storage.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from side_by_side import setup

import halka
from halka.models.loading import load_base
from halka.util import machine

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=int, default=1000)
    parser.add_argument("--uses", type=int, default=2000)
    arguments = parser.parse_args()
    base, tokenizer = load_base("smollm2-135m", device="cpu")
    model = halka.adapt(base, tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        found = {
            "first_use": first_use(model, Path(folder) / "sixteen"),
            "pool": pool(model, Path(folder) / "two", arguments.adapters, arguments.uses),
        }
    result = {"setup": setup("halka", "torch", "transformers"), **found}
    print(json.dumps(found, indent=1))
    (HERE / "results" / "storage.json").write_text(json.dumps(result, indent=1) + "\n")


def filled(folder: Path, model: halka.core.AdaptedModel, rank: int, count: int) -> halka.AdapterStore:
    """A store with so many adapters of random values."""
    store = halka.AdapterStore(folder)
    adapter = model.add("made", halka.LoRA(rank=rank))
    for number in range(count):
        with torch.no_grad():
            for parameter in adapter.parameters():
                parameter.normal_(std=0.01)
        store.save(model, "made", stored_as=f"task-{number}")
    model.remove("made")
    return store


def first_use(model: halka.core.AdaptedModel, folder: Path, count: int = 40) -> dict:
    """Milliseconds until a stored adapter is in use, and until one that is in memory is."""
    store = filled(folder, model, 16, count)
    pool = halka.AdapterPool(model, store, budget=8 * 2**30)
    names = store.names()
    weights = [store.get(name).open().weights for name in names]
    times: dict[str, list[float]] = {"cold": [], "warm": []}
    for how in times:
        for name, path in zip(names, weights, strict=True):
            if how == "cold":
                forgotten(path)
            times[how].append(clocked(lambda name=name: used(model, name)))
            pool.forget(name)
    for name in names:
        used(model, name)
    switching = [clocked(lambda name=name: used(model, name)) for _ in range(5) for name in names]
    size = pool.bytes // count
    for name in names:
        pool.forget(name)
    model.pool = None
    return {
        "rank": 16,
        "bytes_on_disk": weights[0].stat().st_size,
        "bytes_in_memory": size,
        "cold_ms": statistics.median(times["cold"]),
        "warm_ms": statistics.median(times["warm"]),
        "switching_ms": statistics.median(switching),
    }


def pool(model: halka.core.AdaptedModel, folder: Path, count: int, uses: int) -> dict:
    """Uses of any of many stored adapters within a budget for a tenth of them."""
    started = time.perf_counter()
    store = filled(folder, model, 2, count)
    writing = time.perf_counter() - started
    listing = clocked(lambda: store.list())
    names = store.names()
    one = store.load(model, names[0])
    size = sum(tensor.numel() * tensor.element_size() for tensor in one.state_dict().values())
    model.remove(names[0])
    budget = size * (count // 10)
    kept = halka.AdapterPool(model, store, budget)
    cpu = next(model.base.parameters()).device
    before = machine.resident(cpu)
    machine.reset_peak(cpu)
    draw = random.Random(0)
    chosen = draw.choices(names, [1 / (place + 1) for place in range(count)], k=uses)
    text, most, times = torch.tensor([[5, 6, 7]]), 0, []
    for name in chosen:
        times.append(clocked(lambda name=name: used(model, name)))
        with torch.inference_mode(), model.use(name):
            model.base(text)
        most = max(most, kept.bytes)
    return {
        "adapters": count,
        "rank": 2,
        "bytes_each": size,
        "budget": budget,
        "most_held": most,
        "process_grew_by": machine.peak(cpu) - before,
        "uses": uses,
        "read_from_disk": kept.loads,
        "median_ms_until_in_use": statistics.median(times),
        "worst_ms_until_in_use": max(times),
        "listing_ms": listing,
        "writing_s": writing,
    }


def used(model: halka.core.AdaptedModel, name: str) -> None:
    with model.use(name):
        pass


def clocked(work: Callable[[], object]) -> float:
    """Milliseconds."""
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1000


def forgotten(path: Path) -> None:
    """Let the system drop a file from its cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main()

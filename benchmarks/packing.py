"""What each step on the way to packed batches gains, and what memory they need.

    python benchmarks/packing.py --steps    # from padded batches in random order to packed ones, a change at a time
    python benchmarks/packing.py --memory   # what packed batches need that share much, beside the estimate

`--steps` trains LoRAs of rank 8 on SmolLM2-135M-Instruct in bf16, on the two tasks and in the way of
benchmarks/speed.py: 8 examples a step, run n with seed n, every run a process of its own, in which the ways take
their steps in turn, so that a machine that is slower for a minute is so for all. All ways run the same loop on the
same examples, each step as training makes it; only what is named differs from the way before. Useful tokens are all
tokens of all rows, padding not; computed ones are counted before a line is filled up. A gain is the median of the runs'
ratios, each of two ways of one seed. Memory is that of one shorter run of seed 0 with one way alone. It writes
benchmarks/results/packing_steps.json.

`--memory` trains the same LoRA on random tokens, examples of a common beginning and 20 tokens of their own, with
batch_tokens of 2,048, packed and padded, every case in a process of its own, and notes the peak beyond the base. The
estimate is that of `halka estimate` for as many tokens in padded rows of that length. It writes
benchmarks/results/packing_memory.json.

What cannot be switched off has no row of its own: packed batches never compute the tokens behind the last state that
predicts a label, LoRA's second product adds itself to the output, and both kinds compute logits only where labels are,
some at a time. The file counts the first.
"""

from __future__ import annotations

import argparse
import json
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from side_by_side import in_a_process, setup

HERE = Path(__file__).parent
RESULTS = HERE / "results"
SIZE = 8
LR = 1e-3
NEVER = 10**9  # tokens that sharing a segment would have to save
ALONE_STEPS = 8  # of a run for its memory
WAYS: dict[str, dict[str, Any]] = {
    "padded, random order": {"order": "random", "packed": False},
    "padded, grouped by length": {"order": "grouped", "packed": False},
    "packed, nothing shared": {"order": "grouped", "packed": True, "least_saved": NEVER},
    "packed, beginnings shared": {"order": "grouped", "packed": True},
    "packed, grouped by beginning": {"order": "beginning", "packed": True},
    "norms and gates by kernels": {"order": "beginning", "packed": True, "kernels": True},
}
TASKS = ("snips", "snips-180")


# ── the steps ───────────────────────────────────────────────────────────────────────────────────────────────────────


def worker(ways: list[str], task: str, steps: int, seed: int) -> dict[str, Any]:
    """The steps of all ways in turn, in this process: each way's speed and tokens, and the peak of all, "memory"."""
    import torch
    from fixed_batches import BASE, SKIPPED, batches_of, items_of, useful_tokens, warmed

    import halka
    from halka.data.batches import plan_packed
    from halka.data.packing import LEAST_SAVED, WIDTH, computed_tokens, pack, paths_of
    from halka.models.attention.function import use_attention
    from halka.models.casting import casting
    from halka.models.layer_kernels import layer_kernels
    from halka.models.loading import load_base
    from halka.objectives import summed_losses
    from halka.objectives.language_modelling import LINE, LanguageModelling
    from halka.util import machine
    from halka.util.mode import in_mode

    base, tokenizer = load_base(BASE, device="cpu")
    items, _ = items_of(task, tokenizer)
    warmed(base)
    cpu = torch.device("cpu")
    before = machine.resident(cpu)
    machine.reset_peak(cpu)
    model = halka.adapt(base, tokenizer)

    class Trained:
        """One way, with an adapter and batches of its own."""

        def __init__(self, way: str) -> None:
            self.form, self.name = WAYS[way], f"a{list(WAYS).index(way)}"
            self.least_saved = self.form.get("least_saved", LEAST_SAVED)
            adapter = model.add(self.name, halka.LoRA(rank=8), seed=seed)
            self.parameters, self.parts = adapter.parameters(), [*adapter.parts.values()]
            self.optimizer = torch.optim.AdamW(self.parameters, lr=LR, weight_decay=0.0, fused=True)
            if self.form["order"] == "beginning":
                planned = plan_packed(items, seed=seed, epoch=0, batch_size=SIZE, group_shared=True)
                self.batches = planned[:steps]
            else:
                self.batches = batches_of(items, self.form["order"], SIZE, steps, seed)
            self.seconds: list[float] = []

        def step(self, number: int) -> None:
            start = time.perf_counter()
            rows = [items[index] for index in self.batches[number]]
            kernels = layer_kernels(base) if self.form.get("kernels") else nullcontext()
            with (
                use_attention(base),
                kernels,
                in_mode(True, base),
                casting(self.parts, base.dtype),
                model.use(self.name),
            ):
                if self.form["packed"]:
                    packed = pack([rows], self.least_saved).filled(LINE)
                    losses = LanguageModelling().packed_losses(model, [self.name], packed)
                else:
                    losses = summed_losses(model, {self.name: rows}, packed=False)
                (losses.sum() / sum(item.labels for item in rows)).backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.seconds.append(time.perf_counter() - start)

        def measured(self) -> dict[str, float]:
            all_rows = [[items[index] for index in batch] for batch in self.batches]
            if self.form["packed"]:
                computed = sum(computed_tokens(paths_of(rows), self.least_saved) for rows in all_rows)
            else:
                computed = sum(len(rows) * max(map(len, rows)) for rows in all_rows)
            paths = [path for rows in all_rows for path in paths_of(rows)]
            useful = useful_tokens(items, self.batches)
            timed = useful_tokens(items, self.batches[SKIPPED:])
            return {
                "tokens_per_second": timed / sum(self.seconds[SKIPPED:]),
                "computed": computed / useful,
                "behind_labels": 1 - sum(len(path) // WIDTH for path in paths) / useful,
            }

    trained = {way: Trained(way) for way in ways}
    for number in range(steps):
        for each in trained.values():
            each.step(number)
    peak = machine.peak(cpu) - before
    return {"memory": peak, "ways": {way: each.measured() for way, each in trained.items()}}


def steps_table(tasks: list[str], steps: int, runs: int) -> dict[str, Any]:
    """All ways on each task: medians, and the gain over the way before and over the first."""
    from fixed_batches import median_ratio, medians

    found: dict[str, Any] = {}
    for task in tasks:
        memory: dict[str, float] = {}
        for way in WAYS:
            alone = {"ways": [way], "task": task, "steps": ALONE_STEPS, "seed": 0}
            memory[way] = in_a_process(__file__, alone)["memory"]
        of_way: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for run in range(runs):
            together = in_a_process(__file__, {"ways": [*WAYS], "task": task, "steps": steps, "seed": run})
            for way in WAYS:
                of_way[way].append(together["ways"][way])
                print(task, run, way, of_way[way][-1], flush=True)
        first = next(iter(WAYS))
        before = dict(zip(WAYS, (first, *WAYS), strict=False))
        found[task] = {
            way: {
                **medians(each),
                "gain": median_ratio(each, of_way[before[way]], "tokens_per_second"),
                "gain_in_all": median_ratio(each, of_way[first], "tokens_per_second"),
                "memory": memory[way],
                "memory_of_first": memory[way] / memory[first],
                "runs": each,
            }
            for way, each in of_way.items()
        }
    return {"tasks": found, "steps": steps, "setup": setup("halka", "torch", "transformers")}


# ── memory ──────────────────────────────────────────────────────────────────────────────────────────────────────────

SHARED = (0, 170, 300, 500, 1000)  # tokens that all examples begin with
OWN, ALONE, BUDGET = 20, 190, 2048  # own tokens of an example: of one that shares some, and of one that shares none


def memory_worker(shared: int, packed: bool) -> dict[str, float]:
    """The peak of two steps beyond the base, in this process."""
    import random

    import torch
    from fixed_batches import BASE, warmed

    import halka
    from halka.data.tokens import Tokens
    from halka.util import machine

    draw = random.Random(0)
    root, own = [draw.randrange(3, 49152) for _ in range(shared)], OWN if shared else ALONE
    items = [
        Tokens(root + [draw.randrange(3, 49152) for _ in range(own)], [False] * shared + [True] * own)
        for _ in range(2 * BUDGET // own + 2)
    ]
    base, tokenizer = halka.load_base(BASE, device="cpu")
    warmed(base)
    cpu = torch.device("cpu")
    before = machine.resident(cpu)
    machine.reset_peak(cpu)
    model = halka.adapt(base, tokenizer)
    model.add("a", halka.LoRA(rank=8))
    config = halka.TrainConfig(steps=2, batch_tokens=BUDGET, batches="packed" if packed else "padded")
    *_, last = halka.train(model, "a", items, config)
    return {"peak": machine.peak(cpu) - before, "useful": last.tokens, "computed": last.computed or 0}


def write_memory(path: Path) -> None:
    """Packed and padded peaks for every number of shared tokens, each with its estimate.

    Each is written as it ends, and those that the file has of this commit stay.
    """
    from fixed_batches import BASE

    import halka
    from halka.estimating.dry_runs import Setup, dry_run
    from halka.estimating.hardware import KERNELS
    from halka.models.loading import base_config

    result: dict[str, Any] = {"cases": [], "batch_tokens": BUDGET, "setup": setup("halka", "torch", "transformers")}
    before = json.loads(path.read_text()) if path.exists() else result
    commit = result["setup"]["commit"]
    if commit is not None and not commit.endswith("-dirty") and before["setup"]["commit"] == commit:
        result["cases"] = before["cases"]
    for shared in SHARED[len(result["cases"]) :]:
        own = OWN if shared else ALONE
        length, rows = shared + own, {"packed": (BUDGET - shared) // own, "padded": BUDGET // (shared + own)}
        case: dict[str, Any] = {"shared": shared, "own": own}
        for way in ("packed", "padded"):
            case[way] = in_a_process(__file__, {"shared": shared, "packed": way == "packed"})
            batch = Setup(rows[way], length, shared=shared if way == "packed" else 0, answers=own)
            estimated = dry_run(base_config(BASE), halka.LoRA(rank=8), batch)
            case[way]["estimated"] = estimated.memory.total - estimated.base_bytes + KERNELS
        result["cases"].append(case)
        path.write_text(json.dumps(result, indent=1) + "\n")
        print(case, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", action="store_true", help="write packing_steps.json")
    parser.add_argument("--memory", action="store_true", help="write packing_memory.json")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--count", type=int, default=20, help="optimiser steps a way and run")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder of the result files")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        given = json.loads(arguments.worker)
        print(json.dumps(memory_worker(**given) if "shared" in given else worker(**given)))
        return
    if not (arguments.steps or arguments.memory):
        parser.error("choose --steps, --memory or both")
    if arguments.steps:
        result = steps_table(arguments.tasks, arguments.count, arguments.runs)
        (arguments.out / "packing_steps.json").write_text(json.dumps(result, indent=1) + "\n")
    if arguments.memory:
        write_memory(arguments.out / "packing_memory.json")


if __name__ == "__main__":
    main()

"""Two training processes on one machine: by OpenMP's own way of waiting, and as Halka's command line lets them.

    python benchmarks/two_processes.py        # some ten minutes: by OpenMP's own way two processes nearly stand still

Each process trains a LoRA of rank 8 on SmolLM2-135M-Instruct with all cores, in bf16, on random tokens; speed is tokens
a second without the first two steps. Alone, and two at a time, in turns. By Halka's way threads spin for less long, and
processes share out the cores (`halka.util.core_share`). The result goes to benchmarks/results/two_processes.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from side_by_side import setup

from halka.util.openmp import SHARED, share_cores

HERE = Path(__file__).parent
LENGTH, ROWS = 60, 8


def worker(steps: int) -> None:
    """One process: prints its tokens a second."""
    import random

    import halka
    from halka.data.tokens import Tokens

    base, tokenizer = halka.load_base("smollm2-135m", device="cpu")
    model = halka.adapt(base, tokenizer)
    model.add("a", halka.LoRA(rank=8))
    draw = random.Random(0)
    examples = [
        Tokens([draw.randrange(3, 49152) for _ in range(LENGTH)], [place >= LENGTH // 2 for place in range(LENGTH)])
        for _ in range(ROWS * steps)
    ]
    config = halka.TrainConfig(steps=steps, batch_size=ROWS)
    speeds = [step.tokens_per_second for step in halka.train(model, "a", examples, config)]
    print(statistics.median(speeds[2:]))


def speeds(environment: dict[str, str], count: int, steps: int) -> list[float]:
    """Tokens a second of so many processes at a time."""
    command = [sys.executable, "-W", "ignore", __file__, "--worker", "--steps", str(steps)]
    started = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    return [float(process.communicate()[0]) for process in started]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.steps)
        return
    own = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_", SHARED))}
    halka = dict(own)
    share_cores(halka)
    runs: dict[str, list[dict[str, list[float]]]] = {"own": [], "halka": []}
    for _ in range(arguments.runs):
        for way, environment in (("own", own), ("halka", halka)):
            runs[way].append({str(count): speeds(environment, count, arguments.steps) for count in (1, 2)})
            print(way, runs[way][-1], flush=True)
    medians = {
        way: {count: statistics.median(sum(run[count]) for run in of) for count in ("1", "2")}
        for way, of in runs.items()
    }
    result = {
        "setup": setup("halka", "torch"),
        "tokens_per_second": medians,
        "alone": medians["halka"]["1"] / medians["own"]["1"],
        "two_together": medians["halka"]["2"] / medians["halka"]["1"],
        "two_together_by_own_way": medians["own"]["2"] / medians["own"]["1"],
        "runs": runs,
    }
    (HERE / "results" / "two_processes.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

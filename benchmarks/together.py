"""Training several adapters together against one after another: wall time and peak memory.

    python benchmarks/together.py                      # 4 LoRA adapters, three interleaved runs of each way

Both ways train SmolLM2-135M-Instruct in bf16 on snips_nlu, each adapter (LoRA, rank 8) with its own learning rate. With
the same seed all read the same batches, as a search for a learning rate does; with seeds of their own, batches differ
in length and share a pass only where they are alike. Every run is a process of its own; memory is its peak beyond what
it held with the base loaded. The result goes to benchmarks/results/together.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

from side_by_side import in_a_process, setup

HERE = Path(__file__).parent
RATES = (5e-4, 1e-3, 2e-3, 4e-3)


def worker(way: str, seeds: str, size: int, steps: int) -> dict:
    """One run of one way, in this process."""
    import torch

    import halka
    from halka.data.task import limit, load_task
    from halka.data.tokens import encode_all
    from halka.models.loading import load_base
    from halka.util import machine

    task = limit(load_task(HERE / "tasks" / "snips_nlu.py"), train=1000)
    base, tokenizer = load_base("smollm2-135m", device="cpu")
    items = encode_all(task.train, tokenizer).items
    with torch.no_grad():
        base(torch.tensor([items[0].ids]))  # brings the weights into memory
    cpu = torch.device("cpu")
    before = machine.resident(cpu)
    machine.reset_peak(cpu)
    model = halka.adapt(base, tokenizer)
    jobs = []
    for number, rate in enumerate(RATES):
        seed = number if seeds == "own" else 0
        model.add(str(number), halka.LoRA(rank=8), seed=seed)
        config = halka.TrainConfig(lr=rate, steps=steps, batch_size=size, seed=seed)
        jobs.append(halka.Job(str(number), items, config))
    started = time.perf_counter()
    losses = {}
    for together in [jobs] if way == "together" else [[job] for job in jobs]:
        for told in halka.train_many(model, together):
            losses |= {name: step.loss for name, step in told.items()}
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "memory": machine.peak(cpu) - before, "losses": losses}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2, 8], help="examples a batch")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(worker(**json.loads(arguments.worker))))
        return
    found = []
    for size in arguments.sizes:
        for seeds in ("same", "own"):
            runs: dict[str, list[dict]] = {"together": [], "one after another": []}
            for number in range(arguments.runs):
                for way in runs if number % 2 else reversed(runs):
                    given = {"way": way, "seeds": seeds, "size": size, "steps": arguments.steps}
                    runs[way].append(in_a_process(__file__, given))
                    print(given, {key: runs[way][-1][key] for key in ("seconds", "memory")}, flush=True)
            pairs = [*zip(*runs.values(), strict=True)]
            found.append(
                {
                    "examples_a_batch": size,
                    "seeds": seeds,
                    "steps": arguments.steps,
                    "adapters": len(RATES),
                    "time_ratio": statistics.median(one["seconds"] / other["seconds"] for one, other in pairs),
                    "memory_ratio": statistics.median(one["memory"] / other["memory"] for one, other in pairs),
                    "runs": runs,
                }
            )
            print({key: value for key, value in found[-1].items() if key != "runs"}, flush=True)
    target = HERE / "results" / "together.json"
    target.write_text(json.dumps({"setup": setup("halka", "torch", "transformers"), "found": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()

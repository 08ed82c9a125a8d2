"""A training step in float32 and in bfloat16, by processors with and without instructions for products in bfloat16.

    python benchmarks/precision.py      # some ten minutes on two cores

LoRA of rank 16 on SmolLM2-135M-Instruct, four examples of the task `support` a step. This processor stands in for
others: oneDNN, torch and MKL are told to use no later instructions than a kind of processor has (ONEDNN_MAX_CPU_ISA,
ATEN_CPU_CAPABILITY, MKL_ENABLE_INSTRUCTIONS). Every run is a process of its own; a step's time is the median without
the first. The result goes to benchmarks/results/precision.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

from side_by_side import in_a_process, setup

RESULT = Path(__file__).parent / "results" / "precision.json"
KINDS: dict[str, dict[str, str]] = {
    "this one": {},
    "AVX-512 without bfloat16": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    "AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
}
STEPS, LONG = 5, 60.0  # steps, and seconds after which a run takes no more


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(worker(**json.loads(arguments.worker))))
        return
    rows: list[dict[str, Any]] = []
    for kind, limits in KINDS.items():
        os.environ.update(limits)
        steps = {
            precision: in_a_process(__file__, {"precision": precision})["seconds"]
            for precision in ("float32", "bfloat16")
        }
        rows.append({"processor": kind, "seconds": steps, "ratio": steps["bfloat16"] / steps["float32"]})
        print(rows[-1], flush=True)
        for name in limits:
            del os.environ[name]
    result = {"setup": setup("halka", "torch", "transformers"), "rows": rows}
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def worker(precision: str) -> dict[str, float]:
    import torch

    import halka

    base, tokenizer = halka.load_base("smollm2-135m", dtype="auto", device="cpu")  # as it is stored
    model = halka.adapt(base.to(getattr(torch, precision)), tokenizer)
    model.add("a", halka.LoRA(rank=16))
    times, last = list[float](), time.perf_counter()
    for _ in halka.train(model, "a", halka.load_task("support").train, {"steps": STEPS, "batch_size": 4}):
        times.append(time.perf_counter() - last)
        last += times[-1]
        if len(times) > 1 and sum(times) > LONG:
            break
    return {"seconds": statistics.median(times[1:])}


if __name__ == "__main__":
    main()

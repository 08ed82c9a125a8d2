"""What does merging cost, and what is left of two adapters in one? Beside peft, on SmolLM2-135M-Instruct.

    python benchmarks/merging.py             # some ten minutes on an idle machine

Two LoRAs of rank 16 are trained in bf16, on support and on snips_nlu, and kept in --adapters for the next time. With
the base in bf16, fp16 and fp32 each is measured merged against unmerged on the neutral text, in Halka and in peft
(`merge_adapter`); afterwards both unmerge, and the share of the base's elements that are not what they were is counted.
Then the two are combined in every way, and the losses of base, sources and combinations on both tasks' test examples
stand side by side. The result goes to benchmarks/results/merging.json.
"""

from __future__ import annotations

import argparse
import json
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from side_by_side import setup

import halka
from halka.data.task import Task, limit, load_task
from halka.data.tokens import Tokens, encode_all
from halka.merging.error import difference
from halka.merging.probes import logits_of, probe_rows
from halka.models.loading import load_base
from halka.training import mean_loss

HERE = Path(__file__).parent
BASE = "smollm2-135m"
TASKS = {"support": "support", "snips": HERE / "tasks" / "snips_nlu.py"}
PRECISIONS = ("bfloat16", "float16", "float32")
COMBINED: dict[str, dict[str, Any]] = {
    "linear, half each": {"method": "linear", "weight": 0.5},
    "linear, both whole": {"method": "linear", "weight": 1.0},
    "cat, half each": {"method": "cat", "weight": 0.5},
    "cat, both whole": {"method": "cat", "weight": 1.0},
    "svd to rank 16": {"method": "svd", "weight": 1.0},
    "ties": {"method": "ties", "weight": 1.0, "density": 0.5},
    "dare_linear": {"method": "dare_linear", "weight": 1.0, "density": 0.5},
    "dare_ties": {"method": "dare_ties", "weight": 1.0, "density": 0.5},
    "magnitude_prune": {"method": "magnitude_prune", "weight": 1.0, "density": 0.5},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=Path, default=Path("runs/merging"))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--examples", type=int, default=40, help="of each task's test split")
    parser.add_argument("--only", choices=(*PRECISIONS, "combined"), nargs="+", help="what to measure anew")
    arguments = parser.parse_args()
    trained(arguments.adapters, arguments.steps)
    path = HERE / "results" / "merging.json"
    found: dict[str, Any] = json.loads(path.read_text()) if arguments.only and path.exists() else {"errors": {}}
    found |= {
        "setup": setup("halka", "torch", "transformers", "peft"),
        "base": BASE,
        "method": "LoRA r16",
        "steps": arguments.steps,
    }
    for part in arguments.only or (*PRECISIONS, "combined"):
        if part == "combined":
            found["combined"] = combined(arguments.adapters, arguments.examples)
        else:
            found["errors"][part] = {name: measured(arguments.adapters / name, part) for name in TASKS}
        path.write_text(json.dumps(found, indent=1) + "\n")


def trained(folder: Path, steps: int) -> None:
    """The two adapters in `folder`, trained if they are not there."""
    if all((folder / name / "halka.json").exists() for name in TASKS):
        return
    model = halka.adapt(*load_base(BASE, device="cpu"))
    config = halka.TrainConfig(steps=steps, batch_size=4)
    jobs = []
    for name, task in tasks(None).items():
        model.add(name, halka.LoRA(rank=16))
        jobs.append(halka.Job(name, encode_all(task.train, model.tokenizer).items, config))
    for told in halka.train_many(model, jobs):
        print({name: round(step.loss, 3) for name, step in told.items()}, flush=True)
    for name in TASKS:
        halka.save(model, name, folder / name, task=name, training={"steps": steps})


def tasks(test: int | None) -> dict[str, Task]:
    return {name: limit(load_task(where), train=400, test=test) for name, where in TASKS.items()}


def measured(folder: Path, dtype: str) -> dict[str, Any]:
    model = halka.adapt(*load_base(BASE, dtype=dtype, device="cpu"))
    halka.load(model, folder, name="a")
    before = {name: parameter.clone() for name, parameter in model.base.named_parameters()}
    found = halka.merge_error(model, "a")
    rows = probe_rows(model, None)
    ours = {**asdict(found), "relative": found.relative, "changed": changed(before, model.base)}
    return {"halka": ours, "peft": in_peft(folder, dtype, rows)}


def in_peft(folder: Path, dtype: str, rows: list[Tokens]) -> dict[str, Any]:
    """The same of peft's merge: merged against unmerged, and what stays changed once it unmerged."""
    from peft import PeftModel

    base, tokenizer = load_base(BASE, dtype=dtype, device="cpu")
    seen = halka.adapt(base, tokenizer)  # for its passes alone: no adapter of ours is there
    before = {name: parameter.clone() for name, parameter in base.named_parameters()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs: Any = PeftModel.from_pretrained(base, str(folder))
    unmerged = list(logits_of(seen, rows))
    theirs.merge_adapter()
    error = difference(unmerged, logits_of(seen, rows))
    theirs.unmerge_adapter()
    after = theirs.unload()
    return {"error": asdict(error), "changed": changed(before, after)}


def changed(before: dict[str, torch.Tensor], base: Any) -> float:
    """The share of the linear layers' elements that are not what they were, bit for bit."""
    now = dict(base.named_parameters())
    layers = [name for name in before if name.endswith("_proj.weight")]
    total = sum(before[name].numel() for name in layers)
    return sum(int((before[name] != now[name]).sum()) for name in layers) / total


def combined(folder: Path, examples: int) -> list[dict[str, Any]]:
    """Losses on both tasks' test examples."""
    model = halka.adapt(*load_base(BASE, device="cpu"))
    for name in TASKS:
        halka.load(model, folder / name, name=name)
    items = {name: encode_all(task.test, model.tokenizer).items for name, task in tasks(examples).items()}
    rows = []
    for name in (None, *TASKS, *COMBINED):
        if name in COMBINED:
            asked = dict(COMBINED[name])
            weight = asked.pop("weight")
            halka.combine(model, dict.fromkeys(TASKS, weight), name=name, **asked)
        losses = {task: mean_loss(model, name, each) for task, each in items.items()}
        rows.append({"adapter": name, "loss": losses, "examples": examples})
        print(rows[-1], flush=True)
        if name in COMBINED:
            model.remove(name)
    return rows


if __name__ == "__main__":
    main()

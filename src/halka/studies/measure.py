"""One run, in a process of its own, to one measurement: so that its peak memory is its own, and its failure too.

`python -m halka.studies.measure RUN.json RESULT.json` reads a `Spec`, prints a line of JSON a step, and writes the
measurement.
Several pairs of files are searches that are trained together.
"""

from __future__ import annotations

import json
import math
import platform
import statistics
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from halka.core import AdaptedModel, bytes_of, count_of, form_of
from halka.data.batches import plan
from halka.data.examples import Item
from halka.data.task import Task, limit
from halka.data.tasks import load_task
from halka.data.texts import shipped_text
from halka.estimating.dry_runs import FP32, Setup, rehearse, weights_of
from halka.evaluation.evaluating import Evaluation, evaluate, perplexity
from halka.methods import build_method
from halka.models import adapt, pad_id
from halka.models.attention.function import use_attention
from halka.models.kinds import kind_of
from halka.models.loading import load_base
from halka.storage.adapter_folder import AdapterFolder
from halka.storage.save_load import save
from halka.training import Job, Step, TrainConfig, as_tokens, mean_loss, train, train_many
from halka.util import machine
from halka.util.errors import TrainingError
from halka.util.files import write_text

SCHEMA = 1
BASE = "base"  # the method's name of a run without tuning
NAME = "run"  # the adapter's, while it is measured


@dataclass(frozen=True)
class Spec:
    """What one process is to measure."""

    experiment: str
    task: str
    base: str
    method: str
    label: str
    fields: Mapping[str, Any]
    train: Mapping[str, Any]  # TrainConfig's fields, with lr and seed
    purpose: str = "final"  # a "search" run is judged by its validation loss alone
    dtype: str = "bfloat16"
    quantize: str | None = None
    examples: Mapping[str, int] = field(default_factory=dict)  # at most so many, by split
    folder: str = "."  # for weights and predictions
    threads: int | None = None
    forgetting: str | None = None  # a text file; a page that comes with Halka if not given


def measure(run: Spec) -> dict[str, Any]:
    """Train, evaluate and time `run`; the measurement as plain data, ready for JSON."""
    model, task = _opened(run)
    config = _config(run)
    result = _identity(run, task, model)
    text = Path(run.forgetting).read_text(encoding="utf-8") if run.forgetting else shipped_text("forgetting")
    speaks = kind_of(model.base) == "causal-lm"
    before = perplexity(model, None, text) if speaks else None  # its pass also brings all weights into memory
    if run.method == BASE:
        name = None
        result["validation_loss"] = mean_loss(model, None, as_tokens(model, task.validation, config))
    else:
        name = NAME
        result.update(_train(model, run, task, config))
    if run.purpose == "search":
        return result
    evaluation = evaluate(model, name, task.test, task.metrics, max_new_tokens=task.max_new_tokens)
    result |= {
        "scores": {metric: asdict(score) for metric, score in evaluation.scores.items()},
        "samples": [
            {"prompt": each.prompt, "reference": each.references[0], "prediction": each.prediction}
            for each in evaluation.predictions[:5]
        ],
    }
    if before is not None:
        after = before if name is None else perplexity(model, name, text)
        result |= {
            "forgetting": {
                "text": Path(run.forgetting).stem if run.forgetting else "neutral",
                "base_perplexity": before,
                "perplexity": after,
                "change": after / before - 1,
            },
            "latency": _latency(model, name, as_tokens(model, task.validation, config)),
        }
    _write_predictions(Path(run.folder) / "predictions.jsonl", evaluation)
    if name is not None:
        training = {"steps": result["train"]["steps"], "best_step": result["train"]["best_step"], **asdict(config)}
        scores = {metric: score.value for metric, score in evaluation.scores.items()}
        folder = save(model, name, Path(run.folder) / "adapter", task=task.name, training=training, measurements=scores)
        result["adapter_bytes"] = AdapterFolder.open(folder).weights.stat().st_size
    return result


def search_together(runs: Sequence[Spec]) -> list[dict[str, Any]]:
    """Train search runs of one task and base together, in the passes that they share.

    Their measurements are as `measure` gives them, without the memory, which is not of one run.
    """
    model, task = _opened(runs[0])
    jobs, results = [], {}
    for number, run in enumerate(runs):
        name, config = str(number), _config(run)
        results[name] = _identity(run, task, model) | {"together": len(runs)}
        model.add(name, build_method(run.method, run.fields), seed=config.seed)
        items, held_out = (as_tokens(model, split, config, name) for split in (task.train, task.validation))
        jobs.append(Job(name, items, config, held_out))
    steps: dict[str, list[Step]] = {job.name: [] for job in jobs}
    for told in train_many(model, jobs):
        for name, step in told.items():
            if isinstance(step, TrainingError):
                results[name] = failed(runs[int(name)], f"{type(step).__name__}: {step}")
                continue
            _say(step, int(name))
            steps[name].append(step)
    for job in jobs:
        if results[job.name]["status"] == "done":
            results[job.name] |= _trained(model, job.name, steps[job.name], len([*job.examples]))
    return [*results.values()]


# ── the parts of a measurement ──────────────────────────────────────────────────────────────────────────────────────


def _opened(run: Spec) -> tuple[AdaptedModel, Task]:
    """The run's base and task, with as many threads as it may have."""
    if run.threads:
        torch.set_num_threads(run.threads)
    task = load_task(run.task)
    options: dict[str, Any] = {"dtype": run.dtype, "quantize": run.quantize, "kind": task.kind}
    base = load_base(run.base, **options, labels=task.labels or None)
    return adapt(*base), limit(task, **run.examples)


def _config(run: Spec) -> TrainConfig:
    """How it is trained: in one go, or not at all."""
    return TrainConfig(**{**run.train, "save_every": None})


def _identity(run: Spec, task: Task, model: AdaptedModel) -> dict[str, Any]:
    device = next(model.base.parameters()).device
    return {
        "schema": SCHEMA,
        "status": "done",
        "error": None,
        "experiment": run.experiment,
        "task": task.name,
        "licence": task.licence,
        "source": task.source,
        "base": run.base,
        "dtype": run.dtype,
        "quantize": run.quantize,
        "method": {"name": run.method, "label": run.label, "fields": dict(run.fields)},
        "lr": None if run.method == BASE else run.train.get("lr"),
        "seed": run.train.get("seed", 0),
        "purpose": run.purpose,
        "config": dict(run.train),
        "examples": {"train": len(task.train), "validation": len(task.validation), "test": len(task.test)},
        "primary": task.primary,
        "parameters": {"trainable": 0, "total": count_of(model.base)},
        "versions": {package: version(package) for package in ("halka", "torch", "transformers")}
        | {"python": platform.python_version()},
        "machine": machine.describe(device),
        "commit": machine.commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _train(model: AdaptedModel, run: Spec, task: Task, config: TrainConfig) -> dict[str, Any]:
    """Train the run's adapter, with a line of JSON to standard output a step."""
    device = next(model.base.parameters()).device
    baseline = machine.resident(device)
    adapter = model.add(NAME, build_method(run.method, run.fields), seed=config.seed)
    items, held_out = (as_tokens(model, split, config, NAME) for split in (task.train, task.validation))
    machine.reset_peak(device)
    steps = []
    for step in train(model, NAME, items, config, validation=held_out, folder=run.folder):
        _say(step)
        steps.append(step)
    peak = machine.peak(device)
    trained, weights = adapter.count(), weights_of(model, NAME)
    copies = weights - bytes_of(model.base)
    gradients, moments = trained * FP32, trained * 2 * FP32
    return _trained(model, NAME, steps, len(items)) | {
        "memory": {
            "peak": peak,
            "baseline": baseline,
            "weights": weights,
            "gradients": gradients,
            "optimizer": moments,
            "activations": max(0, peak - baseline - copies - gradients - moments),
            "predicted": _predicted(model, items, config),
        },
    }


def _say(step: Step, run: int = 0) -> None:
    """A line of JSON for who waits."""
    print(json.dumps({"run": run, "step": step.step, "steps": step.steps, "loss": step.loss}), flush=True)


def _trained(model: AdaptedModel, name: str, steps: Sequence[Step], examples: int) -> dict[str, Any]:
    """What the steps came to."""
    judged = [step for step in steps if step.validation is not None]
    best, last = min(judged, key=lambda step: step.validation or 0.0), steps[-1]
    return {
        "train": {
            "steps": last.step,
            "best_step": best.step,
            "examples": examples,
            "tokens": last.tokens,
            "seconds": last.seconds,
            "tokens_per_second": statistics.median(step.tokens_per_second for step in steps),
            "curve": [{"step": step.step, "loss": step.loss} for step in steps],
            "validation": [{"step": step.step, "loss": step.validation} for step in judged],
        },
        "validation_loss": best.validation,
        "parameters": {
            "trainable": model.adapter(name).count(),
            "total": count_of(model.base),
        },
    }


def _predicted(model: AdaptedModel, items: Sequence[Item], config: TrainConfig) -> dict[str, int]:
    """The estimate for the largest batch of the first epoch, by the parts that are measured."""
    a_epoch = plan([len(item) for item in items], seed=config.seed, epoch=0, **config.limits())
    batches = [[items[i] for i in chosen] for chosen in a_epoch]
    batch = max(batches, key=lambda batch: len(batch) * max(map(len, batch)))
    base: Any = model.base
    setup = Setup(
        rows=len(batch),
        length=max(map(len, batch)),
        answers=sum(item.labels for item in batch) // len(batch),
        accumulate=config.accumulate,
        checkpointing=config.checkpointing,
        dtype=str(base.dtype).removeprefix("torch."),
        quantize=form_of(base),
        kind=kind_of(base),
        labels=len(model.labels),
    )
    memory = rehearse(base.config, model.adapter(NAME).method, setup, gpu=base.device.type == "cuda").memory
    parts = {key: getattr(memory, key) for key in ("weights", "gradients", "optimizer")}
    return {**parts, "activations": memory.activations + memory.allocator}


def _latency(model: AdaptedModel, name: str | None, items: Sequence[Item], tokens: int = 24) -> dict[str, float]:
    """Milliseconds a generated token, one row, with and without the adapter in turn; medians of five."""
    base: Any = model.base
    prompt = torch.tensor([items[0].ids[:32]], device=next(base.parameters()).device)
    times: dict[str | None, list[float]] = {None: [], name: []}
    with torch.inference_mode(), use_attention(base):
        for _ in range(5):
            for each, kept in times.items():
                with model.use(each):
                    started = time.perf_counter()
                    base.generate(
                        input_ids=prompt,
                        attention_mask=torch.ones_like(prompt),
                        max_new_tokens=tokens,
                        min_new_tokens=tokens,
                        do_sample=False,
                        pad_token_id=pad_id(model),
                    )
                    kept.append((time.perf_counter() - started) / tokens * 1000)
    bare, adapted = statistics.median(times[None]), statistics.median(times[name])
    return {"base_ms_per_token": bare, "adapted_ms_per_token": adapted, "added": adapted / bare - 1}


def _write_predictions(path: Path, evaluation: Evaluation) -> None:
    write_text(path, "".join(json.dumps(asdict(each), ensure_ascii=False) + "\n" for each in evaluation.predictions))


# ── what it becomes ─────────────────────────────────────────────────────────────────────────────────────────────────


def failed(run: Spec, error: str) -> dict[str, Any]:
    """The measurement of a run that came to nothing, with the reason."""
    return {
        "schema": SCHEMA,
        "status": "failed",
        "error": error,
        "experiment": run.experiment,
        "task": Path(run.task).stem,
        "base": run.base,
        "method": {"name": run.method, "label": run.label, "fields": dict(run.fields)},
        "lr": run.train.get("lr"),
        "seed": run.train.get("seed", 0),
        "purpose": run.purpose,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def finite(value: Any) -> Any:
    """Plain data with None for what JSON has no number for."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def main(arguments: list[str]) -> int:
    runs, targets = [_read(Path(source)) for source in arguments[::2]], [Path(target) for target in arguments[1::2]]
    try:
        results = [measure(runs[0])] if len(runs) == 1 else search_together(runs)
    except Exception as error:
        traceback.print_exc()
        if len(runs) > 1:  # one of them, or all of them at once: whoever waits can try them one by one
            return 1
        results = [failed(runs[0], f"{type(error).__name__}: {error}")]
    for target, result in zip(targets, results, strict=True):
        write_text(target, json.dumps(finite(result), indent=1) + "\n")
    return 0 if all(result["status"] == "done" for result in results) else 1


def _read(path: Path) -> Spec:
    given = json.loads(path.read_text(encoding="utf-8"))
    given["fields"] = {key: tuple(v) if isinstance(v, list) else v for key, v in given["fields"].items()}
    return Spec(**{each.name: given[each.name] for each in fields(Spec) if each.name in given})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

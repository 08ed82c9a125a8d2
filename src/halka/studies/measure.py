"""Measures one run: train, evaluate, time it; the program of a comparison's runs (`halka.studies.runner`).

Several runs in one process are searches, which are trained together.
"""

from __future__ import annotations

import json
import socket
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

from halka.core import AdaptedModel, Method, parameter_count, quantization_of
from halka.data.examples import Item
from halka.data.metric import Metric
from halka.data.task import Task, limit, load_task
from halka.data.texts import shipped_text
from halka.engine.engine import Engine
from halka.engine.kept import kept_of
from halka.engine.request import Request
from halka.engine.stopping import Stopping
from halka.estimating.dry_runs import FP32, Setup, dry_run, weights_of
from halka.evaluation.evaluating import Evaluation, evaluate, perplexity
from halka.evaluation.metrics import resampled
from halka.evaluation.validation_score import ValidationScore, primary_metric
from halka.methods import build_method
from halka.methods.prompt import started_from
from halka.models import adapt
from halka.models.kinds import kind_of
from halka.models.layouts import layout_of
from halka.models.loading import load_base
from halka.models.quantised import bytes_of
from halka.models.rates import own_rate
from halka.storage.adapter_folder import AdapterFolder
from halka.storage.save_load import save
from halka.studies.experiment import digest
from halka.studies.hosts import Result
from halka.studies.notes import Notes
from halka.studies.runner import origin, report_step, serve
from halka.studies.spec import BASE, SCHEMA, Spec
from halka.training import Job, Step, TrainConfig, TrainResult, as_tokens, batch_plan, mean_loss, train_many
from halka.training.job import EncodedJob, encoded
from halka.training.run_folder import RunFolder
from halka.util import machine
from halka.util.base_folders import folder_digest
from halka.util.dtypes import dtype_name
from halka.util.errors import HalkaError, TrainingError
from halka.util.files import write_text
from halka.util.kinds import Kind
from halka.util.precision import lacks_bfloat16
from halka.util.process import run_process

TOKENS = 24  # of an answer whose latency is measured
NAME = "run"  # the adapter's name while it is measured
SAVE_EVERY = 70  # steps between checkpoints; seldom one that is scored, whose score a process that ends then would lose


def measure(run: Spec, folder: Path) -> Result:
    """Train, evaluate and time `run`; `folder` gets its adapter and its predictions.

    Training goes on from the checkpoint that a stopped process left there. Returns the measurement as plain data.
    Raises HalkaError for what cannot be loaded or trained.
    """
    model, task = _load(run)
    config = _config(run)
    result = _identity(run, task, model)
    text = Path(run.forgetting).read_text(encoding="utf-8") if run.forgetting else shipped_text("forgetting")
    is_causal = kind_of(model.base) == "causal-lm"
    before = perplexity(model, None, text) if is_causal else None  # its pass also brings all weights into memory
    if run.method == BASE:
        name = None
        result["validation_loss"] = mean_loss(model, None, as_tokens(model, task.validation, config))
    else:
        name = NAME
        result.update(_train(model, run, task, config, folder, text if is_causal else None))
    if run.purpose == "search":
        return result
    evaluation = evaluate(model, name, task.test, task.metrics, max_new_tokens=task.max_new_tokens)
    result |= {
        "scores": {metric: asdict(score) for metric, score in evaluation.scores.items()},
        "draws": _draws(evaluation, primary_metric(task, kind_of(model.base))),
        "samples": [
            {"prompt": answer.prompt, "references": [*answer.references], "prediction": answer.prediction}
            for answer in evaluation.predictions[:5]
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
        }
        if layout_of(model.base).obstacle is None:  # else there is no engine
            result["latency"] = _latency(model, name, as_tokens(model, task.validation, config))
    lines = [json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in evaluation.predictions]
    write_text(folder / "predictions.jsonl", "".join(lines))
    if name is not None:
        steps = {name: result["train"][name] for name in ("steps", "best_step")}
        training = {**asdict(config), **steps, "lr": result["lr"]}
        scores = {metric: score.value for metric, score in evaluation.scores.items()}
        saved = save(model, name, folder / "adapter", task=task.name, training=training, measurements=scores)
        result["adapter_bytes"] = AdapterFolder.open(saved).weights.stat().st_size
    return result


def search_together(runs: Sequence[Spec]) -> list[Result]:
    """Train search runs of one task and base together, in the passes that they share.

    Returns the measurements that `measure` would, without the memory, which is not of one run.
    """
    model, task = _load(runs[0])
    jobs, results = list[EncodedJob](), dict[str, Result]()
    for number, run in enumerate(runs):
        name, config = str(number), _config(run)
        results[name] = _identity(run, task, model) | {"together": len(runs)}
        model.add(name, _method(run, model), seed=config.seed)
        jobs.append(encoded(model, Job(name, task.train, config, task.validation)))
    steps: dict[str, list[Step]] = {job.name: [] for job in jobs}
    for by_name in train_many(model, jobs):
        for name, step in by_name.items():
            if isinstance(step, TrainingError):
                results[name] = runs[int(name)].failed(f"{type(step).__name__}: {step}")
                continue
            report_step(step, int(name))
            steps[name].append(step)
    for job in jobs:
        if results[job.name]["status"] == "done":
            results[job.name] |= _training(model, job.name, steps[job.name], len(job.examples))
    return [*results.values()]


# ── the parts of a measurement ──────────────────────────────────────────────────────────────────────────────────────


def _load(run: Spec) -> tuple[AdaptedModel, Task]:
    """Raises HalkaError for a base's folder, or a task, whose files are others than those by which the run is named."""
    if run.base_files not in (None, folder_digest(run.base)):
        raise HalkaError(
            f"{run.base} has other files on {socket.gethostname()} than where the study was begun: copy them, or begin "
            "the study anew"
        )
    task = limit(load_task(run.task), **run.examples)
    if run.data and run.data != digest(task, run.forgetting):
        raise HalkaError(
            f"task {task.name} has other data on {socket.gethostname()} than when the study was begun: begin the study "
            "anew, whose runs then have names of their own, or put the data back and run the failed ones again"
        )
    kind = cast("Kind | None", task.kind)  # load_base checks it
    base = load_base(run.base, dtype=run.dtype, quantize=run.quantize, kind=kind, labels=task.labels or None)
    return adapt(*base), task


def _config(run: Spec) -> TrainConfig:
    """The run's training, with checkpoints that a later process goes on from."""
    return TrainConfig(**{**run.train, "save_every": SAVE_EVERY})


def _method(run: Spec, model: AdaptedModel) -> Method:
    method = build_method(run.method, run.fields)
    if run.text is None:
        return method
    return started_from(method, run.text, model.tokenizer, run.fields.get("length"))


def _identity(run: Spec, task: Task, model: AdaptedModel) -> Result:
    """What is known before the run: its settings, its data, and where it is measured."""
    return {
        "schema": SCHEMA,
        "status": "done",
        "error": None,
        "experiment": run.experiment,
        "task": task.name,
        "licence": task.licence,
        "source": task.source,
        "base": run.base,
        "dtype": dtype_name(str(model.base.dtype)),
        "quantize": run.quantize,
        "method": {"name": run.method, "label": run.label, "fields": dict(run.fields)},
        "lr": run.train.get("lr"),
        "seed": run.train.get("seed", 0),
        "purpose": run.purpose,
        "best_by": run.best_by,
        "config": dict(run.train),
        "examples": {"train": len(task.train), "validation": len(task.validation), "test": len(task.test)},
        "primary": task.primary,
        "own_metrics": {
            metric.name: {
                "higher_is_better": metric.higher_is_better,
                "range": [*metric.range],
                "code": metric.code(),
            }
            for metric in task.metrics
            if isinstance(metric, Metric)
        },
        "parameters": {"trainable": 0, "total": parameter_count(model.base)},
        **origin(next(model.base.parameters()).device),
    }


def _train(model: AdaptedModel, run: Spec, task: Task, config: TrainConfig, folder: Path, text: str | None) -> Result:
    """Train the run's adapter and report its steps; what training came to, with its memory in bytes.

    The memory is left out where a peak would be that of loading the base, too (`can_reset_peak`).

    text  what forgetting is measured on, beside the scores on the way
    """
    device = next(model.base.parameters()).device
    baseline = machine.resident(device)
    adapter = model.add(NAME, _method(run, model), seed=config.seed)
    job = encoded(model, Job(NAME, task.train, config, task.validation, folder))
    machine.reset_peak(device)
    notes = Notes(folder)
    if not RunFolder(folder).resumable:
        notes.drop()
    latest: dict[str, Any] = {}  # of the evaluation that has just been

    def memory() -> dict[str, int]:
        return {"peak": max(machine.peak(device), baseline), "baseline": baseline}

    scores = run.best_by == "score" or (run.purpose == "final" and run.score_every)
    by_answers = ValidationScore(model, NAME, task) if scores else None

    def score() -> float:
        nonlocal baseline
        assert by_answers is not None
        latest["memory"], before = memory(), machine.resident(device)
        value = by_answers.value()
        perplexed = {} if text is None else {"perplexity": perplexity(model, NAME, text)}
        latest["scored"] = {"score": value, **perplexed}
        baseline += max(0, machine.resident(device) - before)  # what scoring leaves behind is none of training's
        machine.reset_peak(device)
        return by_answers.rank(value)

    by_score = run.best_by == "score"
    decides = score if by_score else None
    for results in train_many(model, [replace(job, score=decides)]):
        if isinstance(step := results[NAME], TrainingError):
            raise step
        report_step(step)
        if not by_score and run.purpose == "final" and run.score_every and step.step % run.score_every == 0:
            score()
        if latest or step.validation is not None:
            notes.add(step.step, **{"memory": memory(), "scored": None, **latest})
            latest.clear()
            machine.reset_peak(device)
    steps, noted = RunFolder(folder).steps(), notes.all()  # those of earlier processes among them
    most = max([*(note["memory"] for note in noted), memory()], key=lambda note: note["peak"] - note["baseline"])
    trained, weights = adapter.count(), weights_of(model, NAME)
    copies = weights - bytes_of(model.base)
    gradients, moments = trained * FP32, trained * 2 * FP32
    training = _training(model, NAME, steps, len(job.examples))
    training["lr"] = config.lr or own_rate(model, NAME)
    if by_score or run.score_every:
        last, best = steps[-1].step, training["train"]["best_step"]
        training["train"]["scores"] = [
            {"step": note["step"], **note["scored"]}
            for note in noted
            if note["scored"] and (by_score or note["step"] != last or best == last)  # it leaves the best weights
        ]
    if not machine.can_reset_peak(device):
        return training
    # A search's memory is not compared, and an estimate takes as long as some of its steps.
    predicted = {} if run.purpose == "search" else _predicted(model, job.examples, config)
    return training | {
        "memory": {
            **most,
            **predicted,
            "weights": weights,
            "gradients": gradients,
            "optimizer": moments,
            "activations": max(0, most["peak"] - most["baseline"] - copies - gradients - moments),
        },
    }


def _draws(evaluation: Evaluation, metric: Metric) -> list[float]:
    """The score on each set of test items that is drawn, the same sets in every run."""
    predictions = [answer.prediction for answer in evaluation.predictions]
    return [round(value, 5) for value in resampled(predictions, evaluation.accepted, metric)]


def _training(model: AdaptedModel, name: str, steps: Sequence[Step], examples: int) -> Result:
    """What the steps came to: curves, speed, the best step and its validation loss."""
    validated = [step for step in steps if step.validation is not None]
    result = TrainResult.of(steps, model.adapter(name).count())
    return {
        "train": {
            "steps": result.steps,
            "best_step": result.best_step,
            "examples": examples,
            "tokens": result.tokens,
            "seconds": result.seconds,
            "tokens_per_second": statistics.median(step.tokens_per_second for step in steps),
            "curve": [{"step": step.step, "loss": step.loss} for step in steps],
            "validation": [{"step": step.step, "loss": step.validation} for step in validated],
        },
        "validation_loss": result.validation_loss,
        "parameters": {
            "trainable": result.parameters,
            "total": parameter_count(model.base),
        },
    }


def _predicted(model: AdaptedModel, items: Sequence[Item], config: TrainConfig) -> dict[str, Any]:
    """What is predicted, by its key in the result; nothing where that fails, which costs no trained run."""
    try:
        return {"predicted": _estimated(model, items, config)}
    except Exception as error:
        print(f"the memory could not be predicted: {type(error).__name__}: {error}", file=sys.stderr)
        return {}


def _estimated(model: AdaptedModel, items: Sequence[Item], config: TrainConfig) -> dict[str, int]:
    """The estimate for the largest batch of the first epoch, by the parts that are measured."""
    batches = [[items[i] for i in indices] for indices in batch_plan(model, items, config)]
    batch = max(batches, key=lambda batch: len(batch) * max(map(len, batch)))
    base: Any = model.base
    setup = Setup(
        rows=len(batch),
        length=max(map(len, batch)),
        answers=sum(item.labels for item in batch) // len(batch),
        accumulate=config.accumulate,
        checkpointing=config.checkpointing,
        dtype=dtype_name(base.dtype),
        quantize=quantization_of(base),
        kind=kind_of(base),
        labels=len(model.labels),
        flash=not lacks_bfloat16(base.device),
    )
    memory = dry_run(base.config, model.adapter(NAME).method, setup, gpu=base.device.type == "cuda").memory
    parts = {key: getattr(memory, key) for key in ("weights", "gradients", "optimizer")}
    holes = 0 if base.device.type == "cuda" else memory.allocator  # a GPU's peak, beside which it stands, has none
    return {**parts, "activations": memory.activations + holes}


def _latency(model: AdaptedModel, name: str | None, items: Sequence[Item]) -> dict[str, float]:
    """Milliseconds a token of an answer of the engine, with and without the adapter in turn; medians of five."""
    prompt = items[0].ids[:32]
    times: dict[str | None, list[float]] = {None: [], name: []}
    with kept_of(model) as kept, Engine(model, rows=1, ends=frozenset(), kept=kept) as engine:
        for number in range(5):
            for adapter, measured in times.items():
                request = Request(prompt, adapter, stopping=Stopping(TOKENS), tenant=str(number))  # nothing is shared
                started = time.perf_counter()
                [answer] = engine.run([request])
                if answer.error is not None:
                    raise answer.error
                measured.append((time.perf_counter() - started) / TOKENS * 1000)
    bare, adapted = statistics.median(times[None]), statistics.median(times[name])
    return {"base_ms_per_token": bare, "adapted_ms_per_token": adapted, "added": adapted / bare - 1}


# ── the process ─────────────────────────────────────────────────────────────────────────────────────────────────────


def main(arguments: Sequence[str]) -> int:
    return serve(arguments, _read, _measured)


def _measured(runs: Sequence[Spec], folders: Sequence[Path]) -> Iterator[Result]:
    """The runs' results; a run's checkpoint goes once its result is written."""
    if len(runs) > 1:
        yield from search_together(runs)
    else:
        yield measure(runs[0], folders[0])
        RunFolder(folders[0]).drop_checkpoint()


def _read(spec: dict[str, Any]) -> Spec:
    lists = {name: tuple(value) if isinstance(value, list) else value for name, value in spec["fields"].items()}
    return Spec(**{**spec, "fields": lists})


if __name__ == "__main__":
    run_process(lambda: main(sys.argv[1:]))

"""`Needs`: the memory that a comparison's runs need, as the estimator predicts it from the base's configuration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from halka.data.task import Task
from halka.estimating import dry_run, prepared
from halka.estimating.dry_runs import FP32
from halka.estimating.hardware import CONTEXT, PROCESS
from halka.estimating.lengths import length_by_bytes
from halka.methods import build_method
from halka.models.loading import base_config
from halka.studies.spec import BASE, Spec
from halka.training import TrainConfig
from halka.util.precision import precision_here

STATES = 4 * FP32  # bytes of a trained number: itself, its gradient and two moments


@dataclass(frozen=True)
class Needs:
    """Bytes of main memory, and of a GPU's; None where no GPU is used."""

    memory: int
    gpu_memory: int | None = None


def needs_by_group(task: Task, gpu: bool) -> Callable[[Sequence[Spec]], Needs | None]:
    """`needs_of` as a function of a group's runs; one prediction for all that differ in rate, seed or steps alone."""
    predicted: dict[str, Needs | None] = {}

    def needs(runs: Sequence[Spec]) -> Needs | None:
        run = runs[0]
        train = {name: value for name, value in run.train.items() if name not in ("lr", "seed", "steps")}
        alike = repr((run.method, run.fields, run.quantize, sorted(train.items()), len(runs)))
        if alike not in predicted:
            predicted[alike] = needs_of(runs, task, gpu)
        return predicted[alike]

    return needs


def needs_of(runs: Sequence[Spec], task: Task, gpu: bool) -> Needs | None:
    """What a process of these runs needs; None where that cannot be estimated.

    Runs that are trained together have the rows of all in a pass, and all their adapters' states. With a `gpu` the
    weights alone pass through main memory, and everything is in the GPU's.
    """
    run, config = runs[0], TrainConfig(**runs[0].train)
    try:
        base = base_config(run.base)
        longest = config.max_length or length_by_bytes(task.train)
        length = min(longest, getattr(base.get_text_config(), "max_position_embeddings", None) or longest)
        precision = "float32" if run.dtype == "auto" else run.dtype
        _, setup = prepared(
            base,
            task.kind,
            labels=len(task.labels) or None,
            rows=len(runs) * _rows(config, length, len(task.train)),
            length=length,
            accumulate=config.accumulate,
            checkpointing=config.checkpointing,
            dtype=precision_here(precision, gpu),
            quantize=run.quantize,
        )
        method = build_method("lora", {}) if run.method == BASE else build_method(run.method, run.fields)
        predicted = dry_run(base, method, setup, gpu=gpu)
    except Exception:  # a dry run that fails is no reason to end a study
        return None
    total = predicted.memory.total + (len(runs) - 1) * predicted.trained * STATES
    return Needs(PROCESS + predicted.base_bytes, CONTEXT + total) if gpu else Needs(PROCESS + total)


def _rows(config: TrainConfig, length: int, examples: int) -> int:
    """The most rows of that length in a batch."""
    limits = config.limits()
    tokens, rows = limits["batch_tokens"], limits["batch_size"] or examples
    return max(1, min(rows, examples, rows if tokens is None else tokens // length))

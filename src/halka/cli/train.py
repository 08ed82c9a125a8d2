"""`halka train`: an adapter from data. Its flags come from dataclasses that need torch: they are built when called."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halka.cli.command import Failed, emit, examples, say, show
from halka.cli.convert import note_peft
from halka.cli.opening import load_for
from halka.cli.reading import data_rows, named_task, read_data, say_overlaps
from halka.cli.setting_flags import Deferred, command_of, flag
from halka.util.errors import HalkaError
from halka.util.text import columns

if TYPE_CHECKING:
    from halka.cli.devices import Devices
    from halka.cli.train_settings import RunSettings
    from halka.cli.training_run import TrainingRun
    from halka.core import AdaptedModel
    from halka.data.examples import Example
    from halka.data.task import Task

EXAMPLES = examples(
    "halka train --base smollm2-135m --task support -o runs/support",
    "halka train --base smollm2-135m --method prefix --length 30 \\",
    "    --data train.jsonl --validation 0.1 --lr 0.01 --epochs 5 -o runs/mine",
    "halka train --config runs/mine/run.yaml",
    "halka train --from runs/mine --base smollm2-135m --data more.jsonl -o runs/more",
    "halka train --many runs.yaml --base smollm2-135m --task support",
    "halka train --devices 2 --config runs/mine/run.yaml",
    "halka train --devices 2 --shard --base smollm2-135m --task support --accumulate 2 -o runs/parts",
)


def train() -> None:
    """Train an adapter and save it in the run's folder.

    Every setting may stand in a YAML file (--config), in the environment, and on the command line, each overriding the
    one before: `rank: 8` and `train: {lr: 0.001}`, HALKA_TRAIN_RANK=8, --rank 8.

    With --from the adapter begins as one that is trained already, which stays as it is.

    A run that was stopped goes on where it was when the same command is given again (without --overwrite). Ctrl-C stops
    it after its step.

    Several adapters are trained together, on one base in memory, by --many with a file that lists them under `runs:`,
    each with its folder (out) and what is its own; all else is said once, above them or as a flag.

    --devices N starts N processes by torchrun, a GPU each or on the CPU, which share every step and write one adapter:
    the same as one process trains, of the same batches. With --shard each holds a part of the base, which is in memory
    once over all of them.
    """


class Train(Deferred):
    def whole(self) -> Any:
        from halka.cli.devices import Devices
        from halka.cli.train_settings import flags

        def run(config: Path | None, many: Path | None, json: bool, **values: Any) -> None:
            devices = Devices(values.pop("devices"), shard=values.pop("shard"))
            folder = {key: values.pop(key) for key in ("overwrite", "tensorboard")}
            if many is None:
                train_adapter(config, values, devices, json=json, **folder)
            elif config is None:
                train_adapters(many, values, devices, json=json, **folder)
            else:
                raise HalkaError("--config is for one run and --many for several: give one of them")

        own = [
            flag("config", Path | None, None, metavar="FILE", help="a YAML file with settings"),
            flag("many", Path | None, None, metavar="FILE", help="a YAML file with several runs, trained together"),
            flag("devices", int | None, None, metavar="N", help="processes that train together, a device each"),
            flag("shard", bool, False, help="each process holds a part of the base (FSDP)"),
            flag("overwrite", bool, False, help="train anew where a run is; its adapter is set aside until then"),
            flag("tensorboard", bool, False, help="write FOLDER/tensorboard too"),
            flag("json", bool, False, help="print the result as JSON"),
        ]
        return command_of("train", run, [*flags(), *own], train.__doc__, EXAMPLES)


def train_adapter(config: Path | None, flags: dict[str, Any], devices: Devices, *, json: bool, **folder: bool) -> None:
    """Train one run. Raises HalkaError where it is finished, Failed where it fails."""
    from halka.cli.train_settings import read
    from halka.cli.training_run import TrainingRun

    plan = read(config, flags, os.environ)
    run = TrainingRun(plan, "adapter", **folder)
    if run.finished:
        raise HalkaError(f"--out: {run.folder.path} holds a finished run: choose another folder, or add --overwrite")
    results = _results_of([run], devices)
    if results is None:
        return
    (result,) = results
    if "error" in result:
        raise Failed(result["error"])
    note_peft([result["adapter"]])
    if json:
        emit(result)
    else:
        _show(result, plan.run)


def train_adapters(file: Path, flags: dict[str, Any], devices: Devices, *, json: bool, **folder: bool) -> None:
    """Train several runs together; finished ones stay as they are. Raises Failed, at the end, for those that fail."""
    from halka.cli.train_settings import read_many
    from halka.cli.training_run import TrainingRun

    runs = [TrainingRun(plan, str(plan.run.out), **folder) for plan in read_many(file, flags, os.environ)]
    for run in runs:
        if run.finished:
            say(f"{run.name} holds a finished run: left as it is (--overwrite trains it anew)")
    results = _results_of([run for run in runs if not run.finished], devices)
    if results is None:
        return
    note_peft(result["adapter"] for result in results if "adapter" in result)
    if json:
        emit(results)
    else:
        _show_all(results)
    if failed := [f"{result['folder']}: {result['error']}" for result in results if "error" in result]:
        raise Failed("\n".join(failed))


def _results_of(runs: list[TrainingRun], devices: Devices) -> list[dict[str, Any]] | None:
    """Settings → task → base → method → add → train → save; None where it is another process that has the results."""
    from halka.cli.training_run import train_runs
    from halka.util.deterministic import deterministic

    _check_answers(devices, runs)
    device = runs[0].plan.run.device if runs else None
    if runs and devices.start(device, lambda: _read_tasks(runs)):
        return None
    with devices.joined(device) as first, deterministic(any(run.plan.run.deterministic for run in runs)):
        _say_shares(runs)
        _read_tasks(runs)
        results = train_runs(_model_for(runs, devices), runs) if runs else []
    return results if first else None


def _check_answers(devices: Devices, runs: list[TrainingRun]) -> None:
    """Raises HalkaError where a score is to be made by a base in parts."""
    if devices.shard and any(run.plan.run.best_by == "score" for run in runs):
        raise HalkaError("--best-by score needs answers, and a base in parts (--shard) gives none: leave one out")


def _say_shares(runs: list[TrainingRun]) -> None:
    """Where several processes train together, say once how they share the runs' batches."""
    from halka.cli.devices import shares
    from halka.training import Ranks

    if (count := Ranks.here().count) > 1:
        for line in dict.fromkeys(shares(run.plan.train, count) for run in runs):
            say(line)


def _read_tasks(runs: list[TrainingRun]) -> None:
    """Give each run its task; runs of the same data share one."""
    tasks: dict[tuple, Task] = {}
    for run in runs:
        settings = run.plan.run
        key = (settings.task, settings.data, settings.validation, settings.shape, settings.kind)
        tasks[key] = tasks.get(key) or task_of(settings)
        run.task = scored(tasks[key], settings)


def _model_for(runs: list[TrainingRun], devices: Devices) -> AdaptedModel:
    """The base that the runs share, with an adapter for each. Raises HalkaError for tasks of several kinds."""
    import torch

    from halka.training.ranks import device_of_rank
    from halka.util.precision import slow_in_bfloat16

    settings = runs[0].plan.run
    kinds = {run.task.kind: run.task.name for run in runs}
    if len(kinds) > 1:
        shown = " and ".join(f"{name} a {kind or 'language model'}" for kind, name in kinds.items())
        raise HalkaError(f"runs: of their tasks {shown} is for: train them apart")
    model = load_for(
        settings.base,
        kind=next(iter(kinds)),
        labels=max((labels for run in runs for labels in run.labels), key=len),
        dtype=settings.dtype,
        device=device_of_rank(settings.device),
        quantize=settings.quantize,
        shard=devices.shard,
    )
    if model.base.dtype == torch.bfloat16 and slow_in_bfloat16(next(model.base.parameters()).device):
        say("this processor is slower in bfloat16 than in float32: --dtype float32 is faster, and takes more memory")
    for run in runs:
        run.add_adapter(model)
    return model


# ── data ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def task_of(run: RunSettings) -> Task:
    """The task of --task, or one made of the files of --data. Raises HalkaError if neither or both are set."""
    from halka.data.task import Task, kind_of_files, of_kind

    if (run.task is None) == (not run.data):
        raise HalkaError("name the training data by --task NAME or by --data FILE: give one of them")
    if run.task is not None:
        if run.validation is not None:
            raise HalkaError(f"--validation is for --data: the task {run.task} has its own validation examples")
        if run.shape is not None:
            raise HalkaError(f"--shape is for --data: the task {run.task} says what its files have")
        task = of_kind(named_task(run.task), run.kind)
    else:
        rows = [data_rows(file, "--data", run.shape) for file in run.data]
        kind = run.kind or kind_of_files(rows)
        train, validation = _held_out([example for file_rows in rows for example in file_rows.examples], run)
        task = Task(run.data[0].name.partition(".")[0], tuple(train), tuple(validation), (), (), "")
        say_overlaps(task)
        task = of_kind(task, kind)
    return task


def scored(task: Task, run: RunSettings) -> Task:
    """The task. Raises HalkaError if --best-by score has no examples to score."""
    if run.best_by == "score" and not task.validation:
        if run.task is not None:
            why = f"the task {run.task} has none: give it some (validation:)"
        elif run.validation is not None:
            why = f"--validation {run.validation} of {len(task.train)} holds none out: give more, or a file"
        else:
            why = "there are none: add --validation with a file, or the share of --data to hold out"
        raise HalkaError(f"--best-by score scores validation examples, and {why}")
    return task


def _held_out(examples: list[Example], run: RunSettings) -> tuple[list[Example], list[Example]]:
    """The examples to train on, and those for validation: a file's, a share of the data, or none."""
    from halka.data.splits import hold_out

    if run.validation is None:
        return examples, []
    try:
        share = float(run.validation)
    except ValueError:
        return examples, read_data(Path(run.validation), "--validation", run.shape)
    if not 0 < share < 1:
        raise HalkaError(f"--validation {run.validation} is no share of the data: give a number between 0 and 1")
    train, validation = hold_out(examples, share)
    if not train:
        raise HalkaError(
            f"--validation {run.validation} leaves nothing of {len(examples)} examples to train on, since those with "
            "one prompt, or of one dialogue, stay together: give a file"
        )
    say(f"{len(train)} to train on, {len(validation)} held out")
    return train, validation


def _show_all(results: list[dict[str, Any]]) -> None:
    from halka.report.units import count, duration

    scored_too = any(result.get("score") is not None for result in results)
    right = ("steps", "time", "loss", "validation", *(["score"] if scored_too else []), "parameters")
    table = columns("run", "method", *right, right=right)
    for result in results:
        if "error" in result:
            table.add_row(str(result["folder"]), result["method"]["name"], "failed", *[""] * (len(right) - 1))
            continue
        best = [result["validation_loss"], *([result["score"]] if scored_too else [])]
        table.add_row(
            str(result["folder"]),
            result["method"]["name"],
            str(result["steps"]),
            duration(result["seconds"]),
            f"{result['loss']:.4f}",
            *("" if value is None else f"{value:.4f}" for value in best),
            count(result["parameters"]),
        )
    if results:
        show(table)


def _show(result: dict[str, Any], run: RunSettings) -> None:
    from halka.cli.train_settings import RunSettings
    from halka.report.units import count, duration, size

    loss = f"loss {result['loss']:.4f}"
    if result["validation_loss"] is not None:
        score = "" if result["score"] is None else f" and score {result['score']:.4f}"
        loss += f", validation loss {result['validation_loss']:.4f}{score} at step {result['best_step']}"
    show(
        f"{result['steps']} steps in {duration(result['seconds'])}: {loss}",
        f"{count(result['parameters'])} parameters, {size(result['bytes'])}, in {result['adapter']}",
    )
    with_base = f"--base {shlex.quote(run.base)} --adapter {shlex.quote(str(result['adapter']))}"
    if run.dtype != RunSettings.dtype:
        with_base += f" --dtype {run.dtype}"
    if run.quantize is not None:
        with_base += f" --quantize {run.quantize}"
    if run.task is None:
        say(f'Next: halka generate {with_base} "…"')
    else:
        say(f"Next: halka evaluate {with_base} --task {shlex.quote(run.task)}")

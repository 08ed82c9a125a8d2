"""`RunFolder`: a training run on the disk. It can be locked, resumed after a crash, and finished.

run.yaml                      the settings, which `halka train --config` reads (`fit`'s name no data: it needs --data)
metrics.jsonl                 one line of JSON a step: `Step`'s fields
checkpoint.safetensors        while the run is unfinished: all that it needs to go on exactly where it was
checkpoint-next.safetensors   the next one, until all runs that train together have written theirs (`saving.py`)
parts-STEP/                   beside a checkpoint of that step: its tensors that are divided among processes;
                              parts-STEP-unrecorded/ where an error ended the step's evaluation
best-STEP.safetensors         while unfinished: the weights of the best evaluation, which came after that step
adapter/                      the trained adapter, once the run is finished
adapters/step-N/              with `keep_every`: the adapter as it was after that step
adapter-best/                 the best weights of a run that diverged
adapter-before/               that of the run before, where one begins anew, until it has its own
.lock                         while a process trains here
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import yaml
from torch import Tensor

from halka.core import AdaptedModel
from halka.models.rates import own_rate
from halka.storage.adapter_folder import ADAPTER, AdapterFolder
from halka.storage.save_load import help_save, save
from halka.training.checkpoint import (
    PADDED,
    WRITTEN,
    Checkpoint,
    identity_of,
    open_checkpoint,
    shards_folders,
)
from halka.training.config import Step, TrainConfig, TrainResult
from halka.util.divided import checked_by_first
from halka.util.errors import HalkaError
from halka.util.files import check_no_file, flush, full_disk_named, locked, write_text
from halka.util.tensor_file import iter_tensors

RUN, METRICS = "run.yaml", "metrics.jsonl"
CHECKPOINT, NEXT_CHECKPOINT, BESTS = "checkpoint.safetensors", "checkpoint-next.safetensors", "best*.safetensors"
OLD_BEST = "best.safetensors"  # of versions that kept one such file
OWN_BEST = re.compile(r"best(-\d+)?\.safetensors")
BEFORE, BEST = f"{ADAPTER}-before", f"{ADAPTER}-best"
KEPT, STEP = "adapters", re.compile(r"step-(\d+)")
POINTS = 100  # of a curve
OWN_FIELDS = {"step", "steps", "gradient_norm"}  # of a line of the metrics, which others' do not have together


class RunFolder:
    """The folder of one training run. Making this object touches no file."""

    def __init__(self, path: str | Path):
        self.path = Path(path).expanduser()

    @property
    def adapter(self) -> Path:
        """The folder that the trained adapter is saved in."""
        return self.path / ADAPTER

    @property
    def checkpoint(self) -> Path:
        """The file that an unfinished run goes on from."""
        return self.path / CHECKPOINT

    @property
    def next_checkpoint(self) -> Path:
        """The file that takes its place once all runs that train together have written theirs."""
        return self.path / NEXT_CHECKPOINT

    def keep_next(self) -> None:
        """Put the next checkpoint in the place of the one before, once the metrics of its steps are on the disk."""
        if (metrics := self.path / METRICS).exists():
            flush(metrics)
        os.replace(self.next_checkpoint, self.checkpoint)
        flush(self.path)

    def keep_parts(self, name: str | None = None) -> None:
        """Drop the parts of checkpoints, but for those in the folder of this name."""
        for folder in shards_folders(self.path):
            if folder.name != name:
                shutil.rmtree(folder)

    def best(self, step: int) -> Path:
        """The file with the weights of the best evaluation so far, which came after that step."""
        return self.path / f"best-{step}.safetensors"

    def keep_bests(self, *steps: int) -> None:
        """Drop the weights of best evaluations, but for those after these steps."""
        kept = [self.best(step) for step in steps]
        for file in self._bests():
            if file not in kept:
                file.unlink()

    def _bests(self) -> list[Path]:
        return [file for file in self.path.glob(BESTS) if OWN_BEST.fullmatch(file.name)]

    @property
    def resumable(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return self.checkpoint.exists()

    @property
    def finished(self) -> bool:
        """Whether the run came to its end and its adapter is saved."""
        return self.adapter.exists() and not self.resumable

    def check(self) -> None:
        """Raises HalkaError for a file, and for a folder that holds something else than a run."""
        check_no_file(self.path)
        others = self.path.is_dir() and any(not file.name.startswith(".") for file in self.path.iterdir())
        if others and not (self.path / RUN).exists() and not self.resumable:
            raise HalkaError(f"{self.path} exists and holds no training run: choose another folder")

    def locked(self) -> AbstractContextManager[None]:
        """Keeps others from training here; makes the folder. Raises HalkaError where another does, and for a file."""
        way_out = "wait for its end, close its steps where this process has them, or choose another folder"
        return locked(self.path, f"a training is under way in {self.path}: {way_out}")

    def check_unfinished(self) -> None:
        """Raises HalkaError for a finished run."""
        if (self.path / RUN).exists() and self.finished:
            raise HalkaError(f"{self.path} holds a finished run: load its adapter, or choose another folder")

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Write the settings, plain data, to run.yaml; those of a run to be resumed stay, if it has any."""
        if not (self.resumable and (self.path / RUN).exists()):
            write_text(self.path / RUN, yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True))

    def begin_anew(self, settings: Mapping[str, Any]) -> None:
        """`begin` where a run is, of which nothing passes as the new one's. Its adapter is set aside."""
        if self.adapter.exists():
            shutil.rmtree(self.path / BEFORE, ignore_errors=True)
            os.rename(self.adapter, self.path / BEFORE)
        shutil.rmtree(self.path / BEST, ignore_errors=True)
        self.drop_checkpoint()
        (self.path / METRICS).unlink(missing_ok=True)
        self.drop_kept()
        self.begin(settings)

    def drop_checkpoint(self) -> None:
        """Drop what the run would go on from."""
        self.checkpoint.unlink(missing_ok=True)
        self.next_checkpoint.unlink(missing_ok=True)
        self.keep_parts()
        self.keep_bests()

    def finish(
        self,
        model: AdaptedModel,
        name: str,
        config: TrainConfig,
        *,
        examples: int,
        system: str = "",
        task: str = "",
        start: AdapterFolder | None = None,
    ) -> TrainResult:
        """Save the trained adapter with a Card of its training, and drop the checkpoint.

        `examples` is how many it was trained on, `system` the message that all of them began with, `start` the adapter
        that it began as. Where processes hold parts of the adapter the others call `help_finish`. Raises HalkaError as
        `storage.save` does.
        """
        together = model.adapter(name).divided
        steps = checked_by_first(self.steps, together=together)
        assert steps is not None
        result = TrainResult.of(steps, model.adapter(name).count(), self.adapter)
        training = {
            **self._settings(model, name, config, start),
            "steps": result.steps,
            "best_step": result.best_step,
            "examples": examples,
            **({"system": system} if system else {}),
            "tokens": result.tokens,
            "seconds": result.seconds,
            "loss": result.loss,
            "curve": curve_of(steps),
        }
        best = {"validation_loss": result.validation_loss, "validation_score": result.score}
        measurements = {name: value for name, value in best.items() if value is not None}
        save(model, name, self.adapter, task=task, training=training, measurements=measurements)
        checked_by_first(self._clean_up, together=together)
        return result

    def save_best(
        self,
        model: AdaptedModel,
        name: str,
        config: TrainConfig,
        step: int,
        loss: float,
        start: AdapterFolder | None = None,
    ) -> Path:
        """Save the adapter of a run that diverged, which has the weights of its best evaluation; returns the folder."""
        training = {**self._settings(model, name, config, start), "steps": step, "best_step": step}
        return save(model, name, self.path / BEST, training=training, measurements={"validation_loss": loss})

    def keep_adapter(
        self, model: AdaptedModel, name: str, config: TrainConfig, step: Step, start: AdapterFolder | None
    ) -> None:
        """Save the adapter as it is after this step, beside those of others.

        Where processes hold parts of the adapter the others call `help_save`.
        """
        done = {"steps": step.step, "best_step": step.step, "tokens": step.tokens, "loss": step.loss}
        training = {**self._settings(model, name, config, start), **done}
        best = {"validation_loss": step.validation, "validation_score": step.score}
        measurements = {name: value for name, value in best.items() if value is not None}
        save(model, name, self.path / KEPT / f"step-{step.step}", training=training, measurements=measurements)

    def drop_kept(self, after: int = 0) -> None:
        """Drop the adapters that were kept after later steps than this one."""
        for step, folder in self._kept().items():
            if step > after:
                shutil.rmtree(folder)

    def _kept(self) -> dict[int, Path]:
        matches = {folder: STEP.fullmatch(folder.name) for folder in (self.path / KEPT).glob("step-*")}
        return {int(match[1]): folder for folder, match in matches.items() if match is not None}

    def _settings(
        self, model: AdaptedModel, name: str, config: TrainConfig, start: AdapterFolder | None
    ) -> dict[str, Any]:
        """How the adapter was trained, for its Card; where no rate is set, it is the one that the run has."""
        begun = identity_of(self.checkpoint) or {}
        settings = {**asdict(config), "lr": config.lr or begun.get("lr") or own_rate(model, name)}
        return settings if start is None else {**settings, "start_from": {"name": start.name, "id": start.id}}

    def _clean_up(self) -> None:
        self.drop_checkpoint()
        for folder in (BEFORE, BEST):
            shutil.rmtree(self.path / folder, ignore_errors=True)

    # ── from step to step ───────────────────────────────────────────────────────────────────────────────────────

    def record(self, step: Step) -> None:
        """Append a step to the metrics."""
        metrics = self.path / METRICS
        with full_disk_named(metrics), metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(step)) + "\n")

    def steps(self) -> list[Step]:
        """The steps in the metrics, one at least, without a last one that was cut short.

        Raises HalkaError where there are none, and for metrics of something else or of a newer version.
        """
        metrics = self.path / METRICS
        if not metrics.is_file():
            raise HalkaError(f"{self.path} has no {METRICS}: name the folder of a training run")
        lines = metrics.read_text(encoding="utf-8").splitlines()
        if lines and _step_number(lines[-1], metrics) == math.inf:
            lines.pop()
        if not lines:
            raise HalkaError(f"{metrics} has lost its steps: remove {self.path}, or choose another folder")
        return [_step(line, metrics) for line in lines]

    def written(self) -> datetime | None:
        """When an unfinished run's texts were written, where its base's chat template writes the time."""
        time = (identity_of(self.checkpoint) or {}).get(WRITTEN)
        return None if time is None else datetime.fromisoformat(time)

    def with_settings_of_old(self, config: TrainConfig, lowest: float) -> TrainConfig:
        """The config with what an unfinished run has because the version that began it had other defaults.

        `lowest` is the lowest rate of its methods, a head's included, which it had where none was set.
        """
        if (identity := identity_of(self.checkpoint)) is None:
            return config
        padded = {} if "batches" in identity else PADDED
        begun = lowest if identity["lr"] == lowest else None
        return replace(config, lr=config.lr or begun, **padded)

    def resume(self, identity: dict[str, Any]) -> Checkpoint | None:
        """The checkpoint to go on from; without one the run begins. Later metrics are dropped, and parts of others.

        Raises HalkaError for a checkpoint that is damaged or of a run with another identity, and where what would be
        dropped is no run's.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        checkpoint, metrics = open_checkpoint(self.checkpoint, identity), self.path / METRICS
        lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else []
        numbers = [_step_number(line, metrics) for line in lines]
        if checkpoint is None and not metrics.exists() and not (self.path / RUN).exists():
            for other in (*shards_folders(self.path), *self._bests(), *self._kept().values()):
                raise HalkaError(f"{other} is there without a training run, which would drop it: choose another folder")
        done = 0 if checkpoint is None else checkpoint.progress.step
        self.keep_parts(None if checkpoint is None or checkpoint.divided is None else checkpoint.divided.folder.name)
        if checkpoint is not None and (old := self.path / OLD_BEST).exists():
            old.rename(self.best(checkpoint.progress.best_step))
        recorded = done if checkpoint is None or checkpoint.progress.unrecorded is None else done - 1
        self.drop_kept(recorded)
        if metrics.exists():
            kept = [line for line, number in zip(lines, numbers, strict=True) if number <= recorded]
            write_text(metrics, "".join(f"{line}\n" for line in kept))
        return checkpoint

    def load_best(self, step: int) -> dict[str, Tensor]:
        """The weights of the best evaluation, after that step. Raises DamagedFolderError where they cannot be read."""
        return dict(iter_tensors(self.best(step)))


def help_finish(model: AdaptedModel, name: str) -> None:
    """What processes without the run's folder call while the first one calls `RunFolder.finish`.

    Raises HalkaError where that one cannot.
    """
    together = model.adapter(name).divided
    checked_by_first(lambda: None, together=together)
    help_save(model, name)
    checked_by_first(lambda: None, together=together)


def _step_number(line: str, metrics: Path) -> float:
    """The step that a line of the metrics is of; infinite where the line was cut short."""
    try:
        step = json.loads(line)
    except ValueError:
        return math.inf
    if not isinstance(step, dict) or not step.keys() >= OWN_FIELDS:
        raise HalkaError(f"{metrics} has a line that is no step of a training ({line[:60]}): choose another folder")
    return cast(dict[str, Any], step)["step"]


def _step(line: str, metrics: Path) -> Step:
    try:
        return Step(**json.loads(line))
    except (TypeError, ValueError) as error:
        raise HalkaError(f"{metrics} has a line that is no step of this version of Halka ({line[:60]})") from error


def curve_of(steps: Sequence[Step]) -> list[dict[str, Any]]:
    """The losses, and scores, of at most `POINTS` steps, evenly apart, and as many validated; the last among them."""
    validated = [step for step in steps if step.validation is not None]
    kept = {step.step for of in (steps, validated) for step in (*of[:: math.ceil(len(of) / POINTS) or 1], *of[-1:])}
    return [
        {"step": s.step, "loss": s.loss, "validation": s.validation, **({} if s.score is None else {"score": s.score})}
        for s in steps
        if s.step in kept
    ]

"""What there is to show: an experiment's own measurements, as far as they have finished, and other result files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from halka.report.rows import Measurement, Row, is_done, label_of, name_of, number
from halka.report.summary import Summary, summarise
from halka.report.units import shortened
from halka.studies.experiment import Entry
from halka.studies.spec import named_fields
from halka.util.text import plural

BENCHMARKS = Path(__file__).parents[1]
OF_RUNS = ("method", "label", "lr", "lrs", "text", "train", "quantize")
"""What an experiment's file says of a method beside the method's own fields."""
LEAST_SEEDS = 3
"""Fewer say too little of other seeds for a verdict."""


@dataclass(frozen=True)
class Results:
    """The folder of all results."""

    folder: Path = BENCHMARKS / "results"

    def file(self, name: str) -> Any:
        """The content of NAME.json; None where it is not there."""
        path = self.folder / f"{name}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def runs(self, name: str) -> list[dict[str, Any]]:
        """Every run in NAME/runs."""
        paths = sorted((self.folder / name / "runs").glob("*.json"))
        return [json.loads(path.read_text(encoding="utf-8")) for path in paths]

    def study(self, name: str) -> Study:
        paces = (self.file("paces") or {}).get(name, {})
        piece = (self.file("measured") or {}).get(f"paces-{name}", {})
        beside = piece.get("cores_of_others") if paces and piece.get("commit") == paces["setup"]["commit"] else None
        return Study(name, settings(name), self.runs(name), paces, beside)


def settings(name: str) -> dict[str, Any]:
    """What benchmarks/experiments/NAME.yaml says."""
    return yaml.safe_load((BENCHMARKS / "experiments" / f"{name}.yaml").read_text(encoding="utf-8"))


def compare(name: str, *flags: str) -> str:
    """The command that runs an experiment, or goes on with it."""
    words = ("halka compare", *flags, f"benchmarks/experiments/{name}.yaml", "-o", f"benchmarks/results/{name}")
    return " ".join(words)


@dataclass(frozen=True)
class Study:
    """An experiment of `halka compare`, and the runs in its folder.

    paces   one run at a time, by the method's label: `seconds` of a training step and `bytes`, the most beyond the
            base; medians of `rounds`, of a `setup`
    beside  cores that other programs kept busy meanwhile; None where that was not recorded
    """

    name: str
    settings: Mapping[str, Any]
    every: Sequence[Measurement]
    paces: Mapping[str, Any] = field(default_factory=dict)
    beside: float | None = None

    @cached_property
    def runs(self) -> list[Measurement]:
        """The runs of the experiment as it is: of its methods, on as many examples, in its precision, by its rule.

        Of a method's runs with one seed, or of its searches with one seed and rate, the latest counts.
        """
        own = [run for run in self.every if label_of(run) in self.labels and self._is_own(run)]
        latest: dict[Any, Measurement] = {}
        for run in sorted(own, key=lambda run: run.get("date") or ""):
            rate = run.get("lr") if run["purpose"] == "search" else None
            latest[label_of(run), run["purpose"], run.get("seed"), rate] = run
        counting = {id(run) for run in latest.values()}
        return [
            measured_alone(run, *(self.paces.get(kind, {}).get(label_of(run)) for kind in ("seconds", "bytes")))
            for run in own
            if id(run) in counting
        ]

    def _is_own(self, run: Measurement) -> bool:
        sizes, steps = self.settings.get("examples", {}), self.settings.get("search_steps")
        precision = self.settings.get("dtype")
        return not is_done(run) or (
            run["base"] == self.settings["base"]
            and self._is_the_method(run)
            and (run["purpose"] != "search" or steps is None or run["config"]["steps"] == steps)
            and all(run["examples"].get(split, size) == size for split, size in sizes.items())
            and precision in (None, "auto", run.get("dtype"))
            and (run["purpose"] != "final" or name_of(run) == "base" or self._is_validated_alike(run))
        )

    def _entry(self, run: Measurement) -> Mapping[str, Any]:
        return next(entry for entry in self.settings["methods"] if entry["label"] == label_of(run))

    def _is_the_method(self, run: Measurement) -> bool:
        """Whether the method's own fields are those of the experiment's file."""
        entry = self._entry(run)
        own = {name: value for name, value in entry.items() if name not in OF_RUNS}
        return named_fields(run["method"]["fields"]) == named_fields(Entry(**entry).new_defaults() | own)

    def _is_validated_alike(self, run: Measurement) -> bool:
        """Whether a final run was trained and validated as the experiment's file says now."""
        entry = self._entry(run)
        train = {**self.settings.get("train", {}), **entry.get("train", {})}
        own = {name: value for name, value in run["config"].items() if name not in ("lr", "seed")}
        return own == train and run.get("best_by", "loss") == self.settings.get("best_by", "loss")

    @cached_property
    def summary(self) -> Summary:
        return summarise(self.runs)

    @property
    def labels(self) -> list[str]:
        return [entry["label"] for entry in self.settings["methods"]]

    @property
    def seeds(self) -> Sequence[int]:
        return self.settings["seeds"]

    @property
    def examples(self) -> int:
        return self.settings["examples"]["train"]

    @property
    def batch(self) -> int:
        return self.settings["train"]["batch_size"]

    @property
    def command(self) -> str:
        return compare(self.name)

    @cached_property
    def full(self) -> Row | None:
        """Full fine-tuning's row, once it has a score."""
        full = self.summary.full if self.runs else None
        return full if full is not None and self.summary.primary.name in full.scores else None

    @cached_property
    def scored(self) -> list[Row]:
        """The rows of tuned methods that have a score, full fine-tuning first."""
        name = self.summary.primary.name if self.runs else ""
        return [row for row in self.summary.rows if not row.is_base and name in row.scores] if self.runs else []

    @property
    def ranks(self) -> list[Row]:
        """The scored LoRAs, by rank."""
        return sorted((row for row in self.scored if row.name == "lora"), key=lambda row: row.fields["rank"])

    @property
    def ranks_are_settled(self) -> bool:
        """Whether every LoRA of the experiment has seeds enough for a verdict."""
        settled = {row.label for row in self.ranks if is_settled(row)}
        return all(entry["label"] in settled for entry in self.settings["methods"] if entry["method"] == "lora")

    def finals(self, label: str) -> list[Measurement]:
        """The method's finished final runs."""
        return [run for run in self.runs if label_of(run) == label and is_done(run) and run["purpose"] == "final"]

    @cached_property
    def missing(self) -> list[str]:
        """The methods that lack final runs."""
        return [label for label in self.labels if len(self.finals(label)) < self._wanted(label)]

    def _wanted(self, label: str) -> int:
        entry = next(entry for entry in self.settings["methods"] if entry["label"] == label)
        return 1 if entry["method"] == "base" else len(self.seeds)

    def state(self) -> str:
        """How many of the runs have finished, in one sentence."""
        if not self.missing and not self.summary.failed:
            return f"All methods have their {plural(len(self.seeds), 'seed')}."
        some = [f"{label} {len(own)} of {self._wanted(label)}" for label in self.labels if (own := self.finals(label))]
        searched = {label_of(run) for run in self.runs if is_done(run) and run["purpose"] == "search"}
        search = [label for label in self.labels if label in searched and not self.finals(label)]
        waiting = [label for label in self.labels if label not in searched and not self.finals(label)]
        failed = [f"{failure.label} ({shortened(failure.reason, 80)})" for failure in self.summary.failed]
        parts = [
            f"{kind}: {', '.join(labels)}"
            for kind, labels in (
                ("final runs that have finished", some),
                ("searches alone", search),
                ("nothing yet", waiting),
                ("failed", failed),
            )
            if labels
        ]
        sentence = "; ".join(parts)
        return f"{sentence[:1].upper()}{sentence[1:]}."


def processor(machine: Mapping[str, Any]) -> str:
    return str(machine["cpu"]).replace("(R)", "").replace(" Processor", "")


def measured_alone(run: Measurement, pace: float | None, beyond: float | None) -> Measurement:
    """The run with `pace` seconds a step and `beyond` bytes beyond the base, which are of a run alone; without any
    where that is None.

    Runs of a study go two at a time, and perhaps beside other work: the seconds that they noted are of that, and their
    memory has what scoring left behind.
    """
    train = {key: value for key, value in run.get("train", {}).items() if key not in ("seconds", "tokens_per_second")}
    if not train:
        return run
    if pace is not None:
        train["seconds"] = pace * train["steps"]
    memory = {} if beyond is None else {"memory": {"baseline": 0, "peak": beyond}}
    return {key: value for key, value in run.items() if key != "memory"} | {"train": train} | memory


def is_settled(row: Row) -> bool:
    """Whether the row has seeds enough for a verdict."""
    return row.final and len(row.seeds) >= LEAST_SEEDS


def mean_step(runs: Sequence[Measurement]) -> float | None:
    """The mean over runs of the step with the best validation loss."""
    steps = [step for run in runs if (step := number(run, "train", "best_step")) is not None]
    return sum(steps) / len(steps) if steps else None

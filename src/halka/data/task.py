"""`Task`: examples by split and the metrics that score them; `load_task` reads one from a YAML or Python file."""

import os
import runpy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import yaml

from halka.data.duplicates import Duplicate, between
from halka.data.examples import Example, FileExamples, read_examples
from halka.data.labels import classes_in, tags_in
from halka.data.metric import Metric
from halka.data.readers import Problem
from halka.data.splits import split_off, subset
from halka.util.errors import DataError, HalkaError
from halka.util.kinds import LABELLED, TASK_KINDS
from halka.util.yaml_text import read_yaml

SPLITS = ("train", "validation", "test")
TASK_FILES = (".yaml", ".yml", ".py")
DEMO_TASK = Path(__file__).with_name("demo_task.py")  # it ships with Halka, and is a file as anybody's


@dataclass(frozen=True)
class Field:
    """The value that a key of a task file takes: a description and a check."""

    description: str
    fits: Callable[[object], bool]


def _is_names(value: object) -> bool:
    items = value if isinstance(value, list) else [value]
    return bool(items) and all(isinstance(item, str) for item in items)


def _is_fraction(value: object) -> bool:
    return isinstance(value, float) and 0 < value < 1


TEXT = Field("text", lambda value: isinstance(value, str))
FILES = Field("a file or a list of files", _is_names)
PART = Field(
    "a file, a list of files, or a fraction of train between 0 and 1",
    lambda value: _is_fraction(value) or _is_names(value),
)
KIND_OF_SHAPE = {"labelled": "sequence-classification", "tagged": "token-classification"}
"""The kind of base that examples of a shape are for, unless the task names one."""

KEYS = {
    "name": TEXT,
    "kind": Field(f"one of {', '.join(TASK_KINDS)}", lambda value: value in TASK_KINDS),
    "labels": Field("a list of names", lambda value: isinstance(value, list) and _is_names(value)),
    "train": FILES,
    "validation": PART,
    "test": PART,
    "shape": TEXT,
    "seed": Field("a whole number", lambda value: type(value) is int),
    "metrics": Field("a name or a list of names", _is_names),
    "primary": TEXT,
    "max_new_tokens": Field("a whole number above 0", lambda value: type(value) is int and value > 0),
    "licence": TEXT,
    "source": TEXT,
}
"""The keys of a task file."""


@dataclass(frozen=True)
class Task:
    """Examples to train and evaluate on, and how answers are scored.

    metrics          names of metrics, or `Metric`s; `primary` is the name of the one that compares methods
    max_new_tokens   of an answer; None for as many as the longest accepted one has
    licence, source  of the data, as text
    problems         rows of the task's files that could not be used
    unread           fields of these files that nobody reads
    kind             the kind of base, None for any language model; `labels` are its head's
    """

    name: str
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    metrics: tuple[str | Metric, ...]
    primary: str
    max_new_tokens: int | None = None
    licence: str = ""
    source: str = ""
    problems: tuple[Problem, ...] = ()
    unread: tuple[str, ...] = ()
    kind: str | None = None
    labels: tuple[str, ...] = ()

    @staticmethod
    def from_yaml(path: str | Path) -> "Task":
        """Read a task file with the keys of `KEYS`, of which `train` and `metrics` are required.

        A split is a file or a list of files, relative to the task file's folder. `validation` and `test` may instead be
        a fraction of the train examples to split off, at random by `seed`; equal prompts and dialogues stay together.

        Raises:
            DataError: a key or value is wrong (the message names it), or a data file has no usable row.
            OSError: a file is missing or may not be opened.
        """
        return _read_task(Path(path))


def is_task_file(path: Path) -> bool:
    """Whether `load_task` reads `path` as a file."""
    return path.suffix in TASK_FILES and path.is_file()


def files_of(path: Path) -> list[Path]:
    """A task file, and the files of examples that it names; none for the name of a task."""
    if not is_task_file(path):
        return []
    if path.suffix == ".py":
        return [path]
    values = _checked(path)
    named = [values[split] for split in SPLITS if not isinstance(values.get(split, 0.0), float)]
    return [path, *(_beside(path, file) for value in named for file in _as_list(value))]


def load_task(name_or_path: str | Path) -> Task:
    """Load the shipped task "support", a `.yaml` task file, or a `.py` file that defines `task() -> Task` and is run.

    Raises:
        DataError: it is none of these, or the file is wrong.
        OSError: a file is missing or may not be opened.
    """
    path = DEMO_TASK if str(name_or_path) == "support" else Path(name_or_path)
    if path.suffix in (".yaml", ".yml"):
        return Task.from_yaml(path)
    if path.suffix != ".py":
        raise DataError(f"task {str(name_or_path)!r} is unknown. Name support, a .yaml file or a .py file.")
    try:
        make = runpy.run_path(str(path)).get("task")
        if not callable(make):
            raise DataError(f"{path}: defines no function task(). Add one that returns a halka.data.task.Task.")
        task = make()
    except (OSError, HalkaError):
        raise
    except Exception as error:
        raise DataError(f"{path}: {type(error).__name__}: {error}") from error
    if not isinstance(task, Task):
        raise DataError(f"{path}: task() returned a {type(task).__name__}, not a halka.data.task.Task.")
    return task


def limit(
    task: Task, train: int | None = None, validation: int | None = None, test: int | None = None, seed: int = 0
) -> Task:
    """The task with at most so many examples in each split, chosen by `seed`; a smaller subset is part of a larger one.

    Raises DataError for a negative number.
    """
    counts = {"train": train, "validation": validation, "test": test}
    for split, count in counts.items():
        if count is not None and count < 0:
            raise DataError(f"cannot take {count} {split} examples: give 0 or more, or None for all")
    return replace(
        task,
        train=subset(task.train, train, f"{seed}/train"),
        validation=subset(task.validation, validation, f"{seed}/validation"),
        test=subset(task.test, test, f"{seed}/test"),
    )


def overlaps(task: Task) -> dict[tuple[str, str], list[Duplicate]]:
    """For each pair of splits, the later one's examples whose prompt occurs in the earlier, ignoring space and case."""
    pairs = {pair: between(getattr(task, pair[0]), getattr(task, pair[1])) for pair in combinations(SPLITS, 2)}
    return {pair: duplicates for pair, duplicates in pairs.items() if duplicates}


def _read_task(path: Path) -> Task:
    values = _checked(path)
    named = {split: value for split in SPLITS if not isinstance(value := values.get(split, []), float)}
    read = {
        split: [read_examples(_beside(path, file), values.get("shape")) for file in _as_list(value)]
        for split, value in named.items()
    }
    every = [rows for of_split in read.values() for rows in of_split]
    files = {split: [example for rows in read.get(split, ()) for example in rows] for split in SPLITS}
    kind = values.get("kind") or kind_of_files(every)
    train = files["train"]
    for split in ("test", "validation"):
        fraction = values.get(split)
        if isinstance(fraction, float):
            seed = f"{values.get('seed', 0)}/{split}"
            train, files[split] = split_off(train, round(fraction * len(files["train"])), seed)
    if not train:
        whole = len(files["train"])
        raise DataError(f"{path}: validation and test leave nothing of {whole} train examples: hold out less")
    metrics = tuple(_as_list(values["metrics"]))
    primary = values.get("primary", metrics[0])
    if primary not in metrics:
        raise DataError(f"{path}: primary: {primary!r} is not among the metrics {', '.join(metrics)}")
    return Task(
        name=values.get("name", path.stem),
        train=tuple(train),
        validation=tuple(files["validation"]),
        test=tuple(files["test"]),
        metrics=metrics,
        primary=primary,
        max_new_tokens=values.get("max_new_tokens"),
        licence=values.get("licence", ""),
        source=values.get("source", ""),
        problems=tuple(problem for rows in every for problem in rows.problems),
        unread=tuple(dict.fromkeys(key for rows in every for key in rows.unread)),
        kind=kind,
        labels=tuple(values.get("labels", ())) or labels_for(kind, [*train, *files["validation"], *files["test"]]),
    )


def of_kind(task: Task, kind: str | None) -> Task:
    """The task for a base of that kind, with its labels; unchanged if None. Raises DataError for an unknown kind.

    The labels are those that the task lists, for no kind of base that has any, else those of its examples.
    """
    if kind is None or kind == task.kind:
        return task
    if kind not in TASK_KINDS:
        raise DataError(f"kind {kind!r} is none of {', '.join(TASK_KINDS)}")
    labels = task.labels if kind in LABELLED and task.kind not in LABELLED else ()
    return replace(task, kind=kind, labels=labels or labels_for(kind, [*task.train, *task.validation, *task.test]))


def kind_of_files(read: Iterable[FileExamples]) -> str | None:
    """The kind of base that files of these shapes are for. Raises DataError where they are for several."""
    kinds = {KIND_OF_SHAPE.get(rows.shape): f"{rows.examples[0].where} is read as {rows.shape}" for rows in read}
    if len(kinds) > 1:
        shown = " and ".join(kinds.values())
        raise DataError(f"{shown}, for bases of different kinds: name one by --kind, in a task file by kind:")
    return next(iter(kinds))


def labels_for(kind: str | None, examples: Iterable[Example]) -> tuple[str, ...]:
    """The labels among the answers of a classification or tagging task; none for other kinds."""
    if kind == "sequence-classification":
        return classes_in(examples)
    return tags_in(examples) if kind == "token-classification" else ()


def _checked(path: Path) -> dict[str, Any]:
    """The file's keys and values, checked."""
    try:
        content = read_yaml(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: not a task: it needs keys and values. Known keys: {', '.join(KEYS)}.")
    for key, value in content.items():
        if key not in KEYS:
            raise DataError(f"{path}: {key}: unknown key. Known keys: {', '.join(KEYS)}.")
        if value is not None and not KEYS[key].fits(value):
            raise DataError(f"{path}: {key}: {value!r} is not {KEYS[key].description}")
    values = {key: value for key, value in content.items() if value is not None}
    for key in ("train", "metrics"):
        if key not in values:
            raise DataError(f"{path}: {key}: missing; give {KEYS[key].description}")
    return values


def _beside(path: Path, file: str) -> Path:
    """A file that the task file at `path` names; ~ is the home folder."""
    return path.parent / os.path.expanduser(file)


def _as_list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value

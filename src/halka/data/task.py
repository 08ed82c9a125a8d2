"""`Task`: examples by split and the metrics that judge them, and the YAML file that says them."""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, TypeVar

import yaml

from halka.data.duplicates import Duplicate, between, prompt_key
from halka.data.examples import Example, read_examples
from halka.data.labels import classes_in, tags_in
from halka.data.readers import Problem
from halka.util.errors import DataError

T = TypeVar("T")

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Kind:
    """What a key of a task file takes, in words and as a check."""

    words: str
    fits: Callable[[object], bool]


def _is_names(value: object) -> bool:
    items = value if isinstance(value, list) else [value]
    return bool(items) and all(isinstance(item, str) for item in items)


def _is_fraction(value: object) -> bool:
    return isinstance(value, float) and 0 < value < 1


TEXT = Kind("text", lambda value: isinstance(value, str))
FILES = Kind("a file or a list of files", _is_names)
PART = Kind(
    "a file, a list of files, or a fraction of train between 0 and 1",
    lambda value: _is_fraction(value) or _is_names(value),
)
KINDS = ("causal-lm", "sequence-classification", "token-classification", "seq2seq-lm")
OF_SHAPES = {"labelled": "sequence-classification", "tagged": "token-classification"}
"""What examples of a shape are for, unless the task says otherwise."""

KEYS = {
    "name": TEXT,
    "kind": Kind(f"one of {', '.join(KINDS)}", lambda value: value in KINDS),
    "labels": Kind("a list of names", lambda value: isinstance(value, list) and _is_names(value)),
    "train": FILES,
    "validation": PART,
    "test": PART,
    "shape": TEXT,
    "seed": Kind("a whole number", lambda value: type(value) is int),
    "metrics": Kind("a name or a list of names", _is_names),
    "primary": TEXT,
    "max_new_tokens": Kind("a whole number above 0", lambda value: type(value) is int and value > 0),
    "licence": TEXT,
    "source": TEXT,
}
"""What a task file may say."""


@dataclass(frozen=True)
class Task:
    """What is to be learned: `metrics` are names of metrics, `primary` is the one that compares methods.

    `kind` is what the base is loaded as, if it is not to be a language model of any kind, and `labels` are what its
    head tells apart.
    `problems` are the rows of the task's files that could not be used.
    """

    name: str
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    metrics: tuple[str, ...]
    primary: str
    max_new_tokens: int = 64
    licence: str = ""
    source: str = ""
    problems: tuple[Problem, ...] = ()
    kind: str | None = None
    labels: tuple[str, ...] = ()

    @staticmethod
    def from_yaml(path: str | Path) -> "Task":
        """Reads a task file: the keys are those of `KEYS`; `train` and `metrics` must be there.

        A split is a file or a list of files, seen from the task file's folder. `validation` and `test` may instead be
        the fraction of the train files that is split off, at random by `seed`, equal prompts staying together.

        Raises:
            ValueError: a key or value is wrong (the message names it), or a data file has no usable row.
            OSError: a file is missing or may not be opened.
        """
        return _read_task(Path(path))


def limit(
    task: Task, train: int | None = None, validation: int | None = None, test: int | None = None, seed: int = 0
) -> Task:
    """The task with at most so many examples a split, in their order; a smaller subset is part of a larger one.

    Raises:
        ValueError: a number is negative.
    """
    counts = {"train": train, "validation": validation, "test": test}
    for split, count in counts.items():
        if count is not None and count < 0:
            raise DataError(f"cannot take {count} {split} examples; give 0 or more, or None for all")
    return replace(
        task,
        train=_subset(task.train, train, f"{seed}/train"),
        validation=_subset(task.validation, validation, f"{seed}/validation"),
        test=_subset(task.test, test, f"{seed}/test"),
    )


def overlaps(task: Task) -> dict[tuple[str, str], list[Duplicate]]:
    """By pair of splits, the later one's examples whose prompt stands in the earlier one, blanks and capitals aside."""
    pairs = {pair: between(getattr(task, pair[0]), getattr(task, pair[1])) for pair in combinations(SPLITS, 2)}
    return {pair: found for pair, found in pairs.items() if found}


def _read_task(path: Path) -> Task:
    given = _checked(path)
    problems: list[Problem] = []
    shapes: list[str] = []
    files = {split: _read_files(path, given, split, problems, shapes) for split in SPLITS}
    kind = given.get("kind") or OF_SHAPES.get(shapes[0])
    train = files["train"]
    for split in ("test", "validation"):
        fraction = given.get(split)
        if isinstance(fraction, float):
            seed = f"{given.get('seed', 0)}/{split}"
            train, files[split] = split_off(train, round(fraction * len(files["train"])), seed)
    if not train:
        raise DataError(f"{path}: validation and test leave nothing of {len(files['train'])} train examples")
    metrics = tuple(_listed(given["metrics"]))
    primary = given.get("primary", metrics[0])
    if primary not in metrics:
        raise DataError(f"{path}: primary: {primary!r} is not among the metrics {', '.join(metrics)}")
    return Task(
        name=given.get("name", path.stem),
        train=tuple(train),
        validation=tuple(files["validation"]),
        test=tuple(files["test"]),
        metrics=metrics,
        primary=primary,
        max_new_tokens=given.get("max_new_tokens", 64),
        licence=given.get("licence", ""),
        source=given.get("source", ""),
        problems=tuple(problems),
        kind=kind,
        labels=tuple(given.get("labels", ())) or labels_for(kind, [*train, *files["validation"], *files["test"]]),
    )


def of_kind(task: Task, kind: str | None) -> Task:
    """The task for a base of that kind; as it is if None. Raises ValueError for a kind that there is not."""
    if kind is None or kind == task.kind:
        return task
    if kind not in KINDS:
        raise DataError(f"kind {kind!r} is none of {', '.join(KINDS)}")
    return replace(task, kind=kind, labels=labels_for(kind, [*task.train, *task.validation, *task.test]))


def labels_for(kind: str | None, examples: Iterable[Example]) -> tuple[str, ...]:
    """The labels that the examples of a task of that kind are answered by; none where the kind has none."""
    found = {"sequence-classification": classes_in, "token-classification": tags_in}
    return found[kind](examples) if kind in found else ()


def _checked(path: Path) -> dict[str, Any]:
    """What the file says, each key known and each value of its kind."""
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: not a task, which is keys and values. Known keys: {', '.join(KEYS)}.")
    for key, value in content.items():
        if key not in KEYS:
            raise DataError(f"{path}: {key}: unknown key. Known keys: {', '.join(KEYS)}.")
        if value is not None and not KEYS[key].fits(value):
            raise DataError(f"{path}: {key}: {value!r} is not {KEYS[key].words}")
    given = {key: value for key, value in content.items() if value is not None}
    for key in ("train", "metrics"):
        if key not in given:
            raise DataError(f"{path}: {key}: missing; give {KEYS[key].words}")
    return given


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def _read_files(
    path: Path, given: dict[str, Any], split: str, problems: list[Problem], shapes: list[str]
) -> list[Example]:
    """A split's examples; what is wrong with its rows, and their shapes, go to the two lists."""
    value = given.get(split, [])
    examples: list[Example] = []
    for file in [] if isinstance(value, float) else _listed(value):
        rows = read_examples(path.parent / file, given.get("shape"))
        examples += rows.examples
        problems += rows.problems
        shapes.append(rows.shape)
    return examples


def split_off(examples: Sequence[Example], count: int, seed: str) -> tuple[list[Example], list[Example]]:
    """What stays and what goes, each in order: at least `count` and at least one go, equal prompts together."""
    groups: dict[object, list[int]] = {}
    for index, example in enumerate(examples):
        groups.setdefault(prompt_key(example), []).append(index)
    chosen: set[int] = set()
    for group in _shuffled(groups.values(), seed):
        if len(chosen) >= max(count, 1):
            break
        chosen.update(group)
    stays = [example for index, example in enumerate(examples) if index not in chosen]
    return stays, [examples[index] for index in sorted(chosen)]


def _subset(examples: tuple[Example, ...], count: int | None, seed: str) -> tuple[Example, ...]:
    return (
        examples if count is None else tuple(examples[i] for i in sorted(_shuffled(range(len(examples)), seed)[:count]))
    )


def _shuffled(items: Iterable[T], seed: str) -> list[T]:
    shuffled = list(items)
    random.Random(seed).shuffle(shuffled)
    return shuffled

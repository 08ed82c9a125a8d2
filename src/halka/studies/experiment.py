"""An experiment: the methods, the task and the base to compare; its YAML file, checked before anything runs.

docs/compare.md explains the file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)

from halka.data.task import SPLITS, TASK_FILES, Task, is_task_file, limit, load_task
from halka.evaluation.accepted import check_answered
from halka.evaluation.metrics import score
from halka.methods import method_named
from halka.methods.prompt import check_start
from halka.models.loading import place_of
from halka.report.units import listed
from halka.studies.spec import BASE, NEW_DEFAULTS
from halka.training import TrainConfig
from halka.training.config import laid_over
from halka.util.base_folders import is_base_folder
from halka.util.dtypes import Dtype, Quantize
from halka.util.errors import HalkaError
from halka.util.machine import cores
from halka.util.precision import slow_in_bfloat16
from halka.util.settings import converted, settings_of, yaml_of
from halka.util.suggest import suggest

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

Count = Annotated[int, Field(ge=1)]
Precision = Literal[Dtype, "auto"]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Checked = TypeVar("Checked", bound="Settings")


class Settings(BaseModel):
    """Settings that are checked when they are made. Raises HalkaError naming each wrong field, and why."""

    def __init__(self, /, **values: Any):
        try:
            super().__init__(**values)
        except ValidationError as error:
            fields = [*type(self).model_fields]
            raise HalkaError("; ".join(_reason(wrong, fields) for wrong in error.errors())) from None

    @model_validator(mode="wrap")
    @classmethod
    def _keys_as_text(cls, values: Any, check: ModelWrapValidatorHandler[Self]) -> Self:
        """YAML has other keys, too: these are unknown settings."""
        return check({str(key): value for key, value in values.items()} if isinstance(values, dict) else values)


def _reason(wrong: ErrorDetails, fields: Sequence[str]) -> str:
    """What is wrong with one of a model's settings, whose names are `fields`."""
    place, message = ".".join(map(str, wrong["loc"])), wrong["msg"].removeprefix("Value error, ")
    message = message.replace("a valid tuple", "a list").replace("a valid dictionary", "a mapping")
    if wrong["type"] == "missing":
        message = "it is missing"
    if wrong["type"] == "extra_forbidden":
        message, close = "there is no such setting", suggest(place, fields)
        message += f"; did you mean {close}?" if close else f": choose of {', '.join(fields)}"
    return f"{place}: {message}" if place else message


def _named_alone(methods: Any) -> Any:
    """Entries of which some are a method's name alone."""
    if not isinstance(methods, list | tuple):
        return methods
    return [{"method": entry} if isinstance(entry, str) else entry for entry in methods]


def _by_split(examples: dict[str, int]) -> dict[str, int]:
    if unknown := examples.keys() - {*SPLITS}:
        raise HalkaError(f"the splits are {listed(SPLITS)}, not {', '.join(sorted(unknown))}")
    return examples


def _train_fields(train: dict[str, Any]) -> dict[str, Any]:
    fields = converted(settings_of(TrainConfig), train)
    if repeated := {"lr", "seed"} & fields.keys():
        raise HalkaError(f"{', '.join(sorted(repeated))} is searched or set by seeds, not here")
    TrainConfig(**fields)
    return fields


def _seeds(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if not seeds or len({*seeds}) < len(seeds):
        raise HalkaError("name at least one, and none twice")
    return seeds


BySplit = Annotated[dict[str, Count], AfterValidator(_by_split)]
"""The most examples of a split, by split."""
TrainFields = Annotated[dict[str, Any], AfterValidator(_train_fields)]
"""TrainConfig's fields, each in its own type, without those that every run has its own of."""
Seeds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], AfterValidator(_seeds)]


class Entry(Settings):
    """One method of an experiment, with its fields beside it and the learning rates to search.

    text   what virtual tokens start as
    train  what of the experiment's training differs for this method
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    method: str
    label: str = ""
    quantize: Quantize | None = None
    lrs: tuple[Rate, ...] = ()
    text: Annotated[str, Field(min_length=1)] | None = None
    train: TrainFields = {}

    @model_validator(mode="after")
    def _builds(self) -> Entry:
        if "lr" in (self.model_extra or {}):
            raise HalkaError("lr: the rates to search are a list, lrs, also where it is one")
        if self.method == BASE:
            tuned = [name for name in ("lrs", "text", "train") if getattr(self, name)]
            if wrong := [*(self.model_extra or {}), *tuned]:
                raise HalkaError(f"the bare base is not tuned: it takes no {', '.join(wrong)}")
        else:
            built = method_named(self.method)(**self.fields())
            if self.text is not None:
                check_start(built, "text")
        if len({*self.lrs}) < len(self.lrs):
            raise HalkaError("lrs: a rate is named twice")
        return self

    def fields(self) -> dict[str, Any]:
        """The method's own fields that the file sets, each in its own type, and those of `NEW_DEFAULTS`."""
        return self.new_defaults() | self._set()

    def new_defaults(self) -> dict[str, Any]:
        """The defaults of the method's fields that are in `NEW_DEFAULTS`."""
        settings = {} if self.method == BASE else settings_of(method_named(self.method))
        return {name: settings[name].default for name in NEW_DEFAULTS if name in settings}

    def _set(self) -> dict[str, Any]:
        fields = self.model_extra or {}
        return converted(settings_of(method_named(self.method)), fields) if fields else {}

    @property
    def rate(self) -> float | None:
        """The learning rate where there is none to search; None: the method's own at the base's width."""
        return self.lrs[0] if self.lrs else None

    def title(self) -> str:
        """The entry's label, or its method with the fields that the file sets."""
        shown = " ".join(f"{key}={value}" for key, value in self._set().items())
        return self.label or " ".join(filter(None, (self.method, shown, self.quantize)))


class Experiment(Settings):
    """The methods to compare, the task and base on which, and how they are trained."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    base: str = "smollm2-135m"
    dtype: Precision = "bfloat16"
    quantize: Quantize | None = Field(
        default=None, description="the base's quantisation; an entry's own takes its place"
    )
    task: str
    examples: BySplit = {}
    methods: Annotated[tuple[Entry, ...], BeforeValidator(_named_alone)]
    train: TrainFields = {}
    search_steps: Count | None = Field(
        default=None, description="steps of a search run; half of the final ones' steps or epochs if not given"
    )
    search_beyond: Annotated[
        int,
        Field(ge=0, description="rates that a search adds, one by one, while the best is at an edge of those tried"),
    ] = 3
    score_every: Count | None = Field(
        default=None, description="steps between scores on the validation examples in final runs, with their forgetting"
    )
    best_by: Literal["loss", "score"] = Field(
        default="loss",
        description="what decides in final runs which evaluation is the best and when to stop: the validation loss, or "
        "the task's score on the validation examples, which each evaluation makes then",
    )
    sweep: bool = Field(
        default=False,
        description="every rate with every seed, all steps long, and no final run: how the loss depends on it",
    )
    search_together: bool = Field(default=True, description="a method's searches share one process and its passes")
    seeds: Seeds = (0, 1, 2)
    jobs: Annotated[int, Field(ge=1, description="runs at a time")] = 1
    forgetting: str | None = Field(default=None, description="a text file; a page that comes with Halka if not given")

    @model_validator(mode="after")
    def _fits(self) -> Experiment:
        titles = [entry.title() for entry in self.methods]
        if double := {title for title in titles if titles.count(title) > 1}:
            raise HalkaError(f"methods: two are called {', '.join(double)}: give each its own label")
        if not self.methods:
            raise HalkaError("methods: name at least one")
        for entry in self.methods:
            TrainConfig(**self.train_of(entry))
        if self.best_by == "score" and self.score_every is not None:
            raise HalkaError("score_every: with best_by score each evaluation scores: set evaluate_every instead")
        if self.sweep:
            self._sweeps()
        return self

    def train_of(self, entry: Entry) -> dict[str, Any]:
        """TrainConfig's fields of the entry's runs, without lr and seed."""
        return laid_over(self.train, entry.train)

    def _sweeps(self) -> None:
        fields, of_finals = type(self).model_fields, ("search_steps", "score_every", "best_by")
        if final := [name for name in of_finals if getattr(self, name) != fields[name].default]:
            raise HalkaError(f"{listed(final)}: a sweep has no final runs; its own are as long as train says")
        if single := [entry.title() for entry in self.methods if len(entry.lrs) < 2]:
            raise HalkaError(f"methods: a sweep needs two rates or more (lrs) of each method, also of {listed(single)}")


def read_experiment(path: str | Path) -> Experiment:
    """Read an experiment from its YAML file; the paths in it are relative to its folder.

    Raises HalkaError naming the file, each wrong key, and a path that does not exist.
    """
    path = Path(path)
    experiment = read_settings(path, Experiment, "it needs at least name, task and methods")
    return experiment.model_copy(update=_resolved(experiment, path))


def read_settings(path: Path, model_class: type[Checked], needs: str) -> Checked:
    """The settings in a YAML file, checked. Raises HalkaError naming the file, each wrong key, and why."""
    content = yaml_of(path, f"no {model_class.__name__.lower()}: {needs}")
    try:
        return model_class(**{str(key): value for key, value in content.items()})
    except HalkaError as error:
        raise HalkaError(f"{path}: {error}") from None


def _resolved(experiment: Experiment, path: Path) -> dict[str, str]:
    """The experiment's names of files and folders beside its own file, as absolute paths."""
    resolved = {}
    for key, exists in (("task", is_task_file), ("base", is_base_folder), ("forgetting", Path.is_file)):
        name = getattr(experiment, key)
        if name is None:
            continue
        near = path.parent / Path(name).expanduser()
        if exists(near):
            resolved[key] = str(near.resolve())
        elif key == "forgetting" or name.startswith((".", "/", "~")) or Path(name).suffix in TASK_FILES:
            raise HalkaError(f"{path}: {key}: there is no {near}")
    return resolved


def task_of(experiment: Experiment) -> Task:
    """Load the experiment's task, with as many examples of each split as it wants.

    Raises HalkaError for what would otherwise end every run after its training: a split without examples, test examples
    without answers, a metric that is unknown or that cannot score these, and a primary metric that is none of them.
    """
    task = limit(load_task(experiment.task), **experiment.examples)
    for split in ("train", "validation", "test"):
        if not getattr(task, split):
            raise HalkaError(f"task {task.name} has no {split} examples: a run needs train, validation and test")
    check_answered(task.test)
    golds = [example.answers for example in task.test]
    scores = score([answers[0] for answers in golds], golds, task.metrics, resamples=1)
    if task.primary not in scores:
        metrics = ", ".join(scores)
        raise HalkaError(f"task {task.name}: primary is {task.primary!r}: name one of its metrics ({metrics})")
    return task


def digest(task: Task, forgetting: str | None = None) -> str:
    """Twelve letters of a hash of what runs of a task read, and of the text for forgetting in that file."""
    examples = [
        (split, [repr(example.messages) + repr(example.references) for example in getattr(task, split)])
        for split in SPLITS
    ]
    names = [metric if isinstance(metric, str) else metric.name for metric in task.metrics]
    work: tuple[Any, ...] = (examples, names, task.primary, task.max_new_tokens)
    if task.kind or task.labels:  # others keep the names that they had
        work += (task.kind, tuple(task.labels))
    if forgetting is not None:
        work += (Path(forgetting).read_text(encoding="utf-8"),)
    return hashlib.sha256(repr(work).encode()).hexdigest()[:12]


DEMO_TEXT = (
    "You answer customers of Jonaki Lamps. Answer in five lines: Dear and the customer's name, or Dear customer. "
    "Order: the order number, or not given. Issue: flicker, no light, overheating, damage, late, wrong item, refund or "
    "invoice, and the lamp. What to do. Jonaki Lamps, priority urgent for overheating, high for who wrote before, else "
    "normal."
)
"""What the demo's virtual tokens start as."""


def demo_experiment() -> Experiment:
    """The demo: the shipped support desk, every family and full fine-tuning, some minutes on two cores.

    Its learning rates are the best of benchmarks/experiments/demo.yaml, which has more rates, seeds and test items. On
    a processor that is slow in bfloat16 it is in float32.
    """
    return Experiment(
        name="demo",
        dtype="float32" if slow_in_bfloat16(place_of(None)) else "bfloat16",
        task="support",
        examples={"validation": 32, "test": 60},
        methods=(
            Entry(method="full", label="full", lrs=(4e-4,)),
            Entry(**{"method": "lora", "label": "LoRA r16", "lrs": (2e-3,), "rank": 16}),
            Entry(method="bottleneck", label="bottleneck", lrs=(8e-3,)),
            Entry(method="prefix", label="prefix", lrs=(1e-1,), text=DEMO_TEXT),
            Entry(method="prompt", label="prompt", lrs=(1e-1,), text=DEMO_TEXT),
            Entry(method=BASE, label="base (no tuning)"),
        ),
        train={"steps": 108, "batch_size": 4, "evaluate_every": 36, "save_every": None},
        seeds=(0,),
        jobs=min(4, cores()),
    )

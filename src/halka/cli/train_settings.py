"""The settings of `halka train`: its own, every method's fields and TrainConfig's, as flags and in files."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from halka.cli.adapter_names import open_adapter
from halka.cli.setting_flags import setting_flag
from halka.core import Method
from halka.data.task import is_task_file
from halka.methods import Joint, all_methods, build_method, method_named, primary
from halka.methods.prompt import check_start
from halka.storage.adapter_folder import AdapterFolder
from halka.training import TrainConfig
from halka.training.config import laid_over
from halka.util.base_folders import is_base_folder
from halka.util.dtypes import Dtype, Quantize
from halka.util.errors import HalkaError
from halka.util.settings import (
    Entry,
    Keyed,
    Setting,
    build,
    from_content,
    from_environment,
    from_file,
    from_flags,
    merged,
    plain_fields,
    settings_of,
    yaml_of,
)


@dataclass(frozen=True)
class RunSettings:
    """What is trained, on what, and where it goes."""

    base: str = field(
        metadata={"help": "short name, folder or hub name of the base", "metavar": "NAME", "beside": is_base_folder}
    )
    out: Path = field(metadata={"help": "the run's folder", "metavar": "FOLDER", "short": "-o"})
    method: str = field(default="lora", metadata={"help": "as `halka methods` lists them", "metavar": "NAME"})
    join: tuple[Keyed, ...] = field(
        default=(),
        metadata={
            "help": "another method in the same adapter, with fields of its own, such as "
            "'method: modules, targets: [embedding, head]'; may be repeated",
            "metavar": "YAML",
        },
    )
    start_from: str | None = field(
        default=None,
        metadata={
            "help": "begin as a trained adapter: its folder, its run's, or its name on the hub; it says the method",
            "metavar": "FOLDER|NAME",
            "short": "--from",
            "beside": Path.is_dir,
        },
    )
    task: str | None = field(
        default=None,
        metadata={"help": "a task: support, a .yaml or .py file", "metavar": "NAME", "beside": is_task_file},
    )
    data: tuple[Path, ...] = field(
        default=(), metadata={"help": "examples or texts to train on, where there is no task; may be repeated"}
    )
    validation: str | None = field(
        default=None,
        metadata={
            "help": "a file, or the share of --data to hold out (0.1)",
            "metavar": "FILE|X",
            "beside": Path.is_file,
        },
    )
    shape: str | None = field(default=None, metadata={"help": "how the rows of --data are written; else found out"})
    kind: str | None = field(
        default=None,
        metadata={"help": "what the base learns to be: sequence-classification, …; as the task or the data say"},
    )
    best_by: Literal["loss", "score"] = field(
        default="loss",
        metadata={"help": "which evaluation is the best: by validation loss, or by answers to the validation examples"},
    )
    text: str | None = field(default=None, metadata={"help": "what virtual tokens start as (prompt, prefix)"})
    dtype: Literal[Dtype, "auto"] = field(
        default="bfloat16", metadata={"help": "precision of the base: bfloat16, float32, …"}
    )
    device: str | None = field(default=None, metadata={"help": "cuda, mps or cpu; the first there is"})
    quantize: Quantize | None = field(
        default=None, metadata={"help": "pack the base's layers into fewer bits: nf4 or int8", "metavar": "QUANTIZE"}
    )
    deterministic: bool = field(
        default=False, metadata={"help": "on a GPU: the same bits in every run, by slower kernels"}
    )


ONE_FOR_ALL = (
    "base",
    "dtype",
    "device",
    "quantize",
    "deterministic",
)  # the same for all runs that are trained together


@dataclass(frozen=True)
class Sources:
    """All settings, by where they belong."""

    run: Mapping[str, Setting]
    methods: Mapping[str, Mapping[str, Setting]]
    train: Mapping[str, Setting]

    @property
    def of_methods(self) -> dict[str, Setting]:
        return merged(self.methods)

    @property
    def all(self) -> dict[str, Setting]:
        parts = (self.run, self.of_methods, self.train)
        names = [setting.name for part in parts for setting in part.values()]
        assert len({*names}) == len(names), f"two settings share a flag: {sorted(names)}"
        return {path: setting for part in parts for path, setting in part.items()}


def sources() -> Sources:
    return Sources(
        run=settings_of(RunSettings),
        methods={name: settings_of(method) for name, method in all_methods().items()},
        train=settings_of(TrainConfig, "train"),
    )


@dataclass(frozen=True)
class RunPlan:
    """One run: its settings, method and training; `explicit` are the paths of the settings that were set.

    joined  methods beside the first, in the same adapter
    start   the adapter that the run begins as; the method is its Card's, without one that which `load` finds
    """

    run: RunSettings
    method: Method
    train: TrainConfig
    explicit: frozenset[str]
    joined: tuple[Method, ...] = ()
    start: AdapterFolder | None = None

    @property
    def whole(self) -> Method:
        """All that is trained, as one method. Raises HalkaError for methods that cannot be joined."""
        return Joint((self.method, *self.joined)) if self.joined else self.method

    def started_as(self, method: Method) -> RunPlan:
        """The plan with the method of the adapter that the run begins as.

        Raises HalkaError for a method or a field that was set otherwise.
        """
        own = {"method": method.name, **vars(method)}
        for path, value in {"method": self.run.method, **vars(self.method)}.items():
            if path in self.explicit and value != own.get(path):
                raise HalkaError(
                    f"--from {self.start} has the {path} {own.get(path)!r}, not {value!r}: leave {path} out, or train "
                    "anew without --from"
                )
        return replace(self, method=method, run=replace(self.run, method=method.name))

    def check_joined(self, methods: Sequence[Method]) -> None:
        """Raises HalkaError where others were set than are joined in the adapter that the run begins as."""
        if "join" in self.explicit and self.joined != (*methods,):
            trained = " and ".join(map(repr, methods)) or "none"
            raise HalkaError(f"--from {self.start} has joined {trained}: leave join out, or train anew without --from")

    def settings(self, method: Method, joined: Sequence[Method] = ()) -> dict[str, Any]:
        """All settings as run.yaml has them, for --config; `method` has tokens where a text was given."""
        return {
            **plain_fields(self.run),
            "text": None,
            "out": ".",
            "join": [{"method": other.name, **plain_fields(other)} for other in joined],
            **plain_fields(method),
            "train": plain_fields(self.train),
        }


def read(config: Path | None, flags: Mapping[str, Any], environment: Mapping[str, str]) -> RunPlan:
    """The plan that the file, the environment and the flags make together.

    Raises HalkaError naming the setting, where it was given, and what is wrong with it.
    """
    all_sources = sources()
    settings = all_sources.all
    layer = from_file(config, settings) if config is not None else {}
    over = (from_environment(environment, settings), from_flags(flags, settings))
    return _plan(_laid(layer, *over), all_sources)


def read_many(file: Path, flags: Mapping[str, Any], environment: Mapping[str, str]) -> list[RunPlan]:
    """The plans of a file with `runs`, each with settings of its own; settings beside them, and flags, are for all.

    Raises HalkaError as `read` does, for a file without runs, and for runs of several bases or in one folder.
    """
    all_sources = sources()
    settings = all_sources.all
    content = yaml_of(file)
    runs = content.pop("runs", None)
    if not isinstance(runs, list) or not runs or not all(isinstance(run, dict) for run in runs):
        raise HalkaError(f"{file}: runs: a list of runs is missing, such as runs: [{{out: a, rank: 8}}, {{out: b}}]")
    if "out" in content:
        raise HalkaError(f"{file}: out: each run has its own: give it there, and not for all")
    shared = from_content(content, file, settings)
    over = _laid(from_environment(environment, settings), from_flags(flags, settings))
    if "out" in over:
        raise HalkaError(f"{over['out'].where}: out: each run of {file} has its own: leave this away")
    plans = []
    for number, run in enumerate(runs, start=1):
        within = f"runs[{number}]."
        if not run.get("out"):
            raise HalkaError(f"{file}: {within}out is missing: each run needs a folder of its own")
        for path, one in from_content({key: run[key] for key in ONE_FOR_ALL if key in run}, file, settings).items():
            raise HalkaError(f"{file}: {within}{path}: all runs share one {path} ({one.value!r} here): give it above")
        plans.append(_plan(_laid(shared, from_content(run, file, settings, within), over), all_sources))
    folders = [plan.run.out.resolve() for plan in plans]
    if double := [str(plan.run.out) for plan in plans if folders.count(plan.run.out.resolve()) > 1]:
        raise HalkaError(f"{file}: runs: two have the folder {double[0]}: give each its own out")
    return plans


def _laid(*layers: Mapping[str, Entry]) -> dict[str, Entry]:
    """Layers of settings, each over those before it, where these have the same under another name, too."""
    merged: dict[str, Entry] = {}
    for layer in layers:
        merged = laid_over(merged, layer, prefix="train.")
    return merged


def _plan(layer: Mapping[str, Entry], sources: Sources) -> RunPlan:
    run = build(RunSettings, sources.run, layer)
    start = None if run.start_from is None else _start(run, layer)
    card = None if start is None else start.card
    trained = None if card is None else primary(build_method(card.method["name"], card.method["fields"]))
    if trained is not None and "method" not in layer:
        run = replace(run, method=trained.name)
    if run.method == Joint.name:
        raise HalkaError(f"{layer['method'].where}: name one method, and others that are joined with it by join")
    method = method_named(run.method)
    _refuse_others(layer, sources, run.method, sources.of_methods)
    chosen = build(method, sources.methods[run.method], layer)
    if run.text is not None:
        check_start(chosen, layer["text"].where)
    plan = RunPlan(
        run=run,
        method=chosen,
        train=build(TrainConfig, sources.train, layer),
        explicit=frozenset(layer),
        joined=tuple(_joined(one, layer["join"].where, sources) for one in run.join),
        start=start,
    )
    if start is None and plan.joined:
        try:
            plan.whole  # noqa: B018
        except HalkaError as error:
            raise HalkaError(f"{layer['join'].where}: {error}") from None
    return plan if trained is None else plan.started_as(trained)


def _joined(values: Mapping[str, Any], where: str, sources: Sources) -> Method:
    """A method of `join`. Raises HalkaError naming what is wrong with it."""
    fields = dict(values)
    if len(fields) == 1 and None in fields.values():  # a name alone
        fields = {"method": next(iter(fields))}
    name = fields.pop("method", None)
    if name is None:
        raise HalkaError(f"{where}: name the method, as in 'method: modules, targets: [embedding, head]'")
    try:
        method = method_named(str(name))
    except HalkaError as error:
        raise HalkaError(f"{where}: {error}") from None
    layer = {path: Entry(value, f"{where}: {path}") for path, value in fields.items()}
    _refuse_others(layer, sources, method.name, layer)
    return build(method, sources.methods[method.name], layer)


def _start(run: RunSettings, layer: Mapping[str, Entry]) -> AdapterFolder:
    """The adapter that the run begins as. Raises HalkaError for one in the run's own folder, and beside a text."""
    where = layer["start_from"].where
    start = open_adapter(Path(str(run.start_from)), where)
    if start.path.resolve().is_relative_to(run.out.resolve()):
        raise HalkaError(f"{where}: {start} is in the run's own folder, and stays as it is: choose another --out")
    if run.text is not None:
        raise HalkaError(
            f"{layer['text'].where}: virtual tokens start as those of {start} ({where}): leave one of them out"
        )
    return start


def _refuse_others(layer: Mapping[str, Entry], sources: Sources, method: str, paths: Iterable[str]) -> None:
    """Raises HalkaError for one of these paths that is set and no field of the method."""
    own = sources.methods[method]
    for path in paths:
        if path in layer and path not in own:
            fields = ", ".join(own) or "none"
            raise HalkaError(f"{layer[path].where}: {method} has no field {path!r}; its fields are: {fields}")


# ── flags ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def flags() -> list[inspect.Parameter]:
    """Every setting as a flag."""
    all_sources = sources()
    sections = {
        "Run": all_sources.run,
        "Method (fields, and which methods have them)": all_sources.of_methods,
        "Training": all_sources.train,
    }
    return [setting_flag(setting, title) for title, settings in sections.items() for setting in settings.values()]

"""A training run's checkpoint: adapter, optimiser and progress in one safetensors file, written whole or not at all.

It holds no random state: the order of the examples and dropout follow from the seed and the step. Tensors that are
divided among processes lie beside it, in a folder to which each process writes its shards (`shards.py`); the file,
which is written last, names them. Any number of processes goes on from it.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from halka.core import Adapter
from halka.methods.lora import with_alpha
from halka.training.config import Step
from halka.util.cached import Changes
from halka.util.divided import first_process, is_divided, part_like
from halka.util.errors import DamagedFolderError, HalkaError
from halka.util.tensor_file import iter_shapes, iter_tensors, write_tensors

STEP = "step"  # what the optimiser counts of each parameter; all else that it keeps is of the parameter's shape
T = TypeVar("T")
PADDED: dict[str, Any] = {"batches": "padded", "group_shared": False}
"""Settings of `TrainConfig` that a run had before there were others; its checkpoint does not name them."""
SHARDS = "parts-"  # and a step: the name of a folder
UNRECORDED = "-unrecorded"  # at its end, where the step was: one that is saved again must not write over what is there
PLAN = "plan of batches"
"""Of a run's identity. It follows from all else there, so it differs alone only in another version."""
WRITTEN = "written"
"""Of a run's identity, where the chat template writes the time into texts: that which they have, of its beginning."""
START = "started from"
"""Of a run's identity, where it began as a trained adapter: the id of that one's content."""
MAY_CHANGE = {"checkpointing"}
"""Of a run's identity, what a run may go on with otherwise: it changes the memory, and results up to rounding."""
ALPHA, JOINED = "'s alpha", "joint's methods"
"""Of a run's identity: LoRA's α, and the methods of one that joins several."""
BEST_BY = "best by"
"""Of a run's identity: "loss", which all were by whose checkpoint does not name it, or the `name` of its score."""


@dataclass(frozen=True)
class Progress:
    """How far a run is: steps, tokens without padding, those computed, its best evaluation, the scale of its loss."""

    step: int = 0
    tokens: int = 0
    computed: int = 0
    seconds: float = 0.0
    best_step: int = 0
    best_loss: float = float("inf")
    best_score: float = float("-inf")
    waited: int = 0  # evaluations since the best
    stopped: bool = False
    scale: float = 2.0**16  # of the loss in fp16 (`loss_scale.py`)
    steady: int = 0  # steps since the scale changed
    unrecorded: Step | None = None  # the last step, until it is evaluated, where that is due, and in the metrics

    @staticmethod
    def of(saved: Mapping[str, Any]) -> Progress:
        """Of a checkpoint's JSON, which may be of a version that counted and kept less.

        Raises HalkaError for one of a version that keeps more.
        """
        values = {"computed": saved["tokens"], **saved}
        if values.get("unrecorded") is not None:
            values["unrecorded"] = _of_fields(Step, values["unrecorded"])
        return _of_fields(Progress, values)


def _of_fields(kind: type[T], values: Mapping[str, Any]) -> T:
    try:
        return kind(**values)
    except TypeError as error:
        raise HalkaError(f"the checkpoint is of another version of Halka ({error}): go on with that one") from error


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's file, with the progress of the run."""

    path: Path
    progress: Progress
    divided: Divided | None = None

    def check_fits(self, adapter: Adapter) -> None:
        """Raises HalkaError where the tensors are not this adapter's, or not all, before `restore` changes any."""
        places = _Places(adapter)
        divided: Mapping[str, Sequence[int]] = {} if self.divided is None else self.divided.shapes
        for key, shape in (*iter_shapes(self.path), *divided.items()):
            places.of(key, shape)
        places.check_all_filled()
        if self.divided is not None:
            self.divided.check()

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """What `restore` takes, one after another, but for those that are divided."""
        return iter_tensors(self.path)


@dataclass(frozen=True)
class Divided:
    """A folder with the shards of tensors that were divided, whose shapes are here by their names in the checkpoint."""

    folder: Path
    shapes: Mapping[str, Sequence[int]]

    def check(self) -> None:
        """Raises DamagedFolderError where the folder lacks a shard."""
        from halka.training.shards import check_shards  # torch's checkpoints take a while to import

        check_shards(self.folder, self.shapes)

    def tensors(self, adapter: Adapter) -> Iterator[tuple[str, Tensor]]:
        """What `restore` takes of them: this process's shards, or the whole. All processes call this together."""
        from halka.training.shards import read_shards

        own, parameters, places = adapter.state_dict(), dict(adapter.named_parameters()), _Places(adapter)
        tensors: dict[str, Tensor] = {}
        for key, shape in self.shapes.items():
            name, field = places.of(key, shape)
            tensors[key] = own[name] if field is None else torch.empty_like(parameters[name])
        read_shards(self.folder, tensors)
        yield from tensors.items()


def save_checkpoint(
    path: Path, identity: dict[str, Any], progress: Progress, adapter: Adapter, optimizer: torch.optim.Optimizer
) -> None:
    """Write a checkpoint; `identity` says what is trained, on what and how, for `open_checkpoint` to compare.

    Where the adapter is divided among processes, all of them call this, and the first one writes the file.
    Raises HalkaError in all where one cannot write its shards, and OSError in the first where it cannot write the file.
    """
    names = [name for name, _ in adapter.named_parameters()]
    tensors = adapter_tensors(adapter)
    for index, state in optimizer.state_dict()["state"].items():
        tensors.update({f"optimizer.{names[index]}.{key}": torch.as_tensor(value) for key, value in state.items()})
    metadata = {"run": json.dumps(identity, sort_keys=True), "progress": json.dumps(asdict(progress))}
    if divided := {key: tensor for key, tensor in tensors.items() if is_divided(tensor)}:
        from halka.training.shards import write_shards

        write_shards(path.with_name(shards_name(progress)), divided)
        metadata["divided"] = json.dumps({key: [*tensor.shape] for key, tensor in divided.items()})
    if first_process():
        write_tensors(path, {key: tensor for key, tensor in tensors.items() if key not in divided}, metadata)


def shards_name(progress: Progress) -> str:
    """The folder beside a checkpoint of that progress where its divided tensors are: each checkpoint has its own."""
    return f"{SHARDS}{progress.step}{'' if progress.unrecorded is None else UNRECORDED}"


def shards_folders(folder: Path) -> list[Path]:
    """All such folders in the folder of a run."""
    steps = ((path, path.name.removeprefix(SHARDS).removesuffix(UNRECORDED)) for path in folder.glob(f"{SHARDS}*"))
    return [path for path, step in steps if step.isdecimal() and path.is_dir() and not path.is_symlink()]


def open_checkpoint(path: Path, identity: dict[str, Any]) -> Checkpoint | None:
    """The checkpoint of the run of that identity; None if there is no file.

    Raises DamagedFolderError for a file that cannot be read, HalkaError for one of another run, naming what differs.
    """
    if not path.exists():
        return None
    with _opened(path) as file:
        metadata = _metadata(file, path)
        current = json.loads(json.dumps(identity))
        before = {**PADDED, PLAN: current.get(PLAN), BEST_BY: "loss", WRITTEN: current.get(WRITTEN)}
        unnamed = {key: value for key, value in before.items() if key in current}
        saved, current = (_with_alphas(run) for run in ({**unnamed, **json.loads(metadata["run"])}, current))
        if different := {key for key in {*saved, *current} - MAY_CHANGE if saved.get(key) != current.get(key)}:
            different = different - {PLAN} or different
            shown = "; ".join(f"{key} was {saved.get(key)!r}, is {current.get(key)!r}" for key in sorted(different))
            way = "dtype auto keeps the precision of the base's files. " if "dtype" in different else ""
            if any(key.endswith(ALPHA) for key in different):
                way = "Where none was named α was twice the rank: name that as alpha. "
            if different == {PLAN}:
                way = "The version of Halka that began it makes other batches of the same examples. "
            raise HalkaError(
                f"{path.parent} holds an unfinished run that differs from this one: {shown}. "
                f"{way}Use another folder, or remove that one to begin afresh"
            )
        progress = Progress.of(json.loads(metadata["progress"]))
        shapes = json.loads(metadata.get("divided", "{}"))
    shards = path.with_name(shards_name(progress))
    if not shards.exists():  # a version before had one name for all of a step
        shards = path.with_name(f"{SHARDS}{progress.step}")
    divided = Divided(shards.absolute(), shapes) if shapes else None
    return Checkpoint(path, progress, divided)


def _with_alphas(run: Mapping[str, Any]) -> dict[str, Any]:
    """A run's identity with every α as a number: none is twice the rank, which was the default of versions before."""
    named = with_alpha(run, f"{run.get('method')}'s ")
    joined = named.get(JOINED, ())
    return named | ({JOINED: [{**one, "fields": with_alpha(one["fields"])} for one in joined]} if joined else {})


def restore(tensors: Iterable[tuple[str, Tensor]], adapter: Adapter, optimizer: torch.optim.Optimizer) -> None:
    """Put adapter and optimiser back to a checkpoint's tensors; where they are divided, to this process's shards.

    Raises HalkaError for tensors that are not this adapter's, some of which may be in place then (`check_fits`).
    """
    own, parameters = adapter.state_dict(), dict(adapter.named_parameters())
    places, states = _Places(adapter), defaultdict[str, dict[str, Tensor]](dict)
    for key, tensor in tensors:
        name, field = places.of(key, tensor.shape)
        if field is None:
            own[name].copy_(part_like(tensor, own[name]))
        else:
            states[name][field] = tensor if field == STEP else part_like(tensor, parameters[name])
    places.check_all_filled()
    Changes.happened(parameters.values())
    state_dict = optimizer.state_dict()
    state_dict["state"] = {place: states[name] for place, name in enumerate(parameters) if name in states}
    optimizer.load_state_dict(state_dict)


class _Places:
    """Where a checkpoint's tensors belong in an adapter and its optimiser."""

    def __init__(self, adapter: Adapter):
        self._left = {f"adapter.{key}": tensor.shape for key, tensor in adapter.state_dict().items()}
        self._parameters = {name: parameter.shape for name, parameter in adapter.named_parameters()}

    def of(self, key: str, shape: Sequence[int]) -> tuple[str, str | None]:
        """The adapter's tensor, and of the optimiser's state of it the field. Raises HalkaError for no such place."""
        kind, _, rest = key.partition(".")
        name, _, field = rest.rpartition(".")
        state = kind == "optimizer" and name in self._parameters
        expected = self._parameters[name] if state else self._left.pop(key, None)
        if state and field == STEP:
            expected = torch.Size()
        if expected is None or tuple(shape) != tuple(expected):
            raise HalkaError(f"the checkpoint's {key} {tuple(shape)} is no tensor of this run: begin afresh")
        return (name, field) if state else (rest, None)

    def check_all_filled(self) -> None:
        """Raises HalkaError where a tensor of the adapter has not come."""
        if self._left:
            missing = min(self._left).removeprefix("adapter.")
            raise HalkaError(
                f"the checkpoint lacks {len(self._left)} of the adapter's tensors, such as {missing}: begin afresh"
            )


def adapter_tensors(adapter: Adapter) -> dict[str, Tensor]:
    """The adapter's tensors as a checkpoint names them."""
    return {f"adapter.{key}": tensor for key, tensor in adapter.state_dict().items()}


def identity_of(path: Path) -> dict[str, Any] | None:
    """The identity that `save_checkpoint` wrote; None if there is no file. Raises as `open_checkpoint`."""
    return _read(path, "run")


def step_of(path: Path) -> int | None:
    """The step after which a checkpoint was written; None if there is no file. Raises as `open_checkpoint`."""
    progress = _read(path, "progress")
    return None if progress is None else progress["step"]


def _read(path: Path, key: str) -> dict[str, Any] | None:
    if not path.exists():
        return None
    with _opened(path) as file:
        return json.loads(_metadata(file, path)[key])


def _opened(path: Path) -> Any:
    """The safetensors file. Raises DamagedFolderError if it cannot be read."""
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise DamagedFolderError(f"{path} is damaged ({error}): remove {path.parent} to begin afresh") from None


def _metadata(file: Any, path: Path) -> dict[str, str]:
    metadata: dict[str, str] = file.metadata() or {}
    if not {"run", "progress"} <= metadata.keys():
        raise HalkaError(f"{path} is no checkpoint of a training run: remove it, or choose another folder")
    return metadata

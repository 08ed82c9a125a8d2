"""A training run's checkpoint: adapter, optimiser and progress in one safetensors file, written whole or not at all.

It holds no random state: the order of the examples and dropout follow from the seed and the step.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from halka.core import Adapter
from halka.util.errors import DamagedFolderError, HalkaError
from halka.util.files import write_file

PADDED: dict[str, Any] = {"batches": "padded", "group_shared": False}
"""Settings of `TrainConfig` that a run had before there were others; its checkpoint does not name them."""


@dataclass(frozen=True)
class Progress:
    """How far a run is: steps, tokens without padding, seconds, its best evaluation, and the scale of its loss."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best_step: int = 0
    best_loss: float = float("inf")
    waited: int = 0  # evaluations since the best
    stopped: bool = False
    scale: float = 2.0**16  # of the loss in fp16 (`loss_scale.py`)
    steady: int = 0  # steps since the scale changed


def save_checkpoint(
    path: Path, run: dict[str, Any], progress: Progress, adapter: Adapter, optimizer: torch.optim.Optimizer
) -> None:
    """Write a checkpoint; `run` identifies what is trained, on what and how, for `load_checkpoint` to compare."""
    names = [name for name, _ in adapter.named_parameters()]
    tensors: dict[str, Tensor] = {f"adapter.{key}": tensor for key, tensor in adapter.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors.update(
            {f"optimizer.{names[index]}.{key}": torch.as_tensor(value, device="cpu") for key, value in state.items()}
        )
    tensors = {key: tensor.detach().contiguous().cpu() for key, tensor in tensors.items()}
    metadata = {"run": json.dumps(run, sort_keys=True), "progress": json.dumps(asdict(progress))}
    write_file(path, lambda file: save_file(tensors, file, metadata))


def load_checkpoint(
    path: Path, run: dict[str, Any], adapter: Adapter, optimizer: torch.optim.Optimizer
) -> Progress | None:
    """Load a checkpoint into adapter and optimiser, and return its progress; None if there is no file.

    Raises DamagedFolderError for a file that cannot be read, HalkaError for one of another run, naming what differs.
    """
    if not path.exists():
        return None
    with _opened(path) as file:
        metadata = _metadata(file, path)
        current = json.loads(json.dumps(run))
        padded = {key: value for key, value in PADDED.items() if key in current}
        saved = {**padded, **json.loads(metadata["run"])}
        if different := [key for key in {*saved, *current} if saved.get(key) != current.get(key)]:
            shown = "; ".join(f"{key} was {saved.get(key)!r}, is {current.get(key)!r}" for key in sorted(different))
            raise HalkaError(
                f"{path.parent} holds an unfinished run that differs from this one: {shown}. "
                "Use another folder, or remove that one to begin afresh"
            )
        tensors: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (a safetensors file is no mapping)
    adapter.load_state_dict(_below(tensors, "adapter."))
    states = _below(tensors, "optimizer.")
    state_dict = optimizer.state_dict()
    for index, (name, _) in enumerate(adapter.named_parameters()):
        if state := {key: value for key, value in _below(states, f"{name}.").items() if "." not in key}:
            state_dict["state"][index] = state
    optimizer.load_state_dict(state_dict)
    return Progress(**json.loads(metadata["progress"]))


def identity_of(path: Path) -> dict[str, Any] | None:
    """What `save_checkpoint` was told to identify the run by; None if there is no file. Raises as `load_checkpoint`."""
    if not path.exists():
        return None
    with _opened(path) as file:
        return json.loads(_metadata(file, path)["run"])


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


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}

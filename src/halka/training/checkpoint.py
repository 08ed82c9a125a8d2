"""All that a training run needs to go on exactly where it was: one safetensors file, written whole or not at all.

Random state is no part of it: order and dropout follow from the seed and the step.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from halka.core import Adapter
from halka.util.errors import HalkaError
from halka.util.files import write_file


@dataclass(frozen=True)
class Progress:
    """Where a run stands: steps done, useful tokens seen, seconds spent, and the best so far."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best_step: int = 0
    best_loss: float = float("inf")
    waited: int = 0  # evaluations since the best
    stopped: bool = False


def save_checkpoint(
    path: Path, run: dict[str, Any], progress: Progress, adapter: Adapter, optimizer: torch.optim.Optimizer
) -> None:
    """`run` says what is being trained, on what and how; `load_checkpoint` refuses to go on with anything else."""
    names = [name for name, _ in adapter.named_parameters()]
    tensors: dict[str, Tensor] = {f"adapter.{key}": tensor for key, tensor in adapter.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors.update({f"optimizer.{names[index]}.{key}": torch.as_tensor(value) for key, value in state.items()})
    tensors = {key: tensor.detach().contiguous().cpu() for key, tensor in tensors.items()}
    metadata = {"run": json.dumps(run, sort_keys=True), "progress": json.dumps(asdict(progress))}
    write_file(path, lambda beside: save_file(tensors, beside, metadata))


def load_checkpoint(
    path: Path, run: dict[str, Any], adapter: Adapter, optimizer: torch.optim.Optimizer
) -> Progress | None:
    """Put adapter and optimiser back, and say where the run stood; None if there is no checkpoint.

    Raises ValueError if the checkpoint is of another run, naming what differs.
    """
    if not path.exists():
        return None
    try:
        opened = safe_open(path, framework="pt")
    except SafetensorError as error:
        raise HalkaError(f"{path} is damaged ({error}): remove {path.parent} to begin afresh") from None
    with opened as file:
        metadata = file.metadata() or {}
        if not {"run", "progress"} <= metadata.keys():
            raise HalkaError(f"{path} is no checkpoint of a run: remove it, or choose another folder")
        then = json.loads(metadata["run"])
        now = json.loads(json.dumps(run))
        if different := [key for key in {*then, *now} if then.get(key) != now.get(key)]:
            shown = "; ".join(f"{key} was {then.get(key)!r}, is {now.get(key)!r}" for key in sorted(different))
            raise HalkaError(
                f"{path.parent} holds an unfinished run that differs from this one: {shown}. "
                "Use another folder, or remove that one to begin afresh"
            )
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (a safetensors file is no mapping)
    adapter.load_state_dict(_below(tensors, "adapter."))
    states = _below(tensors, "optimizer.")
    whole = optimizer.state_dict()
    for index, (name, _) in enumerate(adapter.named_parameters()):
        if state := {key: value for key, value in _below(states, f"{name}.").items() if "." not in key}:
            whole["state"][index] = state
    optimizer.load_state_dict(whole)
    return Progress(**json.loads(metadata["progress"]))


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}

"""Read an adapter's tensors: safetensors, mapped into memory; pickles by `torch.load` with `weights_only`."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from halka.util.errors import DamagedFolderError, HalkaError

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def check_finite(name: str, tensors: Mapping[str, Tensor]) -> None:
    """Raises HalkaError, naming adapter `name` and the tensor, for values that are not finite."""
    for key, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise HalkaError(
                f"adapter {name!r} holds values that are not finite, in {key}: train it again, more gently"
            )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The file's tensors in fp32, by the file's names; fp32 safetensors are mapped into memory, not copied.

    Raises DamagedFolderError for a damaged file, other types, and values that are not finite.
    """
    with torch.inference_mode(False):
        tensors = _mapped(path) if path.suffix == ".safetensors" else _unpickled(path)
    if other := [key for key, tensor in tensors.items() if tensor.dtype not in DTYPES]:
        raise DamagedFolderError(
            f"{path} holds {tensors[other[0]].dtype} in {other[0]}, where an adapter has real numbers of "
            "16, 32 or 64 bits: it is no adapter, or in another format"
        )
    tensors = {key: tensor.float() for key, tensor in tensors.items()}
    sums = [tensor.sum() for tensor in tensors.values()]
    if sums and torch.stack(sums).isfinite().all():
        return tensors
    for key, tensor in tensors.items():  # the sum of finite values may overflow
        if not torch.isfinite(tensor).all():
            raise DamagedFolderError(
                f"{path} holds values that are not finite, in {key}: it is damaged, or its training diverged"
            )
    return tensors


def shapes(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """The shape and dtype (safetensors' name) of each tensor in a safetensors file, read from its header alone.

    Raises DamagedFolderError for a damaged file.
    """
    try:
        with cast(Any, safe_open)(path, framework="pt") as file:
            slices: dict[str, Any] = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
            return {key: (tuple(view.get_shape()), str(view.get_dtype())) for key, view in slices.items()}
    except (SafetensorError, FileNotFoundError) as error:
        raise _damaged(path, error) from None


def _mapped(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)  # its pages are read when they are needed, and shared
    except (SafetensorError, FileNotFoundError) as error:
        raise _damaged(path, error) from None


def _unpickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a pickle, by `torch.load` with `weights_only`, which refuses everything but tensors."""
    try:
        with warnings.catch_warnings():  # torch warns about sparse tensors, which are refused below
            warnings.filterwarnings("ignore", "Validating sparse tensor invariants")
            content: object = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # torch's message tells how to run the code anyway, so leave it out
        content = None
    except Exception as error:  # a malicious file can make it raise anything
        raise _damaged(path, error) from None
    values = cast(Mapping[object, object], content) if isinstance(content, Mapping) else {None: None}
    tensors: dict[str, Tensor] = {}
    for key, value in values.items():
        if not (isinstance(key, str) and isinstance(value, Tensor) and _is_plain(value)):
            raise DamagedFolderError(f"{path} is damaged, or holds more than tensors by their names")
        tensors[key] = value.detach()
    return tensors


def _is_plain(value: Tensor) -> bool:
    """Whether a tensor is dense, and the file really holds its values."""
    return (
        value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )


def _damaged(path: Path, error: Exception) -> DamagedFolderError:
    return DamagedFolderError(f"{path} is damaged ({error}): fetch or train the adapter again")

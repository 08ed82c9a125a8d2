"""Tensors to a device in one copy, for which the host does not wait, and modules; and which tensors are on which."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

from halka.util.errors import HalkaError, OutOfMemoryError
from halka.util.machine import memory_named

IN_FP32 = {
    torch.float16: ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict"),
    torch.bfloat16: ("_keep_in_fp32_modules_strict",),
}
"""Where a transformers model names what it has in fp32 when it is loaded in a precision."""


def to_device(tensors: Sequence[Tensor], device: torch.device | str) -> list[Tensor]:
    """These tensors, of one dtype, on a device. From the CPU all go in one copy, out of pinned memory.

    A copy for each, out of memory that is not pinned, would let the host wait for the GPU's work so far each time.
    """
    device = torch.device(device)
    if device.type == "cpu" or any(tensor.device.type != "cpu" for tensor in tensors):
        return [tensor.to(device) for tensor in tensors]
    line = torch.cat([tensor.flatten() for tensor in tensors])
    if device.type == "cuda":
        line = line.pin_memory()
    line = line.to(device, non_blocking=device.type != "mps")  # MPS may read what is freed: pytorch#189690
    pieces = line.split([tensor.numel() for tensor in tensors])
    return [piece.view(tensor.shape) for piece, tensor in zip(pieces, tensors, strict=True)]


def move(module: nn.Module, device_or_dtype: str | torch.device | torch.dtype) -> None:
    """`module.to`, all of it or nothing. A cast leaves in fp32 what a base that is loaded in that precision has in it.

    Raises OutOfMemoryError where it does not fit: it is back then, in its precisions, of what a cast left.
    """
    device = next(module.parameters()).device
    dtypes = {name: tensor.dtype for name, tensor in _tensors(module)}
    precise = list[tuple[nn.Module, str, Tensor]]()
    try:
        with memory_named(f"the base does not fit as {device_or_dtype}: choose a smaller one, or load it quantised"):
            if isinstance(device_or_dtype, torch.dtype):
                precise = _precise(module, device_or_dtype)
            module.to(device_or_dtype)
            for part, name, values in precise:
                getattr(part, name).data = values
    except OutOfMemoryError:
        module.to(device)
        for part, name, values in precise:
            getattr(part, name).data = values.to(device)
        for name, tensor in _tensors(module):
            if tensor.dtype != dtypes[name]:
                tensor.data = tensor.data.to(dtypes[name])
        raise


def _precise(module: nn.Module, dtype: torch.dtype) -> list[tuple[nn.Module, str, Tensor]]:
    """What stays precise in a cast, with its values: wider buffers that no file holds, such as the frequencies of
    rotary positions, and what transformers has in fp32 beside weights of this precision.
    """
    wide = [names for attribute in IN_FP32.get(dtype, ()) for names in getattr(module, attribute, None) or ()]
    kept = []
    for path, part in module.named_modules():
        for name, tensor in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)):
            if not tensor.is_floating_point():
                continue
            if any(f".{names}." in f".{path}.{name}." for names in wide):
                kept.append((part, name, tensor.data.float()))
            elif name in part._non_persistent_buffers_set and tensor.dtype.itemsize > dtype.itemsize:
                kept.append((part, name, tensor.data))
    return kept


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def by_device(tensors: Sequence[Tensor]) -> list[list[int]]:
    """The places in `tensors` of those of each device: torch computes many at once only where they are on one."""
    places: dict[torch.device, list[int]] = defaultdict(list)
    for place, tensor in enumerate(tensors):
        places[tensor.device].append(place)
    return [*places.values()]


def device_of(output: object, name: str) -> torch.device:
    """Where the output of the module of that path is. Raises HalkaError for one that is no single tensor."""
    if not isinstance(output, Tensor):
        raise HalkaError(f"{name} returns several tensors, of which none can be edited: name modules with one output")
    return output.device


def numbers(values: tuple[int, ...], device: torch.device) -> Tensor:
    """These numbers on a device: one tensor for all modules of a batch whose rows they are."""
    if torch.compiler.is_compiling():  # a graph holds them as constants
        return torch.tensor(values, dtype=torch.int64, device=device)
    return _kept(values, device)


@lru_cache(maxsize=64)
def _kept(values: tuple[int, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return to_device([torch.tensor(values, dtype=torch.int64, device="cpu")], device)[0]

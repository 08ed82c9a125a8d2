"""`Hardware`: the memory that a run must fit in, and the device whose speed it has."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from halka.estimating.devices import DEVICES, Device, device_named
from halka.estimating.measured_device import measure_device
from halka.models.loading import OVERFLOWING
from halka.util.machine import CPU
from halka.util.precision import lacks_bfloat16, usable_precision

KERNELS = (
    15 * 10**6
)  # bytes of a step beside its tensors: kernels compiled for its sizes, their scratch, Python objects
PROCESS = 440 * 10**6 + KERNELS  # bytes of a CPU process beside its tensors: Python, torch, transformers (measured)
NO_VARIANT = r"(?!.*\b(?:ti|super|laptop|max-q|pcie|nvl|d)\b)"  # behind a name: such a card is slower or faster
FIRST = torch.device("cuda", 0)
WORKSPACE = 32 * 2**20  # bytes that cuBLAS keeps for a thread that computes, on Hopper; elsewhere 8 MiB
CONTEXT = 500 * 10**6 + 2 * WORKSPACE  # of CUDA, before there is a tensor (assumed), and of this thread and autograd's


@dataclass(frozen=True)
class Hardware:
    """What a run must fit on: bytes of memory, and a device with its speed; None where unknown.

    has_flash   of a GPU that is not in the table, whether it has flash attention
    """

    name: str
    gpu: bool
    memory: int | None
    device: Device | None
    has_flash: bool = True

    @property
    def process(self) -> int:
        """Bytes that are in use before a base is loaded."""
        return CONTEXT if self.gpu else PROCESS

    @property
    def flash(self) -> bool:
        """Whether it is a GPU with flash attention; one of which nothing is known is taken to have it."""
        return self.has_flash if self.device is None else self.device.flash

    def precision_of(self, config: Any, dtype: str) -> str:
        """What a base of that configuration computes in, where it is loaded in `dtype`, as by `load_base`."""
        lacks = self.gpu and not self.flash  # NVIDIA's before Ampere lack both; float16 takes as many bytes as bfloat16
        return "float32" if lacks and dtype == "bfloat16" and config.model_type in OVERFLOWING else dtype

    @property
    def room(self) -> int | None:
        """Bytes that are left for a run."""
        return None if self.memory is None else self.memory - self.process


def hardware_of(
    device: str | None, memory: int | None, dtype: str, processor: Callable[[str], Device] = measure_device
) -> Hardware:
    """A device of the table, or "here", this machine's processor, which is measured. Without a device: a GPU with that
    memory, or, without memory either, an unknown processor.

    memory   bytes; a device of the table has its own if None
    dtype    in which this machine's processor is measured, by `processor`
    Raises HalkaError for an unknown device.
    """
    if device == "here":
        return Hardware(device, False, memory, processor(usable_precision(dtype, CPU)))
    if device is not None:
        gpu = device_named(device)
        return Hardware(gpu.name, True, gpu.memory if memory is None else memory, gpu)
    return Hardware("a processor" if memory is None else "a GPU", memory is not None, memory, None)


def gpu_here(place: torch.device = FIRST) -> Hardware | None:
    """The GPU at that place, with the speed of the device in the table of that name; None where torch sees no GPU."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name(place)
    plain = re.sub(r"\bRTX (?=\d)", "rtx", name, flags=re.I).lower()
    like = next((device for device in DEVICES.values() if re.search(rf"\b{device.name}\b{NO_VARIANT}", plain)), None)
    memory = torch.cuda.get_device_properties(place).total_memory
    return Hardware(name, True, memory, like, has_flash=not lacks_bfloat16(place))

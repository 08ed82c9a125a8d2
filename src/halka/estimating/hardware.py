"""`Hardware`: what a run is to fit on, whose memory and speed that is."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from halka.estimating.devices import DEVICES, Device, device_named
from halka.estimating.measured_device import processor_here

KERNELS = 15 * 10**6  # bytes of a step beside its tensors: kernels made for its sizes, their scratch, Python's objects
PROCESS = 440 * 10**6 + KERNELS  # bytes beside a run's own on a CPU: Python, torch, transformers (measured), and these
CONTEXT = 500 * 10**6  # bytes that CUDA takes of a GPU before there is a tensor (stated, not measured)


@dataclass(frozen=True)
class Hardware:
    """What a run is to fit on: its bytes of memory and whose speed it has, None where that is not known."""

    name: str
    gpu: bool
    memory: int | None
    device: Device | None

    @property
    def process(self) -> int:
        """Bytes that are held there before there is a base."""
        return CONTEXT if self.gpu else PROCESS

    @property
    def room(self) -> int | None:
        """Bytes that are left to a run."""
        return None if self.memory is None else self.memory - self.process


def hardware_of(device: str | None, memory: int | None, dtype: str) -> Hardware:
    """A device of the table, or "here", this machine's processor, which is measured; no device is some GPU of that
    memory, and without that a processor nothing is known of.

    memory   bytes; for a device of the table its own if not given
    dtype    of what this machine's processor is measured with
    Raises ValueError for a device nobody knows.
    """
    if device == "here":
        return Hardware(device, False, memory, processor_here(dtype))
    if device is not None:
        known = device_named(device)
        return Hardware(known.name, True, known.memory if memory is None else memory, known)
    return Hardware("a processor" if memory is None else "a GPU", memory is not None, memory, None)


def gpu_here() -> Hardware | None:
    """The first GPU that torch sees, with the speed of the one of the table that it is named like; None without one."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name(0)
    plain = re.sub(r"\bRTX (?=\d)", "rtx", name, flags=re.I).lower()
    like = next((each for each in DEVICES.values() if re.search(rf"\b{each.name}\b", plain)), None)
    return Hardware(name, True, torch.cuda.get_device_properties(0).total_memory, like)

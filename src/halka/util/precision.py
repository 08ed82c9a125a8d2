"""What devices compute in bfloat16 and how fast, and the precision to compute in where they lack it."""

from __future__ import annotations

import functools
import platform
from pathlib import Path

import torch

from halka.util.machine import CPU

_CPUINFO = Path("/proc/cpuinfo")


def lacks_bfloat16(device: torch.device) -> bool:
    """Whether it has no instructions for products in bfloat16: NVIDIA's GPUs before Ampere, and many processors.

    There torch computes them by others, on processors several to dozens of times slower than in float32.
    """
    if device.type == "cuda":
        return torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0)
    return device.type == "cpu" and not _processor_has_bfloat16()


@functools.cache
def slow_in_bfloat16(device: torch.device, cpuinfo: Path = _CPUINFO) -> bool:
    """Whether it is a processor on which products in bfloat16 take longer than in float32.

    It is one that lacks their instructions, and one of Intel's that has them for its vectors and no AMX, or hides that
    from a virtual machine: a Xeon computed 165 GFLOP/s in bfloat16 and 290 in float32. AMD's have the same
    instructions, and compute two to three times as much in bfloat16. `cpuinfo` is what Linux says of its processors.
    """
    if device.type != "cpu" or lacks_bfloat16(device):
        return device.type == "cpu"
    vendor = cpuinfo.read_text() if cpuinfo.exists() else platform.processor()
    return "GenuineIntel" in vendor and not torch.cpu._is_amx_tile_supported()


def usable_precision(precision: str, device: torch.device) -> str:
    """The precision that a device computes in, where it is to be this one: another than bfloat16 if it lacks that."""
    if precision != "bfloat16" or not lacks_bfloat16(device):
        return precision
    return "float16" if device.type == "cuda" else "float32"


def precision_here(precision: str, gpu: bool) -> str:
    """The precision that a run of this machine computes in: on a GPU the one named, else what its processor can."""
    return precision if gpu else usable_precision(precision, CPU)


def _processor_has_bfloat16() -> bool:
    if platform.machine().lower() in ("x86_64", "amd64"):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()

"""How fast a device is: the table of those that are named, and a second's calibration of the one that is here.

An operation takes as long as its products at the device's speed, or as what it reads and writes at its memory's, or as
starting it, whichever is longest.
"""

from __future__ import annotations

import difflib
import re
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from halka.estimating.ghosts import Work

PRODUCTS, MEMORY = 0.6, 0.8  # what of the published speeds large products and plain reading reach
LAUNCH = 8e-6  # seconds in which Python and the driver start an operation on a GPU
PROCESS = 440 * 10**6  # bytes that Python, torch and transformers hold on a CPU before there is a base (measured)
CONTEXT = 500 * 10**6  # bytes that CUDA takes of a GPU before there is a tensor (stated, not measured)


@dataclass(frozen=True)
class Device:
    """Floating-point operations a second by dtype, bytes a second, and seconds that any operation takes at least.

    memory   bytes that it has, if it is one of the table; source says where the figures are from
    """

    name: str
    flops: Mapping[str, float]
    bandwidth: float
    memory: int | None = None
    start: float = LAUNCH
    products: float = PRODUCTS
    reading: float = MEMORY
    source: str = ""

    def seconds(self, work: Mapping[Work, int], dtype: str) -> float:
        """How long this work takes."""
        speed, width = self.flops[dtype] * self.products, self.bandwidth * self.reading
        return sum(times * max(each.flops / speed, each.bytes / width, self.start) for each, times in work.items())


def _gpu(name: str, half: float, single: float, bandwidth: float, memory: int, source: str) -> Device:
    """One of TFLOP/s in bf16 and fp16 (dense, summed in fp32), and in fp32; GB/s and GB."""
    flops = {"bfloat16": half * 1e12, "float16": half * 1e12, "float32": single * 1e12}
    return Device(name, flops, bandwidth * 1e9, memory * 10**9, source=source)


DEVICES = {
    each.name: each
    for each in (
        _gpu("h100", 989, 67, 3350, 80, "NVIDIA H100 SXM5 data sheet, without sparsity"),
        _gpu("a100", 312, 19.5, 2039, 80, "NVIDIA A100 80GB SXM data sheet"),
        _gpu("rtx4090", 165, 82.6, 1008, 24, "NVIDIA Ada GPU architecture white paper, fp32 accumulation"),
        _gpu("rtx3090", 71, 35.6, 936, 24, "NVIDIA GA102 white paper, fp32 accumulation"),
        _gpu("l4", 121, 30.3, 300, 24, "NVIDIA L4 data sheet, without sparsity"),
        _gpu("t4", 65, 8.1, 320, 16, "NVIDIA T4 data sheet; bf16, which it lacks, as its fp16"),
    )
}


def device_named(name: str) -> Device:
    """A device of the table. Raises ValueError that lists the names there are."""
    if name.lower() not in DEVICES:
        close = difflib.get_close_matches(name.lower(), DEVICES, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ValueError(f"there is no device {name!r} in the table: {hint}choose one of {', '.join(DEVICES)}, or here")
    return DEVICES[name.lower()]


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


def hardware(device: str | None, memory: int | None, *, dtype: str, tokens: int, width: int) -> Hardware:
    """A device of the table, or "here", this machine's processor, which is calibrated; no device is some GPU of that
    memory, and without that a processor nothing is known of.

    memory   bytes; for a device of the table its own if not given
    dtype, tokens, width   of the products that a calibration is to take
    Raises ValueError for a device nobody knows.
    """
    if device == "here":
        return Hardware(device, False, memory, calibrated(dtype, tokens, width))
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


def calibrated(dtype: str, rows: int, width: int) -> Device:
    """This machine's processor: products of `rows` tokens of that width, a copy, and the smallest operation."""
    kind = getattr(torch, dtype)
    rows = min(rows, 2048)
    tokens, weight = torch.randn(rows, width).to(kind), torch.randn(3 * width, width).to(kind)
    long, short = torch.zeros(2**24), torch.zeros(8, requires_grad=True)
    product = _seconds(lambda: torch.nn.functional.linear(tokens, weight))
    copy = _seconds(long.clone)
    least = _seconds(lambda: short + 1)
    return Device(
        "here",
        {dtype: 2 * rows * width * 3 * width / product},
        2 * long.nbytes / copy,
        start=least,
        products=1.0,
        reading=1.0,
        source="measured here",
    )


def _seconds(do: Callable[[], object], spent: float = 0.3) -> float:
    """The median time of doing it, again and again for a while."""
    do()
    times: list[float] = []
    begun = time.perf_counter()
    while len(times) < 5 or time.perf_counter() - begun < spent:
        started = time.perf_counter()
        do()
        times.append(time.perf_counter() - started)
    return statistics.median(times)

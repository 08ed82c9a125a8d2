"""How fast a device is: the table of those that are named, and a second's calibration of the one that is here.

On a GPU an operation takes as long as its products at the device's speed, or as what it reads and writes at its
memory's, or as starting it, whichever is longest. On a processor, which is measured more finely, starting does not
overlap with the rest.
"""

from __future__ import annotations

import difflib
import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from halka.estimating.costs import Work
from halka.estimating.heap import PAGE
from halka.machine import LARGE

PRODUCTS, MEMORY = 0.6, 0.8  # what of the published speeds large products and plain reading reach
LAUNCH = 8e-6  # seconds in which Python and the driver start an operation on a GPU
SMALL, ATTENDED = 64, 512  # of a calibration: width of small products, and tokens that attend to each other
CACHE = 64 * 2**20  # bytes: an operation that moves more finds little of it in a processor's caches
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


@dataclass(frozen=True)
class Processor(Device):
    """A CPU as it was measured: an operation takes its start, plus its products or its memory, plus new pages.

    cached          bytes a second of operations on tensors that the processor's caches hold, up to CACHE in all
    fresh           seconds that a byte takes which no freed memory is used for again: the system maps and clears it
    product_start   seconds that starting products takes
    attention       floating-point operations a second of torch's kernel for attention
    """

    cached: float = field(kw_only=True)
    fresh: float = field(kw_only=True)
    product_start: float = field(kw_only=True)
    attention: float = field(kw_only=True)

    def seconds(self, work: Mapping[Work, int], dtype: str) -> float:
        return sum(times * self._one(each, dtype) for each, times in work.items())

    def _one(self, work: Work, dtype: str) -> float:
        products = work.flops / (self.attention if work.attention else self.flops[dtype])
        moved = work.bytes / (self.cached if work.bytes <= CACHE else self.bandwidth)
        return (self.product_start if work.flops else self.start) + max(products, moved) + work.fresh * self.fresh


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


def calibrated(dtype: str, rows: int, width: int) -> Processor:
    """This machine's processor: products of `rows` tokens of that width, and what else a step is made of."""
    kind = getattr(torch, dtype)
    rows = min(rows, 2048)
    torch.empty(LARGE - PAGE, dtype=torch.uint8)  # once freed, what is smaller stays in the heap, as after a first step
    several = max(1, CACHE // (3 * width * width * kind.itemsize))  # so that weights come from memory, as a base's do
    tokens, weights = torch.ones(rows, width, dtype=kind), torch.ones(several, 3 * width, width, dtype=kind)
    products = _seconds(lambda: [F.linear(tokens, weight) for weight in weights])
    speed = 2 * rows * width * 3 * width * several / products

    few = torch.zeros(SMALL, SMALL, dtype=kind, requires_grad=True)
    start = _seconds(lambda: few[0] + 1)  # with a view, as most operations have one, which counts nothing else
    product_start = max(start, _seconds(lambda: F.linear(few, few)) - 2 * SMALL**3 / speed)

    heads = torch.randn(1, 2, ATTENDED, SMALL).to(kind).requires_grad_()
    attention = _seconds(lambda: F.scaled_dot_product_attention(heads, heads, heads).backward(heads))
    scores = 2 * 2 * heads.numel() * ATTENDED

    some, others, large = torch.ones(4, 2**20, dtype=kind), torch.ones(4, 2**20, dtype=kind), torch.ones(2**25)
    cached = 3 * some.nbytes / _seconds(lambda: [one * other for one, other in zip(some, others, strict=True)])
    part = large[: 2**24]
    new = _seconds(part.clone)
    other = large.clone()
    bandwidth = 2 * large.nbytes / _seconds(lambda: other.copy_(large))
    return Processor(
        "here",
        {dtype: speed},
        bandwidth,
        start=start,
        source="measured here",
        cached=cached,
        fresh=max(0.0, new / part.nbytes - 2 / bandwidth),
        product_start=product_start,
        attention=scores * 3.5 / attention,
    )


def _seconds(do: Callable[[], object], spent: float = 0.15) -> float:
    """The least time of doing it, again and again for a while: other work on the machine only adds to it."""
    do()
    least, begun, times = math.inf, time.perf_counter(), 0
    while times < 5 or time.perf_counter() - begun < spent:
        started = time.perf_counter()
        do()
        least, times = min(least, time.perf_counter() - started), times + 1
    return least

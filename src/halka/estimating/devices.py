"""How fast devices are: a table. An operation takes as long as its products at the device's speed, or as what it reads
and writes at its memory's, or as starting it, whichever is longest.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from halka.estimating.costs import Work
from halka.util.errors import HalkaError

PRODUCTS, MEMORY = 0.6, 0.8  # what of the published speeds large products and plain reading reach
LAUNCH = 8e-6  # seconds in which Python and the driver start an operation on a GPU


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
        raise HalkaError(f"there is no device {name!r} in the table: {hint}choose one of {', '.join(DEVICES)}, or here")
    return DEVICES[name.lower()]

"""A table of devices and their speeds. An operation takes the longest of three times: its matrix products at the
device's speed, the bytes that it reads and writes at its memory's bandwidth, and its launch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from halka.estimating.costs import Work
from halka.util.errors import HalkaError
from halka.util.suggest import suggest

PRODUCTS, MEMORY = 0.6, 0.8  # shares of the published speeds that large products and plain reading reach
LAUNCH = 8e-6  # seconds in which Python and the driver start an operation on a GPU


@dataclass(frozen=True)
class Device:
    """A device's FLOP/s by dtype, its bandwidth in bytes a second, and the least seconds of any operation (`start`).

    memory   bytes, for a device of the table
    flash    whether a GPU has flash attention, which takes grouped heads: from NVIDIA's Ampere on
    source   where the figures are from
    """

    name: str
    flops: Mapping[str, float]
    bandwidth: float
    memory: int | None = None
    start: float = LAUNCH
    products: float = PRODUCTS
    reading: float = MEMORY
    source: str = ""
    flash: bool = True

    def seconds(self, work: Mapping[Work, int], dtype: str) -> float:
        """The time that this work takes, with how often each operation runs."""
        speed, width = self.flops[dtype] * self.products, self.bandwidth * self.reading
        return sum(times * max(it.flops / speed, it.bytes / width, self.start) for it, times in work.items())


def _gpu(
    name: str, half: float, single: float, bandwidth: float, memory: int, source: str, *, flash: bool = True
) -> Device:
    """A GPU: TFLOP/s in bf16 and fp16 (dense, summed in fp32) and in fp32, GB/s, GB."""
    flops = {"bfloat16": half * 1e12, "float16": half * 1e12, "float32": single * 1e12}
    return Device(name, flops, bandwidth * 1e9, memory * 10**9, source=source, flash=flash)


DEVICES = {
    device.name: device
    for device in (
        _gpu("h100", 989, 67, 3350, 80, "NVIDIA H100 SXM5 data sheet, without sparsity"),
        _gpu("a100", 312, 19.5, 2039, 80, "NVIDIA A100 80GB SXM data sheet"),
        _gpu("rtx4090", 165, 82.6, 1008, 24, "NVIDIA Ada GPU architecture white paper, fp32 accumulation"),
        _gpu("rtx3090", 71, 35.6, 936, 24, "NVIDIA GA102 white paper, fp32 accumulation"),
        _gpu("l4", 121, 30.3, 300, 24, "NVIDIA L4 data sheet, without sparsity"),
        _gpu("t4", 65, 8.1, 320, 16, "NVIDIA T4 data sheet; bf16, which it lacks, as its fp16", flash=False),
    )
}


def device_named(name: str) -> Device:
    """The device of that name in the table. Raises HalkaError that lists the names."""
    if name.lower() not in DEVICES:
        close = suggest(name, DEVICES)
        hint = f"did you mean {close}? " if close else ""
        raise HalkaError(f"there is no device {name!r} in the table: {hint}choose one of {', '.join(DEVICES)}, or here")
    return DEVICES[name.lower()]

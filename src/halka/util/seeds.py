"""Random numbers that follow from a seed, on the devices that are named and on no others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

MOST = 2**63  # torch takes seeds below it


@contextmanager
def seeded(seed: int, devices: Iterable[torch.device] = ()) -> Iterator[None]:
    """Within the block the CPU's generator and those of these devices begin at the seed; then all are as before."""
    with ExitStack() as block:
        block.enter_context(torch.random.fork_rng(devices=[]))
        torch.default_generator.manual_seed(seed % MOST)
        for device in {*devices}:
            if device.type in ("cpu", "meta") or not (module := _module(device)).is_available():
                continue
            block.enter_context(torch.random.fork_rng(devices=[device], device_type=device.type))
            if hasattr(module, "device"):  # Apple's has one device
                block.enter_context(module.device(device))
            module.manual_seed(seed % MOST)
        yield


def _module(device: torch.device) -> Any:
    return torch.get_device_module(device)

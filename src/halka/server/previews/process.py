"""Looks at a draft in a process of its own: `python -m halka.server.previews.process FILE`, whose answer is JSON.

Data may be of any size and kind: what takes all memory here takes nobody's answer away.
"""

from __future__ import annotations

import json
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from halka.data.preview import Preview, preview
from halka.data.truncation import lowest_limit
from halka.models.description import describe_base, load_tokenizer
from halka.server.apart import limit_memory
from halka.server.previews.views import view_of_needs, view_of_preview
from halka.server.wire import dumps
from halka.util.errors import HalkaError
from halka.util.process import run_process
from halka.util.quiet import quiet_process

if TYPE_CHECKING:
    from halka.estimating import Estimate
    from halka.estimating.hardware import Hardware
    from halka.training.config import BatchLimits

MEMORY = 6 * 10**9  # bytes
NICE = 10  # who serves goes first


@dataclass(frozen=True)
class Look:
    """What is looked at, and as what: the preview of data, or the estimate of a training on it.

    data, validation   paths of files
    held_out           the share of the data that is not trained on
    method, train      as `described` and `TrainConfig` have them; `limits`: of a batch
    """

    what: Literal["preview", "estimate"]
    data: str
    validation: str | None
    held_out: float
    shape: str | None
    examples: int
    method: dict[str, Any]
    train: dict[str, Any]
    limits: BatchLimits
    base: str
    dtype: Any
    quantize: str | None
    device: str | None

    def preview(self) -> Preview:
        """Raises HalkaError and OSError as `halka.data.preview.preview` does."""
        context = describe_base(self.base)["context"]
        return preview(
            self.data,
            load_tokenizer(self.base),
            lowest_limit(self.train["max_length"], context),
            self.shape,
            self.examples,
            [] if self.validation is None else [self.validation],
            **self.limits,
            **{name: self.train[name] for name in ("group_shared", "batches", "too_long")},
        )

    def needs(self) -> Needs:
        """Raises HalkaError as `preview` and `halka.estimate` do."""
        import torch

        from halka.estimating import estimate
        from halka.estimating.hardware import gpu_here
        from halka.methods import build_method
        from halka.training import TrainConfig
        from halka.util.machine import available

        config, read = TrainConfig(**self.train), self.preview()
        lengths, packing, tokens = read.lengths, read.packing, self.limits["batch_tokens"]
        assert packing is not None
        length = max(3, min(lengths.longest, lengths.max_length or lengths.longest))
        most = [rows for rows in (self.limits["batch_size"], tokens and tokens // length) if rows is not None]
        rows = max(1, min(most))
        place = torch.device(self.device or "cuda:0")
        gpu = gpu_here(place) if place.type == "cuda" else None
        result = estimate(
            self.base,
            build_method(**self.method),
            batch_size=rows,
            length=length,
            accumulate=config.accumulate,
            checkpointing=config.checkpointing,
            dtype="bfloat16" if self.dtype == "auto" else self.dtype,
            quantize=self.quantize,
            memory=None if gpu is None else gpu.memory,
            device=_speed_of(gpu),
        )
        batches = max(1, round(packing.batches * (1 - self.held_out)))
        steps = config.steps or max(1, math.ceil(round(batches / config.accumulate * config.epochs, 6)))
        full, seconds = packing.computed / max(1, packing.batches) / (rows * length), result.rows[0].seconds
        free = available(None if gpu is None else place)
        return Needs(result, free, steps, None if seconds is None else seconds * min(1.0, full))


@dataclass(frozen=True)
class Needs:
    """What the largest batch of a training needs, and how long its steps take, whose batches are smaller too.

    available   bytes that a process of its own could hold now
    """

    estimate: Estimate
    available: int
    steps: int
    seconds_a_step: float | None


def _speed_of(gpu: Hardware | None) -> str | None:
    """The device whose speed counts, as `estimate` names it; None for a GPU that the table does not have."""
    if gpu is None:
        return "here"
    return None if gpu.device is None else gpu.device.name


def main(path: str) -> None:
    """Print what a look shows, or the reason why it cannot, as JSON."""
    limit_memory(MEMORY)
    os.nice(NICE)
    quiet_process()
    look = Look(**json.loads(Path(path).read_bytes()))
    try:
        result = view_of_preview(look.preview()) if look.what == "preview" else view_of_needs(look.needs())
    except HalkaError as error:
        result = {"reason": str(error)}
    sys.stdout.buffer.write(dumps(result))


if __name__ == "__main__":
    run_process(lambda: main(*sys.argv[1:]))

"""The processor that is here: operations are done on it (`doing.py`), and what a step adds to them is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import torch
import torch.nn.functional as F

from halka.estimating.allocator import PAGE
from halka.estimating.costs import Work
from halka.estimating.devices import Device
from halka.estimating.doing import Doer, bytes_given, least
from halka.estimating.dry_runs import NAME, Setup, model_of, rehearse, training_items
from halka.methods import LoRA
from halka.training import TrainConfig, train
from halka.util.machine import LARGE, available, held

SPENT = 0.15  # seconds that each figure is measured for
LONG, SHARE = 0.5, 0.25  # seconds, and of the memory that is left: operations that take more are not done
WIDTH, FEW = 1024, 8  # of large products, tokens and features; tokens of a step in which hardly anything is computed
TINY = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2}
STEPS = 6


@dataclass(frozen=True)
class Processor(Device):
    """An operation takes what it takes when it is done, what is around it, and new pages.

    What would take more than `LONG` seconds or `SHARE` of the memory that is left is not done: it takes its products
    or its memory, whichever is longer.

    start   seconds that Python and autograd take around an operation
    fresh   seconds that a byte takes which no freed memory is used for again: the system maps and clears it
    """

    fresh: float = field(kw_only=True)
    doer: Doer = field(default_factory=Doer, kw_only=True, compare=False)

    def seconds(self, work: Mapping[Work, int], dtype: str) -> float:
        room = SHARE * (available() - held(torch.device("cpu")))
        return sum(times * self._one(each, dtype, room) for each, times in work.items())

    def _one(self, work: Work, dtype: str, room: float) -> float:
        told = max(work.flops / self.flops[dtype], work.bytes / self.bandwidth)
        done = None
        if work.call is not None and told <= LONG and work.bytes + bytes_given(work.call[1:]) <= room:
            done = self.doer.seconds(work.call, self.fresh)
        return self.start + (told if done is None else done) + work.fresh * self.fresh


def processor_here(dtype: str) -> Processor:
    """This machine's, measured for about two seconds."""
    torch.empty(LARGE - PAGE, dtype=torch.uint8)  # once freed, what is smaller stays in the heap, as after a first step
    tokens, weight = torch.ones(2, WIDTH, WIDTH, dtype=getattr(torch, dtype))
    speed = 2 * WIDTH**3 / least(lambda: F.linear(tokens, weight), SPENT)
    large = torch.ones(2**25)
    part, other = large[: 2**24], large.clone()
    new = least(part.clone, SPENT)
    bandwidth = 2 * large.nbytes / least(lambda: other.copy_(large), SPENT)
    fresh = max(0.0, new / part.nbytes - 2 / bandwidth)
    doer = Doer()
    return Processor(
        "here",
        {dtype: speed},
        bandwidth,
        start=_around(dtype, doer),
        source="measured here",
        fresh=fresh,
        doer=doer,
    )


def _around(dtype: str, doer: Doer) -> float:
    """Seconds around an operation: a step of a tiny base takes them, and hardly anything else."""
    from transformers import AutoConfig

    config, setup = AutoConfig.for_model("llama", **TINY), Setup(rows=1, length=FEW, dtype=dtype)
    with torch.random.fork_rng(devices=()):
        model = model_of(config, setup)
        model.add(NAME, LoRA())
        items = training_items(model, setup)
        ended = [step.seconds for step in train(model, NAME, items, TrainConfig(batch_size=1, steps=STEPS))]
    step = min(after - before for before, after in pairwise(ended))
    work = rehearse(config, LoRA(), setup).work
    done = sum(times * (doer.seconds(each.call, 0.0) or 0.0) for each, times in work.items() if each.call is not None)
    return max(0.0, (step - done) / sum(work.values()))

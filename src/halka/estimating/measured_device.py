"""The speed of this machine's processor: each operation of a step runs on random tensors of its sizes and is timed."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from halka.estimating.allocator import PAGE
from halka.estimating.costs import Call, Layout, Plain, Work, tensors
from halka.estimating.devices import Device
from halka.estimating.dry_runs import NAME, Setup, dry_run, model_of, training_items
from halka.methods import LoRA
from halka.training import TrainConfig, train
from halka.util.machine import LARGE, available, held

FIGURE_SECONDS = 0.15  # for which each speed of the device is measured
CALL_SECONDS = 0.005  # for which each operation is timed
LONG, SHARE = 0.5, 0.25  # operations that take more seconds, or a larger share of the free memory, do not run
WIDTH, FEW = 1024, 8  # tokens and features of a large product; tokens of a step that computes hardly anything
TINY = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2}
STEPS = 6
TURNS = 128 * 2**20  # bytes of tensors that calls take in turn: more than caches hold, as between calls of a step
MOST_TURNS = 4
SOME = 2**16  # random values; larger tensors repeat them
TIMES, OVERRUN = 3, 10  # timings at least; after so many times the seconds that were planned, two are enough


@dataclass(frozen=True)
class MeasuredDevice(Device):
    """The time of an operation is that of running it, plus Python's overhead, plus that of mapping new pages.

    An operation that would take more than `LONG` seconds or `SHARE` of the free memory does not run: its time follows
    from its FLOPs and bytes, as on other devices.

    start   seconds that Python and autograd take around an operation
    fresh   seconds a byte of memory that the process did not hold before: the system maps and clears it
    """

    fresh: float = field(kw_only=True)
    timer: OperationTimer = field(default_factory=lambda: OperationTimer(), kw_only=True, compare=False)

    def seconds(self, work: Mapping[Work, int], dtype: str) -> float:
        room = SHARE * (available() - held(torch.device("cpu")))
        return sum(times * self._one(operation, dtype, room) for operation, times in work.items())

    def _one(self, work: Work, dtype: str, room: float) -> float:
        seconds = max(work.flops / self.flops[dtype], work.bytes / self.bandwidth)
        measured = None
        if work.call is not None and seconds <= LONG and work.bytes + input_bytes(work.call[1:]) <= room:
            measured = self.timer.seconds(work.call, self.fresh)
        return self.start + (seconds if measured is None else measured) + work.fresh * self.fresh


def measure_device(dtype: str) -> MeasuredDevice:
    """Measure this machine's processor, which takes about two seconds."""
    torch.empty(LARGE - PAGE, dtype=torch.uint8)  # freed, it keeps smaller pieces in the heap, as after a first step
    tokens, weight = torch.ones(2, WIDTH, WIDTH, dtype=getattr(torch, dtype))
    speed = 2 * WIDTH**3 / least(lambda: F.linear(tokens, weight), FIGURE_SECONDS)
    large = torch.ones(2**25)
    part, other = large[: 2**24], large.clone()
    new = least(part.clone, FIGURE_SECONDS)
    bandwidth = 2 * large.nbytes / least(lambda: other.copy_(large), FIGURE_SECONDS)
    fresh = max(0.0, new / part.nbytes - 2 / bandwidth)
    timer = OperationTimer()
    return MeasuredDevice(
        "here",
        {dtype: speed},
        bandwidth,
        start=_overhead(dtype, timer),
        source="measured here",
        fresh=fresh,
        timer=timer,
    )


def _overhead(dtype: str, timer: OperationTimer) -> float:
    """Seconds of Python and autograd an operation: a step of a tiny base takes them, and hardly anything else."""
    from transformers import AutoConfig

    config, setup = AutoConfig.for_model("llama", **TINY), Setup(rows=1, length=FEW, dtype=dtype)
    with torch.random.fork_rng(devices=()):
        model = model_of(config, setup)
        model.add(NAME, LoRA())
        items = training_items(model, setup)
        ended = [step.seconds for step in train(model, NAME, items, TrainConfig(batch_size=1, steps=STEPS))]
    step = min(after - before for before, after in pairwise(ended))
    work = dry_run(config, LoRA(), setup).work
    calls = [(operation.call, times) for operation, times in work.items() if operation.call is not None]
    computing = sum(times * (timer.seconds(call, 0.0) or 0.0) for call, times in calls)
    return max(0.0, (step - computing) / sum(work.values()))


# ── timing one operation ────────────────────────────────────────────────────────────────────────────────────────────


class OperationTimer:
    """Times operations, each once for all that are alike, for about `seconds` seconds."""

    def __init__(self, seconds: float = CALL_SECONDS) -> None:
        self._times: dict[Call, float | None] = {}
        self._budget = seconds

    def seconds(self, call: Call, fresh: float) -> float | None:
        """The time of an operation without that of mapping new pages, which is `fresh` seconds a byte.

        None for an operation that fails on random values.
        """
        if call not in self._times:
            with torch.no_grad(), torch.random.fork_rng(devices=()):
                try:
                    self._times[call] = _timed(call, fresh, self._budget)
                except (RuntimeError, IndexError, ValueError):  # what torch raises for values that are not allowed
                    self._times[call] = None
        return self._times[call]


def _timed(call: Call, fresh: float, budget: float) -> float:
    turns = [_inputs(call) for _ in range(_turns(input_bytes((call.args, call.kwargs))))]
    turn = 0

    def run() -> Any:
        nonlocal turn
        args, kwargs = turns[turn % len(turns)]
        turn += 1
        return call.func(*args, **kwargs)

    out = run()
    own = sum(tensor.nbytes for tensor in tensors((out,)) if tensor.nbytes >= LARGE)  # new pages at every call
    del out
    return max(0.0, least(run, budget, max(TIMES, len(turns))) - own * fresh)


def _turns(size: int) -> int:
    return max(1, min(MOST_TURNS, TURNS // max(1, size)))


def input_bytes(value: Any) -> int:
    """Bytes of an operation's input tensors, whether it reads all of them or not."""
    if isinstance(value, Layout):
        return _extent(value) * value.dtype.itemsize
    return 0 if isinstance(value, Plain) else sum(map(input_bytes, value))


def _inputs(call: Call) -> tuple[list[Any], dict[str, Any]]:
    return _real(call.args), dict(_real(call.kwargs))


def _real(value: Any) -> Any:
    if isinstance(value, Layout):
        return _tensor(value)
    if isinstance(value, Plain):
        return value.value
    return [*map(_real, value)]


def _tensor(layout: Layout) -> Tensor:
    """A tensor of that layout: normal random numbers, or for integers those that are known, else zeros."""
    if layout.values is not None:
        return torch.tensor(layout.values, dtype=layout.dtype).view(layout.size)
    count = _extent(layout)
    if layout.dtype.is_floating_point:
        some = torch.randn(min(count, SOME)).to(layout.dtype)
        storage = some.repeat(-(-count // SOME))[:count] if count > SOME else some
    else:
        storage = torch.zeros(count, dtype=layout.dtype)
    return storage.as_strided(layout.size, layout.stride)


def _extent(layout: Layout) -> int:
    """The number of values from the first to the last."""
    if not math.prod(layout.size):
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(layout.size, layout.stride, strict=True))


def least(run: Callable[[], object], budget: float, times: int = TIMES) -> float:
    """The shortest of several timings in about `budget` seconds: other work on the machine only adds to it."""
    return min(_timings(run, budget, times))


def _timings(run: Callable[[], object], budget: float, times: int) -> Iterator[float]:
    """At least `times` timings, and until the budget is spent; two of what takes far longer than it."""
    begun = now = time.perf_counter()
    for done in itertools.count():
        enough = now - begun > budget
        if (enough and done >= times) or (done >= 2 and now - begun > OVERRUN * budget):
            return
        started = time.perf_counter()
        run()
        now = time.perf_counter()
        yield now - started

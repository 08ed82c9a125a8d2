"""An operation's time on this machine's processor: it is done, on made-up tensors of the same sizes, and timed."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from halka.estimating.costs import Call, Layout, Plain, tensors
from halka.util.machine import LARGE

TURNS = 128 * 2**20  # bytes of tensors that are taken in turn: more than caches hold, as a step has more in between
MOST_TURNS = 4
SOME = 2**16  # different values; more are these again
TIMES, LONG = 3, 10  # how often something is done at least; how many times what is to be spent is too long for that


class Doer:
    """Seconds of operations, each of which is done for `spent` seconds when it is asked for the first time."""

    def __init__(self, spent: float = 0.005) -> None:
        self.known: dict[Call, float | None] = {}
        self._spent = spent

    def seconds(self, call: Call, fresh: float) -> float | None:
        """How long it takes, without the pages that are new to the process, whose bytes take `fresh` seconds each.

        None for an operation that refuses made-up values.
        """
        if call not in self.known:
            with torch.no_grad(), torch.random.fork_rng(devices=()):
                try:
                    self.known[call] = _timed(call, fresh, self._spent)
                except (RuntimeError, IndexError, ValueError):  # torch's words for values that cannot be
                    self.known[call] = None
        return self.known[call]


def _timed(call: Call, fresh: float, spent: float) -> float:
    turns = [_given(call) for _ in range(_turns(bytes_given((call.args, call.kwargs))))]
    place = 0

    def do() -> Any:
        nonlocal place
        args, kwargs = turns[place % len(turns)]
        place += 1
        return call.func(*args, **kwargs)

    out = do()
    own = sum(each.nbytes for each in tensors((out,)) if each.nbytes >= LARGE)  # these are new pages every time
    del out
    return max(0.0, least(do, spent, max(TIMES, len(turns))) - own * fresh)


def _turns(size: int) -> int:
    return max(1, min(MOST_TURNS, TURNS // max(1, size)))


def bytes_given(value: Any) -> int:
    """Of the tensors that an operation is given, whether it reads all of them or not."""
    if isinstance(value, Layout):
        return _extent(value) * value.dtype.itemsize
    return 0 if isinstance(value, Plain) else sum(map(bytes_given, value))


def _given(call: Call) -> tuple[list[Any], dict[str, Any]]:
    return _real(call.args), dict(_real(call.kwargs))


def _real(value: Any) -> Any:
    if isinstance(value, Layout):
        return _tensor(value)
    if isinstance(value, Plain):
        return value.value
    return [*map(_real, value)]


def _tensor(layout: Layout) -> Tensor:
    """Of numbers to learn some around zero; of whole numbers those that are known, else zeros."""
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
    """How many values there are from the first to the last."""
    if not math.prod(layout.size):
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(layout.size, layout.stride, strict=True))


def least(do: Callable[[], object], spent: float, times: int = TIMES) -> float:
    """The least time of doing it, again and again for a while: other work on the machine only adds to it."""
    return min(_times(do, spent, times))


def _times(do: Callable[[], object], spent: float, times: int) -> Iterator[float]:
    """Of so many times at least, and for so many seconds; of what takes long twice."""
    begun = now = time.perf_counter()
    for done in itertools.count():
        enough = now - begun > spent
        if (enough and done >= times) or (done >= 2 and now - begun > LONG * spent):
            return
        started = time.perf_counter()
        do()
        now = time.perf_counter()
        yield now - started

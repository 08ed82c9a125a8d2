"""Parts at experts: every token with each of its experts, in runs that share an expert and an adapter.

S = B·T tokens    K experts a token    C = S·K choices    E experts    N parts
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from halka.core.products import Grouped, linear
from halka.core.routing import Use
from halka.core.stacking import Stack
from halka.util.errors import HalkaError

GROUPING = True  # False: expert by expert and row by row, the slow twin


class Choices:
    """Every token with each of its experts, sorted by expert and, within one, by the row's adapter.

    chosen (S, K): the experts of each token. names: the adapters of the rows, which share the tokens evenly.
    """

    def __init__(self, chosen: Tensor, experts: int, names: Sequence[str | None]):
        count, each = chosen.shape
        slot = {name: i for i, name in enumerate(dict.fromkeys(names))}
        self._slots = [slot[name] for name in names]
        key = chosen.flatten()
        if len(slot) > 1:
            of_row = torch.tensor(self._slots, device=chosen.device)
            key = key * len(slot) + of_row.repeat_interleave(count // len(names) * each)
        key, order = key.sort()
        self.tokens = order // each  # (C,)
        self.rows = self.tokens // max(1, count // len(names))
        self.experts = key // len(slot)
        self._slot = key % len(slot)
        self._order, self._shape, self._count = order, chosen.shape, experts

    def runs(self) -> list[int]:
        """How many choices each expert has."""
        return self.experts.bincount(minlength=self._count).tolist()

    def of(self, use: Use, act: Stack) -> tuple[Tensor | None, Tensor, list[int]]:
        """The choices whose rows are the use's (None: all), the number expert·N + part of each, how many each has."""
        parts = len(act.distinct)
        rows = range(len(self._slots)) if use.rows is None else use.rows
        which = [-1] * (1 + max(self._slots))
        for row, part in zip(rows, act.which, strict=len(which) > 1):
            which[self._slots[row]] = part
        mine, experts, part = None, self.experts, torch.zeros_like(self._slot)
        if len(which) > 1:
            part = torch.tensor(which, device=part.device)[self._slot]
            if -1 in which:
                mine = (part >= 0).nonzero()[:, 0]
                experts, part = experts[mine], part[mine]
        number = experts * parts + part
        return mine, number, number.bincount(minlength=self._count * parts).tolist()

    def summed(self, y: Tensor, weights: Tensor) -> Tensor:
        """(S, O): what a token's experts return (C, O), times their weights (S, K), in the order that the base sums."""
        weighted = y * weights.flatten()[self._order, None]
        back = torch.empty_like(self._order)
        back[self._order] = torch.arange(len(back), device=back.device)
        return weighted[back].view(*self._shape, -1).sum(1)


@dataclass(frozen=True)
class ExpertEdit:
    """What a route's parts do at one weight of a layer's experts."""

    names: tuple[str | None, ...]
    reading: Sequence[Use]
    writing: Sequence[Use]

    def product(self, x: Tensor, weight: Tensor, choices: Choices) -> Tensor:
        """x (C, I) times each choice's own of the experts' weights (E, O, I), edited before and after."""
        if not GROUPING:
            return self._one_by_one(x, weight, choices)
        for use in self.reading:
            x = _on(use, "reads", choices, x)
        y = linear(x, Grouped(weight.unbind(), choices.runs()))
        for use in self.writing:
            y = _on(use, "writes", choices, x, y)
        return y

    def _one_by_one(self, x: Tensor, weight: Tensor, choices: Choices) -> Tensor:
        """The slow twin: a product for each expert and each row of the batch."""
        result = x.new_zeros(len(x), weight.shape[1])
        for row in range(len(self.names)):
            for expert in choices.experts.unique().tolist():
                here = ((choices.experts == expert) & (choices.rows == row)).nonzero()[:, 0]
                mine = x[here][None]
                for part in _parts_of(row, self.reading):
                    mine = part.reads(mine, *(operand[expert] for operand in part.operands(x.dtype)))
                made = F.linear(mine, weight[expert])
                for part in _parts_of(row, self.writing):
                    made = part.writes(mine, made, *(operand[expert] for operand in part.operands(x.dtype)))
                result = result.index_copy(0, here, made[0])
        return result


def _on(use: Use, way: str, choices: Choices, *tensors: Tensor) -> Tensor:
    """The last of `tensors` with the use's choices as its parts make them."""
    act = _stack(use)
    mine, number, sizes = choices.of(use, act)
    operands = [
        operand[number] if operand.dim() == 2 else Grouped(operand.unbind(), sizes)
        for operand in act.by_expert(tensors[-1])
    ]
    edit = getattr(act.distinct[0], way)
    if mine is None:
        return edit(*tensors, *operands)
    return tensors[-1].index_copy(0, mine, edit(*(tensor[mine] for tensor in tensors), *operands))


def _parts_of(row: int, uses: Sequence[Use]) -> list:
    """The parts that act on a row."""
    found = []
    for use in uses:
        act = _stack(use)
        if use.rows is None:
            found.append(act.distinct[act.which[row]] if len(act.which) > 1 else act.distinct[0])
        elif row in use.rows:
            found.append(act.distinct[act.which[use.rows.index(row)]])
    return found


def _stack(use: Use) -> Stack:
    """Raises HalkaError for a part that has no operands to share out among the experts."""
    if isinstance(use.act, Stack):
        return use.act
    raise HalkaError(
        f"{type(use.act).__name__} cannot act on experts, which share a module: a part there says `operands`, one for "
        "each expert, and `reads` or `writes` (docs/add-a-method.md)"
    )

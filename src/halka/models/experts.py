"""The computation of experts that parts act on, registered with transformers while an adapter in use needs it.

A hook on the module passes `core.ExpertEdits`, what parts do with one weight of the experts, as the argument `gate_up`
or `down`. Every token stands there once for each of its experts, in runs that share an expert and an adapter. Without
edits, the base's own implementation computes.

    S tokens of all rows    K experts a token    C = S·K choices    D width    I inner width    E experts    N parts
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from halka.core import Edits, ExpertEdits, StackedParts
from halka.util.errors import HalkaError
from halka.util.products import Grouped, Runs, filled, linear
from halka.util.transfer import numbers, to_device

NAME = "halka"


@contextmanager
def use_experts(base: Any) -> Iterator[None]:
    """Within the block the base's experts take edits; its own implementation is set again afterwards."""
    from transformers.integrations.moe import ExpertsInterface

    config = base.config.get_text_config()
    own = config._experts_implementation
    name = f"{NAME} instead of {own}"
    eager: Any = torch.compiler.disable  # how many tokens an expert has differs from pass to pass
    ExpertsInterface.register(name, partial(eager(compute), own=own))
    config._experts_implementation = name
    try:
        yield
    finally:
        config._experts_implementation = own


def product(edit: ExpertEdits, x: Tensor, weight: Tensor, choices: Choices) -> Tensor:
    """x (C, I) times each choice's own of the experts' weights (E, O, I), edited before and after."""
    if edit.inputs is not None:
        x = _edited(edit.inputs, choices, x)
    y = linear(x, Grouped(weight, choices.of_experts))
    if edit.outputs is not None:
        y = _edited(edit.outputs, choices, x, y)
    return y


def one_by_one(edit: ExpertEdits, x: Tensor, weight: Tensor, choices: Choices) -> Tensor:
    """The slow twin of `product`: a product for each expert and each row of a padded batch."""
    result = x.new_zeros(len(x), weight.shape[1])
    row_of = choices.tokens // (int(choices.tokens.max() + 1) // len(edit.names))
    for row in range(len(edit.names)):
        parts = [
            None if edits is None else edits.parts[row % len(edits.parts)] for edits in (edit.inputs, edit.outputs)
        ]
        for expert in choices.experts.unique().tolist():
            here = ((choices.experts == expert) & (row_of == row)).nonzero()[:, 0]
            mine = x[here][None]
            before, after = parts
            if before is not None:
                mine = before.edit_input(mine, *(tensor[expert] for tensor in before.tensors(x.dtype)))
            product = F.linear(mine, weight[expert])
            if after is not None:
                product = after.edit_output(mine, product, *(tensor[expert] for tensor in after.tensors(x.dtype)))
            result = result.index_copy(0, here, product[0])
    return result


def compute(
    module: Any,
    hidden: Tensor,
    chosen: Tensor,
    weights: Tensor,
    *,
    own: str = "eager",
    gate_up: ExpertEdits | None = None,
    down: ExpertEdits | None = None,
    product: Callable[[ExpertEdits, Tensor, Tensor, Choices], Tensor] = product,
) -> Tensor:
    """down(act(gate) · up) of hidden (S, D) by the experts that the router chose and weighted (S, K): (S, D).

    product computes the tokens' products with their experts' weights: `product`, or its slow twin. Where parts add
    nothing, the result is that of transformers' `grouped_mm`, bit for bit.
    Raises HalkaError if the experts are spread over several devices.
    """
    edit = gate_up or down
    if edit is None:
        from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

        eager = type(module).forward.__wrapped__  # what transformers' decorator wraps
        return ALL_EXPERTS_FUNCTIONS.get_interface(own, eager)(module, hidden, chosen, weights)
    if module._is_expert_parallel:
        raise HalkaError("adapters on experts need all experts on one device: load the base without expert parallelism")
    choices = Choices(chosen, module.num_experts, edit.names, edit.runs)
    nothing = ExpertEdits(edit.names, edit.runs)
    inner = product(gate_up or nothing, hidden[choices.tokens], module.gate_up_proj, choices)
    outer = product(down or nothing, module._apply_gate(inner), module.down_proj, choices)
    return choices.summed(outer, weights).to(hidden.dtype)


def _edited(edits: Edits, choices: Choices, *values: Tensor) -> Tensor:
    """The last of `values` with each stack's choices as its parts edit them.

    Raises HalkaError for a part whose tensors cannot be shared out among the experts.
    """
    result = values[-1]
    for stack in edits.stacks:
        part = stack.distinct[0]
        if part.stack_key() is None:
            raise HalkaError(
                f"{type(part).__name__} cannot act on experts, which share a module: a part there has `tensors`, one "
                "for each expert, and a `stack_key` (docs/add-a-method.md)"
            )
        mine, number, runs = choices.of(stack)
        if mine is not None and not len(mine):
            continue  # none of these rows is in this pass, as of a route that is kept
        own = [
            tensor[number] if tensor.dim() == 2 else Grouped(tensor, runs)
            for tensor in stack.joined(_by_expert, result)
        ]
        some = (*values[:-1], result) if mine is None else (*(value[mine] for value in values[:-1]), result[mine])
        edited = part.edit(some, own)
        result = edited if mine is None else result.index_copy(0, mine, edited)
    return result


def _by_expert(tensors: Sequence[Tensor]) -> Tensor:
    """Of N parts, each with a tensor for every expert, those of one expert side by side: (E·N, R, I), or (E·N, O)."""
    return torch.stack(filled(tensors), dim=1).flatten(0, 1)


class Choices:
    """Every token with each of its experts, sorted by expert and, within one, by the row's adapter.

    choice (S, K): the experts of each token. names: the adapters of the rows, of as many tokens each, or of `runs`.
    """

    def __init__(self, choice: Tensor, experts: int, names: Sequence[str | None], runs: Sequence[int] = ()):
        count, per_token = choice.shape
        slot = {name: i for i, name in enumerate(dict.fromkeys(names))}
        self._slots = [slot[name] for name in names]
        self._here = {own for own, run in zip(self._slots, runs or [1] * len(names), strict=True) if run}
        key = choice.flatten()
        if len(slot) > 1:
            lengths = torch.tensor(runs or [count // len(names)] * len(names), device="cpu") * per_token
            slots = torch.tensor(self._slots, device="cpu").repeat_interleave(lengths)
            key = key * len(slot) + to_device([slots], choice.device)[0]
        key, order = key.sort()
        self.tokens = order // per_token  # (C,)
        self.experts = key // len(slot)
        self._slot = key % len(slot)
        self._order, self._shape, self._count = order, choice.shape, experts

    @cached_property
    def of_experts(self) -> Runs:
        """The choices of each expert."""
        return _runs(self.experts, self._count)

    def of(self, stack: StackedParts) -> tuple[Tensor | None, Tensor, Runs]:
        """The choices of a stack's rows (None: all), the number expert·N + part of each, the choices of each number.

        Which choices are of rows without a part is to wait for a GPU.
        """
        parts = len(stack.distinct)
        which = [-1] * (1 + max(self._slots))
        for row, part in zip(stack.rows, stack.which, strict=True):
            which[self._slots[row]] = part
        mine, experts, part = None, self.experts, torch.zeros_like(self._slot)
        if len(which) > 1:
            part = numbers(tuple(which), part.device)[self._slot]
            if any(which[own] < 0 for own in self._here):  # of runs that are not empty
                mine = (part >= 0).nonzero()[:, 0]
                experts, part = experts[mine], part[mine]
        if parts == 1 and mine is None:
            return None, experts, self.of_experts
        number = experts * parts + part
        return mine, number, _runs(number, self._count * parts)

    def summed(self, y: Tensor, weights: Tensor) -> Tensor:
        """(S, O): what a token's experts return (C, O), times their weights (S, K), in the order that the base sums."""
        weighted = y * weights.flatten()[self._order, None]
        back = torch.empty_like(self._order)
        back[self._order] = torch.arange(len(back), device=back.device)
        return weighted[back].view(*self._shape, -1).sum(1)


def _runs(sorted_numbers: Tensor, count: int) -> Runs:
    """The run of each number from 0 to `count` - 1."""
    numbers = torch.arange(count, device=sorted_numbers.device)
    return Runs(torch.searchsorted(sorted_numbers, numbers, right=True))

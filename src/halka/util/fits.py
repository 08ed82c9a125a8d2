"""Whether a state fits tensors: the same names and shapes."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from halka.util.errors import HalkaError


def check_fits(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Raises HalkaError naming every key of the state that is missing, unknown or of another shape than its own."""
    problems = [f"missing {key}" for key in own.keys() - state.keys()]
    problems += [f"unknown {key}" for key in state.keys() - own.keys()]
    problems += [
        f"{key} is {tuple(state[key].shape)}, expected {tuple(own[key].shape)}"
        for key in own.keys() & state.keys()
        if state[key].shape != own[key].shape
    ]
    if problems:
        shown = "; ".join(sorted(problems)[:5])
        raise HalkaError(
            f"the weights do not fit this adapter on this base: {shown} ({len(problems)} problems in all): they "
            "are another method's, or were made for another base"
        )

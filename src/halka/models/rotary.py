"""Rotary positions that change with the longest text of a pass, so that the texts of one pass change each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

CHANGING = ("dynamic", "longrope")  # transformers' types whose frequencies follow from the largest position of a pass


def changing_rotary(base: Any) -> str | None:
    """The type of the base's rotary positions, or of some of its layers', if it is one of `CHANGING`."""
    parameters: Mapping[str, Any] = getattr(base.config.get_text_config(), "rope_parameters", None) or {}
    by_layers = [own for own in parameters.values() if isinstance(own, Mapping)]
    types = [own.get("rope_type") for own in (parameters, *by_layers)]
    return next((kind for kind in types if kind in CHANGING), None)


def longrope_start(base: Any) -> int | None:
    """The positions up to which a text is a short one, of rotary positions `longrope`: in longer ones all are turned
    by other frequencies, from the first on. None for bases whose texts are all alike.

    `dynamic` ones begin to change behind the base's own positions, where no text goes.
    """
    if changing_rotary(base) != "longrope":
        return None
    parameters: Mapping[str, Any] = base.config.get_text_config().rope_parameters
    by_layers = [own for own in parameters.values() if isinstance(own, Mapping)]
    return min(own["original_max_position_embeddings"] for own in by_layers or [parameters])


@contextmanager
def long_text(base: nn.Module, start: int) -> Iterator[None]:
    """Within it a pass has the frequencies of a text beyond `longrope_start`, whatever its positions are.

    transformers goes by the largest position of the pass: one that is beyond is added, and its angles are left out.
    """

    def add(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        states, positions = args[0], kwargs["position_ids"] if "position_ids" in kwargs else args[1]
        beyond = positions.new_full((*positions.shape[:-1], 1), start)
        others = {name: value for name, value in kwargs.items() if name != "position_ids"}
        return (states, torch.cat([positions, beyond], -1), *args[2:]), others

    def leave_out(module: nn.Module, args: tuple[Any, ...], angles: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(angle[..., :-1, :] for angle in angles)

    rotary = [module for module in base.modules() if hasattr(module, "inv_freq")]
    with ExitStack() as hooks:
        for module in rotary:
            hooks.callback(module.register_forward_pre_hook(add, with_kwargs=True).remove)
            hooks.callback(module.register_forward_hook(leave_out).remove)
        yield

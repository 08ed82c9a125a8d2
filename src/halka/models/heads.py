"""The head that an adapter has of its own: in its folder as wide as its labels, on a base as wide as the base's."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from halka.core import AdaptedModel, Adapter
from halka.models.classes import NEW, head_of, label_rows
from halka.util.errors import HalkaError

FULL = "base."  # before the base's names, in the state of an adapter that has all of its weights


def has_head(model: AdaptedModel, keys: Iterable[str]) -> bool:
    """Whether an adapter of these tensors has the layer that tells labels apart itself; else it uses the base's."""
    return bool({*label_rows(model.base)} & {key.removeprefix(FULL) for key in keys})


def narrowed(model: AdaptedModel, name: str) -> Adapter:
    """Adapter `name` as its folder has it: a head trained whole has a row for each of its labels, and no more."""
    adapter, labels, rows = model.adapter(name), model.labels_of(name), label_rows(model.base)
    parts = dict(adapter.parts)
    for path, part in adapter.parts.items():
        wide = [
            (key, parameter)
            for key, parameter in part.named_parameters()
            if f"{path}.{key}" in rows and len(parameter) > len(labels)
        ]
        if wide:
            parts[path] = copy.deepcopy(part)
        for key, parameter in wide:
            owner, _, leaf = key.rpartition(".")
            cut = nn.Parameter(parameter.detach()[: len(labels)].clone(), requires_grad=False)
            parts[path].get_submodule(owner).register_parameter(leaf, cut)
    own = Adapter(adapter.method, parts, adapter.targets)
    own.labels = labels
    return own


def fitted_head(model: AdaptedModel, labels: Sequence[str], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An adapter's state for a base whose head has other places than `labels`, which are the adapter's.

    Rows beyond the labels are cut, and zeros fill the places that the base has beyond them.
    Raises ValueError for more labels than places, for an adapter without a head of its own and other labels, and for
    one that changes a head which began at random here.
    """
    if not has_head(model, state):
        _check_head(model, labels, state)
        return dict(state)
    if not labels:
        return dict(state)
    if len(labels) > len(model.labels):
        raise HalkaError(
            f"{_told(labels)}, and this base {_places(model.labels)}: load the base with labels={list(labels)}"
        )
    fitted, places = dict(state), len(model.labels)
    for key in [key for key in state if key.removeprefix(FULL) in label_rows(model.base)]:
        tensor = state[key]
        if tensor.dim() and len(labels) <= len(tensor) != places:
            cut = tensor[: len(labels)]
            fitted[key] = torch.cat([cut, cut.new_zeros(places - len(cut), *cut.shape[1:])])
    return fitted


def _check_head(model: AdaptedModel, labels: Sequence[str], state: Mapping[str, Tensor]) -> None:
    """Raises ValueError where an adapter without a head of its own cannot mean the base's."""
    if labels and tuple(labels) != model.labels:
        raise HalkaError(
            f"{_told(labels)} with the base's own head, which tells {_places(model.labels)}: load the base it was "
            "trained on"
        )
    new = tuple(f"{path}." for path in head_of(model.base) if path in getattr(model.base.config, NEW, ()))
    if changed := [key for key in state if key.startswith(new)]:
        raise HalkaError(
            f"the adapter changes the base's head ({changed[0]}), and this base's is new: load a base whose weights "
            "have the head that it was trained on"
        )


def _told(labels: Sequence[str]) -> str:
    return f"the adapter tells {len(labels)} labels apart ({_shown(labels)})"


def _places(labels: Sequence[str]) -> str:
    return f"{len(labels)} labels ({_shown(labels)})"


def _shown(labels: Sequence[str]) -> str:
    return ", ".join(labels[:5]) + (", …" if len(labels) > 5 else "")

"""Heads that predict labels: every adapter of a classifier or tagger has its own, as wide as its labels.

On a base the head is as wide as the base's labels; in the adapter's folder it has a row for each of its own labels.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from halka.core import MODULE, AdaptedModel, Adapter, Method, Target, wants
from halka.methods import Modules, joined_with, methods_of
from halka.models.kinds import kind_of
from halka.models.layouts import Layout
from halka.util.divided import whole
from halka.util.errors import HalkaError, WrongBaseError
from halka.util.kinds import LABELLED, checked_labels

NEW = "new_modules"  # in a base's configuration: the modules that its weights lack, which start at random
FULL = "base."  # before the base's names, in the state of an adapter that has all of its weights


# ── the base's head ─────────────────────────────────────────────────────────────────────────────────────────────────


def labels_of(base: Any) -> tuple[str, ...]:
    """The labels that a base's head predicts, in order; none where it predicts something else."""
    return configured_labels(base.config) if kind_of(base) in LABELLED else ()


def configured_labels(config: Any) -> tuple[str, ...]:
    """The labels in a configuration's `id2label`, in order."""
    return tuple(str(config.id2label[place]) for place in sorted(config.id2label))


def usable_pad_id(config: Any, generation: Any = None) -> int | None:
    """The padding token in a configuration, or in that of generation; None where it is no number of the vocabulary."""
    text = config.get_text_config()
    pad = getattr(generation or text, "pad_token_id", None)
    return pad if pad is not None and 0 <= pad < getattr(text, "vocab_size", math.inf) else None


def labels_to_learn(model: AdaptedModel, name: str | None) -> tuple[str, ...]:
    """The labels of an adapter's examples. Raises HalkaError for a base's own that nothing can learn, as one alone."""
    try:
        return checked_labels(model.labels_of(name))
    except HalkaError as error:
        shown = type(model.base).__name__
        raise HalkaError(f"{shown}: {error}. load_base(kind=…, labels=[…]) gives it others") from error


def check_head(base: Any, layout: Layout) -> None:
    """Raises HalkaError for a classifier that cannot find the end of a text."""
    by_last_token = layout.generates and kind_of(base) == "sequence-classification"
    if by_last_token and usable_pad_id(base.config) is None:
        raise HalkaError(
            f"{type(base).__name__} predicts from the last token that is no padding, and its configuration names no "
            "padding token of its vocabulary: set base.config.pad_token_id = tokenizer.pad_token_id"
        )


def head_of(base: Any) -> tuple[str, ...]:
    """Paths of the modules that an adapter trains whole on a base with labels: its head, and other new modules."""
    if kind_of(base) not in LABELLED:
        return ()
    outside_the_backbone = [
        path
        for path, module in base.named_children()
        if path != base.base_model_prefix and any(True for _ in module.parameters())
    ]
    return tuple(dict.fromkeys([*outside_the_backbone, *getattr(base.config, NEW, ())]))


def label_rows(base: Any) -> tuple[str, ...]:
    """Names of the parameters that have a row for each label: those of the head's last layer."""
    if kind_of(base) not in LABELLED:
        return ()
    inside = f"{base.base_model_prefix}."
    *_, last = (path for path, module in base.named_modules() if module._parameters and not path.startswith(inside))
    parameters = base.get_submodule(last)._parameters
    return tuple(f"{last}.{key}" for key, parameter in parameters.items() if parameter is not None)


def keep_label_rows(model: Any, stored: Mapping[str, Tensor], before: Sequence[str], labels: Sequence[str]) -> None:
    """Give each label its row of the stored head, whose rows stand for `before`.

    New labels take the rows left where there are as many as before, and else stay as they were initialised.
    """
    places = {label: before.index(label) for label in labels if label in before}
    if len(before) == len(labels):
        left = sorted(set(range(len(before))) - set(places.values()))
        places |= dict(zip([label for label in labels if label not in places], left, strict=True))
    kept = [row for row, label in enumerate(labels) if label in places]
    old = [places[labels[row]] for row in kept]
    with torch.no_grad():
        for key, weights in stored.items():
            if len(weights) == len(before):  # else the configuration does not fit its own weights
                model.get_parameter(key)[kept] = weights[old].to(model.dtype)


def new_modules(new: set[str], model: Any) -> tuple[str, ...]:
    """The modules that hold new tensors: those outside the backbone, and its pooler."""
    prefix = f"{model.base_model_prefix}."
    paths = {key.partition(".")[0] for key in new if not key.startswith(prefix)}
    poolers = {f"{prefix}pooler" for key in new if key.startswith(f"{prefix}pooler.")}
    return tuple(sorted(paths | poolers))


# ── an adapter's head ───────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Head:
    """What every new adapter of a base with labels has beside its own parts: a copy of the head, trained whole."""

    method: Modules
    paths: frozenset[str]

    @classmethod
    def of(cls, base: Any, path: str) -> Head | None:
        """The head of a base whose output layer is at `path`; None for a base without labels."""
        modules = head_of(base)
        if not modules:
            return None
        return cls(Modules(tuple("head" if own == path else f"{MODULE}{own}" for own in modules)), frozenset(modules))

    def __call__(self, method: Method, wanted: Sequence[Target]) -> Method:
        """The method joined with the head's, unless it trains that itself; `wanted` are its targets.

        Raises HalkaError for one that would change the base's own head, which is no part of the adapter's folder.
        """
        acts = [target for target in wanted if target.name in self.paths]
        whole = [one for one in methods_of(method) if isinstance(one, Modules)]
        if other := [target for target in acts if not any(wants(one.roles(), target) for one in whole)]:
            raise HalkaError(
                f"{method.name} would act on {other[0].name}, this base's head, which every adapter copies and trains "
                "whole: leave it out of the targets"
            )
        trains_all = any(target.role == "base" for target in wanted)
        return method if acts or trains_all else joined_with(method, self.method)


def own_methods(model: AdaptedModel, name: str) -> tuple[Method, ...]:
    """The methods of adapter `name` without the head that every adapter of a base with labels has beside them."""
    methods = methods_of(model.adapter(name).method)
    head = model.head.method if isinstance(model.head, Head) else None
    return tuple(one for one in methods if one != head) or methods


def has_head(model: AdaptedModel, keys: Iterable[str]) -> bool:
    """Whether an adapter with these tensors has a head of its own; else it uses the base's."""
    return bool({*label_rows(model.base)} & {key.removeprefix(FULL) for key in keys})


def narrowed(model: AdaptedModel, name: str) -> Adapter:
    """Adapter `name` as it is saved: its head has a row for each of its own labels, and no more.

    All other tensors are the adapter's own. Where processes hold parts of it, all call this together.
    """
    adapter, labels, rows = model.adapter(name), model.labels_of(name), label_rows(model.base)
    parts = dict(adapter.parts)
    for path, part in adapter.parts.items():
        wide = [
            (key, parameter)
            for key, parameter in part.named_parameters()
            if f"{path}.{key}".removeprefix(FULL) in rows and len(parameter) > len(labels)
        ]
        if wide:
            own_tensors = [model.base, *part.parameters(), *part.buffers()]
            parts[path] = copy.deepcopy(part, {id(shared): shared for shared in own_tensors})
        for key, parameter in wide:
            owner, _, leaf = key.rpartition(".")
            cut = nn.Parameter(whole(parameter.detach())[: len(labels)].clone(), requires_grad=False)
            parts[path].get_submodule(owner).register_parameter(leaf, cut)
    own = Adapter(adapter.method, parts, adapter.targets)
    own.labels = labels
    return own


def fitted_head(model: AdaptedModel, labels: Sequence[str], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An adapter's state with its head made as wide as the base's; `labels` are the adapter's own.

    Rows beyond the adapter's labels are cut, and zeros fill the places that the base has beyond them.
    Raises WrongBaseError for more labels than the base has, for other labels than the base's where the adapter has no
    head of its own, and for an adapter that changes a head whose weights the base lacks.
    """
    if not has_head(model, state):
        _check_head(model, labels, state)
        return dict(state)
    if not labels:
        return dict(state)
    if len(labels) > len(model.labels):
        raise WrongBaseError(
            f"{_predicts(labels)}, and this base {_shown(model.labels)}: load the base with labels={list(labels)}"
        )
    fitted, places = dict(state), len(model.labels)
    for key in [key for key in state if key.removeprefix(FULL) in label_rows(model.base)]:
        tensor = state[key]
        if tensor.dim() and len(labels) <= len(tensor) != places:
            cut = tensor[: len(labels)]
            fitted[key] = torch.cat([cut, cut.new_zeros(places - len(cut), *cut.shape[1:])])
    return fitted


def _check_head(model: AdaptedModel, labels: Sequence[str], state: Mapping[str, Tensor]) -> None:
    """Raises WrongBaseError where an adapter without a head of its own was not trained with this base's head."""
    if labels and tuple(labels) != model.labels:
        raise WrongBaseError(
            f"{_predicts(labels)} by the base's own head, and this base's predicts {_shown(model.labels)}: load the "
            "base it was trained on"
        )
    new = tuple(f"{path}." for path in head_of(model.base) if path in getattr(model.base.config, NEW, ()))
    if changed := [key for key in state if key.startswith(new)]:
        raise WrongBaseError(
            f"the adapter changes the base's head ({changed[0]}), and this base's is new: load a base whose weights "
            "have the head that it was trained on"
        )


def _predicts(labels: Sequence[str]) -> str:
    return f"the adapter predicts {_shown(labels)}"


def _shown(labels: Sequence[str]) -> str:
    return f"{len(labels)} labels ({', '.join(labels[:5])}{', …' if len(labels) > 5 else ''})"

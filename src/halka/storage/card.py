"""The Card, `halka.json`: an adapter folder's record of its base, method, task and training; checked against a base."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast

import torch

from halka.core import AdaptedModel, quantization_of
from halka.models.fingerprint import own_fingerprint
from halka.models.kinds import KINDS, kind_of
from halka.storage.formats import json_object
from halka.util.errors import DamagedFolderError, HalkaError, WrongBaseError
from halka.util.kinds import Kind
from halka.util.text import chat_template_fingerprint

CARD = "halka.json"
DEPTH = 64  # levels of a Card: who reads it need not count them
# The JSON types of a field's values by its annotation; any other is an object
KINDS_OF_FIELDS: dict[str, type | tuple[type, ...]] = {
    "str": str,
    "Kind": str,
    "int": int,
    "Sequence[str]": (list, tuple),
}


@dataclass(frozen=True)
class Card:
    """The record that `save` writes beside an adapter."""

    # name, fingerprint, quantisation (`quantize`), and with `head` the fingerprint of the base's head, if used
    base: Mapping[str, Any]
    method: Mapping[str, Any]  # name and fields
    parameters: int
    chat_template: str
    task: str = ""
    training: Mapping[str, Any] = field(default_factory=dict[str, Any])
    measurements: Mapping[str, Any] = field(default_factory=dict[str, Any])
    versions: Mapping[str, str] = field(default_factory=dict[str, str])
    created: str = ""
    kind: Kind = "causal-lm"  # of the base
    labels: Sequence[str] = ()  # of the outputs of the adapter's head
    files: Mapping[str, str] = field(default_factory=dict[str, str])  # SHA-256 of the adapter's files by name

    def __post_init__(self) -> None:
        for entry in fields(self):
            kind = KINDS_OF_FIELDS.get(str(entry.type), Mapping)
            if not isinstance(getattr(self, entry.name), kind):
                raise TypeError(f"{entry.name} is {getattr(self, entry.name)!r}")
        if not isinstance(self.method.get("name"), str) or not isinstance(self.method.get("fields"), Mapping):
            raise TypeError(f"method is {dict(self.method)!r}, without a name or fields")
        if self.kind not in KINDS:
            raise HalkaError(f"kind {self.kind!r} is none of {', '.join(KINDS)}")


def read_card(folder: Path) -> Card | None:
    """The folder's Card; None where another tool wrote it. Raises DamagedFolderError if it cannot be read."""
    path = folder / CARD
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise TypeError(f"it holds {type(content).__name__} instead of an object")
        if _is_deeper(cast(object, content), DEPTH):
            raise ValueError(f"it is nested deeper than {DEPTH} levels")
        return Card(**cast(dict[str, Any], content))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError, RecursionError) as error:
        reason = str(error).removeprefix(f"{Card.__module__}.{Card.__qualname__}.__init__() ")
        raise DamagedFolderError(
            f"{path} is not a Card that this version reads: {reason}. Copy the folder again, or use the version that "
            "wrote it"
        ) from None


def _is_deeper(value: object, levels: int) -> bool:
    """Whether a value of JSON has more levels of objects and lists than these."""
    if not isinstance(value, dict | list):
        return False
    inner = cast(Iterable[object], value.values() if isinstance(value, dict) else value)
    return levels == 0 or any(_is_deeper(item, levels - 1) for item in inner)


def template_of(model: AdaptedModel) -> str:
    """The fingerprint of the model's chat template."""
    return "none" if model.tokenizer is None else chat_template_fingerprint(model.tokenizer)


def check_base(card: Card, model: AdaptedModel, folder: Path, other_base: bool, other_template: bool) -> None:
    """Raises WrongBaseError for another base or chat template than the Card names, unless allowed.

    Warns where the base is quantised in another way than the adapter's own base.
    """
    if card.kind != (kind := kind_of(model.base)):
        labels = f", labels={list(card.labels)}" if card.labels else ""
        raise WrongBaseError(
            f"{folder} is an adapter of a {card.kind}, and this base is a {kind}: load the base with "
            f'`halka.load_base(name, kind="{card.kind}"{labels})`'
        )
    then = json_object(card.base.get("fingerprint"))
    if then is None:
        raise DamagedFolderError(f"{folder / CARD} names no base: it is not a Card that this version reads")
    now = own_fingerprint(model)
    if different := [key for key in then if then[key] != now.get(key)]:
        shown = ", ".join(f"{key} {then[key]} instead of {now.get(key)}" for key in different)
        if different != ["weights"] or not other_base:
            hint = "; pass allow_other_base to load it all the same" if different == ["weights"] else ""
            if hint and model.base.dtype == torch.float16:
                hint += "; or load the base with dtype='float16', which remembers what it rounds, as `.half()` does not"
            raise WrongBaseError(
                f"{folder} was made for another base, {card.base.get('name') or 'unnamed'}: {shown}{hint}"
            )
    if card.base.get("head") and not other_base and card.base["head"] != own_fingerprint(model, head=True)["weights"]:
        raise WrongBaseError(
            f"{folder} has no head of its own, and this base has another head than the one it was trained with: load "
            "the base that has it, or pass allow_other_base"
        )
    forms = card.base.get("quantize"), quantization_of(model.base)
    if forms[0] != forms[1]:
        trained_on, this = ("in full precision" if form is None else f"quantised to {form}" for form in forms)
        warnings.warn(
            f"{folder} was trained on this base {trained_on}, which is {this} here: answers will differ a little",
            stacklevel=3,
        )
    if model.tokenizer is not None and card.chat_template not in ("none", template_of(model)) and not other_template:
        raise WrongBaseError(
            f"{folder} was trained with another chat template ({card.chat_template}) than this tokenizer has "
            f"({template_of(model)}): pass allow_other_template to load it all the same"
        )

"""Which modules a configuration selects, as peft's `target_modules` and their like do.

A regular expression may be a trap: what takes longer than `PATIENCE` is refused, as is what does not compile.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import regex
from torch import nn
from transformers.pytorch_utils import Conv1D

from halka.core import Packed
from halka.storage.formats.format import json_list, json_object
from halka.util.errors import HalkaError

PATIENCE = 1.0  # seconds for one expression and all names of a base
ALL_LINEAR = "all-linear"


def selected(config: Mapping[str, Any], base: nn.Module, heads: Iterable[str]) -> set[str] | None:
    """The base's layers that the configuration selects; None if it names none.

    Raises HalkaError for a name in a list that no layer has, and as `Pattern` does.
    """
    wanted, left_out = config.get("target_modules"), config.get("exclude_modules")
    if not wanted:
        return None
    kinds = nn.Linear | nn.Embedding | Conv1D | Packed
    layers = {name: module for name, module in modules_of(base).items() if isinstance(module, kinds)}
    if isinstance(wanted, str) and wanted.lower() == ALL_LINEAR:
        chosen = {name for name, module in layers.items() if not isinstance(module, nn.Embedding)} - {*heads}
    elif isinstance(wanted, str):
        chosen = Pattern("target_modules", wanted).of(layers)
    else:
        wanted = _names("target_modules", wanted)
        if nowhere := [each for each in wanted if not any(_ends(name, [each]) for name in layers)]:
            raise HalkaError(
                f"adapter_config.json: target_modules names {', '.join(sorted(nowhere))}, and no layer of this base is "
                "called so: the adapter is another base's, or was made with a name too many. Remove it there if it is "
                "meant for this base"
            )
        chosen = {name for name in layers if name in wanted or (_ends(name, wanted) and _in_layers(config, name))}
    if isinstance(left_out, str):
        chosen -= Pattern("exclude_modules", left_out).of(chosen)
    elif left_out:
        chosen = {name for name in chosen if not _ends(name, _names("exclude_modules", left_out))}
    whole = _names("modules_to_save", config.get("modules_to_save") or [])
    return {name for name in chosen if not any(f".{each}." in f".{name}." for each in whole)}


def modules_of(base: nn.Module) -> dict[str, nn.Module]:
    """The modules of a base by their paths, itself under the empty one."""
    return dict(cast(Iterable[tuple[str, nn.Module]], base.named_modules()))


def _names(key: str, value: Any) -> list[str]:
    names = json_list(value, str)
    if names is None:
        raise HalkaError(f"adapter_config.json: {key} is {value!r}, where a list of names is expected")
    return names


def _ends(name: str, endings: Iterable[str]) -> bool:
    return any(name == each or name.endswith(f".{each}") for each in endings)


def _in_layers(config: Mapping[str, Any], name: str) -> bool:
    """Whether `layers_to_transform` has the layer's number: the first in its path, or after `layers_pattern`."""
    value, patterns = config.get("layers_to_transform"), config.get("layers_pattern") or [r"[^.]*"]
    if value is None or value == []:
        return True
    layers = [value] if isinstance(value, int) else json_list(value, int)
    if layers is None:
        raise HalkaError(f"adapter_config.json: layers_to_transform is {value!r}, where numbers of layers are expected")
    for each in [patterns] if isinstance(patterns, str) else _names("layers_pattern", patterns):
        found = Pattern("layers_pattern", rf"(?:.*?\.)?{each}\.(?P<number>\d+)\..*").match(name)
        if found is not None:
            return int(found["number"]) in layers
    return False


class Pattern:
    """A regular expression out of a configuration. Raises HalkaError that names it if it cannot be followed."""

    def __init__(self, key: str, text: str):
        self._said = f"adapter_config.json: {key} holds {text[:200]!r}"
        try:
            re.compile(text)
            self._compiled = regex.compile(text)
        except (re.error, regex.error, RecursionError, OverflowError) as error:
            raise HalkaError(f"{self._said}, which is no regular expression: {error}") from None

    def match(self, name: str, patience: float = PATIENCE) -> Any:
        """The match of the whole name, or None."""
        try:
            return self._compiled.fullmatch(name, timeout=patience)
        except TimeoutError:
            raise HalkaError(
                f"{self._said}, which takes too long to be followed: list the names of the modules instead"
            ) from None

    def of(self, names: Iterable[str]) -> set[str]:
        """Those of the names that it matches in full."""
        names = list(names)
        return {name for name in names if self.match(name, PATIENCE / len(names)) is not None}


def by_pattern(config: Mapping[str, Any], key: str, names: Sequence[str], default: Any) -> dict[str, Any]:
    """The value of each module in `rank_pattern` or `alpha_pattern`: the first whose expression its name ends with."""
    patterns = json_object(config.get(key) or {})
    if patterns is None:
        raise HalkaError(f"adapter_config.json: {key} is {config[key]!r}, where names with their values are expected")
    compiled = [(Pattern(key, rf"(?:.*\.)?(?:{each})"), value) for each, value in patterns.items()]
    patience = PATIENCE / max(1, len(names) * len(compiled))
    return {
        name: next((value for pattern, value in compiled if pattern.match(name, patience) is not None), default)
        for name in names
    }


def endings(paths: set[str], names: Iterable[str]) -> list[str]:
    """The shortest endings that select exactly `paths` among all of `names`, as peft matches them."""
    names = list(names)

    for steps in (1, 2):
        shortest = {".".join(path.split(".")[-steps:]) for path in paths}
        if {name for name in names if _ends(name, shortest)} == paths:
            return sorted(shortest)
    return sorted(paths)

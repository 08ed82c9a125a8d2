"""Select modules as peft does by `target_modules`, `exclude_modules`, `layers_to_transform` and their like.

A malicious configuration may take forever: expressions that take longer than `TIMEOUT`, and more names than `MOST`,
are refused.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import regex
from torch import nn

from halka.models.quantised import QuantizedLinear
from halka.storage.formats.format import json_list, json_object
from halka.util.errors import HalkaError

TIMEOUT = 1.0  # seconds for all expressions of a selection or a pattern, and all names of a base
MOST = 10_000  # names in a list, or expressions in a pattern
ALL_LINEAR = "all-linear"
NAME = re.compile(r"[\w.]+").fullmatch


def selected(config: Mapping[str, Any], base: nn.Module, heads: Iterable[str]) -> set[str] | None:
    """Return the base's layers that the configuration selects; None if it has no `target_modules`.

    Raises HalkaError for a name in a list that no layer has, and as `Pattern` does.
    """
    from transformers.pytorch_utils import Conv1D

    wanted, left_out = config.get("target_modules"), config.get("exclude_modules")
    deadline = time.monotonic() + TIMEOUT
    if not wanted:
        return None
    kinds = nn.Linear | nn.Embedding | Conv1D | QuantizedLinear
    layers = {name: module for name, module in modules_of(base).items() if isinstance(module, kinds)}
    if isinstance(wanted, str) and wanted.lower() == ALL_LINEAR:
        chosen = {name for name, module in layers.items() if not isinstance(module, nn.Embedding)} - {*heads}
    elif isinstance(wanted, str):
        chosen = Pattern("target_modules", wanted).of(layers, deadline)
    else:
        wanted = listed_names("target_modules", wanted)
        if unknown := {*wanted} - {tail for name in layers for tail in tails(name)}:
            raise HalkaError(
                f"adapter_config.json: target_modules names {', '.join(sorted(unknown))}, and this base has no such "
                "layer: the adapter is for another base, or names too many modules. If it is for this base, remove "
                "that name"
            )
        chosen = {
            name for name in layers if name in wanted or (ends(name, wanted) and _in_layers(config, name, deadline))
        }
    if isinstance(left_out, str):
        chosen -= Pattern("exclude_modules", left_out).of(chosen, deadline)
    elif left_out:
        left_out = listed_names("exclude_modules", left_out)
        chosen = {name for name in chosen if not ends(name, left_out)}
    whole = listed_names("modules_to_save", config.get("modules_to_save") or [])
    return {name for name in chosen if not any(f".{module}." in f".{name}." for module in whole)}


def modules_of(base: nn.Module) -> dict[str, nn.Module]:
    """Return the modules of a base by path, the base itself under the empty path."""
    return dict(cast(Iterable[tuple[str, nn.Module]], base.named_modules()))


def listed_names(key: str, value: Any) -> list[str]:
    """Return the option's value as a list of names. Raises HalkaError for anything else, and for too many."""
    names = json_list(value, str)
    if names is None:
        raise HalkaError(f"adapter_config.json: {key} is {value!r}, where a list of names is expected")
    _check_count(key, len(names))
    return names


def _check_count(key: str, count: int) -> None:
    if count > MOST:
        raise HalkaError(
            f"adapter_config.json: {key} has {count:,} entries, and at most {MOST:,} are read: select with a regular "
            "expression instead"
        )


def ends(name: str, endings: Iterable[str]) -> bool:
    """Return whether a path is one of these, or has one as its last steps."""
    return not tails(name).isdisjoint(endings)


def tails(name: str) -> set[str]:
    """Return all that a path ends with: c, b.c and a.b.c."""
    steps = name.split(".")
    return {".".join(steps[number:]) for number in range(len(steps))}


def _in_layers(config: Mapping[str, Any], name: str, deadline: float) -> bool:
    """Return whether `layers_to_transform` has the path's layer: its first number, or that after `layers_pattern`."""
    value, patterns = config.get("layers_to_transform"), config.get("layers_pattern") or [r"[^.]*"]
    if value is None or value == []:
        return True
    layers = [value] if isinstance(value, int) else json_list(value, int)
    if layers is None:
        raise HalkaError(f"adapter_config.json: layers_to_transform is {value!r}, where numbers of layers are expected")
    for pattern in [patterns] if isinstance(patterns, str) else listed_names("layers_pattern", patterns):
        match = Pattern("layers_pattern", rf"(?:.*?\.)?{pattern}\.(?P<number>\d+)\..*").match(name, deadline)
        if match is not None:
            return int(match["number"]) in layers
    return False


class Pattern:
    """A regular expression of a configuration.

    Raises HalkaError that names it if it does not compile, or if matching takes too long.
    """

    def __init__(self, key: str, text: str):
        self._source = f"adapter_config.json: {key} holds {text[:200]!r}"
        try:
            re.compile(text)
            self._compiled = regex.compile(text)
        except (re.error, regex.error, RecursionError, OverflowError) as error:
            raise HalkaError(f"{self._source}, which is no regular expression: {error}") from None

    def match(self, name: str, deadline: float) -> Any:
        """Return the match of the whole name, or None.

        Raises HalkaError where it is not there by `deadline`, of `time.monotonic`.
        """
        try:
            if (timeout := deadline - time.monotonic()) <= 0:
                raise TimeoutError
            return self._compiled.fullmatch(name, timeout=timeout)
        except TimeoutError:
            raise HalkaError(
                f"{self._source}, which takes too long to match: list the names of the modules instead"
            ) from None

    def of(self, names: Iterable[str], deadline: float) -> set[str]:
        """Return the names that it matches in full, as `match` does."""
        return {name for name in names if self.match(name, deadline) is not None}


def by_pattern(config: Mapping[str, Any], key: str, names: Sequence[str], default: Any) -> dict[str, Any]:
    """Return every module's value in `rank_pattern` or `alpha_pattern`: the first whose expression matches its end."""
    patterns = json_object(config.get(key) or {})
    if patterns is None:
        raise HalkaError(f"adapter_config.json: {key} is {config[key]!r}, where names with their values are expected")
    _check_count(key, len(patterns))
    deadline = time.monotonic() + TIMEOUT
    ends = [(_end(key, text, deadline), value) for text, value in patterns.items()]
    return {name: next((value for is_end, value in ends if is_end(name)), default) for name in names}


def _end(key: str, text: str, deadline: float) -> Callable[[str], bool]:
    """Return what says whether a name ends in this expression; most are names, which need no matching."""
    if NAME(text):
        return lambda name: f".{name}".endswith(f".{text}")
    pattern = Pattern(key, rf"(?:.*\.)?(?:{text})")
    return lambda name: pattern.match(name, deadline) is not None


def endings(paths: set[str], names: Iterable[str]) -> list[str]:
    """Return the shortest endings that select exactly `paths` among all of `names`, as peft matches them."""
    names = list(names)

    for steps in (1, 2):
        shortest = {".".join(path.split(".")[-steps:]) for path in paths}
        if {name for name in names if ends(name, shortest)} == paths:
            return sorted(shortest)
    return sorted(paths)

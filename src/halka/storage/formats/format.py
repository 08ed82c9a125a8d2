"""The `Format` protocol: an adapter folder's file names, and how they convert to and from a method and its state.

With what all formats ask of a configuration's values and of a base's targets.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, cast

from torch import Tensor

from halka.core import Adapter, Method, Target
from halka.util.errors import HalkaError
from halka.util.kinds import Kind

T = TypeVar("T")


def json_object(value: object) -> Mapping[str, Any] | None:
    """Return `value` if it is a JSON object (a mapping with string keys), else None."""
    return cast(Mapping[str, Any], value) if isinstance(value, Mapping) else None


def json_list(value: object, kind: type[T]) -> list[T] | None:
    """Return `value` as a list if it is a list, tuple or set of `kind` only, else None."""
    if not isinstance(value, list | tuple | set):
        return None
    items = list(cast(Iterable[object], value))
    return cast(list[T], items) if all(isinstance(item, kind) for item in items) else None


def number(key: str, value: object) -> float:
    """Return the configuration's value if it is a finite number. Raises HalkaError that names the key for others."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise HalkaError(f"adapter_config.json: {key} is {value!r}, where a number is expected")
    return float(value)


def target_of(targets: tuple[Target, ...], role: str) -> Target:
    """Return the base's only target of that role. Raises HalkaError if there is none."""
    for target in targets:
        if target.role == role:
            return target
    raise HalkaError(f"this base does not support the adapter: it has no target of the role {role!r}")


def base_of(targets: tuple[Target, ...]) -> Any:
    """Return the base model that has these targets."""
    return target_of(targets, "base").module


def layers_of(targets: tuple[Target, ...]) -> int:
    """Return the number of layers of the base."""
    return 1 + max(target.layer for target in targets if target.layer is not None)


@dataclass(frozen=True)
class FileNames:
    """The names of a format's two files, and of the pickle that older tools write instead of safetensors."""

    config: str
    weights: str
    pickle: str
    head: FileNames | None = None  # of a prediction head saved with the adapter

    def names(self) -> tuple[str, ...]:
        """Return the file names of an adapter and of its head."""
        return self.config, self.weights, *(() if self.head is None else self.head.names())


@dataclass(frozen=True)
class Contents:
    """An adapter in a format's own terms: its configuration, and its tensors by the format's names."""

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    head: Contents | None = None


class BaseSpec(NamedTuple):
    """The base model that a configuration names; fields that it does not state are None or empty."""

    name: str | None
    kind: Kind | None = None
    labels: tuple[str, ...] = ()  # by index; LABEL_0, LABEL_1, … if the configuration has only their count

    @property
    def named_labels(self) -> tuple[str, ...]:
        """The labels, or () if they are only transformers' default names (LABEL_0, …)."""
        return () if self.labels == tuple(f"LABEL_{index}" for index in range(len(self.labels))) else self.labels


class Format(Protocol):
    """A module or package of `formats`. Its callers check for valid JSON, complete files and finite values."""

    @property
    def NAME(self) -> str:
        """The format's name in `--to`."""
        ...

    @property
    def FILES(self) -> FileNames: ...

    def recognises(self, folder: Path) -> bool:
        """Return whether the folder holds this format's files, and no other format's."""
        ...

    def base_spec(self, config: Mapping[str, Any], head_config: Mapping[str, Any] | None) -> BaseSpec:
        """Return the base that the configurations of the adapter and its head name."""
        ...

    def read(self, contents: Contents, targets: tuple[Target, ...]) -> tuple[Method, dict[str, Tensor]]:
        """Return the method that a folder holds and its state under Halka's names, for a base with `targets`.

        Raises WrongBaseError for an adapter of another base, HalkaError for options that Halka does not support.
        """
        ...

    def write(self, adapter: Adapter, targets: tuple[Target, ...], base_name: str) -> Contents:
        """Return an adapter's configuration and tensors in this format; `targets` are all targets of its base.

        Raises HalkaError for a method that the format cannot express.
        """
        ...

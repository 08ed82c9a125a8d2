"""What a format is: the files of an adapter's folder, and how they become a method and its state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, cast

from torch import Tensor

from halka.core import Adapter, Method, Target
from halka.models.kinds import Kind

T = TypeVar("T")


def json_object(value: object) -> Mapping[str, Any] | None:
    """The value where it is a JSON object, whose keys are texts; else None."""
    return cast(Mapping[str, Any], value) if isinstance(value, Mapping) else None


def json_list(value: object, kind: type[T]) -> list[T] | None:
    """The value where it is a list (or tuple, or set) of that type alone; else None."""
    if not isinstance(value, list | tuple | set):
        return None
    items = list(cast(Iterable[object], value))
    return cast(list[T], items) if all(isinstance(item, kind) for item in items) else None


@dataclass(frozen=True)
class FileNames:
    """The names of a format's two files, and of the pickle that older tools write instead of the second."""

    config: str
    weights: str
    pickle: str
    head: FileNames | None = None  # those of a head that may stand beside the adapter

    def names(self) -> tuple[str, ...]:
        """The files of an adapter, and of the head beside it."""
        return self.config, self.weights, *(() if self.head is None else self.head.names())


@dataclass(frozen=True)
class Contents:
    """An adapter as a format keeps it: its configuration, and its tensors by the format's names."""

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    head: Contents | None = None


class BaseSpec(NamedTuple):
    """The base that a configuration says its adapter is for: what of it is not said is None or empty."""

    name: str | None
    kind: Kind | None = None
    labels: tuple[str, ...] = ()  # by place; LABEL_0, LABEL_1, … where the configuration has only their number

    @property
    def named_labels(self) -> tuple[str, ...]:
        """The labels, unless they are numbers alone."""
        return () if self.labels == tuple(f"LABEL_{place}" for place in range(len(self.labels))) else self.labels


class Format(Protocol):
    """A module or package of `formats`. What holds for all (JSON, whole files, finite values) is checked elsewhere."""

    @property
    def NAME(self) -> str:
        """As `--to` takes it."""
        ...

    @property
    def FILES(self) -> FileNames: ...

    def recognises(self, folder: Path) -> bool:
        """Whether the folder holds this format's files, and no other format's."""
        ...

    def base_spec(self, config: Mapping[str, Any], head_config: Mapping[str, Any] | None) -> BaseSpec:
        """The base that the adapter is for, as its configuration and that of a head beside it say."""
        ...

    def read(self, contents: Contents, targets: tuple[Target, ...]) -> tuple[Method, dict[str, Tensor]]:
        """The method that a folder holds and its state under our names, for a base with `targets`.

        Raises WrongBaseError for an adapter of another base, HalkaError for what Halka does not compute.
        """
        ...

    def write(self, adapter: Adapter, targets: tuple[Target, ...], base_name: str) -> Contents:
        """An adapter in the format's names; `targets` are all of its base's.

        Raises HalkaError for a method that the format has no form for.
        """
        ...

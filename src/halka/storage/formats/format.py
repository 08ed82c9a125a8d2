"""What a format is: which files an adapter's folder has, and how they become a method and its state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from halka.core import Adapter, Method, Target


@dataclass(frozen=True)
class Files:
    """The names of a format's two files, and of the pickle that older tools write instead of the second."""

    config: str
    weights: str
    pickle: str
    head: Files | None = None  # those of a head that may stand beside the adapter

    def names(self) -> tuple[str, ...]:
        """The files of an adapter, and of the head beside it."""
        return self.config, self.weights, *(() if self.head is None else self.head.names())


@dataclass(frozen=True)
class Folder:
    """An adapter as a format keeps it: its configuration and its tensors by the format's names."""

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    head: Folder | None = None


class Format(Protocol):
    """A module or package of `formats`. What is common to all (JSON, whole files, finite values) is `store`'s."""

    NAME: str  # as `--to` takes it
    FILES: Files

    def found(self, folder: Path) -> bool:
        """Whether the folder holds this format's files, and no other format's."""
        ...

    def read(self, folder: Folder, targets: tuple[Target, ...]) -> tuple[Method, dict[str, Tensor]]:
        """The method that a folder holds and its state under our names, for a base with `targets`.

        Raises ValueError for whatever cannot be had on this base, or not here at all.
        """
        ...

    def write(self, adapter: Adapter, targets: tuple[Target, ...], base_name: str) -> Folder:
        """An adapter in the format's names; `targets` are all of its base's.

        Raises ValueError for a method that the format has no form for.
        """
        ...

"""What stands around an adapted model: attention for virtual tokens, a pool of adapters, what an engine keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import nn

from halka.core.parts import VirtualPart

Arguments = tuple[tuple[Any, ...], dict[str, Any]]  # of a module's call: those by position, those by name


class LinePlan(Protocol):
    """A batch without padding, which a pass of the base receives as `forest`: runs of tokens with one adapter each."""

    @property
    def runs(self) -> tuple[int, ...]: ...


class VirtualAttention(Protocol):
    """Where virtual tokens join the base's own (`models/attention/virtual_tokens.py`); the core only says whose."""

    entries: Sequence[nn.Module]
    """The modules where passes of the base begin: its decoder, its encoder, or both."""

    def using(
        self, parts: Mapping[str, Sequence[VirtualPart | None]], bare: Callable[[], AbstractContextManager[None]]
    ) -> AbstractContextManager[None]:
        """Within the block row i, or every row if there is one part, attends to what parts[role][i] holds.

        Within `with bare():` the base runs without adapters.
        """
        ...

    def begin(
        self, entry: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], runs: Sequence[int]
    ) -> Arguments | None:
        """What a pass that begins there within `using` shall receive instead of args and kwargs; None: these."""
        ...

    def end(self, entry: nn.Module, kwargs: dict[str, Any], output: Any) -> Any:
        """What the pass, which received kwargs, shall return instead of output; None: that."""
        ...


class Follower(Protocol):
    """Who keeps something by adapters' names, and must hear when one leaves."""

    def removed(self, name: str) -> None:
        """The adapter of that name has left the model."""
        ...


class Pool(Follower, Protocol):
    """Where adapters come from that are not in the model yet (`halka.storage.pool`)."""

    def ready(self, names: Iterable[str]) -> None:
        """Let these be in the model, or raise HalkaError. Called while the model's lock is held."""
        ...


class Kept(Follower, Protocol):
    """What an engine made of base and adapters: the model holds it between engines, for the next (`engine/kept.py`)."""

    def close(self) -> None:
        """Leave the base as it was."""
        ...

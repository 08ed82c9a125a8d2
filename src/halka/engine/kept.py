"""`Kept`: what an engine makes of a model and the next one needs again: an answer costs its tokens alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from halka.core import AdaptedModel
from halka.engine.adapters import Adapters, Source
from halka.engine.constraint import Constraints
from halka.engine.llama.forward import forward_of
from halka.engine.residents import BUDGET
from halka.storage.pool import AdapterPool
from halka.storage.save_load import Allowed
from halka.util.cached import Changes


class Kept:
    """The pass of a base, and what is known of the model's own adapters.

    Between engines it has no keys and values and no adapter that the model does not have.
    """

    def __init__(
        self,
        model: AdaptedModel,
        store: Source | None = None,
        adapter_memory: int | None = None,
        allowed: Allowed | None = None,
        most_adapters: int | None = None,
    ):
        """As `Engine`: the store, and what is not said of it, are the pool's if there is one and no other is named."""
        self._model, self._pool, self._base = model, model.pool, list[object]()
        if store is None and isinstance(pool := model.pool, AdapterPool):
            store, allowed = pool.store, pool.allowed if allowed is None else allowed
            adapter_memory = pool.budget if adapter_memory is None else adapter_memory
        self.forward = forward_of(model)
        adapter_memory = BUDGET if adapter_memory is None else adapter_memory
        self.adapters = Adapters(model, store, adapter_memory, allowed, most_adapters, self.forward.bytes_of)
        self._constraints: Constraints | None = None

    def constraints(self, ends: frozenset[int]) -> Constraints:
        """Of the model's tokenizer, whose vocabulary is read once, while it and the end tokens stay."""
        tokenizer, own = self._model.tokenizer, self._constraints
        if own is None or own.tokenizer is not tokenizer or own.ends != ends:
            self._constraints = own = Constraints(tokenizer, ends)
        return own

    def rest(self) -> None:
        """Give back what one engine alone needed, and remember the base as it is."""
        self.adapters.close()
        self.forward.forget()
        self._base = self._state()

    @property
    def intact(self) -> bool:
        """Whether the pass still computes with the base's own weights, wherever these are now."""
        return self.forward.intact

    @property
    def current(self) -> bool:
        """Whether all is as `rest` left it: the base's weights, and where adapters come from."""
        return self.intact and self._pool is self._model.pool and self._base == self._state()

    def removed(self, name: str) -> None:
        """Let go of an adapter that has left the model."""
        self.adapters.check()
        self.forward.forget()

    def close(self) -> None:
        """Leave base and model as they were."""
        self.adapters.close()
        self.forward.close()

    def _state(self) -> list[object]:
        """What is another once the base's weights have changed; on a GPU also once others are merged: then its own wait
        on the CPU."""
        base: Any = self._model.base
        own = base.device.type == "cpu"
        with self._model.own_weights() if own else nullcontext():
            tensors = [*base.parameters(), *base.buffers()]
        changes = Changes.count if any(tensor.requires_grad for tensor in tensors) else 0
        versions = [0 if tensor.is_inference() else tensor._version for tensor in tensors]
        return [changes, versions, [tensor.data_ptr() for tensor in tensors], None if own else self._model.merged]


@contextmanager
def kept_of(model: AdaptedModel) -> Iterator[Kept]:
    """What the last engine left on the model, for this block alone: one beside it makes its own."""
    with model.lock:
        kept, model.kept = model.kept, None
        if not isinstance(kept, Kept) or not kept.current:
            if kept is not None:
                kept.close()
            kept = Kept(model)
    try:
        yield kept
    finally:
        with model.lock:
            kept.rest()
            if model.kept is None and kept.intact:
                model.kept = kept
            else:
                kept.close()

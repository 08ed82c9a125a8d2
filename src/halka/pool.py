"""`AdapterPool`: the adapters of a store in one model, as many as a budget of memory holds; the least recently used go.

pool = AdapterPool(model, AdapterStore("adapters"), budget=2 * 2**30)
with model.use(["support", "legal-17", None]):  # read from disk if they are not there yet
    ...
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from halka.adapter_store import AdapterStore
from halka.core import AdaptedModel

DEFAULT_BUDGET = 1 << 30


class AdapterPool:
    """Lets `model.use` name any adapter of `store`. `budget`: bytes that adapters of the store may take in memory.

    Adapters that were added to the model by hand are its own: they do not count and never go. A newer version in the
    store is taken when the adapter is read next; `forget` lets it go before. `allowed` goes to `halka.load`.
    """

    def __init__(self, model: AdaptedModel, store: AdapterStore, budget: int = DEFAULT_BUDGET, **allowed: bool):
        if budget <= 0:
            raise ValueError(f"budget is the bytes that adapters may take, above 0, not {budget}")
        self.model, self.store, self.budget, self.allowed = model, store, budget, allowed
        self.sizes: OrderedDict[str, int] = OrderedDict()  # bytes of those that are here, the last used at the end
        self.loads = 0
        model.pool = self

    @property
    def bytes(self) -> int:
        """What the store's adapters take now."""
        return sum([*self.sizes.values()])

    def ready(self, names: Iterable[str]) -> None:
        """Let these adapters be in the model, others gone if they need the room; called where a block begins.

        Raises ValueError for a name that neither has, and where these alone are over the budget.
        """
        wanted = [*dict.fromkeys(names)]
        with self.model.lock:
            for name in wanted:
                if name in self.sizes:
                    self.sizes.move_to_end(name)
                elif name not in self.model.adapters:
                    self._read(name)
            self._make_room(wanted)

    def forget(self, name: str) -> None:
        """Let an adapter go, so that its newest version is read next. Raises ValueError while it is in use."""
        with self.model.lock:
            if name in self.sizes:
                self.model.remove(name)

    def removed(self, name: str) -> None:
        """Called by the model for every adapter that leaves it, whoever removed it."""
        self.sizes.pop(name, None)

    def _read(self, name: str) -> None:
        try:
            adapter = self.store.load(self.model, name, **self.allowed)
        except ValueError as error:
            known = ", ".join(map(repr, self.model.adapters)) or "none"
            raise ValueError(
                f"no adapter {name!r} in the model (there: {known}), and from the store: {error}"
            ) from None
        self.loads += 1
        self.sizes[name] = sum(tensor.numel() * tensor.element_size() for tensor in adapter.state_dict().values())

    def _make_room(self, wanted: list[str]) -> None:
        for name in self._idle({*self.sizes} - {*wanted}):
            if self.bytes <= self.budget:
                return
            self.forget(name)
        if self.bytes > self.budget:
            taken, here = self.bytes, ", ".join(self.sizes)
            for name in self._idle(wanted):
                self.forget(name)
            raise ValueError(
                f"{here} take {taken:,} bytes together, over the pool's budget of {self.budget:,}: raise it, or use "
                "fewer at a time"
            )

    def _idle(self, names: Iterable[str]) -> list[str]:
        """Those of `names` that may go, the least recently used first."""
        kept = {*self.model.in_use, self.model.merged}
        return [each for each in self.sizes if each in {*names} - kept]

"""`AdapterPool`: the adapters of a store in one model, as many as a budget of memory holds; the least recently used go.

pool = AdapterPool(model, AdapterStore("adapters"), budget=2 * 2**30)
with model.use(["support", "legal-17", None]):  # read from disk if they are not there yet
    ...
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Unpack

from halka.core import AdaptedModel
from halka.storage.adapter_store import AdapterStore, Stored
from halka.storage.save_load import Allowed, load
from halka.util.errors import HalkaError, UnknownAdapterError

DEFAULT_BUDGET = 10**9  # bytes


class AdapterPool:
    """Lets `model.use` name any adapter of `store`. `budget`: bytes that adapters of the store may take in memory.

    Adapters that were added to the model by hand are its own: they do not count and never go. A newer version in the
    store is taken when the adapter is read next; `forget` lets it go before. `allowed` goes to `halka.load`.
    """

    def __init__(
        self, model: AdaptedModel, store: AdapterStore, budget: int = DEFAULT_BUDGET, **allowed: Unpack[Allowed]
    ):
        if budget <= 0:
            raise HalkaError(f"budget is the bytes that adapters may take, above 0, not {budget}")
        self.model, self.store, self.budget, self.allowed = model, store, budget, allowed
        self.sizes: OrderedDict[str, int] = OrderedDict()  # bytes of those that are here, the last used at the end
        self.loads = 0
        self._costs: dict[str, int] = {}  # bytes that those will take that are not here
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
            if not self.fits(wanted):
                raise HalkaError(
                    f"{', '.join(wanted)} take {self._cost(wanted):,} bytes together, over the pool's budget of "
                    f"{self.budget:,}: raise it, or use fewer at a time"
                )
            for name in wanted:
                if name in self.sizes:
                    self.sizes.move_to_end(name)
                elif name not in self.model.adapters:
                    self._make_room(self._cost([name]), wanted)
                    self._read(name)
            self._make_room(0, wanted)

    def fits(self, names: Iterable[str]) -> bool:
        """Whether the budget has room for these, beside what is in use. Raises ValueError for an unknown name."""
        return self._cost({*names, *self._kept()}) <= self.budget

    def forget(self, name: str) -> None:
        """Let an adapter go, so that its newest version is read next. Raises ValueError while it is in use."""
        with self.model.lock:
            if name in self.sizes:
                self.model.remove(name)

    def removed(self, name: str) -> None:
        """Called by the model for every adapter that leaves it, whoever removed it."""
        self.sizes.pop(name, None)

    def _read(self, name: str) -> None:
        stored = self._stored(name)
        self._costs.pop(name, None)
        adapter = load(self.model, stored.folder, name=name, **self.allowed)
        self.loads += 1
        self.sizes[name] = sum(tensor.numel() * tensor.element_size() for tensor in adapter.state_dict().values())

    def _stored(self, name: str) -> Stored:
        try:
            return self.store.get(name)
        except UnknownAdapterError as error:
            names = ", ".join(map(repr, self.model.adapters)) or "none"
            raise UnknownAdapterError(
                f"no adapter {name!r} in the model (which has: {names}), nor in the store: {error}"
            ) from None

    def _cost(self, names: Iterable[str]) -> int:
        """The bytes that these take of the budget; those that are in the store alone are looked up there."""
        cost = 0
        for name in names:
            if name in self.sizes:
                cost += self.sizes[name]
            elif name not in self.model.adapters:
                if name not in self._costs:
                    self._costs[name] = self._stored(name).open().memory
                cost += self._costs[name]
        return cost

    def _make_room(self, bytes: int, wanted: list[str]) -> None:
        """Let the least recently used go until so much is free, or only what is wanted or in use is left."""
        kept = {*wanted, *self._kept()}
        for name in [each for each in self.sizes if each not in kept]:
            if self.bytes + bytes <= self.budget:
                return
            self.forget(name)

    def _kept(self) -> set[str]:
        """Those that may not go."""
        return {name for name in (*self.model.in_use, self.model.merged) if name in self.sizes}

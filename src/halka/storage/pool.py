"""`AdapterPool`: loads a store's adapters into a model when they are used, within a budget of memory.

pool = AdapterPool(model, AdapterStore("adapters"), budget=2 * 2**30)
with model.use(["support", "legal-17", None]):  # loads those that are not in the model
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
    """Lets `model.use` name any adapter of `store`; the least recently used are removed where the budget needs it.

    `budget` is the memory in bytes that the store's adapters may take. Adapters that were added to the model by hand do
    not count and stay. A newer version in the store is loaded once the adapter was removed; `forget` removes it.
    `allowed` goes to `halka.load`.
    """

    def __init__(
        self, model: AdaptedModel, store: AdapterStore, budget: int = DEFAULT_BUDGET, **allowed: Unpack[Allowed]
    ):
        if budget <= 0:
            raise HalkaError(f"budget is the bytes that adapters may take, above 0, not {budget}")
        self.model, self.store, self.budget, self.allowed = model, store, budget, allowed
        self.sizes: OrderedDict[str, int] = OrderedDict()  # bytes of those in the model, the last used at the end
        self.loads = 0
        self._costs: dict[str, int] = {}  # bytes that others of the store will take
        model.pool = self

    @property
    def bytes(self) -> int:
        """The memory that the store's adapters take now."""
        return sum([*self.sizes.values()])

    def ready(self, names: Iterable[str]) -> None:
        """Load these adapters, and remove others where they need the memory; `model.use` calls it.

        Raises UnknownAdapterError for a name that neither model nor store has, HalkaError where these alone
        are over the budget, and as `halka.load` does.
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
        """Whether the budget has room for these beside those in use. Raises UnknownAdapterError for an unknown name."""
        return self._cost({*names, *self._kept()}) <= self.budget

    def forget(self, name: str) -> None:
        """Remove an adapter, so that its newest version is loaded next. Raises HalkaError while it is in use."""
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
        """The bytes that these take of the budget; of those not yet loaded, their files say it."""
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
        """Remove the least recently used until so much is free, or only those wanted or in use are left."""
        kept = {*wanted, *self._kept()}
        for name in [name for name in self.sizes if name not in kept]:
            if self.bytes + bytes <= self.budget:
                return
            self.forget(name)

    def _kept(self) -> set[str]:
        """The store's adapters that are in use or merged, which stay."""
        return {name for name in (*self.model.in_use, self.model.merged) if name in self.sizes}

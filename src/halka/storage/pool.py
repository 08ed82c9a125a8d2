"""`AdapterPool`: load a store's adapters into a model when they are used, within a memory budget.

pool = AdapterPool(model, AdapterStore("adapters"), budget=2 * 2**30)
with model.use(["support", "legal-17", None]):  # loads those that are not in the model
    ...
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Unpack

from halka.core import AdaptedModel
from halka.storage.adapter_store import AdapterStore, Stored
from halka.storage.save_load import Allowed, load
from halka.util.errors import HalkaError, UnknownAdapterError

DEFAULT_BUDGET = 10**9  # bytes
SUFFIXES = (".safetensors", ".bin")  # of files with weights
Weights = set[tuple[int, int]]  # such files: each one's number and the time of its last change


class AdapterPool:
    """Lets `model.use` name any adapter of `store`; evicts the least recently used to stay within the budget.

    `budget` is the memory in bytes that the store's adapters may take. Adapters that were added to the model otherwise
    do not count and stay. A newer version in the store is loaded only after the adapter was evicted; `forget` evicts
    it, and so does the next use after its version was removed from the store. `allowed` goes to `halka.load`.
    """

    def __init__(
        self, model: AdaptedModel, store: AdapterStore, budget: int = DEFAULT_BUDGET, **allowed: Unpack[Allowed]
    ):
        if budget <= 0:
            raise HalkaError(f"budget is the memory for adapters in bytes, above 0, not {budget}")
        self.model, self.store, self.budget, self.allowed = model, store, budget, allowed
        self.sizes: OrderedDict[str, int] = OrderedDict()  # bytes of the adapters in the model, most recently used last
        self.loads = 0
        self._folders: dict[str, tuple[Path, Weights]] = {}  # of these adapters, as they were read
        self._costs: dict[str, int] = {}  # bytes that adapters not yet loaded will take, until the next `ready`
        model.pool = self

    @property
    def bytes(self) -> int:
        """The memory that the store's adapters take now."""
        return sum([*self.sizes.values()])

    def ready(self, names: Iterable[str]) -> None:
        """Load these adapters, and evict others if the budget requires it; `model.use` calls this.

        Raises UnknownAdapterError for a name that neither model nor store has, HalkaError where these alone
        are over the budget, and as `halka.load` does.
        """
        wanted = [*dict.fromkeys(names)]
        with self.model.lock:
            self._costs.clear()  # there may be newer versions
            for name in {*wanted}.intersection(self._folders) - self._kept():
                if not _is_same(*self._folders[name]):  # its version was removed
                    self.forget(name)
            if not self.fits(wanted):
                together = [*dict.fromkeys([*wanted, *sorted(self._kept())])]  # those in use stay
                raise HalkaError(
                    f"{', '.join(together)} take {self._cost(together):,} bytes together, over the pool's budget of "
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
        """Whether these and those in use fit into the budget. Raises UnknownAdapterError for an unknown name."""
        return self._cost({*names, *self._kept()}) <= self.budget

    def forget(self, name: str) -> None:
        """Evict an adapter, so that its newest version is loaded next. Raises HalkaError while it is in use."""
        with self.model.lock:
            if name in self.sizes:
                self.model.remove(name)

    def removed(self, name: str) -> None:
        """Forget an adapter's size; the model calls this for every adapter that is removed from it."""
        self.sizes.pop(name, None)
        self._folders.pop(name, None)

    def _read(self, name: str) -> None:
        folder = self._stored(name).folder
        weights = _weights_in(folder)
        adapter = load(self.model, folder, name=name, **self.allowed)
        self.loads += 1
        self._folders[name] = folder, weights
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
        """The bytes of the budget that these take, read from their files if they are not loaded."""
        cost = 0
        for name in names:
            if name in self.sizes:
                cost += self.sizes[name]
            elif name not in self.model.adapters:
                if (bytes := self._costs.get(name)) is None:
                    allowed = self.allowed.get("allow_pickle", False)
                    bytes = self._costs[name] = self._stored(name).open(allow_pickle=allowed).memory
                cost += bytes
        return cost

    def _make_room(self, bytes: int, wanted: list[str]) -> None:
        """Evict the least recently used until `bytes` are free, or only those wanted or in use are left."""
        kept = {*wanted, *self._kept()}
        for name in [name for name in self.sizes if name not in kept]:
            if self.bytes + bytes <= self.budget:
                return
            self.forget(name)

    def _kept(self) -> set[str]:
        """The store's adapters that are in use or merged, and so cannot be evicted."""
        return {name for name in (*self.model.in_use, self.model.merged) if name in self.sizes}


def _weights_in(folder: Path) -> Weights:
    """The files with weights in a folder, by what tells them from others that are written in their place."""
    files = [path.stat() for path in folder.iterdir() if path.suffix in SUFFIXES]
    return {(file.st_ino, file.st_mtime_ns) for file in files}


def _is_same(folder: Path, weights: Weights) -> bool:
    """Whether a folder is there with the same weights, whatever else changed; of what cannot be read, nobody knows."""
    try:
        return _weights_in(folder) == weights
    except FileNotFoundError:
        return False
    except OSError:
        return True

"""`Adapters`: names to versions of adapters, which `residents.py` loads when a request waits for them.

A name is a pointer. A request keeps the folder that its name meant when it came; another folder under the same name is
another version. Of a folder that is replaced in its place, requests that have not begun get what is there when it is
loaded, under its own id. A version that cannot be loaded fails its own requests.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Protocol
from weakref import WeakValueDictionary

from halka.core import AdaptedModel
from halka.engine.residents import BUDGET, BytesOf, Fits, Residents
from halka.engine.version import Version, content_id, describe, opened, removed, see_values, state_of_files
from halka.models import context
from halka.storage.adapter_folder import AdapterFolder
from halka.storage.adapter_store import Stored, name_and_version
from halka.storage.pool import AdapterPool
from halka.storage.save_load import Allowed
from halka.util.cached import Changes
from halka.util.errors import HalkaError, UnknownAdapterError


class Source(Protocol):
    """Where adapters come from that a model does not have, such as an `AdapterStore`."""

    def get(self, name: str, /) -> Stored:
        """The newest version of that name, or the one that NAME@VERSION says.

        Raises UnknownAdapterError if there is none.
        """
        ...


class Adapters:
    """The adapters that requests can name: the model's own, those that were `put` here, and a store's.

    residents  those that were loaded for requests
    """

    def __init__(
        self,
        model: AdaptedModel,
        store: Source | None = None,
        budget: int = BUDGET,
        allowed: Allowed | None = None,
        most: int | None = None,
        of_pass: BytesOf = lambda _: 0,
    ):
        """As `Residents`."""
        self.model, self.store, self._allowed = model, store, allowed or {}
        self.residents = Residents(model, budget, self._allowed, most, of_pass)
        self.loading = dict[Future[None], Version]()  # what `load` names
        self._changed = False
        self._put: dict[str, Version] = {}
        self._stored = WeakValueDictionary[tuple[str, Path], Version]()  # a store's, by name and folder, while in use
        self._added: dict[str | None, Version] = {}  # not loaded by the engine
        self._changes, self._next_look = Changes.count, 0

    def put(self, name: str, source: str | Path | AdapterFolder) -> None:
        """From now on the name means this folder's adapter. Requests under way finish with the one they have."""
        self._put[name] = opened(name, source, self._allowed)

    def drop(self, name: str) -> None:
        """Take a name back that was `put`. Raises UnknownAdapterError for any other."""
        if self._put.pop(name, None) is None:
            raise UnknownAdapterError(f"no adapter {name!r} was put into the engine")

    def version(self, name: str | None) -> Version:
        """What the name means now. Raises UnknownAdapterError for a name that nobody knows."""
        if (version := self._put.get(name or "")) is not None:
            if version.error is not None and version.folder is not None:  # perhaps it was mended
                self.put(version.name or "", version.folder.path)
            version = self._put[name or ""]
        elif name is None or name in self._models_own:
            version = self._in_model(name)
        elif self.store is not None:
            version = self._in_store(name)
        else:
            names = ", ".join(map(repr, [*self._models_own, *self._put])) or "none yet"
            raise UnknownAdapterError(f"no adapter {name!r} here (there are: {names}): `add` or `load` it first")
        if (error := self.error(version)) is not None:
            raise error
        self.residents.follow(version)
        return version

    def error(self, version: Version) -> Exception | None:
        """Why no request can use it; None if one can."""
        merged = self.model.merged
        if version.error is None and merged is not None and version.key != merged:
            return HalkaError(f"adapter {merged!r} is merged into the base: `unmerge` it before others are used")
        return version.error

    @property
    def _models_own(self) -> list[str]:
        """The model's adapters, but for those that this engine loaded, or the pool of its store, which evicts them."""
        pool = self.model.pool
        loaded = {version.key for version in self.residents.versions}
        if isinstance(pool, AdapterPool) and pool.store is self.store:
            loaded |= {*pool.sizes}
        return [name for name in self.model.adapters if name not in loaded]

    def _in_store(self, name: str) -> Version:
        """The version that the name means in the store."""
        assert self.store is not None
        path = self.store.get(name).folder
        version = self._stored.get((name, path))
        if version is None or version.error is not None or version.state != state_of_files(version.folder):
            try:
                self._stored[name, path] = version = opened(name, path, self._allowed)
            except HalkaError:
                if path.exists():
                    raise
                raise removed(name) from None
        return version

    def _in_model(self, name: str | None) -> Version:
        """The version of an adapter that somebody added to the model, or of the bare base."""
        if (version := self._added.get(name)) is not None:
            self.look(version)
        if name not in self._added:
            version = Version(name, key=name, here=True, room=context(self.model, name))
            if name is not None:
                describe(version, self.model, self.model.adapter(name))
            self._added[name] = version
            self._changed = True
        return self._added[name]

    def stale(self) -> bool:
        """Whether since the last call an adapter came, left or got other values."""
        changed, self._changed = self._changed | self.residents.changed, False
        self.residents.changed = False
        return changed

    def check(self) -> None:
        """See what changed in the model: a changed adapter is another version, and its requests under way fail.

        After an optimiser's step all are looked at, else one in turn: `look` says the rest before an answer ends.
        """
        moved, self._changes = self._changes != Changes.count, Changes.count
        for version in [*self._added.values(), *self.residents.versions]:
            self.look(version, values=moved)
        used = [version for version in self._added.values() if version.users and version.parameters]
        if used:
            self._next_look = (self._next_look + 1) % len(used)
            version = used[self._next_look]
            self.look(version, values=version.written != Changes.written(version.parameters))

    def look(self, version: Version, *, values: bool = True) -> None:
        """See whether the model still has it, and with `values` whether it is still the same.

        What was written by hand has acted for some steps perhaps: to write the old values again does not undo these.
        """
        adapter = version.adapter
        if version.here and self.model.adapters.get(version.key or "") is adapter:
            if not values or not version.parameters or version.state == Changes.state(version.parameters):
                return
            by_hand = version.written != Changes.written(version.parameters)
            if not by_hand and adapter is not None and content_id(adapter) == version.id:
                see_values(version, adapter)
                return
        version.error = HalkaError(f"adapter {version.name!r} was changed or removed while a request used it")
        self._changed = True
        if version in self.residents.versions:
            self.residents.forget(version)
        elif self._added.get(version.name) is version:
            del self._added[version.name]

    # ── loading ─────────────────────────────────────────────────────────────────────────────────────────────────

    def prepare(self, firsts: Iterable[Version]) -> tuple[Version | None, Future[None] | None]:
        """Load what the first texts of the queues wait for, then what `load` names, as `Residents.prepare` does."""
        prepared = self.residents.prepare([*firsts, *self.loading.values()])
        self._end_loading()
        return prepared

    def load(self, name: str) -> Future[None]:
        """Load an adapter before a request wants it: done after the step that has loaded it, or that could not.

        Raises UnknownAdapterError for an adapter that nobody has.
        """
        loading = Future[None]()
        loading.set_running_or_notify_cancel()
        with self.model.lock:
            self.loading[loading] = self.version(name)
            self._end_loading()
        return loading

    def pin(self, name: str, fits: Fits = lambda _: True) -> None:
        """Never evict what this name means once it is loaded, nor what it means later as long as that fits.

        Raises UnknownAdapterError for one that nobody has.
        """
        with self.model.lock:
            self.residents.pin(self.version(name), fits)

    def unpin(self, name: str) -> None:
        """Evict it by use again."""
        with self.model.lock:
            self.residents.unpin(name)

    def unload(self, name: str) -> None:
        """Evict an adapter now, also one that is pinned. Raises HalkaError while requests use it."""
        with self.model.lock:
            self.residents.unload(name)

    def evict_removed(self, name: str) -> None:
        """Evict what was loaded under this name, or NAME@VERSION, and whose folder is removed; what is in use by use.

        A pin goes over to the version that its name means now, and ends where there is none.
        """
        with self.model.lock:
            here = {*self.residents.pins, *(version.name for version in self.residents.versions)}
            for own in [other for other in here if other is not None and name_and_version(other)[0] == name]:
                if own in self.residents.pins:
                    try:
                        self.version(own)
                    except UnknownAdapterError:
                        self.residents.unpin(own)
                    except (HalkaError, OSError):
                        pass  # what is wrong with it, its requests hear
                self.residents.evict_removed(own)

    def _end_loading(self) -> None:
        for loading, version in [*self.loading.items()]:
            if version.error is not None:
                loading.set_exception(version.error)
            elif version.here:
                loading.set_result(None)
            if loading.done():
                del self.loading[loading]

    def fail(self, error: Exception) -> None:
        """Give up all that `load` names, because of this."""
        for loading in self.loading:
            loading.set_exception(error)
        self.loading.clear()

    def close(self) -> None:
        """Take what was loaded here out of the model; it is loaded again when it is wanted again."""
        self.fail(HalkaError("the engine is closed"))
        self.residents.close()
        for version in self._put.values():
            version.reading = None  # perhaps it was cancelled
        self._stored.clear()

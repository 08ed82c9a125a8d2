"""`Adapters`: names to versions of adapters, which are loaded when a request waits for them and evicted by use.

A name is a pointer. A request keeps the folder that its name meant when it came; another folder under the same name is
another version. Of a folder that is replaced in its place, requests that have not begun get what is there when it is
loaded, under its own id. A version that cannot be loaded fails its own requests.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from weakref import WeakValueDictionary

from halka.core import AdaptedModel
from halka.engine.version import Version, content_id, describe, see_values, state_of_files
from halka.models import context
from halka.storage.adapter_folder import AdapterFolder
from halka.storage.adapter_store import AdapterStore
from halka.storage.pool import AdapterPool
from halka.storage.save_load import Allowed, load
from halka.util.cached import Changes
from halka.util.errors import HalkaError, UnknownAdapterError

BUDGET = 2 * 10**9  # bytes of adapters that were loaded for requests
AHEAD = 4  # adapters whose files are read at a time, so that one that comes late need not wait for all that came early
PATIENCE = 32  # steps that an adapter waits for room before one that is in the way takes no more requests


class Adapters:
    """The adapters that requests can name: the model's own, those that were `put` here, and a store's."""

    def __init__(
        self,
        model: AdaptedModel,
        store: AdapterStore | None = None,
        budget: int = BUDGET,
        allowed: Allowed | None = None,
    ):
        self.model, self.store, self.budget, self._allowed = model, store, budget, allowed or {}
        self.loads = 0
        self.changed = False  # an adapter came, left or has other values: what was made of adapters is stale
        self._put: dict[str, Version] = {}
        self._stored = WeakValueDictionary[Path, Version]()  # by the folder of a store's version, while somebody has it
        self._resident: dict[str | None, Version] = {}  # in the model already
        self._own: list[Version] = []  # loaded here, the longest unused first
        self._changes, self._turn = Changes.count, 0
        self._reader = _reader()

    def put(self, name: str, source: str | Path | AdapterFolder) -> None:
        """From now on the name means this folder's adapter. Requests under way finish with the one they have."""
        self._put[name] = self._opened(name, source)

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
        loaded = {version.key for version in self._own}
        if isinstance(pool, AdapterPool) and pool.store is self.store:
            loaded |= {*pool.sizes}
        return [name for name in self.model.adapters if name not in loaded]

    def _opened(self, name: str, source: str | Path | AdapterFolder) -> Version:
        folder = AdapterFolder.open(source, allow_pickle=self._allowed.get("allow_pickle", False))
        return Version(name, folder, state_of_files(folder))

    def _in_store(self, name: str) -> Version:
        """The version of a store's newest adapter of that name."""
        assert self.store is not None
        path = self.store.get(name).folder
        version = self._stored.get(path)
        if version is None or version.error is not None or version.state != state_of_files(version.folder):
            self._stored[path] = version = self._opened(name, path)
        return version

    def _in_model(self, name: str | None) -> Version:
        """The version of an adapter that somebody added to the model, or of the bare base."""
        if (version := self._resident.get(name)) is not None:
            self.look(version)
        if name not in self._resident:
            version = Version(name, key=name, here=True, room=context(self.model, name))
            if name is not None:
                describe(version, self.model, self.model.adapter(name))
            self._resident[name] = version
            self.changed = True
        return self._resident[name]

    def check(self) -> None:
        """See what changed in the model: a changed adapter is another version, and its requests under way fail.

        After an optimiser's step all are looked at, else one in turn: `look` says the rest before an answer ends.
        """
        moved, self._changes = self._changes != Changes.count, Changes.count
        for version in [*self._resident.values(), *self._own]:
            self.look(version, values=moved)
        used = [version for version in self._resident.values() if version.users and version.parameters]
        if used:
            self._turn = (self._turn + 1) % len(used)
            version = used[self._turn]
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
        self.changed = True
        if version in self._own:
            self._forget(version)
        elif self._resident.get(version.name) is version:
            del self._resident[version.name]

    # ── loading ─────────────────────────────────────────────────────────────────────────────────────────────────

    def prepare(self, waiting: Iterable[Version]) -> tuple[Version | None, Future[None] | None]:
        """Load what waits, in this order, one a call: files are read in the background, then the model takes them.

        Returns the version that was loaded, and a reading that is under way.
        """
        for version in self._own:
            version.leaving = False
        wanted = [version for version in dict.fromkeys(waiting) if not version.here and version.error is None]
        ready = next((version for version in wanted if version.reading is not None and version.reading.done()), None)
        reading = [future for version in wanted if (future := version.reading) is not None and not future.done()]
        for version in wanted:
            if version.reading is None and len(reading) < AHEAD:
                version.reading = self._reader.submit(_read, version)
                reading.append(version.reading)
        loaded = None if ready is None or not self._load(ready) else ready
        return loaded, reading[0] if reading else None

    def used(self, version: Version) -> None:
        """An answer that it made has ended: it is the last that is evicted."""
        if version in self._own:
            self._own.remove(version)
            self._own.append(version)

    def rest(self) -> None:
        """Take what was loaded here out of the model; it is loaded again when it is wanted again."""
        self.close()
        self._reader = _reader()

    def close(self) -> None:
        """Take what was loaded here out of the model, for good."""
        self._reader.shutdown(cancel_futures=True)
        for version in [*self._own]:
            self._evict(version)
        self._stored.clear()

    def _load(self, version: Version) -> bool:
        """Let the model take it, if there is room. Returns whether the model has it; why not is its error."""
        assert version.reading is not None
        assert version.folder is not None
        try:
            version.reading.result()
            if not self._make_room(version):
                return False
            version.key = _free_name(version, self.model)
            adapter = load(self.model, version.folder, name=version.key, **self._allowed)
            try:
                if state_of_files(version.folder) != version.state:
                    raise HalkaError(f"{version.folder} is replaced again and again")
                describe(version, self.model, adapter)
            except BaseException:
                self.model.remove(version.key)
                raise
        except Exception as error:  # whatever is wrong with it, it is wrong with nothing else
            version.reading = None
            if not self._reopen(version):
                version.error = error
            return False
        version.here, version.waited, self.changed = True, 0, True
        self.loads += 1
        self._own.append(version)
        return True

    def _reopen(self, version: Version) -> bool:
        """Take what is in its folder now, if that was replaced: nobody has begun with what was there before."""
        assert version.folder is not None
        try:
            now = self._opened(version.name or "", version.folder.path)
        except HalkaError:
            return False
        replaced = now.state != version.state
        version.folder, version.state = now.folder, now.state
        return replaced

    def _make_room(self, version: Version) -> bool:
        """Evict what no request needs, the longest unused first. Returns whether there is room.

        What has waited for long also takes the room of those that others wait for: what has a row finishes first.
        Raises HalkaError for more than the whole budget.
        """
        if version.bytes > self.budget:
            raise HalkaError(
                f"adapter {version.name!r} takes {version.bytes:,} bytes, over the engine's budget for adapters of "
                f"{self.budget:,}"
            )
        version.waited += 1
        urgent = version.waited > PATIENCE
        idle = [other for other in self._own if not other.users]
        idle += [other for other in self._own if urgent and other.users and not other.begun]
        for other in idle:
            if self._missing(version) > 0:
                self._evict(other)
        coming = 0
        for other in self._own:
            if urgent and coming < self._missing(version):
                other.leaving = True
                coming += other.bytes
        return self._missing(version) <= 0

    def _missing(self, version: Version) -> int:
        """Bytes that it takes more than there is room for."""
        return sum(other.bytes for other in self._own) + version.bytes - self.budget

    def _evict(self, version: Version) -> None:
        if version.key in self.model.adapters:
            self.model.remove(version.key)
        self._forget(version)

    def _forget(self, version: Version) -> None:
        """It is in the model no more."""
        self._own.remove(version)
        version.here, version.reading, version.virtual, version.adapter = False, None, None, None
        self.changed = True


def _reader() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "halka-adapters")


def _read(version: Version) -> None:
    """Read an adapter's files once, so that taking them over is quick, and check them."""
    assert version.folder is not None
    version.bytes = version.folder.memory
    version.id = version.folder.id


def _free_name(version: Version, model: AdaptedModel) -> str:
    name = f"{version.name} {(version.id or '')[:12]}"
    while name in model.adapters:
        name += "'"
    return name

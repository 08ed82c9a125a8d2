"""`Adapters`: names to versions of adapters, which are loaded when a request waits for them and evicted by use.

A name is a pointer. A request keeps the version that its name had when it came; another folder under the same name is
another version. A version that cannot be loaded fails its own requests.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from halka.core import AdaptedModel, Adapter, VirtualPart, WeightPart
from halka.models import context
from halka.storage.adapter_folder import AdapterFolder
from halka.storage.adapter_store import AdapterStore
from halka.storage.save_load import Allowed, load
from halka.util.cached import Changes
from halka.util.errors import HalkaError, UnknownAdapterError

BUDGET = 2 * 10**9  # bytes of adapters that were loaded for requests


@dataclass(eq=False)
class Version:
    """One content under a name.

    name      as requests name it; None: the bare base
    key       as the model calls it, once it is there; None: the bare base
    folder    where it is loaded from; None: somebody added it to the model
    id        the content id; None: the bare base, or not loaded yet
    bytes     what it takes in memory
    users     requests that wait for it or run with it
    error     why it cannot be loaded
    room      positions that it leaves for text; None: without end
    shift     the position of a text's first token
    virtual   its keys and values (P, 2·L, H, W), which every text sees
    adapter   itself, while it is in the model
    exclusive it stands in for the base's weights, so that nothing else can share a step with it
    """

    name: str | None
    folder: AdapterFolder | None = None
    key: str | None = None
    id: str | None = None
    here: bool = False
    bytes: int = 0
    users: int = 0
    error: Exception | None = None
    room: int | None = None
    shift: int = 0
    virtual: Tensor | None = None
    exclusive: bool = False
    adapter: Adapter | None = field(default=None, repr=False)
    reading: Future[None] | None = field(default=None, repr=False)


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
        self._put: dict[str, Version] = {}
        self._stored: dict[Path, Version] = {}  # by the folder of a store's version
        self._resident: dict[str | None, Version] = {}  # in the model already
        self._own: list[Version] = []  # loaded here, the longest unused first
        self._changes = -1
        self._reader = ThreadPoolExecutor(1, "halka-adapters")

    def put(self, name: str, source: str | Path | AdapterFolder) -> None:
        """From now on the name means this folder's adapter. Requests under way finish with the one they have."""
        self._put[name] = Version(name, AdapterFolder.open(source))

    def drop(self, name: str) -> None:
        """Take a name back that was `put`. Raises UnknownAdapterError for any other."""
        if self._put.pop(name, None) is None:
            raise UnknownAdapterError(f"no adapter {name!r} was put into the engine")

    def version(self, name: str | None) -> Version:
        """What the name means now. Raises UnknownAdapterError for a name that nobody knows."""
        if name in self._put:
            return self._put[name]
        if name is None or name in self.model.adapters:
            merged = self.model.merged
            if merged is not None and name != merged:
                raise HalkaError(f"adapter {merged!r} is merged into the base: `unmerge` it before others are used")
            return self._in_model(name)
        if self.store is None:
            names = ", ".join(map(repr, [*self.model.adapters, *self._put])) or "none yet"
            raise UnknownAdapterError(f"no adapter {name!r} here (there are: {names}): `add` or `load` it first")
        folder = self.store.get(name).folder
        if folder not in self._stored:
            self._stored[folder] = Version(name, AdapterFolder.open(folder))
        return self._stored[folder]

    def _in_model(self, name: str | None) -> Version:
        """The version of an adapter that somebody added to the model, or of the bare base."""
        self.check()
        if name not in self._resident:
            version = Version(name, key=name, here=True, room=context(self.model, name))
            if name is not None:
                self._describe(version, self.model.adapter(name))
            self._resident[name] = version
        return self._resident[name]

    def check(self) -> None:
        """See what changed in the model: a changed adapter is another version, and its requests under way fail."""
        adapters = self.model.adapters
        moved = self._changes != Changes.count
        self._changes = Changes.count
        for name, version in [*self._resident.items()]:
            if name is None:
                continue
            adapter = adapters.get(name)
            if adapter is None or adapter is not version.adapter or (moved and content_id(adapter) != version.id):
                version.error = HalkaError(f"adapter {name!r} was changed or removed while a request used it")
                del self._resident[name]

    # ── loading ─────────────────────────────────────────────────────────────────────────────────────────────────

    def prepare(self, waiting: Iterable[Version]) -> None:
        """Load what waits, in this order: files are read in the background, then the model takes what they hold."""
        for version in dict.fromkeys(waiting):
            if version.here or version.error is not None or version.folder is None:
                continue
            if version.reading is None:
                version.reading = self._reader.submit(_read, version)
            elif version.reading.done():
                self._load(version)

    def wait(self, versions: Iterable[Version]) -> None:
        """Wait until one of those that are read has been."""
        for version in versions:
            if version.reading is not None and not version.here and version.error is None:
                version.reading.exception()
                return

    def used(self, version: Version) -> None:
        """It is the last that is evicted."""
        if version in self._own:
            self._own.remove(version)
            self._own.append(version)

    def close(self) -> None:
        """Take what was loaded here out of the model."""
        self._reader.shutdown(cancel_futures=True)
        for version in [*self._own]:
            self._evict(version)

    def _load(self, version: Version) -> None:
        assert version.reading is not None
        assert version.folder is not None
        try:
            version.reading.result()
            if not self._make_room(version.bytes):
                return
            version.key = _free_name(version, self.model)
            adapter = load(self.model, version.folder, name=version.key, **self._allowed)
            self._describe(version, adapter)
            version.here = True
            self.loads += 1
            self._own.append(version)
        except (HalkaError, OSError) as error:
            version.error, version.reading = error, None

    def _make_room(self, bytes: int) -> bool:
        """Evict what no request needs, the longest unused first. Raises HalkaError for more than the whole budget."""
        if bytes > self.budget:
            raise HalkaError(f"it takes {bytes:,} bytes, over the engine's budget for adapters of {self.budget:,}")
        for version in [version for version in self._own if not version.users]:
            if self._bytes + bytes <= self.budget:
                break
            self._evict(version)
        return self._bytes + bytes <= self.budget

    @property
    def _bytes(self) -> int:
        return sum(version.bytes for version in self._own)

    def _evict(self, version: Version) -> None:
        assert version.key is not None
        self._own.remove(version)
        version.here, version.reading, version.virtual, version.adapter = False, None, None, None
        if version.key in self.model.adapters:
            self.model.remove(version.key)

    def _describe(self, version: Version, adapter: Adapter) -> None:
        """What the engine needs to know of an adapter in the model."""
        version.id = content_id(adapter) if version.id is None else version.id
        version.room = context(self.model, version.key)
        version.exclusive = any(isinstance(part, WeightPart) for part in adapter.parts.values())
        version.shift = _shift(adapter)
        version.adapter = adapter
        with torch.inference_mode(), self.model.use(None):
            version.virtual = _virtual(self.model, adapter)


def content_id(adapter: Adapter) -> str:
    """The hash of an adapter's method and values: equal content has an equal id."""
    digest = hashlib.blake2b(repr(adapter.method).encode(), digest_size=32)
    for key, tensor in sorted(adapter.state_dict().items()):
        digest.update(f"{key} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


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


def _shift(adapter: Adapter) -> int:
    parts = [part for part in adapter.parts.values() if isinstance(part, VirtualPart) and part.takes_positions]
    return sum(part.virtual().shape[0] for part in parts)


def _virtual(model: AdaptedModel, adapter: Adapter) -> Tensor | None:
    """Keys and values (P, 2·L, H, W) of a prefix, or of a prompt, which the bare base reads."""
    reader: Any = next(target.module for target in model.targets if target.role == "memory")
    base: Any = model.base
    for path, part in adapter.parts.items():
        role = adapter.targets[path].role
        if isinstance(part, VirtualPart) and role in ("memory", "embed"):
            virtual = part.virtual()
            pairs = reader.read(virtual[None])[0] if role == "embed" else virtual
            return pairs.detach().to(base.dtype)
    return None

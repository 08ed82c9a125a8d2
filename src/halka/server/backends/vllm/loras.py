"""`Loras`: what adapters' names mean now, each content in a folder that vLLM reads, under a name that has its id.

vLLM knows a LoRA by name and path and never looks again: another content needs another name and another path.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from asyncio import Lock
from collections import Counter
from collections.abc import Collection, Container, Iterable
from functools import partial
from pathlib import Path

from anyio import CancelScope, to_thread

from halka.engine import AsyncEngine
from halka.engine.adapters import Source
from halka.merging.exporting import check_served, export
from halka.server.backends.router import Declined
from halka.server.resources.adapter_files import content_id
from halka.storage.adapter_folder import AdapterFolder
from halka.storage.card import CARD
from halka.storage.save_load import is_as_saved
from halka.util.errors import HalkaError, UnknownAdapterError
from halka.util.files import new_folder

IDLE = 3600.0  # seconds
NAME = re.compile("halka-[0-9a-f]{64}")
HALF_WRITTEN = re.compile(rf"\.{NAME.pattern}\.[0-9a-f]+")


def lora_of(id: str) -> str:
    """What vLLM calls the content of this id."""
    return f"halka-{id}"


class Loras:
    """The LoRAs of a server's adapters, which vLLM reads: the store's own files where they are as `export` writes them.

    store   where adapters are, by name
    folder  where vLLM reads them
    limit   bytes that the folder may hold beside the store's, but for what answers need
    idle    seconds after which nothing is kept of an adapter that nobody asks for
    """

    def __init__(self, engine: AsyncEngine, store: Source, folder: Path, limit: int):
        self.engine, self.store, self.folder, self.limit = engine, store, folder, limit
        self.wanted = Counter[str]()  # what vLLM calls the contents that names mean, and how many names
        self.held = 0  # bytes of these that are not the store's files
        self._sizes = dict[str, int]()  # of each LoRA in the folder
        self._ids = dict[str, str]()  # what each name meant at its last request
        self._asked, self.idle = dict[str, float](), IDLE  # when that was, by `time.monotonic`; the latest comes last
        self._declined = dict[str, str]()  # why vLLM does not serve the content of an id
        self._changing = Lock()

    async def id_of(self, adapter: str) -> str:
        """The id of an adapter's content now, which is written. Raises Declined for one that is no LoRA for vLLM."""
        self._asked.pop(adapter, None)
        self._asked[adapter] = time.monotonic()
        try:
            id, written = await to_thread.run_sync(self._now, adapter)
            if id not in self._declined and not (written and id == self._ids.get(adapter)):
                if not written:
                    await self.engine.load(adapter)  # as strictly as for an answer of its own
                async with self._changing:
                    with CancelScope(shield=True):  # whoever waits: nothing else changes while it is written
                        if not self._is_written(id):
                            id = await self.engine.call(partial(self._write, adapter))
                        if (lora := lora_of(id)) not in self._sizes:
                            self._sizes[lora] = await to_thread.run_sync(self._own_bytes, lora)
                    self._means(adapter, id)
        except (HalkaError, OSError) as error:  # the engine says the same of it
            raise Declined(str(error)) from None
        if (reason := self._declined.get(id)) is not None:
            self._means(adapter, None)
            raise Declined(reason)
        return id

    def decline(self, id: str, reason: str) -> None:
        """From now on the engine answers for this content."""
        self._declined[id] = reason

    async def forget(self) -> None:
        """The names of adapters that the store has no more, or that nobody has asked for, mean nothing from now on."""
        async with self._changing:
            removed = await to_thread.run_sync(self._removed, [*self._ids])
            since = time.monotonic() - self.idle
            for name in {*removed, *(name for name, asked in self._asked.items() if asked < since)}:
                self._means(name, None)
                self._asked.pop(name, None)

    async def trim(self, needed: Container[str]) -> None:
        """The names that were asked for the longest ago mean nothing from now on, until the others fit the limit.

        Those whose LoRA is needed stay; what is needed may change meanwhile.
        """
        async with self._changing:
            for name in [*self._asked]:
                if self.held <= self.limit:
                    return
                if self._takes_room(name, needed):
                    self._means(name, None)
                    del self._asked[name]

    def can_trim(self, needed: Container[str]) -> bool:
        """Whether `trim` would change anything."""
        return self.held > self.limit and any(self._takes_room(name, needed) for name in self._asked)

    def _takes_room(self, name: str, needed: Container[str]) -> bool:
        """Whether its LoRA has bytes that are not the store's, and no answer needs it."""
        id = self._ids.get(name)
        return id is not None and self._sizes[lora_of(id)] > 0 and lora_of(id) not in needed

    async def remove_folders(self, used: Collection[str]) -> None:
        """Remove those that are neither wanted nor used."""
        async with self._changing:
            kept = {*self.wanted, *used}
            await to_thread.run_sync(self._remove_but, kept)
            self._sizes = {lora: size for lora, size in self._sizes.items() if lora in kept}

    def _means(self, adapter: str, id: str | None) -> None:
        """From now on the name means this content; None: none of vLLM's."""
        if (before := self._ids.pop(adapter, None)) is not None:
            self.wanted[lora_of(before)] -= 1
            if not self.wanted[lora_of(before)]:
                del self.wanted[lora_of(before)]
                self.held -= self._sizes[lora_of(before)]
        if id is not None:
            self._ids[adapter] = id
            if lora_of(id) not in self.wanted:
                self.held += self._sizes[lora_of(id)]
            self.wanted[lora_of(id)] += 1

    def _removed(self, names: Iterable[str]) -> list[str]:
        removed = list[str]()
        for name in names:
            try:
                self.store.get(name)
            except UnknownAdapterError:
                removed.append(name)
            except (HalkaError, OSError):  # damaged: its requests fail
                continue
        return removed

    def _remove_but(self, kept: Collection[str]) -> None:
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            half_written = HALF_WRITTEN.fullmatch(path.name)  # by a server that was killed: nobody writes now
            if half_written or (NAME.fullmatch(path.name) and path.name not in kept):
                shutil.rmtree(path, ignore_errors=True)

    def _now(self, adapter: str) -> tuple[str, bool]:
        """The id of its content, and whether that is written."""
        id = content_id(self.store.get(adapter).folder)
        return id, self._is_written(id)

    def _is_written(self, id: str) -> bool:
        return (self.folder / lora_of(id)).is_dir()

    def _write(self, adapter: str) -> str:
        """Link or export it, on the engine's thread: it is the content that the engine has loaded. Returns its id."""
        version = self.engine.engine.adapters.version(adapter)
        if not version.here or version.id is None or version.key is None:
            raise HalkaError(f"adapter {adapter!r} was evicted, or replaced, while it was loaded")
        model, to = self.engine.engine.model, self.folder / lora_of(version.id)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            check_served(model, version.key)
            if not self._link(adapter, version.key, to):
                export(model, version.key, to, format="vllm", force=True)  # over the same content
        except HalkaError as error:
            self._declined[version.id] = str(error)
        return version.id

    def _link(self, adapter: str, key: str, to: Path) -> bool:
        """Whether the store's files are what `export` would write, and are the folder's now: hard links to them."""
        try:
            stored = AdapterFolder.open(self.store.get(adapter).folder)
            with new_folder(to) as beside, self.engine.engine.model.lock:
                for name in (stored.format.FILES.config, stored.weights.name, CARD):
                    os.link(stored.path / name, beside / name, follow_symlinks=False)
                if not is_as_saved(self.engine.engine.model, key, AdapterFolder.open(beside)):
                    raise HalkaError(f"{stored} is written otherwise than for vLLM")
        except (HalkaError, OSError):  # also a folder on another disk, and an adapter that is removed meanwhile
            return False
        return True

    def _own_bytes(self, lora: str) -> int:
        """Bytes of its folder that are not the store's."""
        folder = self.folder / lora
        files = [path.lstat() for path in folder.iterdir()] if folder.is_dir() else []
        return sum(file.st_size for file in files if file.st_nlink == 1)

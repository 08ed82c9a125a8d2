"""`Contents`: a replica's adapters, by the ids of their contents, in a folder of its own; the engine's store."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from anyio import to_thread

from halka.server.resources.adapter_files import ALLOWED
from halka.storage.adapter_folder import AdapterFolder
from halka.storage.adapter_store import Stored
from halka.util.errors import HalkaError, UnknownAdapterError

ID = re.compile("[0-9a-f]{64}")
Files = Mapping[str, bytes]


class Contents:
    """The folders of adapters that calls use, or that are in memory.

    loaded  whether an id's content is in memory
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.loaded: Callable[[str], bool] = lambda id: False
        self._users, self._changing = Counter[str](), asyncio.Lock()

    def get(self, name: str) -> Stored:
        """As `AdapterStore.get`; the name is an id."""
        if not self._path(name).is_dir():
            raise UnknownAdapterError(f"adapter {name!r} is not here")
        return Stored(name, 1, self._path(name), (), None)

    @asynccontextmanager
    async def using(self, id: str | None, files: Awaitable[Files] | None) -> AsyncIterator[None]:
        """Within the block the content is in its folder, where `files` are waited for if it is not yet.

        Raises HalkaError for files whose content has another id.
        """
        if id is None:
            yield
            return
        self._users[id] += 1
        try:
            async with self._changing:
                if not self._path(id).is_dir():
                    assert files is not None, "an adapter comes with its files"
                    await to_thread.run_sync(self._write, id, await files)
            yield
        finally:
            self._users -= Counter({id: 1})

    def _path(self, id: str) -> Path:
        assert ID.fullmatch(id), "an id is a hash"
        return self.folder / id

    def _write(self, id: str, files: Files) -> None:
        """Write and verify files, and remove the folders that nobody needs any more."""
        for path in [*self.folder.iterdir()] if self.folder.is_dir() else []:
            if not self._users[path.name] and not self.loaded(path.name):
                shutil.rmtree(path, ignore_errors=True)
        beside = self.folder / f".{id}"
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        for name, content in files.items():
            if name not in ALLOWED:
                raise HalkaError(f"{name!r} is no file of an adapter")
            (beside / name).write_bytes(content)
        if (own := AdapterFolder.open(beside).id) != id:
            raise HalkaError(f"the files of adapter {id!r} have another content ({own}): send the request again")
        beside.rename(self._path(id))

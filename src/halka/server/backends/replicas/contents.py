"""`Contents`: a replica's adapters, by the ids of their contents, in a folder of its own; the engine's store."""

from __future__ import annotations

import asyncio
import re
import shutil
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from anyio import to_thread

from halka.server.backends.replicas.wire import FilesLost
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
        self._users, self._writing = Counter[str](), dict[str, asyncio.Task[None]]()

    def get(self, name: str) -> Stored:
        """As `AdapterStore.get`; the name is an id."""
        if not self._path(name).is_dir():
            raise UnknownAdapterError(f"adapter {name!r} is not here")
        return Stored(name, 1, self._path(name), (), None)

    @asynccontextmanager
    async def using(self, id: str | None, files: Awaitable[Files] | None) -> AsyncIterator[None]:
        """Within the block the content is in its folder, where `files` are waited for if it is not yet.

        Raises HalkaError for files whose content has another id, FilesLost for files that do not come.
        """
        if id is None:
            yield
            return
        self._users[id] += 1  # from now on nobody removes the folder
        try:
            if not self._path(id).is_dir():
                if (writing := self._writing.get(id)) is None:
                    assert files is not None, "an adapter comes with its files"
                    writing = self._writing[id] = asyncio.create_task(self._fetch(id, files))
                    writing.add_done_callback(lambda task: self._written(id, task))
                await asyncio.shield(writing)  # others wait for it, too
            yield
        finally:
            self._users -= Counter({id: 1})

    def _path(self, id: str) -> Path:
        assert ID.fullmatch(id), "an id is a hash"
        return self.folder / id

    async def _fetch(self, id: str, files: Awaitable[Files]) -> None:
        try:
            content = await files
        except Exception as error:
            raise FilesLost(f"{type(error).__name__}: {error}") from error
        await to_thread.run_sync(self._write, id, content, self._put_aside())

    def _written(self, id: str, task: asyncio.Task[None]) -> None:
        del self._writing[id]
        if not task.cancelled():
            task.exception()  # perhaps all who waited for it have left

    def _put_aside(self) -> list[Path]:
        """Rename the folders that nobody needs any more; the event loop does it, as it counts the users."""
        aside = list[Path]()
        for path in [*self.folder.iterdir()] if self.folder.is_dir() else []:
            if ID.fullmatch(path.name) and not self._users[path.name] and not self.loaded(path.name):
                aside.append(path.rename(path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")))
        return aside

    def _write(self, id: str, files: Files, aside: Sequence[Path]) -> None:
        """Remove what was put aside, verify the files, and write them where they are not yet."""
        for path in aside:
            shutil.rmtree(path, ignore_errors=True)
        beside = self.folder / f".{id}.{uuid.uuid4().hex[:8]}"
        beside.mkdir(parents=True)
        try:
            for name, content in files.items():
                if name not in ALLOWED:
                    raise HalkaError(f"{name!r} is no file of an adapter")
                (beside / name).write_bytes(content)
            if (own := AdapterFolder.open(beside).id) != id:
                raise HalkaError(f"the files of adapter {id!r} have another content ({own}): send the request again")
            beside.rename(self._path(id))
        finally:
            shutil.rmtree(beside, ignore_errors=True)

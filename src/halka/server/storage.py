"""`Storage`: what a tenant has stored, and room that its requests and jobs hold in it, seen by every process.

tenants/acme/reserved/
  .lock      held while somebody looks for room
  3f2a…      the bytes that a request or a job holds, locked by its process: a killed one holds nothing
"""

from __future__ import annotations

import fcntl
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from halka.server.locks import locked, try_lock
from halka.util.errors import HalkaError


def seen_from(folder: Path, path: str) -> Path:
    """A path as it was written, as seen from the folder; `..` leads back as it is written, whatever is a link."""
    return Path(os.path.normpath(folder / path))


class StorageFullError(HalkaError):
    """A tenant may not store as much."""


@dataclass(frozen=True)
class Storage:
    """The folders whose files count as a tenant's, and the folder of what is reserved; none need exist."""

    folders: tuple[Path, ...]
    reserved: Path

    @classmethod
    def of(cls, described: Mapping[str, Any], folder: Path) -> Storage:
        """The one that was `described`, with the paths that are not whole as seen from this folder."""
        return cls(
            tuple(seen_from(folder, path) for path in described["folders"]), seen_from(folder, described["reserved"])
        )

    def described(self, write: Callable[[Path], str] = str) -> dict[str, Any]:
        """Itself as plain data, with its paths as `write` writes them."""
        return {"folders": [*map(write, self.folders)], "reserved": write(self.reserved)}

    def used(self) -> int:
        """The bytes that are reserved or stored; what is stored meanwhile counts at least once. It changes nothing."""
        return sum(bytes or 0 for _, bytes in self._reservations()) + bytes_below(self.folders)

    def check(self, limit: int | None) -> None:
        """Raises StorageFullError where what is stored comes to the limit, whatever is reserved."""
        if limit is not None and (stored := bytes_below(self.folders)) >= limit:
            raise _full(limit, f"{stored:,} are taken")

    def remove_stale(self) -> None:
        """Remove the reservations of killed processes. Nobody may be making one: `reserved` is locked meanwhile."""
        for path, bytes in self._reservations():
            if bytes is None:
                path.unlink(missing_ok=True)

    def _reservations(self) -> Iterator[tuple[Path, int | None]]:
        """Each reservation's file and its bytes; None where its process was killed, or has not locked it yet."""
        for path in self.reserved.glob("[!.]*"):
            with suppress(FileNotFoundError), path.open("rb") as file:
                yield path, None if try_lock(file.fileno(), fcntl.LOCK_SH) else int(file.read() or 0)


class Reservation:
    """Room for bytes that are on their way, until `end`. It holds none at first."""

    def __init__(self, storage: Storage):
        self.bytes, self._storage, self._path = 0, storage, storage.reserved / uuid.uuid4().hex
        self._file: int | None = None

    def grow(self, least: int, limit: int | None, most: int = 0) -> int:
        """Hold room for `least` more bytes, and for up to `most` where there is as much.

        Returns how many. Raises StorageFullError where the tenant would then have more than the limit; None: no limit.
        """
        with locked(self._storage.reserved):
            self._storage.remove_stale()
            more = max(least, most)
            if limit is not None:
                free = limit - (used := self._storage.used())
                if least > free:
                    raise _full(limit, f"{used:,} are taken, and {least:,} more do not fit")
                more = min(more, free)
            if self._file is None:
                self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
                fcntl.flock(self._file, fcntl.LOCK_EX)
            self.bytes += more
            os.pwrite(self._file, str(self.bytes).encode(), 0)
            return more

    def __enter__(self) -> Reservation:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Hold nothing any more."""
        if self._file is not None:
            file, self._file = self._file, None
            try:
                self._path.unlink(missing_ok=True)
            finally:
                os.close(file)  # and with it the lock: who looks for room removes what is left


def _full(limit: int, why: str) -> StorageFullError:
    return StorageFullError(f"{limit:,} bytes of adapters, documents and jobs is the limit: {why}; remove some")


def bytes_below(folders: Iterable[Path]) -> int:
    """The bytes of all files below these folders; links are not followed, and a file with several names counts once."""
    sizes = dict[tuple[int, int], int]()
    for path, _, files in chain.from_iterable(map(os.walk, folders)):
        for file in files:
            with suppress(FileNotFoundError):  # it was removed meanwhile
                status = os.lstat(os.path.join(path, file))
                sizes[status.st_dev, status.st_ino] = status.st_size
    return sum(sizes.values())

"""Qdrant's clients: of a server, and of a folder, which one process has open and its threads use one at a time."""

from __future__ import annotations

import os
import threading
import weakref
from pathlib import Path
from typing import Any

from halka.util.errors import HalkaError, StoreAwayError

WAIT = 30  # seconds for a server to answer
REFUSALS = {*range(400, 500)} - {401, 403, 408, 429}  # of what was asked for, not of who asks or when


class OfServer:
    """A server's client, whose methods raise StoreAwayError for a server that does not answer, or cannot work now, and
    HalkaError for what it refuses.
    """

    def __init__(self, client: Any, url: str):
        self._client, self._url = client, url

    def __getattr__(self, name: str) -> Any:
        from qdrant_client.common.client_exceptions import QdrantException
        from qdrant_client.http.exceptions import ApiException, UnexpectedResponse

        method = getattr(self._client, name)

        def call(*arguments: Any, **options: Any) -> Any:
            try:
                return method(*arguments, **options)
            except (ApiException, QdrantException) as error:
                status = error.status_code if isinstance(error, UnexpectedResponse) else None
                if status in REFUSALS:
                    raise HalkaError(f"Qdrant at {self._url} refuses this: {str(error).strip()}") from error
                raise StoreAwayError(
                    f"Qdrant at {self._url} cannot be used: {str(error).strip()}. Check that the server runs and is "
                    "reached from here; a key is read from QDRANT_API_KEY"
                ) from error

        return call


class OneThreadAtATime:
    """The client's local mode behind a lock: it is not safe with several threads."""

    def __init__(self, client: Any):
        self._client, self._lock = client, threading.RLock()
        weakref.finalize(self, client.close)

    def delete_collection(self, name: str) -> None:
        """Close the collection's database, which the client leaves open, and delete the collection."""
        with self._lock:
            own = self._client._client.collections.get(name)
            if own is not None:
                own.close()
            self._client.delete_collection(name)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(*arguments: Any, **options: Any) -> Any:
            with self._lock:
                return method(*arguments, **options)

        return call


_open_here: weakref.WeakValueDictionary[str, OneThreadAtATime] = weakref.WeakValueDictionary()
_opening = threading.Lock()


def local_client(folder: str) -> Any:
    """The client of a folder, one for the whole process. Raises HalkaError if another process has it open."""
    from qdrant_client import QdrantClient

    path = str(Path(folder).expanduser().resolve())
    with _opening:
        client = _open_here.get(path)
        if client is None:
            try:
                local = QdrantClient(path=path, force_disable_check_same_thread=True)
            except RuntimeError as error:
                raise HalkaError(
                    f"{folder} is open in another process, and only one can use Qdrant without a server: wait for it, "
                    f"or keep the collection on a server ({error})"
                ) from None
            client = _open_here[path] = OneThreadAtATime(local)
        return client


def remote_client(url: str) -> Any:
    """The client of a server; a key is read from QDRANT_API_KEY."""
    from qdrant_client import QdrantClient

    key = os.environ.get("QDRANT_API_KEY")
    return OfServer(QdrantClient(url, api_key=key, timeout=WAIT, check_compatibility=False), url)

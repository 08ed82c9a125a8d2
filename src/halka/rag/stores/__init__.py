"""Stores of passages: in a collection's folder (LanceDB), in PostgreSQL, in Qdrant; `store_at` opens one by its place.

A place is a text such as `postgresql://host/database` or `qdrant:http://host:6333`.
"""

from __future__ import annotations

import re
import secrets
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from halka.rag.store import INDEX_FROM, VectorStore
from halka.rag.stores.lance import LanceStore
from halka.util.errors import HalkaError

POSTGRES = ("postgresql://", "postgres://")
QDRANT = "qdrant:"
SECRETS = {
    *("password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key"),
    *("api_key", "api-key"),
}


def checked_address(at: str) -> str:
    """A place as a collection records it. Raises HalkaError for another text, and for one with a password or key."""
    parts = urlsplit(at.removeprefix(QDRANT))
    in_qdrant = at.startswith(QDRANT) and at != QDRANT and parts.scheme in ("http", "https", "")
    if not in_qdrant and not at.startswith(POSTGRES):
        raise HalkaError(
            f"{at!r} is no place to keep a collection: write postgresql://HOST/DATABASE, qdrant:http://HOST:6333 or "
            "qdrant:FOLDER"
        )
    if _has_a_secret(at):
        raise HalkaError(
            "a place is recorded in the collection's folder, so it must not have a password: leave it out and set "
            "PGPASSWORD, or write it into ~/.pgpass (for Qdrant, set QDRANT_API_KEY)"
        )
    if in_qdrant and not parts.scheme:
        return f"{QDRANT}{Path(at.removeprefix(QDRANT)).expanduser().resolve()}"
    return at


def _has_a_secret(at: str) -> bool:
    """Whether a place has a password or key, as the library that connects by it would read it."""
    if at.startswith(POSTGRES):
        try:
            from psycopg import ProgrammingError
            from psycopg.conninfo import conninfo_to_dict
        except ImportError:
            raise HalkaError("collections in PostgreSQL need the extra: pip install 'halka[postgres]'") from None
        try:
            return not SECRETS.isdisjoint(conninfo_to_dict(at))
        except ProgrammingError as error:
            reason = str(error).partition(":")[0].strip()  # what follows may be a piece of a password
            raise HalkaError(f"the place cannot be opened: {reason}. Write postgresql://HOST/DATABASE") from None
    parts = urlsplit(at.removeprefix(QDRANT))
    options = [*parse_qsl(parts.query), *parse_qsl(parts.fragment)]
    return bool(parts.scheme) and ("@" in at or any(key.lower() in SECRETS for key, _ in options))


def new_key(name: str) -> str:
    """A new collection's name at its place, which no other has, not even one of the same name in another folder."""
    return f"{re.sub('[^a-z0-9]+', '_', name.lower())[:30]}_{secrets.token_hex(6)}"


def store_at(at: str | None, key: str, folder: Path, width: int, *, exact: bool = False) -> VectorStore:
    """The store of a collection at a place; without one, in its folder. Raises HalkaError as the stores do.

    With `exact`, all vectors of a scope are compared, without an index.
    """
    if at is None:
        return LanceStore(folder, width, None if exact else INDEX_FROM)
    if at.startswith(QDRANT):
        from halka.rag.stores.qdrant import QdrantStore

        return QdrantStore(at.removeprefix(QDRANT), key, width, exact)
    from halka.rag.stores.postgres import PostgresStore

    return PostgresStore(at, key, width, None if exact else INDEX_FROM)

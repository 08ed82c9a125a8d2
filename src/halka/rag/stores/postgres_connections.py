"""Connections to a PostgreSQL server: threads that query at once have one each, and idle ones are used again."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from halka.util.errors import HalkaError, StoreAwayError

if TYPE_CHECKING:
    from psycopg import Connection

WAIT = 10  # seconds for a server to answer
# of libpq: a host that died is noticed as soon, by what it does not acknowledge
ALIVE = {"keepalives_idle": WAIT, "keepalives_interval": WAIT // 2, "keepalives_count": 2}
# 4 MB, the default, are too little to add up common words in memory. A larger setting of the server's stays.
MEMORY = """SELECT set_config(
    'work_mem', greatest(pg_size_bytes(current_setting('work_mem')), 64 * 1024 * 1024) / 1024 || 'kB', false)"""


class Connections:
    """Connections to the database at a URL; they are closed when this is collected."""

    def __init__(self, url: str):
        self._url = url
        self._idle: list[Connection[Any]] = []
        weakref.finalize(self, _close, self._idle)

    def __str__(self) -> str:
        """The database's name for messages, without a password."""
        where = self._url.partition("://")[2].rpartition("@")[2].partition("?")[0]
        return f"PostgreSQL at {where}"

    @contextmanager
    def one(self) -> Iterator[Connection[Any]]:
        """A connection for the caller alone.

        Raises StoreAwayError for a server that does not answer, or cannot work now, and HalkaError for what it has no
        room for in a row or an index, also in what the caller does with the connection.
        """
        from psycopg import OperationalError, errors

        try:
            connection = self._alive() or self._connect()
            try:
                yield connection
            finally:
                if not connection.closed:
                    self._idle.append(connection)
        except errors.ProgramLimitExceeded as error:
            raise HalkaError(f"{self} cannot keep this: {first_line(error)}") from error
        except (OperationalError, errors.ReadOnlySqlTransaction, errors.IdleInTransactionSessionTimeout) as error:
            raise StoreAwayError(
                f"{self} cannot be used: {first_line(error)}. Check that the server runs and is reached from here; a "
                "password is read from PGPASSWORD or ~/.pgpass"
            ) from error

    def _alive(self) -> Connection[Any] | None:
        """An idle connection that the server has not closed."""
        from psycopg import OperationalError

        while self._idle:
            try:
                connection = self._idle.pop()
            except IndexError:  # another thread took it
                break
            try:
                connection.execute("SELECT 1")
            except OperationalError:
                connection.close()
            else:
                return connection
        return None

    def _connect(self) -> Connection[Any]:
        from psycopg import connect
        from psycopg.conninfo import conninfo_to_dict

        options = {"connect_timeout": WAIT, "tcp_user_timeout": 1000 * WAIT, **ALIVE} | conninfo_to_dict(self._url)
        connection = connect(**options, autocommit=True, prepare_threshold=None)  # type: ignore[arg-type]
        connection.execute(MEMORY)
        return connection


def first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _close(connections: list[Connection[Any]]) -> None:
    for connection in connections:
        connection.close()

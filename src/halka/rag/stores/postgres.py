"""A collection's passages in PostgreSQL with pgvector: three tables of its own, for many processes and machines.

`documents` has a row a document; `passages` has the passages' texts, words and vectors; `words` is the inverted index
that BM25 reads (`postgres_statements.py`). Every change is one transaction, and an advisory lock lets one writer of a
collection work at a time; every query is one statement, so that it sees all of a change or none. The scope is part of
each statement, and BM25 counts words within it, so that passages which the caller may not read do not affect a ranking.

Vectors are compared one by one, exactly, up to `index_from` passages; `tidy` then gives them an HNSW index. A scope of
up to `narrow` passages is still searched exactly, and so is one in which the index finds fewer than were asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, LiteralString

import numpy as np
import regex

from halka.rag.passages import Passage
from halka.rag.store import BM25_B, BM25_K1, INDEX_FROM, NARROW, Document, Entry, Found, Scope, below, last_of_each
from halka.rag.stores import postgres_statements as statements
from halka.rag.stores.postgres_connections import Connections, first_line
from halka.util.errors import HalkaError

if TYPE_CHECKING:
    from psycopg import Connection
    from psycopg.sql import Composed

SCHEMA = "halka"
WIDEST = 4000  # numbers in a vector that pgvector indexes
BUILDING = 2**21  # kilobytes of memory for making an index, at most
FILTERING = (0, 8)  # the first pgvector whose index goes on where a filter leaves out too many
NAME = re.compile(r"[A-Za-z0-9_-]{1,50}")  # of a table's name, PostgreSQL reads 63 characters


class PostgresStore:
    """Implements `store.VectorStore` in a database."""

    def __init__(self, url: str, name: str, width: int, index_from: int | None = INDEX_FROM, narrow: int = NARROW):
        """Open or make the tables called `name` in a database (`postgresql://host/database`), for vectors of `width`.

        index_from  passages from which vectors are indexed, by pgvector 0.8 or newer; None: searches are always exact
        narrow      passages in a scope that is searched exactly in spite of the index

        Creates the extension `vector` if it is missing. Raises HalkaError if the extra `postgres` is missing, for a
        server that lacks pgvector, and for vectors of another width; StoreAwayError, as every method does, for one that
        does not answer.
        """
        try:
            import psycopg
            from psycopg import sql
        except ImportError:
            raise HalkaError("collections in PostgreSQL need the extra: pip install 'halka[postgres]'") from None
        if not NAME.fullmatch(name):
            raise HalkaError(f"{name!r} cannot name tables: use up to 50 letters, digits, dashes and underscores")
        self._url, self._name, self._width, self._sql = url, name, width, sql
        self._index_from, self._narrow = index_from, narrow
        self._connections = Connections(url)
        try:
            self._open()
        except psycopg.errors.FeatureNotSupported as error:
            raise HalkaError(f"{self} lacks pgvector: install it on the server ({first_line(error)})") from None
        except psycopg.errors.InsufficientPrivilege as error:
            raise HalkaError(
                f"{self} does not let this user make or upgrade a collection's tables ({first_line(error)}): let its "
                "administrator run CREATE EXTENSION vector, and GRANT CREATE ON DATABASE to the user; tables of an "
                "older version are upgraded when their owner opens the collection"
            ) from None
        except psycopg.ProgrammingError as error:
            raise HalkaError(f"{self} cannot be used: {first_line(error)}") from error

    def __str__(self) -> str:
        return str(self._connections)

    def _open(self) -> None:
        with self._change(of_all=True) as connection:
            row = connection.execute(
                "SELECT atttypmod FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attname = 'vector'",
                [self._name_of("{passages}")],
            ).fetchone()
            if row is None:
                for statement in statements.BEGIN:
                    connection.execute(self._query(statement))
            is_older = row is not None and self._is_older(connection)
        if row is not None and row[0] != self._width:
            raise HalkaError(
                f"{self} holds vectors of width {row[0]} for {self._name}, not {self._width}: another embedder made "
                "them. Open the collection with its own"
            )
        if is_older:
            self._upgrade()

    def _is_older(self, connection: Connection[Any]) -> bool:
        """Whether an older version made the tables, without an inverted index."""
        # Not by to_regclass of the words' table: a connection keeps a name that it has not found.
        asked = "SELECT FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attname = 'block'"
        return connection.execute(asked, [self._name_of("{documents}")]).fetchone() is None

    def _upgrade(self) -> None:
        """Give the tables of an older version their inverted index; who searches this collection waits meanwhile.

        Their own index of words goes first, in a transaction of its own: a search holds `passages` while it waits for
        `documents`, so that whoever has `documents` must not wait for all of `passages`.
        """
        with self._change() as connection:
            for (index,) in connection.execute(statements.OLD_INDEX, [self._name_of("{passages}")]).fetchall():
                connection.execute(self._sql.SQL("DROP INDEX {}").format(self._sql.Identifier(SCHEMA, index)))
        with self._change() as connection:
            older = self._is_older(connection)  # another process may have upgraded them
            for statement in statements.UPGRADE if older else ():
                connection.execute(self._query(statement))

    # ── changes ─────────────────────────────────────────────────────────────────────────────────────────────────

    def put(self, entries: Sequence[Entry]) -> None:
        """Raises HalkaError for a document whose name has a zero byte, which PostgreSQL's texts cannot have."""
        documents, passages, entries = [], [], last_of_each(entries)
        for entry in entries:
            about = entry.document
            if "\0" in about.name:
                raise HalkaError(f"{about.name!r} cannot name a document in PostgreSQL: leave out the zero byte")
            documents.append({**vars(about), "readers": [*about.readers], "tags": [*about.tags]})
            documents[-1]["passages"] = len(entry.passages)
            for passage, vector in zip(entry.passages, entry.vectors, strict=True):
                texts = {name: _storable(getattr(passage, name)) for name in ("text", "heading")}
                texts["searched"] = _worded(passage.searched)
                passages.append({**vars(passage), **texts, "vector": vector.astype(np.float32).tolist()})
        names = [entry.document.name for entry in entries]
        with self._change() as connection, connection.cursor() as cursor:
            self._remove(connection, names)
            block, filled = cursor.execute(self._query(statements.LAST_BLOCK)).fetchone() or (0, 0)
            for document in documents:
                block, filled = (block, filled) if filled < statements.BLOCK else (block + 1, 0)
                document["block"], filled = block, filled + document["passages"]
            cursor.executemany(self._query(statements.PUT_DOCUMENT), documents)
            cursor.executemany(self._query(statements.PUT_PASSAGE), passages)
            cursor.execute(self._query(statements.PUT_LENGTHS), {"names": names})
            cursor.execute(self._query(statements.ADD_WORDS, statements.PUT_WORDS), {"names": names})

    def set_access(self, names: Sequence[str], readers: tuple[str, ...], tags: tuple[str, ...]) -> None:
        values = {"names": _possible(names), "readers": [*readers], "tags": [*tags]}
        with self._change() as connection:
            connection.execute(self._query(statements.SET_ACCESS), values)

    def remove(self, names: Sequence[str]) -> int:
        with self._change() as connection:
            return self._remove(connection, _possible(names))

    def _remove(self, connection: Connection[Any], names: list[str]) -> int:
        ids = [id for (id,) in connection.execute(self._query(statements.IDS), {"names": names})]
        if not ids:
            return 0
        connection.execute(self._query(statements.REMOVE_WORDS), {"names": names, "ids": ids})
        row = connection.execute(self._query(statements.REMOVE), {"names": names}).fetchone()
        return int(row[0]) if row else 0

    def tidy(self) -> None:
        """Let the server reuse the space of removed rows now, and index the vectors once there are many.

        Making the index takes a minute or two for a hundred thousand passages. Readers and writers go on meanwhile.
        """
        with self._connections.one() as connection:
            connection.execute(self._query("VACUUM (ANALYZE, SKIP_LOCKED) {documents}, {passages}, {words}"))
            if self._index_from is None:
                connection.execute(self._query(statements.DROP_INDEX))
            elif self._to_index(connection):
                self._index()

    def _to_index(self, connection: Connection[Any]) -> int:
        """How many passages are to be indexed; none where they are few, or indexed."""
        index = {"index": self._name_of("{index}")}
        passages, indexed = connection.execute(self._query(statements.TO_INDEX), index).fetchone() or (0, False)
        is_due = not indexed and self._index_from is not None and passages >= self._index_from and self._width <= WIDEST
        return passages if is_due else 0

    def _index(self) -> None:
        """Make the index, unless another process is at it."""
        from psycopg.errors import DiskFull

        with self._connections.one() as connection, closing(connection):  # its settings and lock end with it
            version = connection.execute("SELECT extversion FROM pg_extension WHERE extname = 'vector'").fetchone()
            turn = [f"{SCHEMA}.{self._name}.vectors"]
            mine = connection.execute("SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", turn).fetchone()
            if version is None or tuple(map(int, version[0].split(".")[:2])) < FILTERING or mine != (True,):
                return
            if not (passages := self._to_index(connection)):
                return
            memory = min(BUILDING, 2**16 + passages * (2 * self._width + 512) // 1024)
            connection.execute(self._sql.SQL("SET maintenance_work_mem = {}").format(memory))
            connection.execute(self._query(statements.DROP_INDEX))  # what a process that was ended left unfinished
            try:
                connection.execute(self._query(statements.INDEX))
            except DiskFull:  # perhaps of shared memory, which workers need: a container has 64 MB
                connection.execute("SET max_parallel_maintenance_workers = 0")
                connection.execute(self._query(statements.DROP_INDEX))
                connection.execute(self._query(statements.INDEX))

    def drop(self) -> None:
        with self._change() as connection:
            connection.execute(self._query("DROP TABLE IF EXISTS {passages}, {documents}, {words}"))

    # ── questions ───────────────────────────────────────────────────────────────────────────────────────────────

    def documents(self, scope: Scope | None = None) -> list[Document]:
        where: LiteralString = "" if scope is None else f" WHERE {statements.SCOPE}"
        rows = self._ask(f"{statements.DOCUMENTS}{where} ORDER BY name", {} if scope is None else _values(scope))
        return [
            Document(name, digest, tuple(readers), tuple(tags), added, count)
            for name, digest, readers, tags, added, count in rows
        ]

    def nearest(self, vector: np.ndarray, count: int, scope: Scope) -> list[Found]:
        values = _values(scope) | {"vector": vector.astype(np.float32).tolist(), "count": count}
        more: LiteralString = ", vector_send(p.vector), 1.0 - near.away"
        return [_found(row) for row in self._by_index(values, more) or self._ask(statements.NEAREST, values, more)]

    def matching(self, words: str, count: int, scope: Scope) -> list[Found]:
        """BM25 over PostgreSQL's `english` stems; a word's rarity counts within the scope."""
        values = _values(scope) | {"words": _worded(words), "count": count, "k1": BM25_K1, "b": BM25_B}
        return [_found(row) for row in self._ask(statements.MATCHING, values, ", vector_send(p.vector), best.score")]

    def passages(self, document: str, numbers: Iterable[int], scope: Scope) -> list[Passage]:
        values = _values(scope) | {"document": document, "numbers": [int(number) for number in numbers]}
        return [_passage(row) for row in self._ask(statements.SOME, values)]

    # ── inside ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _by_index(self, values: dict[str, Any], more: LiteralString) -> list[tuple[Any, ...]]:
        """The nearest passages' rows by the index; none where an exact search is due."""
        if self._index_from is None or "\0" in values["under"]:
            return []
        with self._connections.one() as connection, connection.transaction():
            limits = {"index": self._name_of("{index}"), "narrow": self._narrow}
            (passages,) = connection.execute(self._query(statements.IN_INDEX), values | limits).fetchone() or (0,)
            if passages <= self._narrow:
                return []
            connection.execute(statements.BY_INDEX)
            rows = connection.execute(self._query(statements.INDEXED, more), values, binary=True).fetchall()
        return rows if len(rows) >= values["count"] else []

    def _name_of(self, table: LiteralString) -> str:
        return self._query(table).as_string(None)

    def _ask(self, statement: LiteralString, values: dict[str, Any], more: LiteralString = "") -> list[tuple[Any, ...]]:
        if any("\0" in value for value in values.values() if isinstance(value, str)):
            return []  # no text in PostgreSQL has a zero byte
        with self._connections.one() as connection:
            return connection.execute(self._query(statement, more), values, binary=True).fetchall()

    def _query(self, statement: LiteralString, more: LiteralString = "") -> Composed:
        """Insert the tables' names into a statement."""
        return self._sql.SQL(statement).format(
            schema=self._sql.Identifier(SCHEMA),
            documents=self._sql.Identifier(SCHEMA, f"{self._name}.documents"),
            passages=self._sql.Identifier(SCHEMA, f"{self._name}.passages"),
            words=self._sql.Identifier(SCHEMA, f"{self._name}.words"),
            index=self._sql.Identifier(SCHEMA, f"{self._name}.vectors"),
            new_index=self._sql.Identifier(f"{self._name}.vectors"),
            block=self._sql.Literal(statements.BLOCK),
            width=self._sql.Literal(self._width),
            more=self._sql.SQL(more),
        )

    @contextmanager
    def _change(self, *, of_all: bool = False) -> Iterator[Connection[Any]]:
        """A transaction that excludes the collection's other writers, or with `of_all` those who make collections."""
        with self._connections.one() as connection, connection.transaction():
            turn = SCHEMA if of_all else f"{SCHEMA}.{self._name}"
            connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [turn])
            yield connection


def _values(scope: Scope) -> dict[str, Any]:
    under = {"under": scope.under.rstrip("/"), "below": below(scope.under) if scope.under else ""}
    return {"readers": sorted(scope.readers), "tags": sorted(scope.tags), **under}


def _passage(row: Sequence[Any]) -> Passage:
    document, number, text, start, end, page, heading, readers = row
    return Passage(document, number, text, start, end, page, heading, tuple(readers))


def _found(row: Sequence[Any]) -> Found:
    *passage, vector, score = row
    numbers = np.frombuffer(vector, ">f4", offset=4).astype(np.float32)  # pgvector writes the width before them
    return Found(_passage(passage), float(score), numbers)


def _possible(names: Iterable[str]) -> list[str]:
    """The names that PostgreSQL's texts can hold: those without a zero byte."""
    return [name for name in names if "\0" not in name]


def _storable(text: str) -> str:
    """The text with U+FFFD in place of zero bytes, which PostgreSQL's texts cannot have."""
    return text.replace("\0", "\ufffd")


def _worded(text: str) -> str:
    """The text as its words are indexed: without other scripts' punctuation, which PostgreSQL may take for letters."""
    return regex.sub(r"[^\w\x01-\x7f]", " ", text)

"""A collection's passages in PostgreSQL with pgvector: two tables of its own, for any number of processes and machines.

`documents` has what is said of each document, once; `passages` their texts, words and vectors. Every change is one
transaction, and writers of a collection take turns by an advisory lock; every question is one statement, so that it
sees all of a change or nothing. The scope is part of each statement, and words are weighed within it: how rare a word
is among what the caller may not read has no part in a ranking.

Vectors are compared one by one, without an index over them. So what is found is exact under every scope, which an HNSW
index with a filter is not, and some ten thousand passages are compared in some ten milliseconds.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, LiteralString

import numpy as np

from halka.rag.passages import Passage
from halka.rag.store import BM25_B, BM25_K1, Document, Entry, Found, Scope, below, last_of_each
from halka.util.errors import HalkaError

if TYPE_CHECKING:
    from psycopg import Connection
    from psycopg.sql import Composed

SCHEMA = "halka"
WAIT = 10  # seconds for a server to answer
NAME = re.compile(r"[A-Za-z0-9_-]{1,50}")  # of a table's name, PostgreSQL reads 63 characters

BEGIN: tuple[LiteralString, ...] = (
    "CREATE EXTENSION IF NOT EXISTS vector",
    "CREATE SCHEMA IF NOT EXISTS {schema}",
    """CREATE TABLE {documents} (
        name text COLLATE "C" PRIMARY KEY, digest text NOT NULL, readers text[] NOT NULL, tags text[] NOT NULL,
        added text NOT NULL, passages int NOT NULL, length bigint NOT NULL DEFAULT 0)""",
    """CREATE TABLE {passages} (
        document text COLLATE "C" REFERENCES {documents} ON DELETE CASCADE, number int, text text NOT NULL,
        "start" int NOT NULL, "end" int NOT NULL, page int, heading text NOT NULL,
        words tsvector NOT NULL, length int NOT NULL, vector vector({width}) NOT NULL,
        PRIMARY KEY (document, number))""",
    "ALTER TABLE {passages} ALTER COLUMN vector SET STORAGE MAIN",  # beside the row, where a scan reads it fastest
    "CREATE INDEX ON {documents} USING gin (readers, tags)",
    "CREATE INDEX ON {passages} USING gin (words)",
)
PUT_DOCUMENT: LiteralString = """INSERT INTO {documents} (name, digest, readers, tags, added, passages)
    VALUES (%(name)s, %(digest)s, %(readers)s, %(tags)s, %(added)s, %(passages)s)"""
PUT_PASSAGE: LiteralString = """INSERT INTO {passages}
    SELECT %(document)s, %(number)s, %(text)s, %(start)s, %(end)s, %(page)s, %(heading)s, words,
        (SELECT coalesce(sum(cardinality(positions)), 0) FROM unnest(words)), %(vector)s::real[]::vector
    FROM to_tsvector('pg_catalog.english', %(searched)s) AS words"""
PUT_LENGTHS: LiteralString = """UPDATE {documents} AS d SET length = total
    FROM (SELECT document, sum(length) AS total FROM {passages} WHERE document = ANY(%(names)s) GROUP BY document) AS p
    WHERE d.name = p.document"""
SET_ACCESS: LiteralString = """UPDATE {documents} SET readers = %(readers)s, tags = %(tags)s
    WHERE name = ANY(%(names)s)"""
REMOVE: LiteralString = """WITH gone AS (DELETE FROM {documents} WHERE name = ANY(%(names)s) RETURNING passages)
    SELECT coalesce(sum(passages), 0) FROM gone"""

DOCUMENTS: LiteralString = "SELECT name, digest, readers, tags, added, passages FROM {documents} AS d"
SCOPE: LiteralString = """d.readers && %(readers)s::text[] AND d.tags @> %(tags)s::text[]
    AND (d.name = %(under)s OR starts_with(d.name, %(below)s))"""
PASSAGES: LiteralString = """SELECT p.document, p.number, p.text, p."start", p."end", p.page, p.heading, d.readers{more}
    FROM {passages} AS p JOIN {documents} AS d ON d.name = p.document"""
SOME: LiteralString = f"{PASSAGES} WHERE {SCOPE} AND d.name = %(document)s AND p.number = ANY(%(numbers)s) ORDER BY 2"
NEAREST: LiteralString = f"""WITH near AS (
        SELECT p.document, p.number, p.vector <=> %(vector)s::real[]::vector AS away
        FROM {{passages}} AS p JOIN {{documents}} AS d ON d.name = p.document
        WHERE {SCOPE} ORDER BY away, p.document, p.number LIMIT %(count)s)
    {PASSAGES} JOIN near USING (document, number) ORDER BY away, p.document, p.number"""
# `asked` has the question's words and how often each is in it, `hits` the passages' that are among them.
MATCHING: LiteralString = f"""WITH
    asked AS MATERIALIZED (
        SELECT lexeme, cardinality(positions) AS times
        FROM unnest(to_tsvector('pg_catalog.english', %(words)s))),
    any_of AS MATERIALIZED (
        SELECT string_agg('''' || replace(replace(lexeme, '\\', '\\\\'), '''', '''''') || '''', ' | ')::tsquery AS query
        FROM asked),
    whole AS MATERIALIZED (
        SELECT sum(d.passages)::float8 AS count, sum(d.length)::float8 / nullif(sum(d.passages), 0) AS length
        FROM {{documents}} AS d WHERE {SCOPE}),
    hits AS MATERIALIZED (
        SELECT p.document, p.number, p.length, word.lexeme, cardinality(word.positions) AS times
        FROM {{passages}} AS p JOIN {{documents}} AS d ON d.name = p.document, unnest(p.words) AS word
        WHERE p.words @@ (SELECT query FROM any_of) AND {SCOPE} AND word.lexeme IN (SELECT lexeme FROM asked)),
    weights AS (
        SELECT hits.lexeme, asked.times * ln(1 + (whole.count - count(*) + 0.5) / (count(*) + 0.5)) AS weight
        FROM hits JOIN asked USING (lexeme), whole GROUP BY hits.lexeme, asked.times, whole.count),
    best AS (
        SELECT hits.document, hits.number, sum(weight * hits.times * (%(k1)s + 1.0) / (
            hits.times + %(k1)s * (1.0 - %(b)s + %(b)s * hits.length / whole.length))) AS score
        FROM hits JOIN weights USING (lexeme), whole GROUP BY hits.document, hits.number
        ORDER BY score DESC, hits.document, hits.number LIMIT %(count)s)
    {PASSAGES} JOIN best USING (document, number) ORDER BY score DESC, p.document, p.number"""


class PostgresStore:
    """Implements `store.VectorStore` in a database."""

    def __init__(self, url: str, name: str, width: int):
        """A database by its URL (`postgresql://host/database`), what the tables are called there, the vectors' width.

        Tables, and the extension `vector`, are made if they are not there. Raises ValueError where the extra
        `postgres` is missing, for a server that does not answer or lacks pgvector, and for another width.
        """
        try:
            import psycopg
            from psycopg import sql
        except ImportError:
            raise HalkaError("collections in PostgreSQL need the extra: pip install 'halka[postgres]'") from None
        if not NAME.fullmatch(name):
            raise HalkaError(f"{name!r} cannot name tables: use up to 50 letters, digits, dashes and underscores")
        self._url, self._name, self._width, self._sql = url, name, width, sql
        self._idle: list[Connection[Any]] = []
        weakref.finalize(self, _close, self._idle)
        try:
            self._open()
        except psycopg.errors.FeatureNotSupported as error:
            raise HalkaError(f"{self} lacks pgvector: install it on the server ({_first_line(error)})") from None
        except psycopg.errors.InsufficientPrivilege as error:
            raise HalkaError(
                f"{self} does not let this user make tables for a collection ({_first_line(error)}): let its "
                f"administrator run CREATE EXTENSION vector, and GRANT CREATE ON DATABASE to the user"
            ) from None
        except (psycopg.OperationalError, psycopg.ProgrammingError) as error:
            raise HalkaError(
                f"{self} cannot be opened: {_first_line(error)}. Check that the server runs and is reached from here; "
                "a password is read from PGPASSWORD or ~/.pgpass"
            ) from error

    def __str__(self) -> str:
        """The database as it is told to people, without a password."""
        where = self._url.partition("://")[2].rpartition("@")[2].partition("?")[0]
        return f"PostgreSQL at {where}"

    def _open(self) -> None:
        with self._change(of_all=True) as connection:
            found = connection.execute(
                "SELECT atttypmod FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attname = 'vector'",
                [self._query("{passages}").as_string(connection)],
            ).fetchone()
            if found is None:
                for statement in BEGIN:
                    connection.execute(self._query(statement))
        if found is not None and found[0] != self._width:
            raise HalkaError(
                f"{self} holds vectors of width {found[0]} for {self._name}, not {self._width}: another embedder made "
                "them. Open the collection with its own"
            )

    # ── changes ─────────────────────────────────────────────────────────────────────────────────────────────────

    def put(self, entries: Sequence[Entry]) -> None:
        """Raises ValueError for a document whose name has a zero byte, which no text in PostgreSQL can have."""
        documents, passages, entries = [], [], last_of_each(entries)
        for entry in entries:
            about = entry.document
            if "\0" in about.name:
                raise HalkaError(f"{about.name!r} cannot name a document in PostgreSQL: leave out the zero byte")
            documents.append({**vars(about), "readers": [*about.readers], "tags": [*about.tags]})
            documents[-1]["passages"] = len(entry.passages)
            for each, vector in zip(entry.passages, entry.vectors, strict=True):
                texts = {name: _storable(getattr(each, name)) for name in ("text", "heading", "searched")}
                passages.append({**vars(each), **texts, "vector": vector.astype(np.float32).tolist()})
        names = [entry.document.name for entry in entries]
        with self._change() as connection, connection.cursor() as cursor:
            cursor.execute(self._query(REMOVE), {"names": names})
            cursor.executemany(self._query(PUT_DOCUMENT), documents)
            cursor.executemany(self._query(PUT_PASSAGE), passages)
            cursor.execute(self._query(PUT_LENGTHS), {"names": names})

    def set_access(self, names: Sequence[str], readers: tuple[str, ...], tags: tuple[str, ...]) -> None:
        values = {"names": _known(names), "readers": [*readers], "tags": [*tags]}
        with self._change() as connection:
            connection.execute(self._query(SET_ACCESS), values)

    def remove(self, names: Sequence[str]) -> int:
        with self._change() as connection:
            found = connection.execute(self._query(REMOVE), {"names": _known(names)}).fetchone()
        return int(found[0]) if found else 0

    def tidy(self) -> None:
        """Let the server reuse what was removed; it does so by itself, too, in its own time."""
        with self._connection() as connection:
            connection.execute(self._query("VACUUM (ANALYZE, SKIP_LOCKED) {documents}, {passages}"))

    def drop(self) -> None:
        with self._change() as connection:
            connection.execute(self._query("DROP TABLE IF EXISTS {passages}, {documents}"))

    # ── questions ───────────────────────────────────────────────────────────────────────────────────────────────

    def documents(self, scope: Scope | None = None) -> list[Document]:
        where: LiteralString = "" if scope is None else f" WHERE {SCOPE}"
        rows = self._ask(f"{DOCUMENTS}{where} ORDER BY name", {} if scope is None else _values(scope))
        return [
            Document(name, digest, tuple(readers), tuple(tags), added, count)
            for name, digest, readers, tags, added, count in rows
        ]

    def nearest(self, vector: np.ndarray, count: int, scope: Scope) -> list[Found]:
        values = _values(scope) | {"vector": vector.astype(np.float32).tolist(), "count": count}
        return [_found(row) for row in self._ask(NEAREST, values, ", vector_send(p.vector), 1.0 - near.away")]

    def matching(self, words: str, count: int, scope: Scope) -> list[Found]:
        """Words are PostgreSQL's `english` stems, and how rare they are is counted within the scope."""
        values = _values(scope) | {"words": words.replace("\0", " "), "count": count, "k1": BM25_K1, "b": BM25_B}
        return [_found(row) for row in self._ask(MATCHING, values, ", vector_send(p.vector), best.score")]

    def passages(self, document: str, numbers: Iterable[int], scope: Scope) -> list[Passage]:
        values = _values(scope) | {"document": document, "numbers": [int(number) for number in numbers]}
        return [_passage(row) for row in self._ask(SOME, values)]

    # ── inside ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _ask(self, statement: LiteralString, values: dict[str, Any], more: LiteralString = "") -> list[tuple[Any, ...]]:
        if any("\0" in value for value in values.values() if isinstance(value, str)):
            return []  # no text here has it
        with self._connection() as connection:
            return connection.execute(self._query(statement, more), values, binary=True).fetchall()

    def _query(self, statement: LiteralString, more: LiteralString = "") -> Composed:
        """A statement with the tables' names in their places."""
        return self._sql.SQL(statement).format(
            schema=self._sql.Identifier(SCHEMA),
            documents=self._sql.Identifier(SCHEMA, f"{self._name}.documents"),
            passages=self._sql.Identifier(SCHEMA, f"{self._name}.passages"),
            width=self._sql.Literal(self._width),
            more=self._sql.SQL(more),
        )

    @contextmanager
    def _change(self, *, of_all: bool = False) -> Iterator[Connection[Any]]:
        """A transaction, alone among the collection's writers, or among those who make collections."""
        with self._connection() as connection, connection.transaction():
            turn = SCHEMA if of_all else f"{SCHEMA}.{self._name}"
            connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [turn])
            yield connection

    @contextmanager
    def _connection(self) -> Iterator[Connection[Any]]:
        """A connection of one's own for a while; threads that ask at once have one each."""
        connection = self._alive() or self._connect()
        try:
            yield connection
        finally:
            if not connection.closed:
                self._idle.append(connection)

    def _alive(self) -> Connection[Any] | None:
        """One that idles, if the server has not closed it since."""
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

        options = {"connect_timeout": WAIT} | conninfo_to_dict(self._url)
        return connect(**options, autocommit=True, prepare_threshold=None)  # type: ignore[arg-type]


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


def _known(names: Iterable[str]) -> list[str]:
    """Names that a document here can have."""
    return [name for name in names if "\0" not in name]


def _storable(text: str) -> str:
    """No text in PostgreSQL has zero bytes; the sign for what cannot be told is as long as one."""
    return text.replace("\0", "\ufffd")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _close(connections: list[Connection[Any]]) -> None:
    for connection in connections:
        connection.close()

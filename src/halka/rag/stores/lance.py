"""A collection's passages in LanceDB: one table in a folder, no server, safe with several processes.

Every passage is a row that repeats its document's fields, so one commit writes a document's passages and removes the
older ones. A lock beside the table lets one writer work at a time; readers need no lock.

Vectors are compared one by one, exactly, up to `index_from` passages; `tidy` then gives them an IVF index. A scope of
up to `narrow` passages is still searched exactly, and so is one in which the index finds fewer than were asked for.
Readers and writers go on while an index is made, under a lock of its own. Until it is there nobody may compact the
table or delete files that no version of it has, as the new index's are: who makes the index does both at the end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import regex
from filelock import FileLock, Timeout

from halka.rag.passages import Passage
from halka.rag.store import INDEX_FROM, NARROW, Document, Entry, Found, Scope, last_of_each
from halka.rag.stores.lance_filters import array, one_of, quoted, where_of
from halka.util.errors import DamagedFolderError, HalkaError
from halka.util.files import held_if_writable

T = TypeVar("T")
TABLE = "passages"
TRIES = 5
INDEX, WORDS = "vector_idx", "words_idx"
OLD_WORDS = "searched_idx"  # of before 2026-11-30, over texts as they are written
LONGEST = 200  # bytes of a word that is indexed
SILENT = r"[[\p{M}\p{Cf}]--\p{Alphabetic}]"  # marks and joiners at which LanceDB ends words, such as Bengali's
UNINDEXED = 20_000  # passages of which a search by words, which reads their texts one by one, takes half a second
PROBES, REFINED = 20, 2  # parts of the index that are searched; candidates that are compared in full, per passage
PIECES = 16  # of an index, at most: each change adds one, which costs a search 0.3 ms
PASSAGE = ["document", "number", "text", "start", "end", "page", "heading", "readers"]
DOCUMENT = ["document", "digest", "readers", "tags", "added"]


def _schema(width: int) -> pa.Schema:
    texts = ("id", "document", "digest", "added", "text", "heading", "searched")
    return pa.schema(
        [
            *(pa.field(name, pa.string(), nullable=False) for name in texts),
            *(pa.field(name, pa.list_(pa.string())) for name in ("readers", "tags")),
            *(pa.field(name, pa.int64()) for name in ("number", "start", "end", "page", "of")),
            pa.field("vector", pa.list_(pa.float32(), width)),
        ]
    )


class LanceStore:
    """Implements `store.VectorStore` in a folder."""

    def __init__(
        self,
        folder: str | Path,
        width: int,
        index_from: int | None = INDEX_FROM,
        narrow: int = NARROW,
        unindexed: int = UNINDEXED,
    ):
        """Open or make the table, for vectors of `width`.

        index_from  passages from which vectors are indexed; None: searches are always exact
        narrow      passages in a scope that is searched exactly in spite of the index
        unindexed   passages that wait for `tidy` to be taken into the indexes; where there are more, `put` does it

        Raises HalkaError if the extra `rag` is missing, and for a table with vectors of another width;
        DamagedFolderError, as every query does, for files that cannot be read.
        """
        try:
            import lancedb
        except ImportError:
            raise HalkaError("collections of documents need the extra: pip install 'halka[rag]'") from None
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.folder / f".{TABLE}.lock")  # not the collection's, whose holder calls this
        self._indexing = FileLock(self.folder / f".{TABLE}.index.lock")  # taken before the other by who waits for both
        self._width, self._index_from, self._narrow, self._waiting = width, index_from, narrow, unindexed
        self._schema = _schema(width)
        self._database: Any = lancedb.connect(self.folder, read_consistency_interval=timedelta(0))
        self._table: Any = self._opened()
        if self._table.schema.field("vector").type != self._schema.field("vector").type:
            raise HalkaError(f"{self.folder} holds vectors of another width than {width}: another embedder made them")

    def _opened(self) -> Any:
        """The table with its indexes; makes what is missing, after a crash or in a table of an older version."""
        from lancedb.index import FTS, LabelList

        with held_if_writable(self._lock) as held:
            if TABLE in self._database.list_tables().tables:
                with self._readable():
                    table = self._database.open_table(TABLE)
                if not held:
                    return table
            else:
                table = self._database.create_table(TABLE, schema=self._schema)
            if not table.schema.field("id").metadata:
                table.set_unenforced_primary_key("id")
            existing = {index.name for index in table.list_indices()}
            if WORDS not in existing:
                plain = f"regexp_replace(searched, '{SILENT}', '', 'g')"
                table.update(f"searched != {plain}", values_sql={"searched": plain})
                table.create_index("searched", config=FTS(with_position=False, max_token_length=LONGEST), name=WORDS)
            for labels in ("readers", "tags"):
                if f"{labels}_idx" not in existing:
                    table.create_index(labels, config=LabelList())
            if OLD_WORDS in existing:
                table.drop_index(OLD_WORDS)
            return table

    # ── changes ─────────────────────────────────────────────────────────────────────────────────────────────────

    def put(self, entries: Sequence[Entry]) -> None:
        if not entries:
            return
        rows: dict[str, list[Any]] = {name: [] for name in self._schema.names}
        entries = last_of_each(entries)
        for entry in entries:
            for passage, vector in zip(entry.passages, entry.vectors, strict=True):
                about = {
                    **{name: getattr(passage, name) for name in ("id", *PASSAGE)},
                    "searched": _plain(passage.searched),
                    **{name: getattr(entry.document, name) for name in DOCUMENT[1:]},
                    "of": len(entry.passages),
                    "vector": vector.astype(np.float32),
                }
                for name, value in about.items():
                    rows[name].append(value)
        names = [entry.document.name for entry in entries]
        with self._lock:
            (
                self._table.merge_insert("id")
                .when_matched_update_all()
                .when_not_matched_insert_all()
                .when_not_matched_by_source_delete(one_of("document", names))
                .execute(pa.table(rows, schema=self._schema))
            )
            if self._table.index_stats(WORDS).num_unindexed_rows > self._waiting:
                self._forget()

    def set_access(self, names: Sequence[str], readers: tuple[str, ...], tags: tuple[str, ...]) -> None:
        if names:
            with self._lock:
                self._table.update(
                    one_of("document", names), values_sql={"readers": array(readers), "tags": array(tags)}
                )

    def remove(self, names: Sequence[str]) -> int:
        if not names:
            return 0
        with self._lock:
            where = one_of("document", names)
            count = self._table.count_rows(where)
            self._table.delete(where)
            # A second fragment: Lance rewrites a lone one only where a tenth of it is deleted, else it hides the rows.
            for row in self._table.search().select(["id"]).limit(1).to_list():
                self._table.update(one_of("id", [row["id"]]), values_sql={"of": "of"})
            self._forget()
        return count

    def tidy(self) -> None:
        """Take new rows into the indexes, delete what was removed from the disk, and index many vectors.

        Making that index takes some five seconds for a hundred thousand passages. Readers and writers go on meanwhile.
        """
        with self._lock:
            unindexed = self._unindexed()
            self._forget()
        if self._is_due(unindexed):
            self._index()

    def drop(self) -> None:
        with self._indexing, self._lock:
            self._database.drop_table(TABLE, ignore_missing=True)

    def _forget(self) -> None:
        """Delete older versions of the table, with their text, from the disk; their readers query again (`_ask`).

        The caller holds the lock. While an index is being made this is left to who makes it.
        """
        try:
            with self._indexing.acquire(blocking=False):
                self._compact()
        except Timeout:
            return

    def _compact(self) -> None:
        self._table.optimize()
        time.sleep(0.002)  # so that the rewritten files are older than the limit below
        self._table.optimize(cleanup_older_than=timedelta(milliseconds=1), delete_unverified=True)

    def _stats(self) -> Any:
        """What the index over vectors has; None if there is none."""
        return self._table.index_stats(INDEX)

    def _unindexed(self) -> int:
        """How many rows the index over vectors lacks."""
        return self._table.count_rows() if (stats := self._stats()) is None else stats.num_unindexed_rows

    def _is_due(self, unindexed: int) -> bool:
        """Whether the index is to be made, made anew, or dropped.

        It is made anew if it has too many pieces, or if most of its rows came at once, after its parts were chosen.
        """
        rows, stats = self._table.count_rows(), self._stats()
        if self._index_from is None or rows < self._index_from:
            return self._index_from is None and stats is not None
        return stats is None or stats.num_indices > PIECES or 2 * unindexed > rows

    def _index(self) -> None:
        """Make the index, or drop it where all searches are exact, unless another process is at it."""
        try:
            self._indexing.acquire(blocking=False)
        except Timeout:
            return
        try:
            if self._index_from is None:
                self._table.drop_index(INDEX)
            else:
                self._table.create_index("vector", config=_index_of(self._width), name=INDEX)
        finally:
            with self._lock:  # whoever removes something either did so before this, or finds the index's lock free
                try:
                    self._compact()
                finally:
                    self._indexing.release()

    # ── questions ───────────────────────────────────────────────────────────────────────────────────────────────

    def documents(self, scope: Scope | None = None) -> list[Document]:
        where = "number = 0" if scope is None else f"number = 0 AND {where_of(scope)}"
        rows = self._rows(lambda: self._table.search().where(where).select([*DOCUMENT, "of"]).limit(None))
        documents = [
            Document(row["document"], row["digest"], tuple(row["readers"]), tuple(row["tags"]), row["added"], row["of"])
            for row in rows
        ]
        return sorted(documents, key=lambda document: document.name)

    def nearest(self, vector: np.ndarray, count: int, scope: Scope) -> list[Found]:
        where, near = where_of(scope), vector.astype(np.float32)
        rows: list[dict[str, Any]] = []
        if self._index_from is not None and self._ask(lambda: self._table.count_rows(where)) > self._narrow:
            rows = self._nearest(near, count, where, by_index=True)
        if len(rows) < count:
            rows = self._nearest(near, count, where, by_index=False)
        return [Found(_passage(row), 1.0 - row["_distance"], row["vector"]) for row in rows]

    def _nearest(self, vector: np.ndarray, count: int, where: str, *, by_index: bool) -> list[dict[str, Any]]:
        """The nearest passages' rows, with their true distances."""

        def query() -> Any:
            search = self._table.search(vector).distance_type("cosine").where(where, prefilter=True)
            search = search.select([*PASSAGE, "vector", "_distance"]).limit(count)
            if not by_index:
                return search.bypass_vector_index()
            return search.minimum_nprobes(PROBES).maximum_nprobes(0).refine_factor(REFINED)  # 0: as many as it takes

        return self._rows(query)

    def matching(self, words: str, count: int, scope: Scope) -> list[Found]:
        from lancedb.query import MatchQuery

        query = MatchQuery(_plain(words), "searched")  # type: ignore[call-arg]
        fields = [*PASSAGE, "vector", "_score"]
        rows = self._rows(
            lambda: self._table.search(query).where(where_of(scope), prefilter=True).select(fields).limit(count)
        )
        return [Found(_passage(row), row["_score"], row["vector"]) for row in rows]

    def passages(self, document: str, numbers: Iterable[int], scope: Scope) -> list[Passage]:
        among = ", ".join(str(int(number)) for number in numbers)
        where = f"document = {quoted(document)} AND number IN ({among}) AND {where_of(scope)}"
        rows = self._rows(lambda: self._table.search().where(where).select(PASSAGE).limit(None)) if among else []
        return sorted((_passage(row) for row in rows), key=lambda passage: passage.number)

    def _rows(self, query: Callable[[], Any]) -> list[dict[str, Any]]:
        return self._ask(lambda: _rows(query().to_arrow()))

    def _ask(self, query: Callable[[], T]) -> T:
        """The answer of a query; repeats it if another process removed the version that it was reading."""
        with self._readable():
            for _ in range(TRIES - 1):
                try:
                    return query()
                except (OSError, RuntimeError, ValueError) as error:
                    if "not found" not in str(error).lower():
                        raise
            return query()

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """Raises DamagedFolderError for files that LanceDB cannot read; its own errors name lines of its code."""
        try:
            yield
        except (OSError, RuntimeError, ValueError) as error:
            if "not found" not in str(error).lower() and "LanceError(IO)" not in str(error):
                raise
            raise DamagedFolderError(
                f"{self.folder / TABLE}.lance cannot be read: the collection was removed meanwhile, or a file there is "
                "missing, damaged or closed to you. Restore it, or remove the folder and add the documents to a new "
                "collection"
            ) from error


def _index_of(width: int) -> Any:
    """Vectors in four bits a number, or in eight where the first cannot be: widths that are no multiple of eight."""
    from lancedb.index import IvfRq, IvfSq

    return IvfSq(distance_type="cosine") if width % 8 else IvfRq(distance_type="cosine", num_bits=4)


def _plain(text: str) -> str:
    """The text as its words are indexed: whole."""
    return regex.sub(f"(?V1){SILENT}", "", text)


def _passage(row: dict[str, Any]) -> Passage:
    fields: dict[str, Any] = {name: row[name] for name in PASSAGE}
    return Passage(**{**fields, "readers": tuple(row["readers"])})


def _rows(table: pa.Table) -> list[dict[str, Any]]:
    """A table's rows as dicts; vectors are views of one array, without a Python object for each number."""
    if "vector" not in table.column_names:
        return table.to_pylist()
    width = table.schema.field("vector").type.list_size
    vectors = table["vector"].combine_chunks().flatten().to_numpy().reshape(-1, width)
    rows = table.drop_columns("vector").to_pylist()
    return [{**row, "vector": vector} for row, vector in zip(rows, vectors, strict=True)]

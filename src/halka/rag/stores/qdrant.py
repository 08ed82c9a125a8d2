"""A collection's passages in Qdrant: on a server, or in a folder by the client's local mode, for one process at a time.

Qdrant changes points one by one and has no transactions. So each document has a point that names the current version
of its passages: the collection `documents` has these points, `passages` the passages of every version. A change first
puts the passages of a new version, which no query returns yet; then the document's point, which makes them current;
then it deletes the older version's passages. A query reads the documents' points after the passages and drops other
versions.

So a query always sees a whole document, the older or the newer version, after a crash and with any number of writers.
Several documents in one call change one after another, not in one step as in the other stores. No query returns
passages that a crash left behind, though they count in a word's rarity; `tidy` deletes them after LEFT seconds.

Words are sparse vectors (`bm25.py`), which Qdrant weighs by their rarity within the scope.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np

from halka.rag.passages import Passage
from halka.rag.store import Document, Entry, Found, Scope, below, last_of_each
from halka.rag.stores.bm25 import counted, weighed
from halka.rag.stores.qdrant_clients import local_client, remote_client
from halka.util.errors import HalkaError

T = TypeVar("T")
OLDEST = (1, 19)  # the first server that counts words within a filter and filters by prefixes
LEFT = 3600.0  # seconds after which passages that are not current are from a crash, not from a writer at work
AT_ONCE, TRIES = 256, 64
MEANING, WORDS = "meaning", "words"
PASSAGE = ["document", "number", "text", "start", "end", "page", "heading", "readers"]
DOCUMENT = ["name", "digest", "readers", "tags", "added", "passages"]
INDEXES = {
    "documents": {"name": "prefix", "readers": "keyword", "tags": "keyword"},
    "passages": {
        **{"document": "prefix", "readers": "keyword", "tags": "keyword", "version": "keyword"},
        **{"number": "integer", "since": "float"},
    },
}


class QdrantStore:
    """Implements `store.VectorStore` at a server's URL or in a folder."""

    def __init__(self, place: str, name: str, width: int, exact: bool = False):
        """Open or make a collection: `place` is a URL or a folder, `name` its name there, `width` that of the vectors.
        With `exact`, vectors are compared one by one, without the server's index.

        Raises HalkaError if the extra `qdrant` is missing, for a server that is too old, for a folder that another
        process has open, and for vectors of another width; StoreAwayError, as every method does, for a server that does
        not answer.
        """
        try:
            import snowballstemmer  # noqa: F401
            from qdrant_client import models
        except ImportError:
            raise HalkaError("collections in Qdrant need the extra: pip install 'halka[qdrant]'") from None
        self._place, self._width, self._exact, self._models = place, width, exact, models
        self._documents, self._passages = f"{name}-documents", f"{name}-passages"
        self._local = "://" not in place
        self._client: Any = local_client(place) if self._local else remote_client(place)
        self._open()

    def _open(self) -> None:
        m, client = self._models, self._client
        if not self._local:
            version = client.info().version
            if tuple(int(part) for part in version.split("-")[0].split(".")[:2]) < OLDEST:
                raise HalkaError(f"Qdrant at {self._place} is {version}: 1.19 or newer is needed")
        if not client.collection_exists(self._documents):
            client.create_collection(self._documents, vectors_config={})
        if not client.collection_exists(self._passages):
            client.create_collection(
                self._passages,
                vectors_config={MEANING: m.VectorParams(size=self._width, distance=m.Distance.COSINE)},
                sparse_vectors_config={WORDS: m.SparseVectorParams(modifier=m.Modifier.IDF)},
            )
        width = client.get_collection(self._passages).config.params.vectors[MEANING].size
        if width != self._width:
            raise HalkaError(
                f"Qdrant at {self._place} holds vectors of width {width} there, not {self._width}: another embedder "
                "made them. Open the collection with its own"
            )
        for kind, indexes in {} if self._local else INDEXES.items():
            where = self._documents if kind == "documents" else self._passages
            existing = client.get_collection(where).payload_schema
            for field, what in indexes.items():
                if field not in existing:
                    names = m.KeywordIndexParams(type=m.KeywordIndexType.KEYWORD, prefix=True)
                    client.create_payload_index(where, field, names if what == "prefix" else m.PayloadSchemaType(what))

    # ── changes ─────────────────────────────────────────────────────────────────────────────────────────────────

    def put(self, entries: Sequence[Entry]) -> None:
        """Put documents one after another, each whole (see the module's docstring)."""
        m, heads, points = self._models, [], []
        for entry in last_of_each(entries):
            version, document = uuid.uuid4().hex, entry.document
            about = {"readers": [*document.readers], "tags": [*document.tags], "version": version}
            head = {**vars(document), **about, "passages": len(entry.passages)}
            heads.append(m.PointStruct(id=_id(document.name), vector={}, payload=head))
            for passage, vector in zip(entry.passages, entry.vectors, strict=True):
                words = weighed(counted(passage.searched))
                payload = {**vars(passage), **about, "since": time.time()}
                vectors = {
                    MEANING: vector.astype(np.float32).tolist(),
                    WORDS: m.SparseVector(indices=[*words], values=[*words.values()]),
                }
                points.append(m.PointStruct(id=str(uuid.uuid4()), vector=vectors, payload=payload))
        for start in range(0, len(points), AT_ONCE):
            self._client.upsert(self._passages, points[start : start + AT_ONCE], wait=True)
        before = self._heads(head.payload["name"] for head in heads)
        for start in range(0, len(heads), AT_ONCE):
            self._client.upsert(self._documents, heads[start : start + AT_ONCE], wait=True)
        self._forget(head["version"] for head in before)

    def set_access(self, names: Sequence[str], readers: tuple[str, ...], tags: tuple[str, ...]) -> None:
        """Change the passages first, which queries filter by, then the documents' points.

        Meanwhile, or after a crash, some passages have the new access already. If another writer has put a newer
        version of a document, its point and access stay as they are.
        """
        m, access = self._models, {"readers": [*readers], "tags": [*tags]}
        heads = self._heads(names)
        for start in range(0, len(heads), AT_ONCE):
            some = heads[start : start + AT_ONCE]
            versions = self._any("version", [head["version"] for head in some])
            these = m.HasIdCondition(has_id=[_id(head["name"]) for head in some])
            self._client.set_payload(self._passages, access, m.Filter(must=[versions]), wait=True)
            self._client.set_payload(self._documents, access, m.Filter(must=[these, versions]), wait=True)

    def remove(self, names: Sequence[str]) -> int:
        heads = self._heads(names)
        if heads:
            self._client.delete(self._documents, [_id(head["name"]) for head in heads], wait=True)
            self._forget(head["version"] for head in heads)
        return sum(head["passages"] for head in heads)

    def tidy(self) -> None:
        """Delete what crashes left behind; Qdrant keeps its indexes up to date by itself."""
        m = self._models
        heads = self._scrolled(self._documents, None, ["version", "passages"])
        if self._client.count(self._passages).count == sum(head["passages"] for head in heads):
            return
        old = m.Filter(must=[m.FieldCondition(key="since", range=m.Range(lt=time.time() - LEFT))])
        kept = {passage["version"] for passage in self._scrolled(self._passages, old, ["version"])}
        live = {head["version"] for head in self._scrolled(self._documents, None, ["version"])}
        self._forget(kept - live)

    def drop(self) -> None:
        self._client.delete_collection(self._documents)
        self._client.delete_collection(self._passages)

    def _forget(self, versions: Iterable[str]) -> None:
        versions = list(versions)
        for start in range(0, len(versions), AT_ONCE):
            gone = self._models.Filter(must=[self._any("version", versions[start : start + AT_ONCE])])
            self._client.delete(self._passages, self._models.FilterSelector(filter=gone), wait=True)

    # ── questions ───────────────────────────────────────────────────────────────────────────────────────────────

    def documents(self, scope: Scope | None = None) -> list[Document]:
        where = None if scope is None else self._filter(scope, "name")
        heads = self._scrolled(self._documents, where, DOCUMENT)
        documents = (
            Document(**{**head, "readers": tuple(head["readers"]), "tags": tuple(head["tags"])}) for head in heads
        )
        return sorted(documents, key=lambda document: document.name)

    def nearest(self, vector: np.ndarray, count: int, scope: Scope) -> list[Found]:
        params = self._models.SearchParams(exact=self._exact)
        return self._found(vector.astype(np.float32).tolist(), MEANING, params, count, scope)

    def matching(self, words: str, count: int, scope: Scope) -> list[Found]:
        """BM25 with a word's rarity within the scope, and a fixed length in place of the average passage's."""
        m, asked = self._models, counted(words)
        if not asked:
            return []
        query = m.SparseVector(indices=[*asked], values=[float(times) for times in asked.values()])
        among = m.SearchParams(idf=m.IdfCorpusParams(corpus=self._filter(scope, "document")))
        return self._found(query, WORDS, among, count, scope)

    def passages(self, document: str, numbers: Iterable[int], scope: Scope) -> list[Passage]:
        m, among = self._models, sorted({int(number) for number in numbers})
        if not among:
            return []

        def ask(without: Iterable[str]) -> list[dict[str, Any]]:
            where = self._filter(scope, "document", without)
            where.must += [m.FieldCondition(key="document", match=m.MatchValue(value=document))]
            where.must += [m.FieldCondition(key="number", match=m.MatchAny(any=among))]
            return self._scrolled(self._passages, where, [*PASSAGE, "version"])

        payloads = self._live(ask, lambda payload: payload)
        return sorted((_passage(payload) for payload in payloads), key=lambda passage: passage.number)

    # ── inside ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _found(self, query: Any, using: str, params: Any, count: int, scope: Scope) -> list[Found]:
        def ask(without: Iterable[str]) -> list[Any]:
            where = self._filter(scope, "document", without)
            options = {"with_payload": [*PASSAGE, "version"], "with_vectors": [MEANING], "search_params": params}
            return self._client.query_points(
                self._passages, query, using=using, query_filter=where, limit=count, **options
            ).points

        return [
            Found(_passage(point.payload), float(point.score), np.asarray(point.vector[MEANING], np.float32))
            for point in self._live(ask, lambda point: point.payload, count)
        ]

    def _live(
        self, ask: Callable[[Iterable[str]], list[T]], payload: Callable[[T], dict[str, Any]], count: float = math.inf
    ) -> list[T]:
        """The passages of current versions among the results of `ask`, which searches for `count` of them.

        Reads the documents' points after the passages, and drops passages of other versions. Calls `ask` again, without
        those versions, if they displaced others, or if the results lack a current version, which may be newer than
        they are.
        """
        seen: dict[str, str] = {}
        without: set[str] = set()
        counted_before: set[str] = set()
        for _ in range(TRIES):
            hits = ask(without)
            versions = {payload(hit)["version"]: payload(hit)["document"] for hit in hits}
            seen |= versions
            live = {head["version"] for head in self._heads(seen.values())}
            late = live - versions.keys() - counted_before
            if not late and (versions.keys() <= live or len(hits) < count):
                break
            without, counted_before = seen.keys() - live, live
        return [hit for hit in hits if payload(hit)["version"] in live]

    def _heads(self, names: Iterable[str]) -> list[dict[str, Any]]:
        """The payloads of documents' points; documents without a point are left out."""
        ids = [_id(name) for name in dict.fromkeys(names)]
        return [
            point.payload
            for start in range(0, len(ids), AT_ONCE)
            for point in self._client.retrieve(
                self._documents, ids[start : start + AT_ONCE], with_payload=["name", "version", "passages"]
            )
        ]

    def _scrolled(self, where: str, filter: Any, fields: list[str]) -> list[dict[str, Any]]:
        payloads, offset = [], None
        while True:
            points, offset = self._client.scroll(
                where, scroll_filter=filter, limit=4 * AT_ONCE, offset=offset, with_payload=fields
            )
            payloads += [point.payload for point in points]
            if offset is None:
                return payloads

    def _filter(self, scope: Scope, name: str, without: Iterable[str] = ()) -> Any:
        """The scope as Qdrant's filter; `name` is the field with the document's name."""
        m = self._models
        must = [self._any("readers", scope.readers)]
        must += [m.FieldCondition(key="tags", match=m.MatchValue(value=tag)) for tag in sorted(scope.tags)]
        if scope.under:
            its, prefix = m.MatchValue(value=scope.under.rstrip("/")), m.MatchPrefix(prefix=below(scope.under))
            must.append(m.Filter(should=[m.FieldCondition(key=name, match=match) for match in (its, prefix)]))
        return m.Filter(must=must, must_not=[self._any("version", without)] if without else None)

    def _any(self, key: str, values: Iterable[str]) -> Any:
        return self._models.FieldCondition(key=key, match=self._models.MatchAny(any=sorted(values)))


def _id(document: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, document))


def _passage(payload: dict[str, Any]) -> Passage:
    fields: dict[str, Any] = {name: payload[name] for name in PASSAGE}
    return Passage(**{**fields, "readers": tuple(payload["readers"])})

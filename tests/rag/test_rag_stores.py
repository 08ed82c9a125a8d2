"""Stores of passages: each against its slow twins, with names that attack, many at once, and places to keep them."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import re
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lancedb
import numpy as np
import psycopg
import pytest
from filelock import FileLock
from lancedb.index import FTS
from qdrant_client import QdrantClient
from snowballstemmer import stemmer

from embedder_for_tests import WordEmbedder
from halka.rag import stores
from halka.rag.collection import Collection
from halka.rag.passages import Passage
from halka.rag.retrieve import Retriever
from halka.rag.store import EVERYONE, Document, Entry, Scope, VectorStore
from halka.rag.stores.bm25 import LENGTH
from halka.rag.stores.qdrant_clients import local_client, remote_client
from halka.util.errors import DamagedFolderError, HalkaError, StoreAwayError

WORDS = ["parcel", "parcels", "sent", "sending", "monday", "depot", "refund", "refunds", "nine", "days", "the", "of"]
WORDS += ["lost", "letter", "o'neil", "a.com/x?a=1&b=2"]
EMBEDDER = WordEmbedder()
EVERY = Scope(frozenset(["ada", "bob"]))


def entry(name: str, *texts: str, readers: Sequence[str] = (EVERYONE,), tags: Sequence[str] = ()) -> Entry:
    who = tuple(sorted(readers))
    passages = tuple(Passage(name, n, text, 0, len(text), None, "", who) for n, text in enumerate(texts))
    vectors = EMBEDDER.passages(texts)
    return Entry(Document(name, f"digest of {texts}", who, tuple(sorted(tags)), "now", len(texts)), passages, vectors)


def drawn(count: int = 60) -> list[Entry]:
    """Documents of one to three passages, with readers, tags and folders."""
    draw = random.Random(1)
    made = []
    for number in range(count):
        texts = [" ".join(draw.choices(WORDS, k=draw.randint(3, 30))) for _ in range(draw.randint(1, 3))]
        readers = draw.choice([["*"], ["ada"], ["bob"], ["ada", "bob"]])
        made.append(
            entry(f"{draw.choice(['a', 'b'])}/{number}", *texts, readers=readers, tags=draw.choice([[], ["x"]]))
        )
    return made


SCOPES = [
    Scope(),
    EVERY,
    Scope(frozenset(["ada"]), "a/"),
    Scope(frozenset(["bob"]), tags=frozenset(["x"])),
    Scope(under="b", tags=frozenset(["x"])),
    Scope(under="nothing"),
]


@pytest.fixture
def opened(at, tmp_path) -> Callable[..., VectorStore]:
    """Opens the store of a name at a place, anew each time."""
    salt = f"{zlib.crc32(str(tmp_path).encode())}"
    return lambda name="one", width=EMBEDDER.width: stores.store_at(at, f"{name}-{salt}", tmp_path / name, width)


@pytest.fixture
def store(opened) -> VectorStore:
    return opened()


def names(found) -> list[str]:
    return [each.passage.id for each in found]


def texts_of(store: VectorStore, document: str, scope: Scope = EVERY) -> list[str]:
    return [each.text for each in store.passages(document, range(9), scope)]


# ── what is found, and its slow twins ───────────────────────────────────────────────────────────────────────────────


def test_what_was_put_is_there_until_it_is_replaced_or_removed(store):
    first, second = entry("a", "one", "two", tags=["x"]), entry("b", "three", readers=["ada"])
    store.put([first, second])
    store.put([])
    assert store.documents() == [first.document, second.document]
    assert store.passages("a", [1, 0, 7], EVERY) == list(first.passages)
    assert store.passages("b", [0], Scope()) == store.passages("a", [], EVERY) == []
    (found,) = store.nearest(second.vectors[0], 1, EVERY)
    assert found.passage == second.passages[0]
    np.testing.assert_allclose(found.vector, second.vectors[0], atol=1e-6)
    store.put([entry("a", "four")])
    assert texts_of(store, "a") == ["four"]
    assert store.remove(["a", "nothing"]) == 1
    assert store.remove([]) == 0
    store.tidy()
    assert [each.name for each in store.documents()] == ["b"]
    assert names(store.nearest(second.vectors[0], 9, EVERY)) == ["b#0"]


def test_who_reads_changes_without_the_texts(store):
    first, second = entry("a", "parcel one", "parcel two", tags=["x"]), entry("b", "parcel", readers=["ada"])
    store.put([first, second])
    for readers, tags in ((("hr",), ("x", "y")), (("bob", "hr"), ()), (("hr",), ("z",))):
        store.set_access(["a", "nothing", "a\0"], readers, tags)
        store.tidy()
        hr = Scope(frozenset(["hr"]), tags=frozenset(tags))
        assert store.documents(hr) == [replace(first.document, readers=readers, tags=tags)]
        assert store.passages("a", [0, 1], hr) == [replace(each, readers=readers) for each in first.passages]
        for asked in (partial(store.matching, "parcel", 9), partial(store.nearest, first.vectors[0], 9)):
            assert sorted(names(asked(hr))) == ["a#0", "a#1"]
            assert names(asked(Scope(frozenset(["ada"])))) == ["b#0"]
            assert asked(Scope()) == asked(Scope(frozenset(["hr"]), tags=frozenset(["none"]))) == []
    store.set_access([], ("*",), ())
    assert store.documents(Scope()) == []


def test_of_documents_of_one_name_the_last_counts(store):
    store.put([entry("a", "older", "longer"), entry("b", "other"), entry("a", "newer")])
    assert [(each.name, each.passages) for each in store.documents()] == [("a", 1), ("b", 1)]
    assert texts_of(store, "a") == ["newer"]


@pytest.mark.parametrize("scope", SCOPES, ids=range(len(SCOPES)))
def test_the_nearest_are_those_of_the_highest_cosine(store, scope):
    entries = drawn()
    store.put(entries)
    for question in ("parcels sent on monday", "refund", "depot letter"):
        vector = EMBEDDER.query(question)
        cosines = {
            passage.id: float(its @ vector)
            for each in entries
            if scope.holds(each.document)
            for passage, its in zip(each.passages, each.vectors, strict=True)
        }
        found = store.nearest(vector, 10, scope)
        assert [each.score for each in found] == pytest.approx(sorted(cosines.values(), reverse=True)[:10], abs=1e-5)
        assert all(each.score == pytest.approx(cosines[each.passage.id], abs=1e-5) for each in found)


def bm25(question: Counter[str], passages: dict[str, Counter[str]], length: float | None = None) -> dict[str, float]:
    """Scores of passages by their words' counts; `length` is how long one is on average, if that is not counted."""
    lengths = {name: words.total() for name, words in passages.items()}
    average = length or sum(lengths.values()) / max(1, len(lengths))
    scores: dict[str, float] = {}
    for word, times in question.items():
        having = [name for name, words in passages.items() if words[word]]
        rare = math.log(1 + (len(passages) - len(having) + 0.5) / (len(having) + 0.5))
        for name in having:
            tf = passages[name][word]
            norm = 1.2 * (0.25 + 0.75 * lengths[name] / average)
            scores[name] = scores.get(name, 0.0) + times * rare * tf * 2.2 / (tf + norm)
    return scores


def words_of_postgres(url: str, text: str) -> Counter[str]:

    with psycopg.connect(url) as connection:
        asked = "SELECT lexeme, cardinality(positions) FROM unnest(to_tsvector('english', %s))"
        return Counter(dict(connection.execute(asked, [text]).fetchall()))


def words_of_qdrant(text: str) -> Counter[str]:
    stem = stemmer("english").stemWord
    return Counter(stem(word) for word in re.findall(r"\w+", text.lower()) if word not in ("of", "the", "on", "a"))


@pytest.mark.parametrize("scope", SCOPES, ids=range(len(SCOPES)))
def test_words_are_weighed_by_bm25_within_the_scope(store, at, scope):
    if at is None:
        pytest.skip("LanceDB has its own words, and counts them over all passages")
    entries = drawn()
    store.put(entries)
    held = [passage for each in entries if scope.holds(each.document) for passage in each.passages]
    words = words_of_qdrant if at.startswith("qdrant") else partial(words_of_postgres, at)
    length = LENGTH if at.startswith("qdrant") else None
    passages = {each.id: words(each.text) for each in held}
    for question in ("parcels sent on monday", "refund refunds", "o'neil a.com/x?a=1&b=2 of", "the", "unheard"):
        scores = bm25(words(question), passages, length)
        found = store.matching(question, 10, scope)
        assert [each.score for each in found] == pytest.approx(sorted(scores.values(), reverse=True)[:10], rel=1e-5)
        assert all(each.score == pytest.approx(scores[each.passage.id], rel=1e-5) for each in found)


def test_words_find_what_has_them_best_first(store):
    store.put([entry("a", "The parcel was sent."), entry("b", "Parcels, parcels, parcels!"), entry("c", "Nine days.")])
    assert names(store.matching("parcels", 9, EVERY)) == ["b#0", "a#0"]
    assert names(store.matching("parcels", 1, EVERY)) == ["b#0"]
    assert store.matching("unheard", 9, EVERY) == []


def test_words_are_whole_in_scripts_with_vowel_signs(store):
    store.put([entry("a", "বাংলা ভাষা"), entry("b", "কালী নদী"), entry("c", "किताब")])
    assert names(store.matching("কালী", 9, EVERY)) == ["b#0"]
    assert names(store.matching("किताब", 9, EVERY)) == ["c#0"]
    assert store.matching("ক", 9, EVERY) == []


def test_words_are_whole_at_viramas_joiners_and_other_punctuation(store):
    long = "দীর্ঘশব্দ" * 5  # more bytes than LanceDB takes for a word by itself
    store.put([entry("a", "এই প্রশ্ন হয়।"), entry("b", "প রশ ন"), entry("c", f"র\u200d্যাব {long}"), entry("d", "“sent”")])
    for question, found in [("প্রশ্ন", "a"), ("হয়", "a"), ("প", "b"), ("র\u200d্যাব", "c"), (long, "c"), ("sent", "d")]:
        assert names(store.matching(question, 9, EVERY)) == [f"{found}#0"]


def test_a_table_in_a_folder_gets_the_indexes_that_it_lacks(tmp_path):
    """One of an older version, or of a process that was killed as it made them."""
    indexing(None, tmp_path, "old").put([entry("a", "এই প্রশ্ন"), entry("b", "parcel")])
    table = lancedb.connect(tmp_path / "old").open_table("passages")
    for index in ("words_idx", "tags_idx"):
        table.drop_index(index)
    table.update("document = 'a'", {"searched": "এই প্রশ্ন"})
    table.create_index("searched", config=FTS(with_position=False))
    store = indexing(None, tmp_path, "old")
    assert names(store.matching("প্রশ্ন", 9, EVERY)) == ["a#0"]
    assert names(store.matching("parcels", 9, EVERY)) == ["b#0"]
    store.put([entry("c", "parcel")])
    indexes = lancedb.connect(tmp_path / "old").open_table("passages").list_indices()
    assert {index.name for index in indexes} == {"words_idx", "readers_idx", "tags_idx"}


@pytest.mark.parametrize("under", ["docs", "docs/", "docs/a", "docs/a/", "doc", "/", ""])
def test_a_path_ends_where_its_part_does(store, under):
    given = ["docs", "docs/a", "docs/a/b", "docs/ab", "docs2/a", "docs2", "/docs/a"]
    store.put([entry(name, f"parcel {name}") for name in given])
    expected = [name for name in sorted(given) if (name + "/").startswith(under.rstrip("/") + "/" if under else "")]
    scope = Scope(under=under)
    assert [each.name for each in store.documents(scope)] == expected
    assert [each.name for each in store.documents() if scope.holds(each)] == expected
    for found in (store.nearest(EMBEDDER.query("parcel"), 9, scope), store.matching("parcel", 9, scope)):
        assert sorted(each.passage.document for each in found) == expected


# ── what attacks ────────────────────────────────────────────────────────────────────────────────────────────────────

ATTACKS = [
    "'; DROP TABLE documents; --",
    '"; DROP SCHEMA halka CASCADE; --',
    "%s %(readers)s {passages} $1",
    "100%",
    "_",
    "a\\'b\\",
    "') OR ('1'='1",
    "parcel' | 'salary",
    "!salary & :*",
    "ünïcödé 文書 🙂",
    '{"must": []}',
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_text_is_a_text_wherever_it_stands(opened, attack):
    store, other = opened(), opened("other")
    other.put([entry("kept", "parcel")])
    secret, own = entry("secret", "salary", readers=["hr"]), entry(attack, f"{attack} zebra")
    store.put([secret, own])
    assert [each.name for each in store.documents()] == sorted(["secret", attack])
    assert store.documents(Scope(under=attack)) == [own.document]
    assert store.passages(attack, [0], Scope()) == list(own.passages)
    assert names(store.matching(f"{attack} zebra", 9, Scope())) == [f"{attack}#0"]
    assert names(store.matching(f"{attack} zebra", 9, Scope(under=attack))) == [f"{attack}#0"]
    for asked in (store.matching(attack, 9, Scope()), store.nearest(secret.vectors[0], 9, Scope(under=attack))):
        assert "secret#0" not in names(asked)
    assert store.remove([f"{attack}x"]) == 0
    assert store.remove([attack]) == 1
    assert [each.name for each in store.documents()] == ["secret"]
    assert [each.name for each in other.documents()] == ["kept"]


def test_a_zero_byte_opens_nothing(store):
    store.put([entry("secret", "salary", readers=["hr"]), entry("open", "par\0cel parcel")])
    assert names(store.matching("parcel\0salary", 9, Scope())) == ["open#0"]
    assert store.documents(Scope(under="secret\0")) == []
    assert store.nearest(EMBEDDER.query("salary"), 9, Scope(under="\0")) == []
    assert store.passages("secret\0", [0], EVERY) == []
    assert store.remove(["secret\0"]) == 0
    assert len(texts_of(store, "open")[0]) == len("par\0cel parcel")


# ── an index over vectors ───────────────────────────────────────────────────────────────────────────────────────────


def drawn_vectors(count: int, readers: Sequence[Sequence[str]]) -> list[Entry]:
    """Documents of one passage, each with a vector near one of a few, and with the readers in turn."""
    draw = np.random.default_rng(3)
    middles = draw.standard_normal((20, EMBEDDER.width))
    vectors = middles[draw.integers(0, 20, count)] + 0.7 * draw.standard_normal((count, EMBEDDER.width))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    turns = itertools.cycle(readers)
    made = (entry(f"a/{number}", "parcel", readers=next(turns)) for number in range(count))
    return [replace(each, vectors=vector[None]) for each, vector in zip(made, vectors, strict=True)]


def indexing(at: str | None, folder: Path, name: str, **options: Any) -> VectorStore:
    """A store in PostgreSQL or in a folder that indexes so many passages."""
    from halka.rag.stores.lance import LanceStore
    from halka.rag.stores.postgres import PostgresStore

    if at is None:
        return LanceStore(folder / name, EMBEDDER.width, **options)
    return PostgresStore(at, name, EMBEDDER.width, **options)


def rows_indexed(at: str | None, folder: Path, name: str) -> int:
    """How many rows the index over vectors has; 0 without one."""
    if at is not None:
        rows = rows_of(at, f"SELECT reltuples::int FROM pg_class WHERE relname = '{name}.vectors'")
        return rows[0][0] if rows else 0
    stats = lancedb.connect(folder / name).open_table("passages").index_stats("vector_idx")
    return 0 if stats is None else stats.num_indexed_rows


@pytest.mark.parametrize("kept", ["folder", "postgres"])
def test_many_vectors_are_indexed_and_what_the_reader_may_see_is_not_lost(kept, tmp_path, postgres):
    """Beside the exact twin: a recall of 0.97 and more; as many passages as were asked for, from any scope."""
    at = postgres if kept == "postgres" else None
    entries = drawn_vectors(1500, [["*"], *[["ada", "bob"]] * 4, *[["ada"]] * 10])
    exact = indexing(at, tmp_path, "indexed", index_from=None)
    exact.put(entries)
    store = indexing(at, tmp_path, "indexed", index_from=1500, narrow=200)
    exact.tidy()
    assert rows_indexed(at, tmp_path, "indexed") == 0
    store.tidy()
    store.tidy()
    assert rows_indexed(at, tmp_path, "indexed") == 1500
    store.put([replace(each, vectors=-each.vectors) for each in entries[:200]])  # after the index, too
    everyone, bob, ada = Scope(), Scope(frozenset(["bob"])), Scope(frozenset(["ada"]))
    questions = [each.vectors[0] for each in entries[::50]]
    for scope, count in ((ada, 10), (ada, 100), (bob, 10), (bob, 100), (bob, 499)):
        recalls = []
        for vector in questions:
            hits, truth = store.nearest(vector, count, scope), exact.nearest(vector, count, scope)
            assert len(hits) == count
            assert all(scope.readers & {*hit.passage.readers} for hit in hits)
            assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
            assert all(hit.score == pytest.approx(float(hit.vector @ vector), abs=1e-5) for hit in hits)
            recalls.append(len({*names(hits)} & {*names(truth)}) / count)
        assert np.mean(recalls) > 0.97
    for vector in questions:  # a narrow scope is searched exactly
        assert store.nearest(vector, 10, everyone) == exact.nearest(vector, 10, everyone)
    gone = names(store.nearest(questions[0], 9, ada))
    store.remove([name.partition("#")[0] for name in gone])
    assert {*gone}.isdisjoint(names(store.nearest(questions[0], 100, ada)))
    if at is None:
        without_its_index(tmp_path / "indexed", questions[0])
    else:
        del store
        assert uses_of_the_index(at, "indexed") >= len(questions)


def without_its_index(folder: Path, vector: np.ndarray) -> None:
    """A table whose index is damaged is searched exactly, and not by the index."""
    from halka.rag.stores.lance import LanceStore

    for path in folder.rglob("_indices/*/auxiliary.idx"):
        path.unlink()
    ada = Scope(frozenset(["ada"]))
    assert len(LanceStore(folder, EMBEDDER.width, index_from=1500, narrow=1500).nearest(vector, 9, ada)) == 9
    assert len(LanceStore(folder, EMBEDDER.width, index_from=None).nearest(vector, 9, ada)) == 9
    with pytest.raises(DamagedFolderError, match=r"cannot be read: .* a file there is missing"):
        LanceStore(folder, EMBEDDER.width, index_from=1500, narrow=200).nearest(vector, 9, ada)


def uses_of_the_index(url: str, name: str) -> int:
    (uses,) = rows_of(url, f"SELECT idx_scan FROM pg_stat_all_indexes WHERE indexrelname = '{name}.vectors'")[0]
    return uses


def test_while_an_index_is_made_in_a_folder_others_go_on(tmp_path):
    """What is removed meanwhile is out of reach at once, and off the disk when the index is there."""
    store = indexing(None, tmp_path, "long", index_from=40, narrow=5)
    store.put([*drawn_vectors(40, [["*"]]), entry("secret", "salamander")])

    def on_disk(word: bytes) -> bool:
        return any(word in path.read_bytes() for path in (tmp_path / "long").rglob("*") if path.is_file())

    with FileLock(tmp_path / "long" / ".passages.index.lock"):  # as whoever makes an index holds it
        store.tidy()
        assert rows_indexed(None, tmp_path, "long") == 0
        store.put([entry("b", "zebra")])
        store.remove(["secret"])
        assert names(store.matching("zebra salamander", 9, EVERY)) == ["b#0"]
        assert len(store.nearest(EMBEDDER.query("zebra"), 99, EVERY)) == 41
        assert on_disk(b"salamander")
    store.tidy()
    assert rows_indexed(None, tmp_path, "long") == 41
    assert not on_disk(b"salamander")


def test_indexes_in_a_folder_are_made_and_dropped_while_others_write(tmp_path):
    entries = drawn_vectors(300, [["*"]])
    indexing(None, tmp_path, "busy", index_from=50, narrow=5).put(entries[:100])

    def tidy(index_from: int | None) -> None:
        mine = indexing(None, tmp_path, "busy", index_from=index_from, narrow=5)
        for _ in range(6):
            mine.tidy()

    def write(some: list[Entry]) -> None:
        mine = indexing(None, tmp_path, "busy", index_from=50, narrow=5)
        for at in range(0, len(some), 20):
            mine.put(some[at : at + 20])
            mine.remove([each.document.name for each in some[at : at + 10]])
            assert len(mine.nearest(entries[0].vectors[0], 30, EVERY)) == 30

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(tidy, 50), pool.submit(tidy, None)]
        running += [pool.submit(write, some) for some in (entries[100:200], entries[200:])]
        for each in running:
            each.result()
    store = indexing(None, tmp_path, "busy", index_from=50, narrow=5)
    store.tidy()
    kept = [each.document.name for at, each in enumerate(entries) if at < 100 or at % 20 >= 10]
    assert [each.name for each in store.documents()] == sorted(kept)
    assert rows_indexed(None, tmp_path, "busy") == len(kept)
    assert len(store.nearest(entries[0].vectors[0], 999, EVERY)) == len(kept)


def test_while_many_are_put_into_a_folder_its_indexes_follow(tmp_path):
    store, unindexed = indexing(None, tmp_path, "many", unindexed=25), []
    for number in range(4):
        store.put([entry(f"{number}/{at}", f"parcel {number}") for at in range(10)])
        stats = lancedb.connect(tmp_path / "many").open_table("passages").index_stats("words_idx")
        unindexed.append(stats.num_unindexed_rows)
    assert unindexed == [10, 20, 0, 10]
    assert len(store.matching("parcel", 99, EVERY)) == 40


def test_an_index_in_a_folder_is_made_anew_before_it_has_many_pieces(tmp_path):
    from halka.rag.stores.lance import PIECES

    store = indexing(None, tmp_path, "pieces", index_from=40, narrow=5)
    store.put(drawn_vectors(40, [["*"]]))
    store.tidy()
    most = 0
    for number in range(PIECES + 4):
        store.put([entry(f"b/{number}", "parcel")])
        store.tidy()
        stats = lancedb.connect(tmp_path / "pieces").open_table("passages").index_stats("vector_idx")
        most = max(most, stats.num_indices)
    assert 1 < most <= PIECES
    assert len(store.nearest(EMBEDDER.query("parcel"), 99, EVERY)) == 40 + PIECES + 4


# ── many at once, and what is whole ─────────────────────────────────────────────────────────────────────────────────


def test_a_change_is_whole_or_not_there(store):
    store.put([entry("a", "old one", "old two"), entry("b", "old")])
    broken = entry("b", "new")
    with pytest.raises(Exception, match=r".+"):
        store.put([entry("a", "new"), replace(broken, vectors=np.zeros((1, 7), np.float32))])
    assert texts_of(store, "a") == ["old one", "old two"]
    assert texts_of(store, "b") == ["old"]


def test_writers_and_readers_at_once_see_whole_documents(opened):
    versions = [[f"{letter} parcel {number}" for number in range(4)] for letter in ("one", "two", "three")]
    opened().put([entry("a", *versions[0]), entry("b", *versions[0])])

    def write(texts: list[str]) -> None:
        mine = opened()
        for _ in range(5):
            mine.put([entry("a", *texts), entry("b", *texts)])

    def read() -> None:
        mine = opened()
        for _ in range(15):
            assert texts_of(mine, "a") in versions
            found = [each.passage for each in mine.matching("parcel", 20, EVERY)]
            for name in ("a", "b"):
                seen = sorted((each.number, each.text) for each in found if each.document == name)
                assert [text for _, text in seen] in versions

    with ThreadPoolExecutor(5) as pool:
        running = [pool.submit(write, texts) for texts in versions] + [pool.submit(read), pool.submit(read)]
        for each in running:
            each.result()
    assert len(opened().documents()) == 2
    assert len(opened().nearest(EMBEDDER.query("parcel"), 20, EVERY)) == 8


def test_one_store_answers_many_threads(store):
    store.put(drawn(20))
    expected = names(store.matching("parcel depot", 5, EVERY))
    with ThreadPoolExecutor(6) as pool:
        found = [*pool.map(lambda _: names(store.matching("parcel depot", 5, EVERY)), range(24))]
    assert found == [expected] * 24


def test_what_was_dropped_is_gone(opened):
    other = opened("other")
    other.put([entry("a", "kept")])
    opened().put([entry("a", "gone")])
    opened().drop()
    assert opened().documents() == []
    assert len(other.documents()) == 1


def test_another_width_is_refused(opened):
    opened().put([entry("a", "parcel")])
    with pytest.raises(ValueError, match="width"):
        opened(width=7)


# ── places ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "at",
    [
        "postgresql://ada:secret7@host/db",
        "postgres://host/db?password=secret7",
        "postgresql://host/db?sslmode=require&%70assword=secret7",
        "postgresql://ada:se#secret7@host/db",
        "postgresql://ada:se?secret7@host/db",
        "postgresql://host/db?sslpassword=secret7",
        "qdrant:https://ada:secret7@host:6333",
        "qdrant:https://host:6333?api-key=secret7",
        "qdrant:https://ada:se#secret7@host:6333",
        "qdrant:https://ada:se/secret7@host:6333",
    ],
)
def test_a_password_is_not_written_down(tmp_path, at):
    with pytest.raises(ValueError, match=r"must not have a password: .* set PGPASSWORD") as refused:
        Collection(tmp_path / "faq", EMBEDDER, at=at)
    assert "secret7" not in str(refused.value)
    assert not (tmp_path / "faq").exists()


@pytest.mark.parametrize("at", ["", "mysql://host/db", "/folder", "host/db", "qdrant:", "qdrant:ftp://host"])
def test_what_is_no_place_is_refused(tmp_path, at):
    with pytest.raises(ValueError, match="is no place to keep a collection"):
        Collection(tmp_path / "faq", EMBEDDER, at=at)


def test_a_collection_knows_its_place(tmp_path, at):
    collection = Collection(tmp_path / "faq", EMBEDDER, at=at)
    [*collection.put([("a", "Parcels are sent.")])]
    again = Collection(tmp_path / "faq", EMBEDDER)
    assert again.at == at
    assert [each.name for each in again.documents()] == ["a"]
    assert Collection(tmp_path / "faq", EMBEDDER, at=at).documents() == again.documents()
    (tmp_path / "elsewhere").mkdir()
    namesake = Collection(tmp_path / "elsewhere" / "faq", EMBEDDER, at=at)
    assert namesake.documents() == []
    namesake.delete()
    with pytest.raises(ValueError, match=r"keeps its passages .*, not at postgresql://nowhere/db"):
        Collection(tmp_path / "faq", EMBEDDER, at="postgresql://nowhere/db")
    again.delete()
    assert not (tmp_path / "faq").exists()


@pytest.mark.parametrize("kept", ["folder", "postgres"])
def test_a_collection_stays_exact_until_it_is_set_otherwise(kept, tmp_path, postgres):
    """And its index goes with the next change."""
    at, folder = postgres if kept == "postgres" else None, tmp_path / "faq"
    collection = Collection(folder, EMBEDDER, at=at)
    [*collection.put([("a", "Parcels are sent.")])]
    key = json.loads((folder / "collection.json").read_text())["key"] if at else "faq"
    indexing(at, tmp_path, key, index_from=1).tidy()
    assert rows_indexed(at, tmp_path, key) == 1
    Collection(folder, EMBEDDER, exact=True)
    again = Collection(folder, EMBEDDER)
    [*again.put([("b", "Nine days.")])]
    assert rows_indexed(at, tmp_path, key) == 0
    assert json.loads((folder / "collection.json").read_text())["exact"]
    Collection(folder, EMBEDDER, exact=False)
    assert not json.loads((folder / "collection.json").read_text())["exact"]


def test_a_new_collection_is_exact_from_the_start(tmp_path, monkeypatch):
    """As the requests to Qdrant say."""
    asked = []

    def query_points(client: QdrantClient, *arguments: Any, search_params: Any = None, **options: Any) -> Any:
        asked.append(search_params.exact)
        return SimpleNamespace(points=[])

    monkeypatch.setattr(QdrantClient, "query_points", query_points)
    for exact in (True, False):
        collection = Collection(tmp_path / str(exact), EMBEDDER, at=f"qdrant:{tmp_path}/qdrant", exact=exact)
        collection.store.nearest(EMBEDDER.query("parcel"), 1, EVERY)
    assert asked == [True, False]


def test_a_server_that_does_not_answer_begins_no_collection(tmp_path):
    with pytest.raises(ValueError, match=r"Qdrant at http://127.0.0.1:9 cannot be used: .*QDRANT_API_KEY"):
        Collection(tmp_path / "faq", EMBEDDER, at="qdrant:http://127.0.0.1:9")
    nowhere = f"postgresql://ada@/db?host={tmp_path}"
    with pytest.raises(ValueError, match=r"PostgreSQL at /db cannot be used: .*PGPASSWORD"):
        Collection(tmp_path / "faq", EMBEDDER, at=nowhere)
    with pytest.raises(ValueError, match="cannot be opened: invalid"):
        Collection(tmp_path / "faq", EMBEDDER, at="postgresql://host/db?nothing=1")
    Collection(tmp_path / "faq", EMBEDDER).delete()  # another place may be named


@pytest.fixture
def away(postgres, tmp_path):
    """A place in PostgreSQL, and what takes its server away, or brings it back."""
    folder = Path(postgres.partition("host=")[2])
    name = f"away{zlib.crc32(str(tmp_path).encode())}"
    link = folder.with_name(name)
    link.symlink_to(folder)

    def take(*, away: bool) -> None:
        if not away:
            return link.symlink_to(folder)
        link.unlink()
        ended = "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE application_name = %s"
        with psycopg.connect(postgres) as connection:
            connection.execute(ended, [name])

    return f"postgresql://postgres@/postgres?host={link}&application_name={name}", take


def test_a_server_that_went_away_is_named_and_asked_again(tmp_path, away):
    at, take = away
    documents = tmp_path / "documents"
    documents.mkdir()
    (documents / "a.md").write_text("The parcels are sent on monday.")
    (documents / "broken.pdf").write_bytes(b"%PDF-1.4")
    collection = Collection(tmp_path / "faq", EMBEDDER, at=at)
    refreshes = collection.watch(0)
    assert [*collection.add([documents])]
    assert sorted(event.what for event in next(refreshes)) == ["skipped", "unchanged"]
    take(away=True)
    asked = partial(Retriever(collection).search, "parcels")
    for ask in (collection.documents, asked, collection.store.tidy, partial(collection.remove, ["x"])):
        with pytest.raises(StoreAwayError, match=r"PostgreSQL at /postgres cannot be used: .*PGPASSWORD"):
            ask()
    (documents / "a.md").write_text("The parcels are sent on friday.")
    (event,) = next(refreshes)
    assert (event.what, event.document, "asked again" in event.reason) == ("skipped", "faq", True)
    assert [*next(refreshes)] == []
    take(away=False)
    assert [event.what for event in next(refreshes)] == ["changed"]
    assert [hit.passage.text for hit in asked()] == ["The parcels are sent on friday."]


@pytest.mark.parametrize(("module", "extra"), [("psycopg", "postgres"), ("qdrant_client", "qdrant")])
def test_a_missing_extra_is_named(tmp_path, monkeypatch, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=rf"pip install 'halka\[{extra}\]'"):
        Collection(tmp_path / "faq", EMBEDDER, at={"postgres": "postgresql://host/db", "qdrant": "qdrant:x"}[extra])


def test_a_folder_is_recorded_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert stores.checked_address("qdrant:kept/here") == f"qdrant:{tmp_path}/kept/here"
    assert stores.checked_address("qdrant:http://localhost:6333") == "qdrant:http://localhost:6333"


def test_two_stores_are_one_too_many(tmp_path):
    store = stores.store_at(None, "", tmp_path / "store", EMBEDDER.width)
    with pytest.raises(ValueError, match="not both"):
        Collection(tmp_path / "faq", EMBEDDER, store, at="postgresql://host/db")


# ── PostgreSQL ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_server_without_pgvector_is_told(postgres):
    """Connections that look for extensions in an empty place, in a database that has none yet."""

    from halka.rag.stores.postgres import PostgresStore

    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("CREATE DATABASE bare")
    url = postgres.replace("/postgres?", "/bare?options=-cextension_control_path%3D/nowhere&")
    with pytest.raises(ValueError, match="lacks pgvector: install it on the server"):
        PostgresStore(url, "without", 3)


def test_a_user_without_rights_is_told_whom_to_ask(postgres):

    from halka.rag.stores.postgres import PostgresStore

    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("CREATE ROLE nobody_much LOGIN")
        connection.execute("CREATE DATABASE closed")
    url = postgres.replace("postgres@/postgres", "nobody_much@/closed")
    with pytest.raises(ValueError, match="let its administrator run CREATE EXTENSION vector"):
        PostgresStore(url, "without", 3)


def test_a_server_that_began_anew_is_asked_anew(postgres):

    from halka.rag.stores.postgres import PostgresStore

    store = PostgresStore(postgres, "interrupted", EMBEDDER.width)
    store.put([entry("a", "parcel")])
    with psycopg.connect(postgres) as connection:
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
    assert texts_of(store, "a") == ["parcel"]


POSTINGS = """SELECT word, unnest(documents), unnest(numbers), unnest(times), unnest(lengths)
    FROM halka."{name}.words" ORDER BY 1, 2, 3"""
POSTINGS_OF_PASSAGES = """SELECT lexeme, id, number, cardinality(positions), p.length
    FROM halka."{name}.passages" AS p JOIN halka."{name}.documents" ON name = document, unnest(words)
    ORDER BY 1, 2, 3"""


def rows_of(url: str, statement: str) -> list[tuple[Any, ...]]:

    with psycopg.connect(url) as connection:
        return connection.execute(statement.encode()).fetchall()


def check_postings(url: str, name: str) -> None:
    """The inverted index has what the passages have, and no empty row."""
    expected = rows_of(url, POSTINGS_OF_PASSAGES.format(name=name))
    assert rows_of(url, POSTINGS.format(name=name)) == expected
    assert rows_of(url, f"SELECT 1 FROM halka.\"{name}.words\" WHERE documents = '{{}}'") == []


def test_the_inverted_index_follows_every_change(postgres):
    from halka.rag.stores.postgres import PostgresStore

    store, draw = PostgresStore(postgres, "changing", EMBEDDER.width), random.Random(2)
    entries = drawn()
    for _ in range(12):
        store.put(draw.sample(entries, 9))
        store.put([entry(draw.choice(entries).document.name, "another text", "o'neil")])
        store.remove([each.document.name for each in draw.sample(entries, 5)])
        check_postings(postgres, "changing")
    assert len(store.documents()) > 9
    store.remove([each.document.name for each in entries])
    assert rows_of(postgres, POSTINGS.format(name="changing")) == []


def test_many_passages_are_in_several_blocks(postgres):
    from halka.rag.stores.postgres import PostgresStore

    store = PostgresStore(postgres, "blocks", EMBEDDER.width)
    for number in range(5):
        store.put([entry(f"a/{number}", *["parcel"] * 500, f"parcel depot {number}")])
    check_postings(postgres, "blocks")
    assert rows_of(postgres, "SELECT word, block, cardinality(documents) FROM halka.\"blocks.words\" "
                   "WHERE word = 'depot' ORDER BY 2") == [("depot", 0, 3), ("depot", 1, 2)]  # fmt: skip
    assert names(store.matching("depot", 9, EVERY)) == [f"a/{number}#500" for number in range(5)]
    store.put([entry("a/1", "depot")])
    assert len(store.matching("depot", 9, EVERY)) == 5
    check_postings(postgres, "blocks")


def make_older(url: str, name: str) -> None:
    """As of an older version: no inverted index, but a GIN index over the passages' words."""

    with psycopg.connect(url) as connection:
        for statement in (
            f'DROP TABLE halka."{name}.words"',
            f'ALTER TABLE halka."{name}.documents" DROP COLUMN id, DROP COLUMN block',
            f'CREATE INDEX ON halka."{name}.passages" USING gin (words)',
        ):
            connection.execute(statement.encode())


def waits_for_a_lock(url: str) -> bool:
    """Whether it comes to somebody's waiting for a lock within ten seconds."""
    until = time.monotonic() + 10
    while not (waiting := bool(rows_of(url, "SELECT 1 FROM pg_locks WHERE NOT granted"))) and time.monotonic() < until:
        time.sleep(0.02)
    return waiting


def impatient(url: str) -> str:
    """The URL of connections that wait two seconds for a lock, then fail."""
    return f"{url}&options=-clock_timeout%3D2000"


def test_an_older_version_s_tables_are_upgraded(postgres):
    from halka.rag.stores.postgres import PostgresStore

    entries = drawn()
    before = PostgresStore(postgres, "older", EMBEDDER.width)
    before.put(entries)
    expected = [before.matching("parcels sent on monday", 10, scope) for scope in SCOPES]
    make_older(postgres, "older")
    with ThreadPoolExecutor(3) as pool:
        *_, store = pool.map(lambda _: PostgresStore(postgres, "older", EMBEDDER.width), range(3))
    check_postings(postgres, "older")
    assert [each.document for each in entries] == sorted(store.documents(), key=lambda each: int(each.name[2:]))
    for scope, found in zip(SCOPES, expected, strict=True):
        assert [each.score for each in store.matching("parcels sent on monday", 10, scope)] == pytest.approx(
            [each.score for each in found]
        )
    indexes = rows_of(postgres, "SELECT indexdef FROM pg_indexes WHERE tablename = 'older.passages'")
    assert [index for (index,) in indexes if "gin" in index] == []
    store.put([entry("a/1", "another text")])
    store.remove(["a/2"])
    check_postings(postgres, "older")


def test_an_upgrade_keeps_nobody_from_other_collections_and_takes_turns_with_a_search(postgres):
    """The search is at a place where it has the passages' table, and waits for that of the documents."""

    from halka.rag.stores.postgres import PostgresStore

    PostgresStore(postgres, "searched", EMBEDDER.width).put([entry("a", "parcel")])
    make_older(postgres, "searched")
    with ThreadPoolExecutor(1) as pool, psycopg.connect(impatient(postgres)) as search:
        search.execute('LOCK TABLE halka."searched.passages" IN ACCESS SHARE MODE')
        upgrading = pool.submit(PostgresStore, postgres, "searched", EMBEDDER.width)
        assert waits_for_a_lock(postgres)
        PostgresStore(impatient(postgres), "another", EMBEDDER.width)
        search.execute('SELECT FROM halka."searched.documents"')
        search.commit()
        assert len(upgrading.result().matching("parcel", 9, EVERY)) == 1
    check_postings(postgres, "searched")


def test_who_may_not_upgrade_is_told_who_may(postgres):

    from halka.rag.stores.postgres import PostgresStore

    PostgresStore(postgres, "owned", EMBEDDER.width).put([entry("a", "parcel")])
    make_older(postgres, "owned")
    with psycopg.connect(postgres) as connection:
        connection.execute("CREATE ROLE reader_only LOGIN IN ROLE pg_read_all_data")
    with pytest.raises(ValueError, match="older version are upgraded when their owner opens the collection"):
        PostgresStore(postgres.replace("postgres@/", "reader_only@/"), "owned", EMBEDDER.width)


def test_nobody_waits_while_an_index_is_made(postgres):
    """It waits for a writer here. What is left of one that was ended is not used, and made anew."""

    from halka.rag.stores.postgres import PostgresStore

    def valid() -> list[Any]:
        return rows_of(
            postgres, "SELECT indisvalid FROM pg_index WHERE indexrelid = 'halka.\"long.vectors\"'::regclass"
        )

    entries = drawn_vectors(40, [["*"]])
    store = PostgresStore(postgres, "long", EMBEDDER.width, index_from=40, narrow=5)
    store.put(entries)
    with ThreadPoolExecutor(1) as pool, psycopg.connect(postgres) as writer:
        writer.execute('LOCK TABLE halka."long.passages" IN ROW EXCLUSIVE MODE')
        making = pool.submit(store.tidy)
        assert waits_for_a_lock(postgres)
        other = PostgresStore(impatient(postgres), "long", EMBEDDER.width, index_from=40, narrow=5)
        other.put([entry("b", "zebra")])
        other.tidy()
        assert names(other.matching("zebra", 9, EVERY)) == ["b#0"]
        assert len(other.nearest(entries[0].vectors[0], 41, EVERY)) == 41
        rows_of(postgres, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'CREATE INDEX%'")
        with pytest.raises(StoreAwayError, match="terminating connection"):
            making.result()
    assert valid() == [(False,)]
    other.tidy()
    assert valid() == [(True,)]
    other.nearest(entries[0].vectors[0], 10, EVERY)


@pytest.mark.parametrize("name", ["", "a\0b", "ü", "a" * 51, 'a"; DROP SCHEMA halka; --', "100%", "a.b"])
def test_what_cannot_name_tables_is_refused(postgres, name):
    from halka.rag.stores.postgres import PostgresStore

    with pytest.raises(ValueError, match="cannot name tables"):
        PostgresStore(postgres, name, 3)


def test_what_postgresql_has_no_room_for_is_no_server_that_is_away(postgres):
    from halka.rag.stores.postgres import PostgresStore

    store = PostgresStore(postgres, "room", EMBEDDER.width)
    draw = random.Random(1)
    name = "".join(chr(draw.randrange(0x4E00, 0x9FFF)) for _ in range(2000))
    with pytest.raises(HalkaError, match="cannot keep this: index row size") as refused:
        store.put([entry(name, "text")])
    assert not isinstance(refused.value, StoreAwayError)


@pytest.mark.parametrize(("status", "kind"), [(503, StoreAwayError), (401, StoreAwayError), (404, HalkaError)])
def test_what_qdrant_s_server_refuses_is_told_from_one_that_is_away(status, kind):
    class Server(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(status, "no")

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            with pytest.raises(HalkaError, match=f"Qdrant at http.* {status}") as refused:
                remote_client(f"http://127.0.0.1:{server.server_port}").get_collections()
        finally:
            server.shutdown()
    assert type(refused.value) is kind


# ── Qdrant ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Crash(Exception):
    pass


@contextmanager
def before(*methods: str, do: Callable[[str], None]) -> Iterator[None]:
    """Call `do` with the collection's name before Qdrant's client runs one of these methods, but not within `do`."""
    running = False

    def doing_first(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(client: QdrantClient, collection: str, *arguments: Any, **options: Any) -> Any:
            nonlocal running
            if not running:
                running = True
                try:
                    do(collection)
                finally:
                    running = False
            return method(client, collection, *arguments, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in methods:
            patch.setattr(QdrantClient, name, doing_first(getattr(QdrantClient, name)))
        yield


@contextmanager
def crashing_at(step: int) -> Iterator[None]:
    """Stop at that change, counted from 0; it must come."""
    changes = itertools.count()

    def stop(collection: str) -> None:
        if next(changes) == step:
            raise Crash

    with pytest.raises(Crash), before("upsert", "delete", "set_payload", do=stop):
        yield


@pytest.fixture
def qdrant(tmp_path):
    from halka.rag.stores.qdrant import QdrantStore

    return QdrantStore(str(tmp_path / "qdrant"), "one", EMBEDDER.width)


@pytest.mark.parametrize("step", range(4))
def test_a_crash_at_any_step_leaves_documents_whole(qdrant, step, tmp_path, monkeypatch):
    def stored(after_minutes: float) -> int:
        """How many passages there are of either version, once it has been tidied up so much later."""
        monkeypatch.setattr(time, "time", lambda: began + 60 * after_minutes)
        qdrant.tidy()
        return local_client(str(tmp_path / "qdrant")).count("one-passages").count

    began = time.time()
    older, newer = entry("a", "old one", "old two", readers=["ada"]), entry("a", "new one", "new two", readers=["bob"])
    qdrant.put([older])
    with crashing_at(step) if step < 3 else nullcontext():
        qdrant.put([newer])
    expected = [older, newer][step >= 2]
    (document,) = qdrant.documents()
    assert document == expected.document
    assert texts_of(qdrant, "a") == [each.text for each in expected.passages]
    for found in (qdrant.matching("old new", 9, EVERY), qdrant.nearest(EMBEDDER.query("old new"), 9, EVERY)):
        assert {each.passage for each in found} == set(expected.passages)
    hidden = Scope(frozenset(["bob" if expected is older else "ada"]))
    assert qdrant.matching("old new", 9, hidden) == qdrant.documents(hidden) == []
    assert stored(after_minutes=50) == (2 if step in (0, 3) else 4)  # a writer may still be at work on it
    assert stored(after_minutes=70) == 2
    assert texts_of(qdrant, "a") == [each.text for each in expected.passages]


@pytest.mark.parametrize("step", range(3))
def test_rights_are_taken_away_from_passages_before_it_is_told(qdrant, step):
    """And where a crash came between, it is told that they are not taken away yet."""
    given = entry("a", "salary one", "salary two")
    qdrant.put([given])
    with crashing_at(step) if step < 2 else nullcontext():
        qdrant.set_access(["a"], ("hr",), ("x",))
    assert qdrant.documents()[0].readers == (("hr",) if step == 2 else ("*",))
    assert len(qdrant.matching("salary", 9, Scope())) == (2 if step == 0 else 0)
    qdrant.set_access(["a"], ("hr",), ("x",))
    assert qdrant.documents(Scope()) == qdrant.matching("salary", 9, Scope()) == []
    assert len(qdrant.matching("salary", 9, Scope(frozenset(["hr"]), tags=frozenset(["x"])))) == 2


def test_a_newer_version_is_told_as_it_is(qdrant):
    """Another writer puts one between the passages that are closed and the document's point."""
    qdrant.put([entry("a", "salary")])

    def put(collection: str) -> None:
        if collection == "one-documents":
            qdrant.put([entry("a", "salary, newer")])

    with before("set_payload", do=put):
        qdrant.set_access(["a"], ("hr",), ())
    assert texts_of(qdrant, "a", Scope()) == ["salary, newer"]
    assert qdrant.documents()[0].readers == ("*",)  # so that whoever compares sees it


def test_what_changes_between_two_looks_is_looked_at_again(qdrant):
    """A writer comes between the passages that were found and the documents' points that tell what counts."""
    qdrant.put([entry("a", "parcel one"), entry("b", "parcel b")])
    for question in (
        lambda: sorted(each.passage.text for each in qdrant.matching("parcel", 9, EVERY)),
        lambda: sorted(each.passage.text for each in qdrant.nearest(EMBEDDER.query("parcel"), 9, EVERY)),
        lambda: sorted([*texts_of(qdrant, "a"), *texts_of(qdrant, "b")]),
    ):
        looks = itertools.count()

        def put(collection: str, looks: Iterator[int] = looks) -> None:
            if (look := next(looks)) < 2:
                qdrant.put([entry("a", f"parcel {look}")])

        with before("retrieve", do=put):
            assert question() == ["parcel 1", "parcel b"]
        assert next(looks) > 2


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the client leaves a file open there
def test_a_folder_that_another_process_has_open_is_told(qdrant, tmp_path):
    asked = "import sys; from halka.rag.stores.qdrant import QdrantStore; QdrantStore(sys.argv[1], 'one', 32)"
    arguments = [sys.executable, "-W", "ignore", "-c", asked, str(tmp_path / "qdrant")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(arguments, capture_output=True, text=True, env=environment)
    assert "is open in another process" in ended.stderr
    qdrant.put([entry("a", "parcel")])
    del qdrant


def test_an_old_server_is_told(monkeypatch):
    from halka.rag.stores.qdrant import QdrantStore

    monkeypatch.setattr(QdrantClient, "info", lambda client: SimpleNamespace(version="1.18.2-dev"))
    with pytest.raises(ValueError, match=r"is 1\.18\.2-dev: 1\.19 or newer is needed"):
        QdrantStore("http://host:6333", "one", 3)


def test_a_collections_key_is_short_and_its_own(tmp_path):
    one, other = stores.new_key("Ä B" * 40), stores.new_key("Ä B" * 40)
    assert one != other
    assert len(one) < 50
    assert one.isascii()
    settings = Collection(Path(tmp_path) / "faq", EMBEDDER).folder / "collection.json"
    assert set(json.loads(settings.read_text())) == {"embedder", "key", "width", "roots"}

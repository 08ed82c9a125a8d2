"""Collections: what changed is read anew, what is removed is gone, nobody reads what is not theirs, nothing is lost."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from collection_for_tests import told
from embedder_for_tests import WordEmbedder
from halka.rag.collection import Collection, collection_folder
from halka.rag.evaluate import Queries, evaluate
from halka.rag.retrieve import Hit, Retriever, joined
from halka.rag.store import Found, Scope
from halka.rag.texts import Text
from halka.util.errors import DamagedFolderError, HalkaError


@pytest.fixture
def documents(tmp_path) -> Path:
    folder = tmp_path / "documents"
    (folder / "deep").mkdir(parents=True)
    (folder / "parcels.md").write_text("# Parcels\n\nParcels are sent on Monday.\n\n## Lost\n\nWrite to the depot.")
    (folder / "deep" / "refunds.txt").write_text("Refunds take nine days.")
    (folder / ".hidden.md").write_text("hidden")
    (folder / "picture.png").write_bytes(b"\x89PNG")
    return folder


@pytest.fixture
def collection(tmp_path, at) -> Collection:
    return Collection(tmp_path / "collections" / "faq", WordEmbedder(), at=at)


def texts(collection: Collection, question: str, scope: Scope | None = None, **options) -> list[str]:
    hits = Retriever(collection, **options).search(question, 50, scope or Scope())
    return [hit.passage.text for hit in hits]


def test_a_new_name_differs_from_others_by_more_than_capitals(tmp_path):
    Collection(tmp_path / "faq", WordEmbedder())
    assert [collection_folder(name, tmp_path).name for name in ("faq", "other")] == ["faq", "other"]
    with pytest.raises(HalkaError, match="'FAQ' differs from 'faq' in capitals alone"):
        collection_folder("FAQ", tmp_path)


# ── what is taken in ────────────────────────────────────────────────────────────────────────────────────────────────


def test_only_what_changed_is_read_anew(collection, documents):
    assert told(collection.add([documents])) == [("added", "parcels.md"), ("added", "refunds.txt")]
    before = collection.embedder.embedded
    assert told(collection.add([documents])) == [("unchanged", "parcels.md"), ("unchanged", "refunds.txt")]
    assert collection.embedder.embedded == before
    (documents / "parcels.md").write_text("# Parcels\n\nParcels are sent on Friday.")
    (documents / "new.md").write_text("New things.")
    (documents / "deep" / "refunds.txt").unlink()
    assert told(collection.refresh()) == [("removed", "refunds.txt"), ("added", "new.md"), ("changed", "parcels.md")]
    assert "sent on Friday" in texts(collection, "Parcels sent Monday Friday")[0]
    assert not any("Monday" in each or "depot" in each for each in texts(collection, "Monday depot nine days"))
    assert {Path(each.name).name for each in collection.documents()} == {"new.md", "parcels.md"}


def test_what_cannot_be_read_is_told_and_the_rest_goes_in(collection, documents):
    (documents / "broken.pdf").write_bytes(b"%PDF-1.4 broken")
    (documents / "latin.txt").write_bytes(b"caf\xe9")
    events = [*collection.add([documents])]
    skipped = [event for event in events if event.what == "skipped"]
    assert [Path(event.document).name for event in skipped] == ["broken.pdf", "latin.txt"]
    assert all(event.document in event.reason for event in skipped)
    assert told(events)[-2:] == [("added", "parcels.md"), ("added", "refunds.txt")]


def test_files_can_go_in_under_names_of_their_own(collection, documents):
    broken = documents / "upload-2.pdf"
    broken.write_bytes(b"%PDF-1.4 broken")
    pairs = [("Parcels, new.md", documents / "parcels.md"), ("scan.pdf", broken)]
    events = [*collection.put_files(pairs, readers=["hr"], tags=["new"])]
    assert [(event.what, event.document) for event in events] == [("skipped", "scan.pdf"), ("added", "Parcels, new.md")]
    assert "scan.pdf" in events[0].reason
    assert str(documents) not in events[0].reason
    assert collection.roots == []
    (document,) = collection.documents()
    assert (document.name, document.readers, document.tags) == ("Parcels, new.md", ("hr",), ("new",))
    assert told(collection.refresh()) == []
    assert collection.documents() == [document], "the files were not in the collection's care"
    assert told(
        collection.put_files([("Parcels, new.md", documents / "parcels.md")], readers=["hr"], tags=["new"])
    ) == [("unchanged", "Parcels, new.md")]
    assert told(collection.remove(["Parcels, new.md"])) == [("removed", "Parcels, new.md")]


def test_a_text_is_measured_once_however_many_come_with_it(tmp_path):
    """A million short texts took a time that grew with the square of their number."""
    measured = []

    class Measured(str):
        def __len__(self):
            measured.append(self)
            return super().__len__()

    def counted(number: int) -> int:
        measured.clear()
        collection = Collection(tmp_path / str(number), WordEmbedder())
        (tmp_path / "file.md").write_text("A line.")
        files = ((f"text {at}", tmp_path / "file.md") for at in range(number))
        [*collection.put_files(files, read=lambda name, path: Text(Measured(f"Line of {name}."), markdown=True))]
        return len(measured)

    assert counted(40) <= 4 * counted(10)


def test_who_stops_amid_a_document_keeps_it_out(collection, documents):
    """Between two batches of its passages; what was in before stays."""
    (documents / "long.txt").write_text("Parcels are sent. " * 4_000)
    [*collection.put_files([("parcels.md", documents / "parcels.md")])]
    before, stops = collection.embedder.embedded, iter((False, False, True))

    def check():
        if next(stops):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        [*collection.put_files([("long.txt", documents / "long.txt")], check=check)]
    assert collection.embedder.embedded == before + 256
    assert [document.name for document in collection.documents()] == ["parcels.md"]


def test_one_bad_file_or_text_leaves_the_rest_in_peace(collection, documents):
    bad = os.fsencode(documents) + b"/caf\xe9.md"
    with open(bad, "wb") as file:
        file.write(b"Coffee.")
    (documents / "deep.html").write_text("<div>" * 3000 + "Deep.")
    skipped = {each.document: each.reason for each in collection.add([documents]) if each.what == "skipped"}
    assert {Path(name).name for name in skipped} == {"caf\\udce9.md", "deep.html"}
    assert any("a name that is no Unicode" in each for each in skipped.values())
    assert any("nested too deep" in each for each in skipped.values())
    assert len(collection.documents()) == 2
    events = [*collection.put([("a", "half \ud800 of one"), ("b\udcff", "Text."), ("c", "Whole."), ("d", "a\0b")])]
    assert [(each.what, each.document) for each in events] == [
        ("skipped", "a"),
        ("skipped", "b\\udcff"),
        ("skipped", "d"),
        ("added", "c"),
    ]
    json.dumps([asdict(each) for each in events], ensure_ascii=False).encode()
    with pytest.raises(ValueError, match="a name that is no Unicode"):
        [*collection.add([os.fsdecode(bad)])]


def test_a_file_that_broke_keeps_its_older_passages(collection, documents):
    [*collection.add([documents])]
    (documents / "parcels.md").write_bytes(b"\xff\xfe")
    assert ("skipped", "parcels.md") in told(collection.refresh())
    assert "Parcels are sent on Monday." in texts(collection, "parcels")[0]


def test_removal_is_at_once_and_from_the_disk(collection, documents):
    [*collection.add([documents])]
    [*collection.put((f"other-{number}", "Other things.") for number in range(40))]
    (documents / "parcels.md").unlink()
    collection.remove([str(documents / "parcels.md")])
    left = subprocess.run(["grep", "-rlaE", "Monday|depot", collection.folder], capture_output=True, text=True)
    assert left.stdout == ""
    assert not [*collection.folder.rglob("_deletions/*")], "LanceDB hides them there, and texts may be compressed"
    assert texts(collection, "parcels Monday")[0] == "Refunds take nine days."


def test_a_folder_is_removed_with_what_is_in_it_and_not_its_neighbour(collection, documents, tmp_path):
    (tmp_path / "documents2").mkdir()
    (tmp_path / "documents2" / "other.md").write_text("Other things.")
    [*collection.add([documents, tmp_path / "documents2"])]
    assert told(collection.remove([str(documents)])) == [("removed", "refunds.txt"), ("removed", "parcels.md")]
    assert texts(collection, "things") == ["Other things."]
    assert [Path(each.path).name for each in collection.roots] == ["documents2"]


def test_texts_of_ones_own(collection):
    assert told(collection.put([("a", "Apples are red."), ("b", "")])) == [("skipped", "b"), ("added", "a")]
    assert told(collection.put([("a", "Apples are green.")])) == [("changed", "a")]
    assert texts(collection, "apples") == ["Apples are green."]


def test_what_is_not_there_is_said(collection, documents):
    with pytest.raises(ValueError, match="there is no file or folder"):
        [*collection.add([documents / "nothing"])]
    with pytest.raises(ValueError, match="has no document"):
        collection.remove(["nothing"])
    with pytest.raises(ValueError, match="is empty"):
        Retriever(collection).search(" ")


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", ".a", "a.", "x" * 101, "a\nb"])
def test_a_name_never_becomes_a_path(name, tmp_path):
    with pytest.raises(ValueError, match="cannot name a collection"):
        collection_folder(name, tmp_path)


def test_another_embedder_or_folder_is_refused(collection, tmp_path):
    other = WordEmbedder()
    other.name = "other"
    with pytest.raises(ValueError, match="was embedded by words"):
        Collection(collection.folder, other)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("x")
    with pytest.raises(ValueError, match="is no collection"):
        Collection(tmp_path / "mine", WordEmbedder())


# ── who may read ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_collection_on_a_disk_that_is_only_read_can_be_searched(documents, tmp_path, monkeypatch):
    folder = tmp_path / "faq"
    assert [*Collection(folder, WordEmbedder()).add([documents])]

    def read_only(path, flags, *arguments, own=os.open, **options):
        if flags & (os.O_WRONLY | os.O_RDWR) and Path(os.fsdecode(path)).is_relative_to(folder):
            raise OSError(errno.EROFS, "Read-only file system", path)
        return own(path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", read_only)
    collection = Collection(folder, WordEmbedder())
    assert texts(collection, "parcels")
    with pytest.raises(OSError, match="Read-only"):
        collection.remove([str(documents)])


@pytest.mark.parametrize(
    ("kind", "number", "reason"),
    [
        (PermissionError, errno.EACCES, "Permission denied: make the file yours"),
        (OSError, errno.ENOSPC, "No space left on device"),
    ],
)
def test_a_lock_that_cannot_be_opened_is_named(documents, tmp_path, monkeypatch, kind, number, reason):
    folder = tmp_path / "faq"
    assert [*Collection(folder, WordEmbedder()).add([documents])]

    def refused(path, flags, *arguments, own=os.open, **options):
        if Path(os.fsdecode(path)) == folder / ".lock":
            raise OSError(number, os.strerror(number), path)
        return own(path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(kind, match=reason) as raised:
        Collection(folder, WordEmbedder())
    assert (raised.value.errno, Path(raised.value.filename)) == (number, folder / ".lock")


def test_a_collection_that_is_removed_while_it_is_opened_stays_away(collection, at):
    class Late(WordEmbedder):
        """Compared with the collection's embedder after its settings are read: it is removed then."""

        @property
        def name(self) -> str:
            if collection.folder.exists():
                collection.delete()
            return "words"

    with pytest.raises(HalkaError, match="removed meanwhile"):
        Collection(collection.folder, Late())
    again = Collection(collection.folder, WordEmbedder(), at=at)
    assert told(again.put([("new.md", "New.")])) == [("added", "new.md")]


def test_a_removal_that_was_ended_leaves_room_for_a_new_collection(tmp_path, monkeypatch):
    collection = Collection(tmp_path / "faq", WordEmbedder())
    [*collection.put([("old.md", "Old.")])]
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda folder: None)  # killed before it
        collection.delete()
    again = Collection(tmp_path / "faq", WordEmbedder())
    assert told(again.put([("new.md", "New.")])) == [("added", "new.md")]
    assert [document.name for document in again.documents()] == ["new.md"]


def test_a_collection_that_is_made_anew_while_an_older_one_is_removed_stays(tmp_path, monkeypatch):
    collection, remove = Collection(tmp_path / "faq", WordEmbedder()), shutil.rmtree

    def make_anew() -> None:
        [*Collection(tmp_path / "faq", WordEmbedder()).put([("new.md", "New.")])]

    def late(folder: Path) -> None:
        monkeypatch.setattr("shutil.rmtree", remove)
        with ThreadPoolExecutor(1) as other:
            other.submit(make_anew).result()
        remove(folder)

    monkeypatch.setattr("shutil.rmtree", late)
    collection.delete()
    assert texts(Collection(tmp_path / "faq", WordEmbedder()), "new") == ["New."]
    assert [path.name for path in tmp_path.iterdir()] == ["faq"]


def test_what_somebody_keeps_in_a_collections_folder_stays(collection):
    [*collection.put([("old.md", "Old.")])]
    (collection.folder / "mine").mkdir()
    (collection.folder / "mine" / "letter.md").write_text("Dear all.")
    for path in (collection.folder, collection.folder / "mine", collection.folder / "mine" / "letter.md"):
        with pytest.raises(HalkaError, match="in the folder of a collection"):
            [*collection.add([path])]
    collection.delete()
    assert [path.name for path in collection.folder.rglob("*")] == ["mine", "letter.md"]
    with pytest.raises(HalkaError, match="no collection of documents"):
        Collection(collection.folder, WordEmbedder())


def test_a_collection_behind_a_link_is_removed(tmp_path):
    (tmp_path / "faq").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "elsewhere").mkdir()
    collection = Collection(tmp_path / "faq", WordEmbedder())
    [*collection.put([("old.md", "Old.")])]
    collection.delete()
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("made_anew", [False, True])
def test_whoever_opened_a_collection_before_it_was_removed_is_told(collection, documents, at, made_anew):
    [*collection.add([documents])]
    Collection(collection.folder, WordEmbedder()).delete()
    if made_anew:
        [*Collection(collection.folder, WordEmbedder(), at=at).put([("new.md", "Parcels.")])]
    for use in (
        lambda: texts(collection, "parcels"),
        lambda: [*collection.put([("late.md", "Late.")])],
        lambda: [*collection.add([documents])],
        lambda: [*collection.refresh()],
        lambda: collection.remove([documents]),
        lambda: collection.documents(),
        lambda: collection.delete(),
        lambda: collection.embedded_by,
    ):
        with pytest.raises(HalkaError, match="removed meanwhile"):
            use()
    assert collection.folder.exists() == made_anew
    if made_anew:
        assert [document.name for document in Collection(collection.folder, WordEmbedder()).documents()] == ["new.md"]


def test_a_collection_without_a_key_is_opened_and_is_not_one_that_is_made_anew(collection):
    """As they were in their folders before 2026-12-01."""
    if collection.at is not None:
        pytest.skip("had a key then")
    [*collection.put([("old.md", "Old.")])]
    file = collection.folder / "collection.json"
    settings = json.loads(file.read_text())
    del settings["key"]
    file.write_text(json.dumps(settings))
    old = Collection(collection.folder, WordEmbedder())
    assert texts(old, "old") == ["Old."]
    Collection(collection.folder, WordEmbedder()).delete()
    Collection(collection.folder, WordEmbedder())
    with pytest.raises(HalkaError, match="removed meanwhile"):
        old.documents()


@pytest.mark.parametrize("kind", ["data/*.lance", "_versions/*.manifest"])
def test_a_damaged_file_of_passages_is_told_with_a_way_out(tmp_path, kind):
    collection = Collection(tmp_path / "faq", WordEmbedder())
    [*collection.put([("a", "Parcels.")])]
    for file in (tmp_path / "faq" / "passages.lance").glob(kind):
        file.write_bytes(file.read_bytes()[:10])
    for use in (lambda: Collection(tmp_path / "faq", WordEmbedder()).documents(), lambda: texts(collection, "parcels")):
        with pytest.raises(DamagedFolderError, match=r"passages.lance cannot be read.*add the documents to a new"):
            use()


def test_nobody_finds_what_is_not_theirs(collection):
    [*collection.put([("open", "The canteen opens at noon.")])]
    [*collection.put([("pay", "The salary of Ada is secret.")], readers=["hr"])]
    [*collection.put([("mine", "The salary of Bob is his.")], readers=["bob", "hr"], tags=["money"])]
    asked = "What is the salary of Ada and of Bob?"
    for mode in ("hybrid", "vectors", "words"):
        seen = {
            who: sorted(texts(collection, asked, Scope(frozenset(who)), mode=mode)) for who in [(), ("bob",), ("hr",)]
        }
        assert not any("salary" in each for each in seen[()])
        assert [each for each in seen["bob",] if "salary" in each] == ["The salary of Bob is his."]
        assert len([each for each in seen["hr",] if "salary" in each]) == 2
    assert [each.name for each in collection.documents(Scope())] == ["open"]


ATTACKS = [
    "hr' OR '1'='1",
    "*' , 'hr",
    "hr']) OR array_has_any(readers, ['hr",
    "",
    " ",
    "hr\0",
    "h%",
    "%",
    "_r",
    "hr--",
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_name_and_no_path_opens_what_is_closed(collection, attack):
    [*collection.put([("pay", "The salary of Ada is secret.")], readers=["hr"])]
    try:
        scope = Scope(frozenset([attack]))
    except ValueError as refused:
        assert "cannot name a reader" in str(refused)  # noqa: PT017
    else:
        assert texts(collection, "salary", scope) == []
    under = Scope(under=attack)
    assert texts(collection, "salary", under) == []
    assert collection.store.passages("pay", [0], Scope()) == []
    assert collection.store.passages("pay' OR '1'='1", [0], Scope()) == []
    assert collection.documents(Scope()) == []
    assert texts(collection, attack.strip() or "x") == []
    hits = Retriever(collection).search("salary", 3, Scope(frozenset(["hr"])))
    assert Retriever(collection).expanded(hits, 100, Scope()) == [hit.passage for hit in hits]  # no neighbours beyond


def test_taking_rights_away_takes_effect_without_new_contents(collection, documents):
    [*collection.add([documents])]
    assert {what for what, _ in told(collection.add([documents], readers=["staff"]))} == {"changed"}
    assert texts(collection, "parcels") == []
    assert texts(collection, "parcels", Scope(frozenset(["staff"])))


def test_tags_and_places_narrow(collection, documents):
    [*collection.add([documents], tags=["shop", "eu"])]
    assert len(texts(collection, "parcels refunds", Scope(tags=frozenset(["eu", "shop"])))) > 1
    assert texts(collection, "parcels refunds", Scope(tags=frozenset(["us"]))) == []
    assert texts(collection, "parcels", Scope(under=str(documents / "deep"))) == ["Refunds take nine days."]


def test_the_filter_is_its_slow_twin(collection):
    draw = random.Random(0)
    for number in range(24):
        name = draw.choice(["a/", "b/", "a'b/"]) + str(number)
        who, what = (
            draw.sample(["ada", "bob", "hr", "*"], draw.randint(1, 2)),
            draw.sample(["x", "y"], draw.randint(0, 2)),
        )
        [*collection.put([(name, f"Text {number}.")], readers=who, tags=what)]
    every = collection.documents()
    assert len(every) == 24
    for readers, under, tags in [
        ((), "", ()),
        (("ada",), "", ("x",)),
        (("hr", "bob"), "a'b/", ()),
        ((), "b/", ("x", "y")),
    ]:
        scope = Scope(frozenset(readers), under, frozenset(tags))
        assert collection.documents(scope) == [each for each in every if scope.holds(each)]


# ── finding ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_words_count_where_they_single_something_out():
    def found(scores):
        return [Found(passages[name], score, np.zeros(2)) for name, score in scores.items()]

    from halka.rag.passages import Passage

    passages = {name: Passage(name, 0, name, 0, 1) for name in "abcdefghijkl"}
    near = found({"a": 0.60, "b": 0.55})
    rare = joined(near, found({"b": 9.0, **dict.fromkeys("cdefghijk", 1.0)}))
    assert rare[0].passage.document == "b"
    common = joined(near, found(dict.fromkeys("bcdefghijkl", 2.0) | {"b": 2.1}))
    assert common[0].passage.document == "a"
    assert joined([], []) == []
    assert [hit.passage.document for hit in joined([], found({"c": 2.0}))] == ["c"]


def test_a_reranker_has_the_last_word_and_twins_are_left_out(collection):
    [
        *collection.put(
            [("a", "Parcels are sent on Monday."), ("b", "Parcels are sent on Monday."), ("c", "Parcels parcels.")]
        )
    ]
    assert len(texts(collection, "parcels Monday")) == 2
    assert len(texts(collection, "parcels Monday", distinct=False)) == 3
    shortest = texts(collection, "parcels Monday", rerank=lambda question, found: [-len(each) for each in found])
    assert shortest[0] == "Parcels parcels."


def test_forms_with_other_facts_are_no_twins(tmp_path):
    slips = [f"Pay slip {month} of Ada Example, who works in the depot: {900 + month} euros." for month in range(24)]
    collection = Collection(tmp_path / "slips", WordEmbedder())
    [*collection.put((text, text) for text in slips)]
    assert {*texts(collection, "pay slip of Ada Example in the depot")} == {*slips}


def test_a_hundred_copies_do_not_hide_the_rest(tmp_path):
    collection = Collection(tmp_path / "copies", WordEmbedder())
    [*collection.put((f"copy-{number}", "Parcels are sent on Monday.") for number in range(105))]
    [*collection.put([("a", "Parcels are sent."), ("b", "Parcels are."), ("c", "Refunds.")])]
    for mode, found in (("hybrid", 4), ("vectors", 4), ("words", 3)):
        assert len(texts(collection, "Parcels are sent on Monday", mode=mode)) == found


def test_neighbours_join_within_the_budget(collection):
    text = "# A\n\n" + "\n\n".join(f"Paragraph {n} says {'word ' * 30}end{n}." for n in range(8))
    [*collection.put([("a", text)])]
    retriever = Retriever(collection)
    hits = retriever.search("end4", 1)
    (alone,) = retriever.expanded(hits, 45)
    assert alone == hits[0].passage
    (wider,) = retriever.expanded(hits, 130)
    assert wider.text == text[wider.start : wider.end]
    assert hits[0].passage.text in wider.text
    assert len(wider.text) > 2 * len(alone.text)
    assert retriever.expanded(hits, 3) == [hits[0].passage]
    assert retriever.expanded(hits, 130, fits=lambda passages: False) == [hits[0].passage]
    passages = collection.store.passages("a", range(8), Scope())
    five = [Hit(passages[number], 1.0) for number in (3, 2, 4, 6)]
    joined, apart = retriever.expanded(five, 0)
    assert (joined.start, joined.end) == (passages[2].start, passages[4].end)
    assert joined.text == text[joined.start : joined.end]
    assert apart == passages[6]


def test_a_hundred_documents_are_ranked_though_one_has_a_hundred_passages(collection):
    long = "\n\n".join(f"# Part {n}\n\nParcels are sent on Monday, {'word ' * 20}." for n in range(120))
    [*collection.put([("a", long), ("b", "Parcels."), ("c", "Refunds take nine days.")])]
    queries = Queries(dict.fromkeys("abc", "Parcels sent Monday word"), {document: {document: 1} for document in "abc"})
    scores = evaluate(Retriever(collection, "vectors", distinct=False), queries)
    assert scores["R@100"] == 1
    assert scores["RR@10"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)  # "a" is first, "b" second and "c" third
    words = evaluate(Retriever(collection, "words"), queries)
    assert words["R@100"] == pytest.approx(2 / 3)  # "c" has none of them


def test_documents_of_one_text_are_ranked_each_by_its_name(collection):
    [*collection.put([("a", "Parcels are sent on Monday."), ("b", "Parcels are sent on Monday.")])]
    queries = Queries(dict.fromkeys("ab", "Parcels"), {document: {document: 1} for document in "ab"})
    assert evaluate(Retriever(collection), queries)["R@100"] == 1


def test_a_search_for_words_loads_no_embedder(collection):
    [*collection.put([("a", "Parcels are sent on Monday.")])]
    again = Collection(collection.folder, load=pytest.fail)
    assert [hit.passage.document for hit in Retriever(again, "words").search("parcels")] == ["a"]


# ── many at once, and crashes ───────────────────────────────────────────────────────────────────────────────────────

WRITERS = """
import os, sys
import lancedb
from embedder_for_tests import WordEmbedder
from halka.rag.collection import Collection

def report(*words):  # in one write: writers share the pipe, and print makes several where Python's output is unbuffered
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

class Embedder(WordEmbedder):
    def passages(self, texts):
        vectors = super().passages(texts)
        report("puts")
        return vectors

for line in sys.stdin:
    folder, documents, writers = line.rstrip().split("\t")
    children = [os.fork()]
    while children[-1] and len(children) < int(writers):
        children.append(os.fork())
    if children[-1]:
        report("ended", *(os.waitpid(child, 0)[1] for child in children))
    else:
        report("began", os.getpid())
        for event in Collection(folder, Embedder(), at_once=1500).add([documents]):
            report(event.what, event.document)
        os._exit(int("torch" in sys.modules))  # to open a collection takes none of it
"""
"""Starts writers for each line that it reads; what they import is imported once."""


class Writers:
    """Processes that add a folder to a collection; `line` is what they say next."""

    def __init__(self, collection: Collection, folder: Path):
        if collection.at is not None and collection.at.startswith("qdrant"):
            pytest.skip("a folder of Qdrant's is one process's")
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", WRITERS], env=environment, **pipes)
        self.task = f"{collection.folder}\t{folder}"

    def begin(self, count: int = 1) -> int:
        """Start writers; the process id of the first that works."""
        self.process.stdin.write(f"{self.task}\t{count}\n")
        self.process.stdin.flush()
        word, number = self.line()
        assert word == "began"
        return int(number)

    def line(self) -> list[str]:
        line = self.process.stdout.readline()
        assert line, "the writers' process has ended"
        return line.split()

    def __enter__(self) -> Writers:
        return self

    def __exit__(self, *_) -> None:
        self.process.communicate()


@pytest.fixture
def many(tmp_path) -> Path:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number:03}.md").write_text("\n\n".join(f"Line {n} of {number}: {'word ' * 20}" for n in range(4)))
    return folder


def whole(collection: Collection) -> set[str]:
    """The names of the documents; each must have all its passages."""
    documents = collection.documents()
    for each in documents:
        passages = collection.store.passages(each.name, range(1000), Scope())
        assert [passage.number for passage in passages] == [*range(each.passages)]
    return {each.name for each in documents}


def test_a_writer_that_is_killed_loses_nothing_and_leaves_no_half(collection, many):
    """Killed when it begins to put documents, at moments of that, of what it says of them, and of tidying up."""
    acknowledged: set[str] = set()
    killed = 0
    with Writers(collection, many) as writers:
        for attempt in range(40):
            for path in [*many.iterdir()][:: 1 if attempt % 3 == 0 else 3]:
                path.write_text(path.read_text() + f"\n\nMore of {attempt}.")
            number, lines = writers.begin(), [writers.line()]
            until = "puts" if attempt % 2 else "changed"
            while lines[-1][0] not in ("ended", until if attempt else "puts"):
                lines.append(writers.line())
            time.sleep(0.003 * (attempt % 7))
            if lines[-1][0] != "ended":
                os.kill(number, signal.SIGKILL)
            while lines[-1][0] != "ended":
                lines.append(writers.line())
            killed += lines[-1][1] == str(signal.SIGKILL.value)
            acknowledged |= {line[1] for line in lines if line[0] in ("added", "changed")}
            assert acknowledged <= whole(Collection(collection.folder, WordEmbedder()))
            if killed == 15:
                break
    assert killed == 15
    [*collection.add([many])]
    assert whole(collection) == {str(path) for path in many.iterdir()}


def test_two_processes_that_add_the_same_make_no_doubles(collection, many):
    with Writers(collection, many) as writers:
        writers.begin(2)
        while (line := writers.line())[0] != "ended":
            Retriever(collection).search("word of line", 5)  # a reader meanwhile
    assert line == ["ended", "0", "0"]
    assert whole(collection) == {str(path) for path in many.iterdir()}

"""Paths of a collection: who reads what they give, what was removed stays away, what is gone, what is only not seen."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from pathlib import Path

import pytest
from filelock import FileLock

from collection_for_tests import told
from embedder_for_tests import WordEmbedder
from halka.rag import texts
from halka.rag.collection import Collection
from halka.rag.roots import Root, Roots
from halka.rag.sources import listed
from halka.rag.store import Scope, within
from halka.util.errors import HalkaError
from mac_for_tests import ignore_spelling

HR = Scope(frozenset(["hr"]))


@pytest.fixture
def docs(tmp_path) -> Path:
    folder = tmp_path / "docs"
    (folder / "deep").mkdir(parents=True)
    (folder / "open.md").write_text("Parcels are sent on Monday.")
    (folder / "pay.md").write_text("The salary of Ada.")
    (folder / "deep" / "note.md").write_text("A note.")
    return folder


@pytest.fixture
def collection(tmp_path) -> Collection:
    return Collection(tmp_path / "faq", WordEmbedder())


def another(collection: Collection) -> Collection:
    return Collection(collection.folder, WordEmbedder())


def seen(collection: Collection, scope: Scope | None = None) -> list[str]:
    """The documents that a scope holds and whose first passage is found by it."""
    found = [
        Path(each.name).name
        for each in collection.documents(scope)
        if collection.store.passages(each.name, [0], scope or Scope(frozenset(each.readers)))
    ]
    return sorted(found)


# ── who reads ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("order", [*itertools.permutations(["docs", "docs/pay.md", "docs/deep"])], ids=str)
def test_the_deepest_path_says_who_reads_in_any_order(collection, docs, order):
    readers = {"docs": ["*"], "docs/pay.md": ["hr"], "docs/deep": ["ada"]}
    for path in order:
        [*collection.add([docs.parent / path], readers=readers[path])]
    for _ in range(3):
        assert seen(collection, Scope()) == ["open.md"]
        assert seen(collection, HR) == ["open.md", "pay.md"]
        assert {what for what, _ in told(collection.refresh())} == {"unchanged"}
    [*collection.add([docs])]
    (docs / "pay.md").write_text("The salary of Ada, raised.")
    (docs / "deep" / "new.md").write_text("New.")
    assert sorted(told(collection.refresh()))[:2] == [("added", "new.md"), ("changed", "pay.md")]
    assert seen(collection, Scope()) == ["open.md"]
    [*collection.add([docs], readers=["bob"])]
    assert seen(collection, Scope()) == []
    assert seen(collection, HR) == ["pay.md"]
    collection.remove([docs / "pay.md", docs / "deep"])
    assert seen(collection) == ["open.md"]


def test_rights_are_taken_away_from_what_cannot_be_read_now(tmp_path, at, docs):
    collection = Collection(tmp_path / "faq", WordEmbedder(), at=at)
    [*collection.add([docs], tags=["x"])]
    (docs / "pay.md").write_bytes(b"\xff\xfe")
    (docs / "deep" / "note.md").unlink()
    before = collection.embedder.embedded
    events = told(collection.add([docs], readers=["hr"]))
    assert sorted(events) == [
        ("changed", "note.md"),
        ("changed", "open.md"),
        ("changed", "pay.md"),
        ("skipped", "pay.md"),
    ]
    assert collection.embedder.embedded == before
    assert seen(collection, Scope()) == []
    assert seen(collection, HR) == ["note.md", "open.md", "pay.md"]
    assert {each.tags for each in collection.documents()} == {()}


def test_a_text_below_a_path_keeps_the_readers_that_it_was_put_for(tmp_path, at, docs):
    collection = Collection(tmp_path / "faq", WordEmbedder(), at=at)
    (docs / "scan.md").write_bytes(b"\xff\xfe")
    assert ("skipped", "scan.md") in told(collection.add([docs]))
    private = [(str(docs / "scan.md"), "The salary of Bob."), (str(docs / "no_file"), "The salary of Eve.")]
    assert {what for what, _ in told(collection.put(private, readers=["hr"], tags=["x"]))} == {"added"}
    for events in (collection.refresh(), collection.add([docs]), collection.add([docs / "scan.md"])):
        assert {what for what, _ in told(events)} <= {"unchanged", "skipped"}
        assert seen(collection, Scope()) == ["note.md", "open.md", "pay.md"]
        assert seen(collection, Scope(frozenset(["hr"]), tags=frozenset(["x"]))) == ["no_file", "scan.md"]
    assert {what for what, _ in told(collection.put(private, readers=["hr"], tags=["x"]))} == {"unchanged"}
    collection.remove([docs / "scan.md"])
    [*collection.put(private, readers=["hr"])]
    assert told(collection.refresh()) == [("unchanged", name) for name in ("open.md", "pay.md", "note.md")]
    assert seen(collection, HR) == ["no_file", "note.md", "open.md", "pay.md", "scan.md"]


def test_what_is_added_again_keeps_its_readers_unless_others_are_named(collection, docs):
    [*collection.add([docs], readers=["hr"])]
    [*collection.put([("bonus", "Ada has ten.")], readers=["hr"])]
    (docs / "deep" / "new.md").write_text("The salary of Eve.")
    collection.remove([docs / "pay.md"])
    for again in (
        collection.add([docs]),
        collection.add([docs / "deep"]),
        collection.add([docs / "pay.md"]),
        collection.put([("bonus", "Ada has eleven."), (str(docs / "scan.pdf"), "The salary of Bob.")]),
    ):
        assert [*again]
        assert seen(collection, Scope()) == []
    assert seen(collection, HR) == ["bonus", "new.md", "note.md", "open.md", "pay.md", "scan.pdf"]
    [*collection.add([docs / "deep"], readers=["*"])]
    [*collection.put([("bonus", "Ada has eleven."), ("menu", "Soup.")], readers=["*"])]
    assert seen(collection, Scope()) == ["bonus", "menu", "new.md", "note.md"]


def test_whoever_narrows_the_readers_while_another_adds_counts(collection, docs):
    """The other named none. A text that cannot be read changes nothing."""
    [*collection.put([("bonus", "Ada has ten."), ("broken", "Ada has one.")])]

    def texts():
        yield "bonus", "Ada has eleven."
        yield str(docs / "pay.md"), "A text."
        [*another(collection).put([("bonus", "Ada has twelve."), ("broken", "Ada has two.")], readers=["hr"])]
        [*another(collection).add([docs], readers=["hr"])]
        yield "broken", ""

    assert ("skipped", "broken") in told(collection.put(texts()))
    assert seen(collection, Scope()) == []


def test_a_path_has_the_readers_of_the_text_that_was_put_under_it(collection, docs):
    [*collection.put([(str(docs / "pay.md"), "The salary of Bob.")], readers=["hr"])]
    assert ("changed", "pay.md") in told(collection.add([docs / "pay.md"]))
    assert seen(collection, Scope()) == []
    (docs.parent / "link").symlink_to(docs / "deep")
    [*collection.add([docs / "deep"], readers=["hr"])]
    [*collection.put([(str(docs.parent / "link" / "x"), "The salary of Eve.")])]
    assert seen(collection, Scope()) == []


def test_a_file_takes_the_place_of_a_text_of_its_name(collection, docs):
    [*collection.add([docs], readers=["hr"])]
    [*collection.put([(str(docs / "pay.md"), "The salary of Ada.")], readers=["*"])]
    assert seen(collection, Scope()) == ["pay.md"]
    assert ("changed", "pay.md") in told(collection.refresh())
    assert seen(collection, Scope()) == []
    (docs / "pay.md").unlink()
    assert ("removed", "pay.md") in told(collection.refresh())


def test_rights_are_taken_away_by_a_text_that_is_none(collection):
    [*collection.put([("a", "The salary."), ("b", "Open.")])]
    assert told(collection.put([("a", "")], readers=["hr"])) == [("skipped", "a")]
    assert seen(collection, Scope()) == ["b"]
    assert seen(collection, HR) == ["a", "b"]


def test_rights_that_were_recorded_are_given_by_the_next_refresh(collection, docs):
    """As after a crash between the two."""
    [*collection.add([docs])]
    settings = json.loads((collection.folder / "collection.json").read_text())
    settings["roots"][0]["readers"] = ["hr"]
    (collection.folder / "collection.json").write_text(json.dumps(settings))
    assert {what for what, _ in told(collection.refresh())} == {"changed"}
    assert seen(collection, Scope()) == []


# ── others at work meanwhile ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("change", ["readers", "remove", "remove one", "delete file", "delete"])
def test_an_older_refresh_undoes_nothing(collection, docs, change):
    [*collection.add([docs])]
    (docs / "pay.md").write_text("The salary of Ada, raised.")
    refreshing = collection.refresh()
    assert told(itertools.islice(refreshing, 2)) == [("unchanged", "open.md"), ("unchanged", "note.md")]
    # by now its new text is read, and waits to be put
    other = another(collection)
    if change == "readers":
        [*other.add([docs], readers=["hr"])]
        rest = told(refreshing)
        assert ("changed", "pay.md") in rest
        assert seen(other, Scope()) == []
        assert seen(other, HR) == ["note.md", "open.md", "pay.md"]
    elif change == "delete":
        other.delete()
        with pytest.raises(ValueError, match="was removed meanwhile"):
            told(refreshing)
    else:
        if change == "delete file":
            (docs / "pay.md").unlink()
            [*other.refresh()]
        else:
            other.remove([docs if change == "remove" else docs / "pay.md"])
        events = told(refreshing)
        assert ("changed", "pay.md") not in events
        assert "pay.md" not in seen(other)


def test_what_is_put_is_read_by_whom_the_path_says_then(collection, docs):
    """Between embedding and putting, others take rights away."""
    embed = collection.embedder.passages

    def late(texts):
        collection.embedder.passages = embed
        [*another(collection).add([docs], readers=["hr"])]
        return embed(texts)

    collection.embedder.passages = late
    [*collection.add([docs])]
    assert seen(collection, Scope()) == []
    assert seen(collection, HR) == ["note.md", "open.md", "pay.md"]


def test_a_collection_below_a_path_holds_no_documents(tmp_path, docs, monkeypatch):
    """Where its settings can be read as a document, they would name paths and readers to everyone."""
    monkeypatch.setitem(texts.READERS, ".json", texts.READERS[".txt"])
    collection = Collection(docs / "collections" / "faq", WordEmbedder())
    [*collection.add([docs / "pay.md"], readers=["boss"])]
    settings = docs / "collections" / "faq" / "collection.json"
    (docs / "deep" / "collection.json").write_text('{"of": "coins"}')  # a document like any other
    names = ["collection.json", "note.md", "open.md", "pay.md"]
    assert sorted(name for _, name in told(collection.add([docs]))) == names
    assert str(settings) not in {each.name for each in collection.documents()}
    other = Collection(docs / "deep" / "coins", WordEmbedder())
    [*other.put([("a", "b")])]
    assert sorted(told(collection.refresh())) == [("unchanged", name) for name in names]


def test_documents_that_a_collection_took_from_another_go(tmp_path, docs):
    collection = Collection(tmp_path / "faq", WordEmbedder())
    [*collection.add([docs])]
    (docs / "deep" / "collection.json").write_text(json.dumps({"embedder": "x", "roots": []}))
    assert ("removed", "note.md") in told(collection.refresh())


# ── what was removed ────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_was_removed_stays_away_until_it_is_added_by_itself(collection, docs):
    [*collection.add([docs])]
    assert told(collection.remove([docs / "pay.md", docs / "deep"])) == [("removed", "pay.md"), ("removed", "note.md")]
    (docs / "deep" / "new.md").write_text("New.")
    assert told(collection.refresh()) == [("unchanged", "open.md")]
    events = [*collection.add([docs])]
    assert told(events) == [("skipped", "pay.md"), ("skipped", "deep"), ("unchanged", "open.md")]
    assert "add it by its own path" in events[0].reason
    assert told(collection.add([docs / "deep" / "new.md"])) == [("added", "new.md")]
    assert told(collection.add([docs / "deep"], readers=["hr"])) == [("unchanged", "new.md"), ("added", "note.md")]
    assert seen(collection, Scope()) == ["new.md", "open.md"]
    assert seen(collection) == ["new.md", "note.md", "open.md"]
    collection.remove([docs])
    assert collection.documents() == collection.roots == []
    assert len([*collection.add([docs])]) == 4  # all of it is new


@pytest.mark.parametrize("path", ["/a", "/a/", "/a/b", "/a/b/c", "/a/b-c", "/none"])
def test_what_is_below_a_path_is_the_same_among_sorted_names(path):
    names = sorted(["/a", "/a-b", "/a.md", "/a/b", "/a/b/c", "/a/b-c", "/a0", "/a/\U0001f642", "/ab", "x", "/b/a"])
    roots = Roots([Root(path)])
    assert roots.meant(path, names)[1] == [name for name in names if within(name, os.path.normpath(path))]


def test_names_are_removed_together_or_not_at_all(collection, docs):
    [*collection.add([docs])]
    with pytest.raises(ValueError, match="has no document nothing"):
        collection.remove([docs, "nothing"])
    assert [each.path for each in collection.roots] == [str(docs)]
    assert len(collection.documents()) == 3
    (docs.parent / "empty").mkdir()
    assert told(collection.add([docs.parent / "empty"])) == []
    assert collection.remove([docs.parent / "empty"]) == []
    assert [each.path for each in collection.roots] == [str(docs)]


def test_an_empty_name_is_not_the_working_folder(collection, docs, monkeypatch):
    monkeypatch.chdir(docs)
    [*collection.add(["open.md"])]
    for change in (lambda: collection.remove([""]), lambda: [*collection.add([""])]):
        with pytest.raises(HalkaError, match="an empty name is no path"):
            change()
    assert [Path(root.path).name for root in collection.roots] == seen(collection) == ["open.md"]


def test_a_text_that_was_put_in_is_not_a_path(collection, docs, monkeypatch):
    monkeypatch.chdir(docs)
    [*collection.add(["."])]
    [*collection.put([("deep", "A text.")])]
    assert told(collection.remove(["deep"])) == [("removed", "deep")]
    assert seen(collection) == ["note.md", "open.md", "pay.md"]
    assert told(collection.remove(["deep"])) == [("removed", "note.md")]


def test_a_text_whose_name_is_no_path_can_be_removed(collection, docs):
    [*collection.add([docs])]
    [*collection.put([(name, "A text.") for name in ("/a//b", "/a/./c", "/a", str(docs.parent / "alone"))])]
    for name in ("/a//b", "/a", str(docs.parent / "alone")):
        assert [event.document for event in collection.remove([name])] == [name]
    assert [event.document for event in collection.remove(["/a"])] == ["/a/./c"]
    assert seen(collection) == ["note.md", "open.md", "pay.md"]


def test_a_text_whose_name_no_file_has_is_removed_alone_below_a_path_too(collection, docs):
    [*collection.add([docs])]
    name = f"{docs}//open.md"
    [*collection.put([(name, "A text.")])]
    assert [event.document for event in collection.remove([name])] == [name]
    assert seen(collection) == ["note.md", "open.md", "pay.md"]
    assert told(collection.add([docs])) == [("unchanged", name) for name in ("open.md", "pay.md", "note.md")]


def test_on_a_mac_a_path_is_one_however_it_is_spelled(collection, docs, tmp_path, monkeypatch):
    ignore_spelling(monkeypatch)
    [*collection.add([docs / "DEEP"], readers=["hr"])]
    [*collection.add([tmp_path / "Docs"])]
    assert [root.path for root in collection.roots] == [str(docs / "deep"), str(docs)]
    assert seen(collection, Scope()) == ["open.md", "pay.md"]
    assert collection.document(str(docs / "Open.md")).name == str(docs / "open.md")
    assert told(collection.remove([str(docs / "Deep")])) == [("removed", "note.md")]
    assert listed([str(tmp_path / "Docs")]) == ({}, [str(docs)])


# ── what is gone, and what is only not seen ─────────────────────────────────────────────────────────────────────────


def test_what_became_something_else_is_gone(collection, docs, tmp_path):
    (docs / "old.md").write_text("Old.")
    [*collection.add([docs, docs / "pay.md"])]
    away = tmp_path / "away"
    shutil.move(docs / "deep", away)
    (docs / "deep").symlink_to(away)
    for name in ("open.md", "pay.md"):
        shutil.move(docs / name, away / name)
        (docs / name).symlink_to(away / name)
    (docs / "old.md").unlink()
    (docs / "old.md").mkdir()
    (docs / "old.md" / "new.md").write_text("New.")
    assert sorted(told(collection.refresh())) == [
        ("added", "new.md"),
        *(("removed", name) for name in ("note.md", "old.md", "open.md", "pay.md")),
    ]
    assert seen(collection) == ["new.md"]
    shutil.rmtree(docs / "old.md")
    (docs / "old.md").write_text("A file again.")
    assert sorted(told(collection.refresh())) == [("added", "old.md"), ("removed", "new.md")]


def test_files_are_looked_at_while_others_use_the_collection(collection, docs, monkeypatch):
    [*collection.add([docs])]
    looked, look = set(), os.lstat

    def lstat(path, **options):
        if Path(path).suffix == ".md":
            with FileLock(collection.folder / ".lock", timeout=0):
                looked.add(Path(path).name)
        return look(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "lstat", lstat)
        [*collection.refresh()]
    assert looked == {"open.md", "pay.md", "note.md"}


def test_what_stands_below_a_path_that_is_away_stays(collection, docs, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "alone.md").write_text("Alone.")
    [*collection.add([docs, tmp_path / "disk" / "alone.md"])]
    shutil.move(docs, tmp_path / "elsewhere")
    shutil.move(tmp_path / "disk", tmp_path / "unmounted")
    events = [*collection.refresh()]
    assert told(events) == [("skipped", "docs"), ("skipped", "alone.md")]
    assert "docs is not there: its documents stay" in events[0].reason
    (tmp_path / "docs").symlink_to(tmp_path / "elsewhere")
    assert told(collection.refresh()) == [("skipped", "docs"), ("skipped", "alone.md")]
    assert len(seen(collection)) == 4
    (tmp_path / "disk").mkdir()  # the folder is there and the file is not
    assert told(collection.refresh())[0] == ("removed", "alone.md")
    assert len(collection.remove([tmp_path / "docs"])) == 3
    assert told(collection.refresh()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_may_not_be_looked_into_keeps_its_documents(collection, docs):
    [*collection.add([docs])]
    (docs / "deep").chmod(0)
    try:
        [*collection.refresh()]
    finally:
        (docs / "deep").chmod(0o755)
    assert seen(collection) == ["note.md", "open.md", "pay.md"]


def test_what_is_left_out_of_a_folder_has_a_reason(collection, docs, monkeypatch):
    for name in ("a.odt", "b.ODT", "deep/c.eml", ".hidden.odt", "style.css", "picture.png"):
        (docs / name).write_text("x")
    left_out = [event for event in collection.add([docs, docs / "deep"]) if event.what == "skipped"]
    assert [(event.document, event.reason.partition(":")[0]) for event in left_out] == [
        ("*.eml", "files of the kind .eml are not read, 1 here"),
        ("*.odt", "files of the kind .odt are not read, 2 here"),
    ]
    scan = os.scandir

    def scandir(path):
        if Path(path).name == "deep":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    (event,) = [event for event in collection.refresh() if event.what == "skipped"]
    assert event.reason == f"{docs / 'deep'}: permission denied"
    assert seen(collection) == ["note.md", "open.md", "pay.md"]


# ── one name twice ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("at_once", [10, 1000])
def test_of_texts_of_one_name_the_last_counts(tmp_path, at, at_once):
    collection = Collection(tmp_path / "faq", WordEmbedder(), at=at, at_once=at_once)
    [*collection.put([("a", "Older text."), ("b", "Other text."), ("a", "Newer text.")])]
    assert [each.name for each in collection.documents()] == ["a", "b"]
    assert [each.text for each in collection.store.passages("a", range(9), Scope())] == ["Newer text."]
    [*collection.put([("a", "Between them."), ("a", "Newer text.")])]
    assert [each.text for each in collection.store.passages("a", range(9), Scope())] == ["Newer text."]

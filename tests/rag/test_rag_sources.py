"""Documents as they are named: rows and files, each known by one name, however it is given."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from embedder_for_tests import WordEmbedder
from halka.rag.collection import Collection
from halka.rag.sources import digest_of, listed, taken_in


@pytest.fixture
def docs(tmp_path) -> Path:
    folder = tmp_path / "docs"
    (folder / ".git").mkdir(parents=True)
    (folder / "a.md").write_text("Parcels are sent on Monday.")
    (folder / ".git" / "b.md").write_text("hidden")
    return folder


@pytest.fixture
def collection(tmp_path) -> Collection:
    return Collection(tmp_path / "faq", WordEmbedder())


def rows(path: Path, *documents: tuple[str, str]) -> str:
    path.write_text("".join(json.dumps({"name": name, "text": text}) + "\n" for name, text in documents))
    return str(path)


def told(events) -> list[tuple[str, str]]:
    return [(event.what, Path(event.document).name) for event in events]


def test_rows_of_one_name_are_told(tmp_path):
    first = rows(tmp_path / "first.jsonl", ("a", "one"), ("b", "two"), ("a", "one"))
    assert listed([first]) == ({"a": "one", "b": "two"}, [])
    with pytest.raises(ValueError, match=r"second\.jsonl.*1.*another document of the name 'a'"):
        listed([first, rows(tmp_path / "second.jsonl", ("a", "three"))])


@pytest.mark.parametrize("way", ["dots", "link"])
def test_a_folder_is_known_again_however_it_is_named(collection, docs, tmp_path, way):
    (tmp_path / "other").mkdir()
    (tmp_path / "link").symlink_to(docs)
    named = str(tmp_path / "other" / ".." / "docs" if way == "dots" else tmp_path / "link")
    assert told(taken_in(collection, *listed([named]))) == [("added", "a.md")]
    assert told(taken_in(collection, *listed([named]))) == [("unchanged", "a.md")]
    assert digest_of([named]) == digest_of([str(docs)])


def test_here_is_read_as_a_folder_by_its_name(docs, monkeypatch):
    before = digest_of([str(docs)])
    monkeypatch.chdir(docs)
    assert digest_of(["."]) == before
    (docs / ".git" / "b.md").write_text("hidden, too")
    assert digest_of(["."]) == before


def test_what_is_left_out_is_no_document_and_what_was_taken_in_of_it_goes(collection, docs):
    out = docs / "advice"
    before = digest_of([str(docs)])
    assert told(taken_in(collection, *listed([str(docs)]), out)) == [("added", "a.md")]
    out.mkdir()
    (out / "report.md").write_text("What was found.")
    assert digest_of([str(docs)], out) == before != digest_of([str(docs)])
    assert told(taken_in(collection, *listed([str(docs)]), out)) == [("unchanged", "a.md")]
    assert len(collection.documents()) == 1
    other = Collection(collection.folder.parent / "other", WordEmbedder())
    assert len([*other.add([docs])]) == 2
    assert told(taken_in(other, *listed([str(docs)]), out)) == [("unchanged", "a.md"), ("removed", "report.md")]


def test_what_was_named_below_a_folder_or_left_out_of_it_once_is_there_again(collection, docs):
    (docs / "sub").mkdir()
    (docs / "sub" / "c.md").write_text("Returns are free.")

    def taken(*named: str, **options: Path) -> set[str]:
        for _ in taken_in(collection, *listed(named), **options):
            pass
        return {Path(document.name).name for document in collection.documents()}

    assert taken(str(docs), str(docs / "sub")) == {"a.md", "c.md"}
    assert taken(str(docs)) == {"a.md", "c.md"}
    assert taken(str(docs), leave_out=docs / "sub") == {"a.md"}
    assert taken(str(docs)) == {"a.md", "c.md"}
    collection.remove([str(docs / "sub")])  # whoever removes means it: only a list of all documents brings it back
    for _ in collection.add([docs]):
        pass
    assert {Path(document.name).name for document in collection.documents()} == {"a.md"}


def test_a_text_that_was_put_below_a_folder_goes_with_the_next_list(collection, docs):
    """As one that stood in place of a file for a while."""
    for _ in taken_in(collection, *listed([str(docs)])):
        pass
    for _ in collection.put([(str(docs / "a.md"), "Changed."), (str(docs / "gone.md"), "Changed, too.")]):
        pass
    assert told(taken_in(collection, *listed([str(docs)]))) == [("added", "a.md")]
    assert [Path(document.name).name for document in collection.documents()] == ["a.md"]

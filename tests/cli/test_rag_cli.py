"""`halka docs` from end to end, with a small embedder of the sentence-transformers library."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from embedder_for_tests import sentence_embedder, small_bert
from engine_for_tests import filled
from halka import LoRA, adapt, load_base, save
from halka.cli import app
from halka.cli.retrieval import scope_of
from halka.rag.retrieve import CrossEncoder
from mac_for_tests import ignore_spelling
from tiny import tiny
from tokenizers_for_tests import chatml_tokenizer


@pytest.fixture(scope="module")
def embedder(tmp_path_factory) -> Path:
    return sentence_embedder(tmp_path_factory.mktemp("embedder"))


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A base of random values: what it says means nothing, its sources do."""
    folder = tmp_path_factory.mktemp("base")
    tiny("llama", vocab_size=424, max_position_embeddings=1024).save_pretrained(folder)
    chatml_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def halka(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "10000")  # a path that is wrapped may begin a line with anything

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            app([*arguments])
        out = capsys.readouterr()
        return int(ended.value.code or 0), out.out, out.err

    return run


def test_from_files_to_passages_and_back(halka, embedder, tmp_path):
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / "parcels.md").write_text("# Parcels\n\nThe parcels are sent on monday.")
    (folder / "refunds.txt").write_text("Refunds take nine days.")
    (folder / "broken.pdf").write_bytes(b"%PDF-1.4")
    code, out, err = halka("docs", "add", "faq", "documents", "--embedder", str(embedder))
    assert (code, out) == (0, "1 skipped, 2 added\n"), err
    assert "skipped:" in err
    assert "broken.pdf" in err
    code, out, _ = halka("docs", "search", "faq", "when are parcels sent", "--count", "1", "--mode", "words")
    assert code == 0
    assert out.startswith("[1] ")
    assert "parcels.md, " in out
    assert "sent on monday" in out
    _, out, _ = halka("docs", "search", "faq", "refunds days", "--json")
    assert {"passage", "score", "cosine", "bm25"} <= json.loads(out)[0].keys()
    (folder / "refunds.txt").unlink()
    assert halka("docs", "refresh", "faq")[1] == "1 removed, 1 skipped, 1 unchanged\n"
    _, out, _ = halka("docs", "list", "faq", "--json")
    assert [Path(each["name"]).name for each in json.loads(out)] == ["parcels.md"]
    assert "1 collection in collections" in halka("docs", "list")[1]
    assert "Parcels" in halka("docs", "show", "faq", "documents/parcels.md")[1]
    assert halka("docs", "remove", "faq")[0] == 0
    assert not (tmp_path / "collections" / "faq").exists()
    code, _, err = halka("docs", "search", "faq", "x")
    assert code == 2
    assert "holds no collection 'faq'" in err


def test_passages_are_kept_where_the_collection_began(halka, embedder, tmp_path, postgres):
    (tmp_path / "parcels.md").write_text("The parcels are sent on monday.")
    begun = ("docs", "add", "faq", "parcels.md", "--embedder", str(embedder), "--at")
    code, _, err = halka(*begun, "postgresql://ada:secret@host/db")
    assert (code, "must not have a password" in err, "secret" in err) == (2, True, False)
    code, _, err = halka(*begun, postgres)
    assert code == 0, err
    assert "sent on monday" in halka("docs", "search", "faq", "parcels")[1]
    assert f"at: {postgres}" in halka("docs", "show", "faq")[1].splitlines()
    assert json.loads(halka("docs", "list", "--json")[1])[0]["passages"] == 1
    assert not [*(tmp_path / "collections" / "faq").glob("*.lance")]
    assert halka("docs", "refresh", "faq")[1] == "1 unchanged\n"
    code, _, err = halka(*begun, "postgresql://elsewhere/db")
    assert (code, "not at postgresql://elsewhere/db" in err) == (2, True)
    assert halka("docs", "remove", "faq")[0] == 0


def test_a_place_that_does_not_answer_hides_no_other_collection(halka, embedder, tmp_path):
    (tmp_path / "parcels.md").write_text("The parcels are sent on monday.")
    assert halka("docs", "add", "faq", "parcels.md", "--embedder", str(embedder))[0] == 0
    away = {"embedder": str(embedder), "at": f"postgresql://ada@/db?host={tmp_path}", "key": "away", "roots": []}
    (tmp_path / "collections" / "away").mkdir()
    (tmp_path / "collections" / "away" / "collection.json").write_text(json.dumps(away))
    code, out, err = halka("docs", "list")
    assert (code, "faq" in out, "away: PostgreSQL at /db cannot be used" in err) == (0, True, True)
    assert [each["name"] for each in json.loads(halka("docs", "list", "--json")[1])] == ["faq"]


def test_readers_are_asked_for(halka, embedder, tmp_path):
    (tmp_path / "pay.md").write_text("The salary is secret.")
    assert halka("docs", "add", "hr", "pay.md", "--reader", "staff", "--embedder", str(embedder))[0] == 0
    assert halka("docs", "search", "hr", "salary")[1] == "nothing was found that you may read\n"
    assert "secret" in halka("docs", "search", "hr", "salary", "--as", "staff")[1]
    code, _, err = halka("docs", "search", "hr", "salary", "--as", "x' OR 1")
    assert (code, "cannot name a reader" in err) == (2, True)


def test_a_place_is_a_path_or_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    under = [scope_of(None, None, None if each is None else Path(each)).under for each in (None, "docs", "MED-10")]
    assert under == ["", str(tmp_path / "docs"), "MED-10"]
    ignore_spelling(monkeypatch)
    assert scope_of(None, None, Path("DOCS")).under == str(tmp_path / "docs")


def test_a_folder_in_beirs_layout_is_scored(halka, embedder, tmp_path):
    (tmp_path / "q" / "qrels").mkdir(parents=True)
    texts = {"a": "Parcels are sent on monday.", "b": "Refunds take nine days.", "c": "The salary is secret."}
    corpus = [{"_id": name, "title": "", "text": text} for name, text in texts.items()]
    (tmp_path / "q" / "corpus.jsonl").write_text("\n".join(map(json.dumps, corpus)) + "\n\n")
    (tmp_path / "q" / "queries.jsonl").write_text(
        '{"_id": "1", "text": "when are parcels sent"}\n{"_id": "2", "text": "x"}'
    )
    (tmp_path / "q" / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n1\ta\t1\n\n")
    code, out, err = halka("docs", "evaluate", "q", "q", "--json", "--embedder", str(embedder))
    assert code == 0, err
    scores = json.loads(out)
    assert scores["words"]["nDCG@10"] == scores["words"]["Success@1"] == 1.0
    assert set(scores) == {"hybrid", "vectors", "words"}
    (tmp_path / "q" / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n9\ta\t1\n")
    code, _, err = halka("docs", "evaluate", "q", "q")
    assert (code, "lacks query 9" in err) == (2, True)

    (tmp_path / "q" / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n1\ta\t1\n")
    assert halka("docs", "evaluate", "q", "q")[0] == 0
    (tmp_path / "own.md").write_text("Parcels are sent on monday.")
    assert halka("docs", "add", "own", "own.md", "--embedder", str(embedder))[0] == 0
    code, _, err = halka("docs", "evaluate", "own", "q")  # nothing is put among what somebody keeps
    assert (code, "use another name" in err) == (2, True)
    assert len(json.loads(halka("docs", "list", "own", "--json")[1])) == 1
    (tmp_path / "q" / "corpus.jsonl").unlink()
    assert halka("docs", "evaluate", "own", "q")[0] == 0
    code, _, err = halka("docs", "evaluate", "typoed", "q")
    assert (code, "holds no collection 'typoed'" in err) == (2, True)
    assert not (tmp_path / "collections" / "typoed").exists()


def test_where_all_is_skipped_nothing_begins(halka, embedder, tmp_path):
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.4")
    (tmp_path / "good.md").write_text("Good.")
    code, _, err = halka("docs", "add", "faq", "broken.pdf", "--embedder", str(embedder))
    assert (code, "nothing was added: all files were skipped" in err) == (1, True)
    assert not (tmp_path / "collections" / "faq").exists()
    assert halka("docs", "add", "faq", "good.md", "--embedder", str(embedder))[0] == 0
    code, out, _ = halka("docs", "add", "faq", "broken.pdf", "--json")
    assert (code, [each["what"] for each in json.loads(out)]) == (1, ["skipped"])
    assert len(json.loads(halka("docs", "list", "faq", "--json")[1])) == 1


def test_an_empty_path_is_refused(halka):
    code, _, err = halka("docs", "add", "faq", "")
    assert (code, "an empty name is no path" in err) == (2, True)


def test_a_collection_that_was_stopped_as_it_began_begins_again(halka, embedder, tmp_path):
    (tmp_path / "good.md").write_text("Good.")
    folder = tmp_path / "collections" / "faq"
    folder.mkdir(parents=True)
    (folder / ".lock").touch()
    (folder / ".collection.json.0123abcd").write_text("{")
    assert halka("docs", "add", "faq", "good.md", "--embedder", str(embedder))[0] == 0


@pytest.mark.parametrize("as_json", [False, True])
def test_watching_tells_what_changes_and_nothing_twice(halka, embedder, tmp_path, monkeypatch, as_json):
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / "a.md").write_text("The parcels are sent on monday.")
    (folder / "broken.pdf").write_bytes(b"%PDF-1.4")
    assert halka("docs", "add", "faq", "documents", "--embedder", str(embedder))[0] == 0
    steps = [
        lambda: None,
        lambda: (folder / "a.md").write_text("The parcels are sent on friday."),
        lambda: None,
        lambda: (folder / "b.md").write_text("New."),
        lambda: (folder / "broken.pdf").write_bytes(b"\xff no PDF"),
        lambda: (folder / "b.md").unlink(),
    ]

    def sleep(seconds: float, own: Callable[[float], None] = time.sleep) -> None:
        if seconds != 5:  # somebody else's
            return own(seconds)
        if not steps:
            raise KeyboardInterrupt
        steps.pop(0)()

    monkeypatch.setattr(time, "sleep", sleep)
    _, out, err = halka("docs", "refresh", "faq", "--watch", "5", *(["--json"] if as_json else []))
    said = [
        line.partition(" (")[0] for line in err.splitlines() if line.split(":")[0] in ("changed", "added", "removed")
    ]
    assert said == [f"changed: {folder}/a.md", f"added: {folder}/b.md", f"removed: {folder}/b.md"]
    assert 1 <= err.count("skipped: ") <= 2  # again only for another reason
    if as_json:
        assert "[]" not in out
    else:
        assert "nothing to do" not in out
        assert [line for line in out.splitlines() if "skipped" not in line] == ["1 changed", "1 added", "1 removed"]


def test_what_names_and_texts_hold_steers_no_terminal(halka, embedder, tmp_path):
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / "a\nremoved: all \x1b[2J.md").write_text("# Par\x1b[1mcels\n\nSent\x1b]0;x\x07 on\x9b monday.\tYes.")
    code, out, err = halka("docs", "add", "faq", "documents", "--embedder", str(embedder))
    assert code == 0
    told = [out, err, halka("docs", "list", "faq")[1]]
    (name,) = (each["name"] for each in json.loads(halka("docs", "list", "faq", "--json")[1]))
    told += [halka("docs", "show", "faq", name)[1], halka("docs", "search", "faq", "monday", "--mode", "words")[1]]
    for each in told:
        assert not {"\x1b", "\x07", "\x9b"} & {*each}
        assert not [line for line in each.splitlines() if line.startswith("removed")]
    assert "monday.\tYes." in told[-1] or "monday.  " in told[-1]


def test_a_question_is_answered_with_its_sources(halka, embedder, base, tmp_path):
    (tmp_path / "parcels.md").write_text("The parcels are sent on monday.")
    (tmp_path / "pay.md").write_text("The salary is secret.")
    assert halka("docs", "add", "faq", "parcels.md", "--embedder", str(embedder))[0] == 0
    assert halka("docs", "add", "faq", "pay.md", "--reader", "hr")[0] == 0
    asking = ("ask", "when are parcels sent", "--collection", "faq", "--base", str(base))
    code, out, err = halka(*asking, "--max-new-tokens", "4", "--dtype", "float32")
    assert code == 0, err
    assert out.splitlines()[-1].startswith(f"[1] {tmp_path / 'parcels.md'}, 0–31")
    code, out, err = halka(*asking, "--max-new-tokens", "4", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert [Path(source["document"]).name for source in found["sources"]] == ["parcels.md"]
    assert not found["abstained"]
    code, out, _ = halka(*asking, "--under", "nowhere")
    assert (code, out) == (0, "The documents do not say.\n")
    code, _, err = halka(*asking, "--max-new-tokens", "1020")
    assert (code, "shorten it" in err) == (2, True)
    code, _, err = halka("ask", " ", "--collection", "faq", "--base", "no/such-base")
    assert (code, "QUESTION is empty" in err, "loading" in err) == (2, True, False)


def test_an_adapter_answers_under_any_name(halka, embedder, base, tmp_path):
    (tmp_path / "parcels.md").write_text("The parcels are sent on monday.")
    assert halka("docs", "add", "faq", "parcels.md", "--embedder", str(embedder))[0] == 0
    model = adapt(*load_base(base, dtype="float32"))
    filled(model, "style", LoRA(rank=4))
    save(model, "style", tmp_path / "style")
    asking = ("ask", "when are parcels sent", "--collection", "faq", "--base", str(base), "--dtype", "float32")
    bare, folder, named = (
        halka(*asking, "--max-new-tokens", "8", *adapter)
        for adapter in ((), ("--adapter", str(tmp_path / "style")), ("--adapter", f"mine={tmp_path / 'style'}"))
    )
    assert (bare[0], folder[0], named[0]) == (0, 0, 0), named[2]
    assert folder[1] == named[1] != bare[1]


def test_questions_become_training_data(halka, embedder, tmp_path):
    (tmp_path / "parcels.md").write_text("The parcels are sent on monday.")
    assert halka("docs", "add", "faq", "parcels.md", "--embedder", str(embedder))[0] == 0
    (tmp_path / "asked.jsonl").write_text('{"question": "when are parcels sent", "answer": "on monday"}\n')
    code, out, err = halka("docs", "examples", "faq", "asked.jsonl", "-o", "train.jsonl", "--without", "0")
    assert (code, out) == (0, "1 question, 1 example, 0 abstaining, in train.jsonl\n"), err
    row = json.loads((tmp_path / "train.jsonl").read_text())
    assert row["messages"][1]["content"] == "on monday [1]"
    told = re.search(r"`halka ask --floor (.+)` abstains", err)
    assert told
    with (tmp_path / "asked.jsonl").open("a") as file:
        file.write('{"question": "xyz", "answer": "nowhere"}\n')
    examples = ("docs", "examples", "faq", "asked.jsonl", "-o", "more.jsonl")
    assert f"--floor {told[1]}`" in halka(*examples)[2]  # what no passage answers has no part in it
    assert re.search(r"`halka ask --mode words --floor \d", halka(*examples, "--mode", "words")[2])
    (tmp_path / "asked.jsonl").write_text('{"question": "xyz", "answer": "on monday", "document": "parcels.md"}\n')
    code, _, err = halka(*examples, "--mode", "words")
    assert (code, "--floor" in err) == (0, False)  # words find nothing for it
    assert json.loads(halka(*examples, "--mode", "words", "--json")[1])["floor"] is None
    (tmp_path / "asked.jsonl").write_text('{"question": "when are parcels sent", "answer": "never"}\n')
    code, _, err = halka("docs", "examples", "faq", "asked.jsonl", "-o", "train.jsonl")
    assert (code, "holds an answer" in err) == (2, True)


def test_the_form_of_answers_in_training_data_is_chosen(halka, embedder, tmp_path):
    (tmp_path / "parcels.md").write_text("The parcels are sent on monday.")
    assert halka("docs", "add", "faq", "parcels.md", "--embedder", str(embedder))[0] == 0
    (tmp_path / "asked.jsonl").write_text('{"question": "when are parcels sent", "answer": "on monday"}\n')
    examples = ("docs", "examples", "faq", "asked.jsonl", "-o", "train.jsonl", "--without", "0")
    for options, answer in (
        (("--no-cite",), "on monday"),
        (("--form", "Answer: {answer}"), "Answer: on monday [1]"),
        (("--form", "Answer: {answer}", "--no-cite"), "Answer: on monday"),
    ):
        assert halka(*examples, *options)[0] == 0
        assert json.loads((tmp_path / "train.jsonl").read_text())["messages"][1]["content"] == answer


def test_a_passage_is_read_with_its_neighbours(halka, embedder, base, tmp_path):
    (tmp_path / "parcels.md").write_text("".join(f"Parcel {number} is sent on monday.\n\n" for number in range(60)))
    assert halka("docs", "add", "faq", "parcels.md", "--embedder", str(embedder))[0] == 0
    asking = ("ask", "parcel 30", "--collection", "faq", "--base", str(base), "--passages", "1", "--json")
    (alone,), (wide,) = (
        json.loads(halka(*asking, "--max-new-tokens", "1", *more)[1])["sources"]
        for more in ((), ("--neighbours", "200"))
    )
    assert wide["end"] - wide["start"] > alone["end"] - alone["start"]


def test_a_collection_that_shall_compare_all_vectors_says_so(halka, embedder, tmp_path):
    (tmp_path / "parcels.md").write_text("The parcels are sent on monday.")
    settings = tmp_path / "collections" / "faq" / "collection.json"
    for option, exact in (("--exact", True), ("--indexed", False)):
        assert halka("docs", "add", "faq", "parcels.md", "--embedder", str(embedder), option)[0] == 0
        assert json.loads(settings.read_text())["exact"] is exact


def test_a_cross_encoder_has_the_last_word(halka, embedder, tmp_path):
    import torch
    from transformers import BertForSequenceClassification

    torch.manual_seed(0)
    reranker = small_bert(tmp_path / "cross", BertForSequenceClassification, num_labels=1)
    for name, text in (
        ("a", "The parcels are sent on monday."),
        ("b", "Refunds take nine days."),
        ("c", "Secret salary."),
    ):
        (tmp_path / f"{name}.md").write_text(text)
    assert halka("docs", "add", "faq", "a.md", "b.md", "c.md", "--embedder", str(embedder))[0] == 0
    code, out, err = halka("docs", "search", "faq", "refunds", "--rerank", str(reranker), "--json")
    assert code == 0, err
    hits = json.loads(out)
    scores = CrossEncoder(str(reranker))("refunds", [hit["passage"]["text"] for hit in hits])
    assert [hit["score"] for hit in hits] == pytest.approx(scores, abs=1e-5)
    assert scores == sorted(scores, reverse=True)
    assert CrossEncoder(str(reranker))("refunds", []) == []
    code, _, err = halka("docs", "search", "faq", "refunds", "--rerank", "nowhere/./at-all")
    assert code == 2
    assert "cannot be loaded as a cross-encoder" in err
    many = small_bert(tmp_path / "many", BertForSequenceClassification, num_labels=3)
    with pytest.raises(ValueError, match="returns 3 scores for a pair"):
        CrossEncoder(str(many))


def test_a_source_steers_no_terminal(halka, embedder, base, tmp_path):
    (tmp_path / "a\n[2] forged.md\x1b[2J.md").write_text("The parcels are sent on monday.")
    assert halka("docs", "add", "faq", str(tmp_path), "--embedder", str(embedder))[0] == 0
    asking = ("ask", "when are parcels sent", "--collection", "faq", "--base", str(base))
    code, out, err = halka(*asking, "--max-new-tokens", "4", "--dtype", "float32")
    assert code == 0, err
    assert out.splitlines()[-1] == f"[1] {tmp_path}/a [2] forged.md [2J.md, 0–31"

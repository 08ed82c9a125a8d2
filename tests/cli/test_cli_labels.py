"""`halka train`, `evaluate` and `generate` with a classifier and a tagger, run in this process."""

from __future__ import annotations

import json

import pytest

from classifiers import LABELS, TAGS, examples
from commands import failure, halka, parsed
from halka.data.readers import Row, read_rows
from halka.storage.card import read_card
from tiny import tiny
from tokenizers_for_tests import plain_tokenizer

FLAGS = "--base base --dtype float32 --batch-size 4 --rank 4 --alpha 8 --lr 0.02 --warmup 0"


@pytest.fixture(scope="module")
def labelled_runs(tmp_path_factory):
    """A folder with a base, texts with labels, sentences with tags, and a run of each that is finished."""
    folder = tmp_path_factory.mktemp("labelled_runs")
    tokenizer = plain_tokenizer()
    tiny("llama", vocab_size=len(tokenizer), pad_token_id=0).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    labelled = [{"text": each.prompt[0].content, "label": each.answers[0]} for each in examples()]
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labelled))
    tagged = [zip(each.prompt[0].content.split(), each.answers[0].split(), strict=True) for each in examples(TAGS)]
    lines = ("".join(f"{word} X {tag}\n" for word, tag in sentence) for sentence in tagged)
    (folder / "words.conll").write_text("\n".join(lines))
    halka(f"train {FLAGS} --data texts.jsonl --steps 30 -o texts", folder)
    halka(f"train {FLAGS} --data words.conll --steps 30 -o words", folder)
    return folder


def test_comments_before_a_sentence_are_no_words(tmp_path):
    (tmp_path / "words.conll").write_text("# id 5 domain=en\n# O\nHello O\n\n# text = Bye = now\nBye B-X\n")
    rows = [row for row in read_rows(tmp_path / "words.conll") if isinstance(row, Row)]
    assert [row.fields["words"] for row in rows] == [["#", "Hello"], ["Bye"]]


def test_the_kind_follows_from_the_data_and_the_labels_stand_in_the_card(labelled_runs):
    texts, words = (read_card(labelled_runs / name / "adapter") for name in ("texts", "words"))
    assert texts is not None
    assert words is not None
    assert (texts.kind, texts.labels) == ("sequence-classification", sorted(LABELS))
    assert (words.kind, words.labels) == ("token-classification", sorted(LABELS))


@pytest.mark.parametrize(
    ("run", "data", "metrics"),
    [
        ("texts", "texts.jsonl", {"accuracy", "macro_f1"}),
        ("words", "words.conll", {"tag_f1", "tag_accuracy"}),
    ],
)
def test_evaluate_loads_the_base_as_the_adapter_needs_it(labelled_runs, monkeypatch, run, data, metrics):
    monkeypatch.chdir(labelled_runs)
    found = parsed(f"evaluate --base base --dtype float32 --adapter {run}/adapter --data {data}")
    assert found["scores"].keys() == metrics
    assert all(score["value"] == 1 for score in found["scores"].values())


def test_generate_answers_by_labels(labelled_runs, monkeypatch, tmp_path):
    monkeypatch.chdir(labelled_runs)
    usual = "generate --base base --dtype float32"
    first, (_, second) = examples()[0], examples(TAGS)[:2]
    text = first.prompt[0].content.replace(" ", "␣")
    assert halka(f"{usual} --adapter texts/adapter {text}").stdout.strip() == first.answers[0]
    assert parsed(f"{usual} --adapter texts/adapter {text}")["answer"] == first.answers[0]
    (tmp_path / "more.jsonl").write_text(
        json.dumps({"words": second.prompt[0].content.split()}) + "\n" + json.dumps({"text": second.prompt[0].content})
    )
    answers = parsed(f"{usual} --adapter words/adapter --file {tmp_path}/more.jsonl")
    assert [each["answer"] for each in answers] == [second.answers[0]] * 2


def test_what_does_not_go_together_is_an_error_by_name(labelled_runs, monkeypatch, tmp_path):
    monkeypatch.chdir(labelled_runs)
    usual = "evaluate --base base --dtype float32"
    told = failure(f"{usual} --adapter texts/adapter --adapter texts --data texts.jsonl")
    assert "two are named 'texts'" in told
    told = failure(f"{usual} --adapter a=texts/adapter --adapter b=words/adapter --data texts.jsonl")
    assert "a of a sequence-classification and b of a token-classification: one base cannot be both" in told
    (tmp_path / "other.jsonl").write_text('{"text": "Yes.", "label": "awful"}\n')
    told = failure(f"{usual} --adapter texts/adapter --data {tmp_path}/other.jsonl")
    assert "the label 'awful' is none of the 3 labels: bad, good, meh" in told
    told = failure(f"train {FLAGS} --data texts.jsonl --data words.conll -o {tmp_path}/run")
    assert "texts.jsonl:1 is read as labelled and words.conll:1 is read as tagged, for bases of different" in told
    assert "kind 'tagger' is none of" in failure(f"train {FLAGS} --data texts.jsonl --kind tagger -o {tmp_path}/run")


def test_a_classifiers_run_is_repeated_by_its_file_and_together_with_others(labelled_runs, monkeypatch, tmp_path):
    monkeypatch.chdir(labelled_runs)
    again = halka(f"train --config texts/run.yaml -o {tmp_path}/again --json")
    assert json.loads(again.stdout)["method"]["name"] == "lora"
    (tmp_path / "three.jsonl").write_text(
        "".join(json.dumps({"text": f"Is it {label}?", "label": label}) + "\n" for label in ("one", "two"))
    )
    (tmp_path / "runs.yaml").write_text(
        f"runs:\n  - {{out: {tmp_path}/a, data: [{labelled_runs}/texts.jsonl]}}\n"
        f"  - {{out: {tmp_path}/b, data: [{tmp_path}/three.jsonl]}}\n"
    )
    halka(f"train {FLAGS} --steps 2 --many {tmp_path}/runs.yaml")
    cards = [read_card(tmp_path / name / "adapter") for name in "ab"]
    assert [card and card.labels for card in cards] == [sorted(LABELS), ["one", "two"]]


def test_a_run_that_begins_as_a_classifier_has_its_labels(labelled_runs, monkeypatch, tmp_path):
    monkeypatch.chdir(labelled_runs)
    (tmp_path / "less.jsonl").write_text(json.dumps({"text": "Is it so?", "label": LABELS[0]}) + "\n")
    halka(f"train {FLAGS} --from texts --data {tmp_path}/less.jsonl --steps 1 -o {tmp_path}/more")
    assert read_card(tmp_path / "more" / "adapter").labels == read_card(labelled_runs / "texts" / "adapter").labels

"""The handbook, which README's last example answers from: its documents, questions and training data agree."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from halka.rag.passages import Passage
from halka.rag.prompt import ABSTAINED, in_form, prompted
from halka.rag.questions import asked_in, holds

ROOT = Path(__file__).parents[1]
HANDBOOK = ROOT / "examples" / "handbook"
FORM = "Answer: {answer}"


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (HANDBOOK / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def documents() -> dict[str, Passage]:
    """Each document, which is short enough to be one passage."""
    texts = {path.name: path.read_text(encoding="utf-8").strip() for path in (HANDBOOK / "documents").glob("*.md")}
    headings = {name: re.match("# (.*)", text)[1] for name, text in texts.items()}
    return {name: Passage(name, 0, text, 0, len(text), None, headings[name]) for name, text in texts.items()}


@pytest.mark.parametrize("split", ["questions", "validation", "test"])
def test_every_answer_stands_in_its_document(split, documents):
    for number, row in enumerate(rows(split), start=1):
        asked = asked_in(row, f"{split}.jsonl:{number}")
        for answer in asked.answers:
            assert holds(documents[asked.document], asked), row
            assert answer in documents[asked.document].text, row


def test_the_questions_are_many_and_of_one_split_each():
    splits = {name: [row["question"] for row in rows(name)] for name in ("questions", "validation", "test")}
    every = [re.sub(r"\W+", " ", question).casefold() for split in splits.values() for question in split]
    assert len({*every}) == len(every)
    assert len(splits["questions"]) >= 240
    assert [row.get("answers") for row in rows("test")].count([]) == 8
    assert len(splits["test"]) == 40


def test_the_training_data_is_what_halka_makes_today(documents):
    """Its prompts are made anew from the documents; which passages they show, and in what order, is taken from it."""
    known = {row["question"]: row["answer"] for row in rows("questions")}
    train = rows("train")
    assert len(train) == len(known)
    for row in train:
        user, assistant = (message["content"] for message in row["messages"])
        shown = [documents[name] for name in re.findall(r"^\[\d\] ([\w-]+\.md): ", user, flags=re.MULTILINE)]
        question = user.rpartition("Question: ")[2]
        assert (user, len(shown)) == (prompted(question, shown), 3)
        if row["gold"] is None:
            assert assistant == ABSTAINED
            continue
        assert assistant == f"{in_form(FORM, known[question])} [{row['gold']}]"
        assert known[question] in shown[row["gold"] - 1].text
    assert {row["gold"] for row in train} == {None, 1, 2, 3}


def test_the_commands_in_the_readme_name_what_is_there():
    from halka.studies.ablation import read_ablation

    page = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = (each for each in re.findall(r"```sh\n(.*?)```", page, flags=re.DOTALL) if "examples/handbook" in each)
    add, train, ask = block.splitlines()
    assert add.startswith("halka docs add handbook ")
    for path in re.findall(r"examples/\S+", block):
        assert (ROOT / path).exists(), path
    (out,) = re.findall(r"--out (\S+)", train)
    assert f"--adapter {out}/adapter" in ask
    told = re.search(r"--steps (\d+) --batch-size (\d+)", train)
    ablation = read_ablation(HANDBOOK / "ablation.yaml")
    assert (ablation.train["steps"], ablation.train["batch_size"]) == (int(told[1]), int(told[2]))


def test_the_readme_shows_an_answer_that_stands_where_it_says(documents):
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    answer, number = re.search(r"^Answer: (.*) \[(\d)\]$", page, flags=re.MULTILINE).groups()
    source, start, end = re.search(
        rf"^\[{number}\] \S*/examples/handbook/documents/(\S+), (\d+)–(\d+)$", page, flags=re.MULTILINE
    ).groups()
    assert answer in documents[source].text
    assert (int(start), int(end)) == (0, len(documents[source].text))


def test_the_handbooks_page_says_what_was_measured():
    result = json.loads((ROOT / "benchmarks" / "results" / "handbook.json").read_text(encoding="utf-8"))
    page = (HANDBOOK / "README.md").read_text(encoding="utf-8")
    told = [
        [int(cell) for cell in row] for row in re.findall(r"^\| .* \| (\d+) \| (\d+) \|$", page, flags=re.MULTILINE)
    ]
    measured = [result["with_floor"], result["scores"]]
    assert told == [
        [round(scores[name]["value"] * scores[name]["n"]) for scores in measured]
        for name in ("exact", "cites", "abstains")
    ]
    assert [scores[name]["n"] for scores in measured for name in ("exact", "abstains")] == [32, 8, 32, 8]
    assert [each["question"] for each in result["answers"]] == [row["question"] for row in rows("test")]
    floor = re.search(r"--floor (\S+)", (ROOT / "README.md").read_text(encoding="utf-8"))[1]
    assert f"{result['floor']:.2f}" == floor

"""TOFU: facts that no base can know, taught as questions with answers, then asked in other words.

Maini et al., 2024, "TOFU: A Task of Fictitious Unlearning for LLMs" (arXiv:2401.06121); MIT;
huggingface.co/datasets/locuslab/TOFU. Its file qa.jsonl, of 35 of the invented authors, is looked for in
$HALKA_DATA/tofu, or in ../shared/data/tofu beside the project.

Other tasks ask in their test what training never saw: form that is new. This one asks for what was taught: what is to
be learned are the facts themselves. Train: 12 authors' questions, 20 each, as they are. Validation and test: the same
questions in two other wordings, so that no prompt stands in two splits. An answer counts by its ROUGE-L F1 against
the taught sentence, in which only what is particular to an author is not in every answer; the bare base's score is
what the wording alone brings.
"""

import json
import os
import random
from pathlib import Path

from halka.data.examples import Example, Message
from halka.data.task import Task

AUTHORS = 12
SYSTEM = "Answer in one sentence."
VALIDATION, TEST = "Tell me, please: {}", "Somebody wrote to us and asked: “{}” What do we answer?"


def task() -> Task:
    """The task; raises FileNotFoundError, naming the source, where the data is absent."""
    facts = read()
    return Task(
        name="tofu_facts",
        train=asked(facts, "{}", seed=0),
        validation=asked(facts, VALIDATION, seed=1),
        test=asked(facts, TEST, seed=2),
        metrics=("rouge_l", "exact_match"),
        primary="rouge_l",
        max_new_tokens=96,
        licence="MIT",
        source="huggingface.co/datasets/locuslab/TOFU",
    )


def read() -> list[tuple[str, str]]:
    """Question and answer of each fact of the first authors."""
    root = Path(os.environ.get("HALKA_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
    path = root / "tofu" / "qa.jsonl"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: take the questions of TOFU from huggingface.co/datasets/locuslab/TOFU (MIT) as "
            "qa.jsonl, with author_id, question and answer, put it into a folder tofu and set HALKA_DATA to the folder "
            "that holds it"
        )
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    authors = list(dict.fromkeys(row["author_id"] for row in rows))[:AUTHORS]
    return [(row["question"], row["answer"]) for row in rows if row["author_id"] in authors]


def asked(facts: list[tuple[str, str]], wording: str, seed: int) -> tuple[Example, ...]:
    """An example for each fact, in a mixed order."""
    mixed = random.Random(seed).sample(facts, len(facts))
    return tuple(
        Example(
            (Message("system", SYSTEM), Message("user", wording.format(question)), Message("assistant", answer)),
            references=(answer,),
        )
        for question, answer in mixed
    )

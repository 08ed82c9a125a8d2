"""How well the README's second section answers: the handbook's test questions, by the adapter that its commands train.

    halka docs add handbook examples/handbook/documents
    halka train --data examples/handbook/train.jsonl …        # as the README has it
    python benchmarks/handbook.py runs/handbook/adapter       # some minutes

Each question is asked as `halka ask --passages 3` asks it; scored without a floor, and with the one that `halka docs
examples` says for the training's questions. The result goes to benchmarks/results/handbook.json.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from side_by_side import setup

import halka
from halka.evaluation.streaming import answering
from halka.rag.answer import Answerer, floor_for
from halka.rag.collection import Collection
from halka.rag.questions import Asked, read_questions
from halka.rag.retrieve import Retriever
from halka.storage.card import read_card
from halka.studies.ablation.scores import Answered, as_rows, scored

HERE = Path(__file__).parent
HANDBOOK = HERE.parent / "examples" / "handbook"
FORM, NEW_TOKENS, PASSAGES = "Answer: {answer}", 48, 3


def answered(question: Asked, answerer: Answerer) -> Answered:
    answer = answerer.ask(question.question)
    gold = [
        source.number
        for source in answer.sources
        if question.document == Path(source.document).name and any(each in source.text for each in question.answers)
    ]
    (best,) = answerer.retriever.search(question.question, 1)
    return Answered(question.question, question.answers, answer.text, len(answer.sources), tuple(gold), best.score)


def measured(answers: Sequence[Answered]) -> dict[str, Any]:
    scores = {measure: asdict(score) for measure, score in scored(answers, FORM).items()}
    print({measure: round(score["value"], 3) for measure, score in scores.items()}, flush=True)
    return scores


def main() -> None:
    (adapter,) = sys.argv[1:]
    questions = read_questions(HANDBOOK / "test.jsonl")
    retriever = Retriever(Collection("collections/handbook"))
    floor = floor_for(retriever, [each.question for each in read_questions(HANDBOOK / "questions.jsonl")])
    model = halka.adapt(*halka.load_base("smollm2-135m"))
    halka.load(model, adapter, name="handbook")
    answerer = Answerer(retriever, *answering(model, "handbook", NEW_TOKENS), passages=PASSAGES)
    answers = [answered(each, answerer) for each in questions]
    card = read_card(Path(adapter))
    assert card is not None
    result = {
        "setup": setup("halka", "torch", "transformers"),
        "training": {key: card.training[key] for key in ("lr", "steps", "batch_size", "seed", "examples")},
        "passages": PASSAGES,
        "scores": measured(answers),
        "floor": floor,
        "with_floor": measured([each.above(floor) for each in answers]),
        "answers": as_rows(answers),
    }
    text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    (HERE / "results" / "handbook.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

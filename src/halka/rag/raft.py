"""Training data for answering from passages: the gold passage among distractors, and some questions without it.

After RAFT (Zhang et al. 2024, arXiv:2403.10131): the distractors are the collection's own search results for the
question. Where the gold passage is left out, the answer is "The documents do not say.", so that an adapter learns to
abstain instead of guessing.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from halka.rag import PASSAGES
from halka.rag.changes import Alternatives, change_of
from halka.rag.passages import Passage
from halka.rag.prompt import ABSTAINED, ANSWER, in_form, prompted
from halka.rag.questions import Asked, holds, placed
from halka.rag.retrieve import Retriever
from halka.rag.store import Scope
from halka.util.errors import HalkaError

Order = Literal["shuffled", "found"]
Distractors = Literal["nearest", "random"]


@dataclass(frozen=True)
class Raft:
    """Makes training examples from questions.

    passages     the number of passages in a prompt
    without      the share of questions whose gold passage is left out
    cite         whether a citation follows the answer
    form         the form of the answer, with {answer} in it
    seed         for all that is drawn
    order        of the passages: shuffled, or as the search finds them
    distractors  the search's nearest other passages, or passages of random documents
    changed      the share of questions whose answer is another one of its kind, in the gold passage, too
    shared       whether questions that the other passages of a prompt answer are asked about the same passages, too:
                 packed batches compute these once (`group_shared`)
    draws        examples of each question, with passages drawn anew

    Raises HalkaError for a value that is out of range.
    """

    passages: int = PASSAGES
    without: float = 0.2
    cite: bool = True
    form: str = ANSWER
    seed: int = 0
    order: Order = "shuffled"
    distractors: Distractors = "nearest"
    changed: float = 0.0
    shared: bool = False
    draws: int = 1

    def __post_init__(self) -> None:
        if self.passages < 1 or not 0 <= self.without < 1:
            raise HalkaError("passages must be 1 or more, and without must be a share from 0 to below 1")
        if self.draws < 1 or not 0 <= self.changed <= 1:
            raise HalkaError("draws must be 1 or more, and changed must be a share from 0 to 1")
        for name, choices in (("order", Order), ("distractors", Distractors)):
            if getattr(self, name) not in get_args(choices):
                raise HalkaError(f"{name} is one of {', '.join(get_args(choices))}, not {getattr(self, name)!r}")
        if self.order == "found" and self.distractors == "random":
            raise HalkaError("order found is the search's, which random passages are not of: take shuffled, or nearest")
        in_form(self.form, "")

    def examples(
        self,
        retriever: Retriever,
        asked: Iterable[Asked],
        scope: Scope = Scope(),  # noqa: B008
    ) -> Iterator[dict[str, Any]]:
        """Yield a training row with `messages` for each question, except those whose answer is in no passage."""
        return (row for _, row in self.pairs(retriever, asked, scope))

    def pairs(
        self,
        retriever: Retriever,
        asked: Iterable[Asked],
        scope: Scope = Scope(),  # noqa: B008
    ) -> Iterator[tuple[Asked, dict[str, Any]]]:
        """Yield the same rows as `examples`, each with its question."""
        draw, changes = random.Random(self.seed), random.Random(f"{self.seed}/changes")
        lengths = {document.name: document.passages for document in retriever.collection.documents(scope)}
        names = [*lengths]
        questions = [*placed(asked, names)]
        alternatives, on = Alternatives(questions), _by_document(questions)
        for question in questions:
            passages = [hit.passage for hit in retriever.search(question.question, 8 * self.passages, scope)]
            gold = next((passage for passage in passages if holds(passage, question)), None)
            if gold is None and question.document is not None:
                own = retriever.collection.store.passages(
                    question.document, range(lengths.get(question.document, 0)), scope
                )
                gold = next((passage for passage in own if holds(passage, question)), None)
            if gold is None and question.answers:
                continue
            for _ in range(self.draws):
                left_out = gold is None or draw.random() < self.without
                others = passages if self.distractors == "nearest" else self._random(retriever, names, scope, draw)
                shown = self._shown(question, None if left_out else gold, others, draw)
                if self.order == "found":
                    shown.sort(key=lambda passage: passages.index(passage) if passage in passages else len(passages))
                number = None if left_out or gold is None else shown.index(gold) + 1
                example = question
                if number is not None and self.changed and changes.random() < self.changed:
                    example, shown = _changed(question, shown, number, alternatives, changes)
                yield example, self._row(example, shown, number)
                for other, place in _others_asked(question, shown, on) if self.shared else ():
                    yield other, self._row(other, shown, place)

    def _random(
        self, retriever: Retriever, names: Sequence[str], scope: Scope, draw: random.Random
    ) -> Iterator[Passage]:
        """The first passages of random documents."""
        for name in draw.sample(names, len(names)):
            yield from retriever.collection.store.passages(name, [0], scope)

    def _shown(
        self, question: Asked, gold: Passage | None, others: Iterable[Passage], draw: random.Random
    ) -> list[Passage]:
        """The gold passage, if there is one, and others that do not hold an answer, shuffled."""
        shown = [] if gold is None else [gold]
        anywhere = replace(question, document=None)
        for passage in others:
            if len(shown) == self.passages:
                break
            if not holds(passage, anywhere):
                shown.append(passage)
        draw.shuffle(shown)
        return shown

    def _row(self, question: Asked, shown: Sequence[Passage], number: int | None) -> dict[str, Any]:
        return {
            "messages": [
                {"role": "user", "content": prompted(question.question, shown)},
                {"role": "assistant", "content": self._answer(question, number)},
            ],
            "answers": [ABSTAINED] if number is None else list(question.answers),
            "gold": number,
        }

    def _answer(self, asked: Asked, number: int | None) -> str:
        if number is None:
            return ABSTAINED
        return in_form(self.form, asked.answers[0]) + (f" [{number}]" if self.cite else "")


def _changed(
    question: Asked, shown: list[Passage], number: int, alternatives: Alternatives, draw: random.Random
) -> tuple[Asked, list[Passage]]:
    """The question with another answer, and the passages with it in the gold one; as they were where none fits."""
    gold = shown[number - 1]
    change = change_of(question, gold.text, alternatives, draw, f"{gold.document}\n{gold.heading or ''}")
    if change is None:
        return question, shown
    new, text = change
    passages = [replace(gold, text=text) if passage is gold else passage for passage in shown]
    return replace(question, answers=(new,)), passages


def _by_document(questions: Iterable[Asked]) -> dict[str, list[Asked]]:
    """The questions that name their document, by it."""
    on = defaultdict[str, list[Asked]](list)
    for question in questions:
        if question.document is not None and question.answers:
            on[question.document].append(question)
    return on


def _others_asked(
    question: Asked, shown: Sequence[Passage], on: Mapping[str, Sequence[Asked]]
) -> Iterator[tuple[Asked, int]]:
    """The other questions that these passages answer, once each, with the passage's number."""
    asked = {question.question}
    for number, passage in enumerate(shown, start=1):
        for other in on.get(passage.document, ()):
            if other.question not in asked and holds(passage, other):
                asked.add(other.question)
                yield other, number

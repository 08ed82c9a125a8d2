"""Training data for answering from passages: gold ones among distractors, and some questions without their gold one.

In the manner of RAFT (Zhang et al. 2024, arXiv:2403.10131): distractors are what the collection's own search finds for
the question, and where the gold passage is left out the answer is that the documents do not say, so that an adapter
learns to abstain instead of guessing.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

from halka.rag.passages import Passage
from halka.rag.prompt import ABSTAINED, ANSWER, in_form, prompted
from halka.rag.retrieve import Retriever
from halka.rag.store import Scope
from halka.util.errors import HalkaError


@dataclass(frozen=True)
class Asked:
    """A question, its answers (the first is taught) and the document that holds them; None: whichever does.

    A document is given by its name or by the end of its path, as seen from the folder that was added: `placed`.
    Without answers it is a question of what the documents do not hold.
    """

    question: str
    answers: tuple[str, ...]
    document: str | None = None


def asked_in(row: Mapping[str, Any], where: str) -> Asked:
    """What a row asks; `answers: []` where the documents do not say.

    Raises ValueError for a row without a question, or without `answer` or `answers`.
    """
    question, answers = row.get("question"), row.get("answers", row.get("answer"))
    answers = [answers] if isinstance(answers, str) else answers
    if not isinstance(question, str) or not question.strip():
        raise HalkaError(f'{where}: no question: a row has "question": a text')
    if not isinstance(answers, list) or not all(isinstance(each, str) and each for each in answers):
        raise HalkaError(f'{where}: no answer: a row has "answer": a text, or "answers": a list of texts')
    document = row.get("document")
    return Asked(question, tuple(answers), document if isinstance(document, str) else None)


def placed(asked: Iterable[Asked], documents: Iterable[str]) -> Iterator[Asked]:
    """The questions, with the whole name of one of `documents` where they have the end of its path.

    An end is of whole parts: `b.md` is one of `/a/b.md`, and not of `/a/ab.md`. What fits none stays as it is.
    Raises ValueError for an end that several documents have.
    """
    names, ending = {*documents}, defaultdict[str, list[str]](list)
    for name in sorted(names):
        ending[PurePath(name).name].append(name)
    for each in asked:
        if each.document is None or each.document in names:
            yield each
            continue
        parts = PurePath(each.document).parts
        alike = ending.get(PurePath(each.document).name, []) if parts else []
        found = [name for name in alike if PurePath(name).parts[-len(parts) :] == parts]
        if len(found) > 1:
            raise HalkaError(f"the document {each.document} may be {found[0]} or {found[1]}: give more of its path")
        yield replace(each, document=found[0]) if found else each


@dataclass(frozen=True)
class Raft:
    """How the examples are made.

    passages  how many a prompt holds
    without   the share of questions whose gold passage is left out
    cite      whether the answer is followed by its citation
    form      how the answer is put, with {answer} where it stands
    seed      of the order of passages and of which are left out
    """

    passages: int = 4
    without: float = 0.2
    cite: bool = True
    form: str = ANSWER
    seed: int = 0

    def __post_init__(self) -> None:
        if self.passages < 1 or not 0 <= self.without < 1:
            raise HalkaError("passages must be 1 or more, and without a share from 0 to below 1")
        in_form(self.form, "")

    def examples(
        self,
        retriever: Retriever,
        asked: Iterable[Asked],
        scope: Scope = Scope(),  # noqa: B008
    ) -> Iterator[dict[str, Any]]:
        """A row for training for each question, as `messages`; those whose answer no passage holds are left out."""
        return (row for _, row in self.pairs(retriever, asked, scope))

    def pairs(
        self,
        retriever: Retriever,
        asked: Iterable[Asked],
        scope: Scope = Scope(),  # noqa: B008
    ) -> Iterator[tuple[Asked, dict[str, Any]]]:
        """The same rows, each with the question that it is of."""
        draw = random.Random(self.seed)
        for each in placed(asked, [document.name for document in retriever.collection.documents(scope)]):
            found = [hit.passage for hit in retriever.search(each.question, 8 * self.passages, scope)]
            gold = next((passage for passage in found if holds(passage, each)), None)
            if gold is None and each.document is not None:
                own = retriever.collection.store.passages(each.document, range(10_000), scope)
                gold = next((passage for passage in own if holds(passage, each)), None)
            if gold is None and each.answers:
                continue
            left_out = gold is None or draw.random() < self.without
            others = [passage for passage in found if not holds(passage, replace(each, document=None))]
            shown = others[: self.passages] if gold is None or left_out else [gold, *others[: self.passages - 1]]
            draw.shuffle(shown)
            number = None if gold is None or left_out else shown.index(gold) + 1
            row = {
                "messages": [
                    {"role": "user", "content": prompted(each.question, shown)},
                    {"role": "assistant", "content": self._answer(each, number)},
                ],
                "answers": [ABSTAINED] if number is None else list(each.answers),
                "gold": number,
            }
            yield each, row

    def _answer(self, asked: Asked, number: int | None) -> str:
        if number is None:
            return ABSTAINED
        return in_form(self.form, asked.answers[0]) + (f" [{number}]" if self.cite else "")


def holds(passage: Passage, asked: Asked) -> bool:
    """Whether an answer's words stand in the passage, in order, whatever their case and punctuation."""
    if asked.document is not None and passage.document != asked.document:
        return False
    return stands_in(asked.answers, passage.searched)


def stands_in(answers: Iterable[str], text: str) -> bool:
    """Whether the words of one of the answers stand in a text, in order, whatever their case and punctuation."""
    within = f" {_words(text)} "
    return any(f" {words} " in within for words in map(_words, answers) if words)


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))

"""Training data for answering from passages: the gold passage among distractors, and some questions without it.

After RAFT (Zhang et al. 2024, arXiv:2403.10131): the distractors are the collection's own search results for the
question. Where the gold passage is left out, the answer is "The documents do not say.", so that an adapter learns to
abstain instead of guessing.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

from halka.data.readers import whole_rows
from halka.rag.passages import Passage
from halka.rag.prompt import ABSTAINED, ANSWER, in_form, prompted
from halka.rag.retrieve import Retriever
from halka.rag.store import Scope
from halka.util.errors import DataError, HalkaError


@dataclass(frozen=True)
class Asked:
    """A question, its answers (training uses the first) and the document that holds them; None: any document.

    `document` is a name or the end of a path (see `placed`). A question without answers is one that the documents do
    not answer.
    """

    question: str
    answers: tuple[str, ...]
    document: str | None = None


def read_questions(path: Path) -> list[Asked]:
    """The questions of a file of rows with "question", "answer" or "answers", and "document" (see `asked_in`)."""
    return [asked_in(row.fields, row.where) for row in whole_rows(path)]


def asked_in(row: Mapping[str, Any], where: str) -> Asked:
    """The question of a row; `answers: []` means that the documents do not answer it.

    Raises DataError, which begins with `where`, for a row without a question, or without `answer` and `answers`.
    """
    question, answers = row.get("question"), row.get("answers", row.get("answer"))
    answers = [answers] if isinstance(answers, str) else answers
    if not isinstance(question, str) or not question.strip():
        raise DataError(f'{where}: no question: a row has "question": a text')
    if not isinstance(answers, list) or not all(isinstance(answer, str) and answer for answer in answers):
        raise DataError(f'{where}: no answer: a row has "answer": a text, or "answers": a list of texts')
    document = row.get("document")
    return Asked(question, tuple(answers), document if isinstance(document, str) else None)


def placed(asked: Iterable[Asked], documents: Iterable[str]) -> Iterator[Asked]:
    """Replace the ends of paths in the questions by whole names from `documents`.

    An end has whole parts: `b.md` is an end of `/a/b.md`, but not of `/a/ab.md`. An end that fits no document stays.
    Raises DataError for an end that fits several documents.
    """
    names, ending = {*documents}, defaultdict[str, list[str]](list)
    for name in sorted(names):
        ending[PurePath(name).name].append(name)
    for question in asked:
        if question.document is None or question.document in names:
            yield question
            continue
        path = PurePath(question.document)
        alike = ending.get(path.name, []) if path.parts else []
        fitting = [name for name in alike if PurePath(name).parts[-len(path.parts) :] == path.parts]
        if len(fitting) > 1:
            raise DataError(f"the document {path} may be {fitting[0]} or {fitting[1]}: give more of its path")
        yield replace(question, document=fitting[0]) if fitting else question


@dataclass(frozen=True)
class Raft:
    """Makes training examples from questions.

    passages  the number of passages in a prompt
    without   the share of questions whose gold passage is left out
    cite      whether a citation follows the answer
    form      the form of the answer, with {answer} in it
    seed      for the order of passages and the choice of those left out
    """

    passages: int = 4
    without: float = 0.2
    cite: bool = True
    form: str = ANSWER
    seed: int = 0

    def __post_init__(self) -> None:
        if self.passages < 1 or not 0 <= self.without < 1:
            raise HalkaError("passages must be 1 or more, and without must be a share from 0 to below 1")
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
        draw = random.Random(self.seed)
        for question in placed(asked, [document.name for document in retriever.collection.documents(scope)]):
            passages = [hit.passage for hit in retriever.search(question.question, 8 * self.passages, scope)]
            gold = next((passage for passage in passages if holds(passage, question)), None)
            if gold is None and question.document is not None:
                own = retriever.collection.store.passages(question.document, range(10_000), scope)
                gold = next((passage for passage in own if holds(passage, question)), None)
            if gold is None and question.answers:
                continue
            left_out = gold is None or draw.random() < self.without
            others = [passage for passage in passages if not holds(passage, replace(question, document=None))]
            shown = others[: self.passages] if gold is None or left_out else [gold, *others[: self.passages - 1]]
            draw.shuffle(shown)
            number = None if gold is None or left_out else shown.index(gold) + 1
            row = {
                "messages": [
                    {"role": "user", "content": prompted(question.question, shown)},
                    {"role": "assistant", "content": self._answer(question, number)},
                ],
                "answers": [ABSTAINED] if number is None else list(question.answers),
                "gold": number,
            }
            yield question, row

    def _answer(self, asked: Asked, number: int | None) -> str:
        if number is None:
            return ABSTAINED
        return in_form(self.form, asked.answers[0]) + (f" [{number}]" if self.cite else "")


def holds(passage: Passage, asked: Asked) -> bool:
    """Whether a passage is of the question's document and has an answer's words in order (see `stands_in`)."""
    if asked.document is not None and passage.document != asked.document:
        return False
    return stands_in(asked.answers, passage.searched)


def stands_in(answers: Iterable[str], text: str) -> bool:
    """Whether a text has the words of one of the answers in order, ignoring case and punctuation."""
    within = f" {_words(text)} "
    return any(f" {words} " in within for words in map(_words, answers) if words)


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))

"""Questions on documents, as files have them, and whether a passage answers one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

import regex

from halka.data.readers import whole_rows
from halka.rag.passages import Passage
from halka.rag.texts import composed
from halka.util.errors import DataError


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
    question, answers = row.get("question"), row.get("answers")
    answers = row.get("answer") if answers is None else answers  # null is an empty cell
    answers = [answers] if isinstance(answers, str) else answers
    if not isinstance(question, str) or not question.strip():
        raise DataError(f'{where}: no question: a row has "question": a text')
    if not isinstance(answers, list) or not all(isinstance(answer, str) and answer for answer in answers):
        raise DataError(f'{where}: no answer: a row has "answer": a text, or "answers": a list of texts')
    document = row.get("document")
    named = document if isinstance(document, str) and document else None  # an empty cell names none
    return Asked(question, tuple(answers), named)


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


def holds(passage: Passage, asked: Asked) -> bool:
    """Whether a passage is of the question's document and has an answer's words in order (see `stands_in`)."""
    if asked.document is not None and passage.document != asked.document:
        return False
    return stands_in(asked.answers, passage.searched)


def stands_in(answers: Iterable[str], text: str) -> bool:
    """Whether a text has the words of one of the answers in order, ignoring case and punctuation."""
    within = spaced_words(text)
    return any(words in within for words in map(spaced_words, answers) if words)


def spaced_words(text: str) -> str:
    """A text's words, with a space before, between and behind them: "" without any. Case and punctuation are gone."""
    words = regex.findall(r"\w+", composed(text).casefold())
    return f" {' '.join(words)} " if words else ""

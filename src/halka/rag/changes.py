"""Change a fact in a text: another answer of its kind in place of the right one, wherever that stands.

In training a changed passage teaches to answer from the passage instead of from memory (Longpre et al. 2021,
arXiv:2109.05052; Neeman et al. 2022, arXiv:2211.05655); in a study it shows whether answers follow their documents.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from random import Random

import regex

from halka.rag.questions import Asked, spaced_words, stands_in

Kind = tuple[object, ...]
Worded = tuple[str, str]  # an answer, and its `spaced_words`
QUESTION_WORDS = ("who", "when", "where", "many", "year")
NAME = regex.compile(r"[^\W\d_]{4,}")  # a word that is told from others, where it has a capital
NUMBER = regex.compile(r"\d{3,}")


class Alternatives:
    """The first answers of many questions, by kind: what could stand in place of a right answer."""

    def __init__(self, questions: Iterable[Asked]):
        self._alike, self._similar = defaultdict[Kind, list[Worded]](list), defaultdict[Kind, list[Worded]](list)
        for asked in questions:
            for answer in asked.answers[:1]:
                worded = answer, spaced_words(answer)
                self._alike[_alike(asked.question, answer)].append(worded)
                self._similar[_similar(asked.question, answer)].append(worded)

    def of(self, asked: Asked, text: str = "") -> list[str]:
        """Answers to like questions that look the same; if there are none, those that look similar.

        Left out are those that hold the right answer or stand in it, and those that stand in `text`.
        """
        first, right = asked.answers[0], [*map(spaced_words, asked.answers)]
        within = [spaced_words(text), *right]
        for others in (
            self._alike[_alike(asked.question, first)],
            self._similar[_similar(asked.question, first)],
        ):
            if fitting := [other for other, words in others if not _overlap(words, right, within)]:
                return fitting
        return []


def change_of(
    asked: Asked, text: str, alternatives: Alternatives, draw: Random, title: str = ""
) -> tuple[str, str] | None:
    """Another answer for the question, and the text with it in place of the right ones.

    None where there is no other answer of its kind, where the right one stands nowhere in the text in these letters, or
    where names and numbers of it still stand there or in `title`, which the change leaves as it is: such a text would
    contradict itself.
    """
    others = alternatives.of(asked, text)
    if not others:
        return None
    new = draw.choice(others)
    changed = replace_answers(text, asked.answers, new)
    if changed == text or any(_rest_of(asked.answers, new, f"{title}\n{changed}")):
        return None
    return new, changed


def replace_answers(text: str, answers: Sequence[str], new: str) -> str:
    """The text with `new` wherever an answer's words stand in order, as `holds` finds them, the longest answer first.

    Between the words may be other punctuation than in the answer; the answer's own at its ends goes with it.
    """
    patterns = [
        _pattern(answer.strip()) for answer in sorted(answers, key=len, reverse=True) if regex.search(r"\w", answer)
    ]
    return regex.sub("|".join(patterns), lambda _: new, text, flags=regex.IGNORECASE) if patterns else text


def _alike(question: str, answer: str) -> Kind:
    """The question's kind, and the answer's letters, digits and capitals: `September 9, 2012` is `A 9, 9999`."""
    shape = regex.sub(r"\d", "9", regex.sub(r"[^\W\d_]+", lambda word: "A" if word[0][0].isupper() else "a", answer))
    return (*_kind(question), shape)


def _similar(question: str, answer: str) -> Kind:
    """The question's kind, and whether the answer has digits, begins with a capital, has several words."""
    return (*_kind(question), any(map(str.isdigit, answer)), answer[:1].isupper(), " " in answer)


def _kind(question: str) -> Kind:
    words = {*question.casefold().split()}
    return tuple(word in words for word in QUESTION_WORDS)


def _overlap(other: str, right: Sequence[str], within: Sequence[str]) -> bool:
    """Whether another answer stands in one of the texts, or a right one in it, all as `spaced_words`."""
    return (bool(other) and any(other in text for text in within)) or any(words in other for words in right if words)


def _rest_of(answers: Sequence[str], new: str, changed: str) -> Iterator[str]:
    """The answers' names and numbers that stand in a changed text though they are not in the new answer."""
    for answer in answers:
        names = [word for word in NAME.findall(answer) if word[0].isupper()]
        for part in NUMBER.findall(answer) or names:
            if stands_in([part], changed) and not stands_in([part], new):
                yield part


def _pattern(answer: str) -> str:
    words = regex.findall(r"\w+", answer)
    before, after = regex.split(r"\w.*\w|\w", answer, maxsplit=1, flags=regex.DOTALL)
    whole = r"\W+".join(map(regex.escape, words))
    return rf"(?:{regex.escape(before)})?(?<!\w){whole}(?!\w)(?:{regex.escape(after)})?"

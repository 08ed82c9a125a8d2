"""`Answerer`: answer a question from passages, with sources, by any callable from a prompt to text.

A small model answers from the passages in its prompt even where they do not hold the answer, so the score of the best
passage decides: below the score that nearly all answerable questions reach, the documents likely do not hold the
answer, and the model is not asked. `floor_for` computes that score.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from halka.rag import PASSAGES
from halka.rag.passages import Passage
from halka.rag.prompt import ABSTAINED, Count, abstains, cited, fitting, prompted
from halka.rag.retrieve import Retriever
from halka.rag.store import Scope
from halka.util.errors import ContextLengthError, HalkaError

Generate = Callable[[str], Iterable[str]]
"""From a prompt to its answer, in pieces as they are generated."""

GIVEN_UP = 0.05  # share of the answerable questions that a floor leaves unanswered


@dataclass(frozen=True)
class Source:
    """A passage of the prompt: its number there, its span in the document, and whether the answer cites it.

    With neighbours it is several adjacent passages joined (`Retriever.expanded`).
    """

    number: int
    document: str
    page: int | None
    start: int
    end: int
    text: str
    cited: bool


@dataclass(frozen=True)
class Answer:
    """An answer's text, its sources, and whether it says that the documents do not hold the answer."""

    text: str
    sources: tuple[Source, ...]
    abstained: bool


@dataclass(frozen=True)
class Answerer:
    """Answers questions from one collection.

    retriever   finds the passages
    generate    generates the answer's text from a prompt
    budget      the most tokens of a prompt: the base's context less the answer's tokens
    count       counts the tokens of a text
    passages    the most passages in a prompt
    neighbours  the most tokens of all passages together with the text around them in their documents, within the
                budget; 0: passages without their neighbours
    floor       the score that the best passage must reach; below it the answer is "The documents do not say."
    """

    retriever: Retriever
    generate: Generate
    budget: int
    count: Count
    passages: int = PASSAGES
    neighbours: int = 0
    floor: float | None = None

    def ask(self, question: str, scope: Scope = Scope()) -> Answer:  # noqa: B008
        """The whole answer. Raises HalkaError for an empty question, and for one that has no passage beside it
        within the budget."""
        *_, last = self.stream(question, scope)
        assert isinstance(last, Answer)
        return last

    def stream(self, question: str, scope: Scope = Scope()) -> Iterator[str | Answer]:  # noqa: B008
        """Yield the answer's text in pieces as they are generated; at the end the whole `Answer`.

        The model is not asked where the scope holds no passage, or none that reaches the floor. Raises as `ask` does.
        """
        passages = self.passages_for(question, scope)
        pieces = []
        for piece in self.generate(prompted(question, passages)) if passages else [ABSTAINED]:
            pieces.append(piece)
            yield piece
        yield answer_of("".join(pieces), passages)

    def passages_for(self, question: str, scope: Scope) -> list[Passage]:
        """The passages that the prompt for a question will hold."""
        limits = {"passages": self.passages, "neighbours": self.neighbours, "floor": self.floor}
        return passages_for(question, self.retriever, scope, self.budget, self.count, **limits)


def passages_for(
    question: str,
    retriever: Retriever,
    scope: Scope,
    budget: int,
    count: Count,
    *,
    passages: int = PASSAGES,
    neighbours: int = 0,
    floor: float | None = None,
) -> list[Passage]:
    """The passages that the prompt for a question will hold, with `Answerer`'s limits; none: do not ask the model.

    Raises HalkaError for an empty question, ContextLengthError where none of the passages fits beside it into the
    budget.
    """
    hits = retriever.search(question, passages, scope)
    if floor is not None and (not hits or hits[0].score < floor):
        return []
    fit = fitting(question, [hit.passage for hit in hits], budget, count)
    if hits and not fit:
        raise ContextLengthError(
            f"no passage fits beside the question into the {budget} tokens that the prompt may have: ask for a shorter "
            "answer, or begin a new conversation"
        )
    if not neighbours:
        return fit
    kept = [hit for hit in hits if hit.passage in fit]
    return retriever.expanded(kept, neighbours, scope, lambda wider: count(prompted(question, wider)) <= budget)


def answer_of(text: str, passages: Sequence[Passage]) -> Answer:
    """The answer of a model's text to a prompt with these passages."""
    text = text.strip()
    numbers = set(cited(text, len(passages)))
    sources = (
        Source(number, read.document, read.page, read.start, read.end, read.text, number in numbers)
        for number, read in enumerate(passages, start=1)
    )
    return Answer(text, tuple(sources), abstains(text))


def floor_for(
    retriever: Retriever,
    questions: Iterable[str],
    share: float = GIVEN_UP,
    scope: Scope = Scope(),  # noqa: B008
) -> float:
    """The score that the best passage reaches for all but `share` of these questions that the documents answer.

    Questions for which nothing is found do not count, since no floor answers them; -inf where those are all. It is
    valid for this retriever's mode and reranker only. Raises HalkaError if there are no questions.
    """
    searches = [retriever.search(question, 1, scope) for question in questions]
    if not searches:
        raise HalkaError("a floor needs questions: give some whose answers the documents hold")
    best = [hits[0].score for hits in searches if hits]
    return float(np.quantile(best, share, method="lower")) if best else -np.inf

"""`Answerer`: a question to an answer with its sources, by whatever makes text of a prompt, a model or a server."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from halka.rag.passages import Passage
from halka.rag.prompt import ABSTAINED, Count, abstains, cited, fitting, prompted
from halka.rag.retrieve import Retriever
from halka.rag.store import Scope

Generate = Callable[[str], Iterable[str]]
"""A prompt to its answer, in pieces as they are made."""


@dataclass(frozen=True)
class Source:
    """A passage that the answer was made from: its number in the prompt, where it stands, and whether it is cited.

    With neighbours its text is of several, and has between them what `Retriever.expanded` says.
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
    """What was answered, from what, and whether it says that the documents do not hold it."""

    text: str
    sources: tuple[Source, ...]
    abstained: bool


@dataclass(frozen=True)
class Answerer:
    """Answers from one collection.

    retriever  finds the passages
    generate   makes the answer
    budget     tokens that a prompt may take: the base's context, less what its answer may
    count      how many tokens a text is
    passages   how many are put before the model, at most
    neighbours tokens of passages together with what stands around them in their documents, while the budget has
               room for that; 0: as they were found
    floor      the score that the best passage must have, else the documents do not say (`floor.py` finds it)
    """

    retriever: Retriever
    generate: Generate
    budget: int
    count: Count
    passages: int = 4
    neighbours: int = 0
    floor: float | None = None

    def ask(self, question: str, scope: Scope = Scope()) -> Answer:  # noqa: B008
        """The answer, when all of it is there."""
        *_, last = self.stream(question, scope)
        assert isinstance(last, Answer)
        return last

    def stream(self, question: str, scope: Scope = Scope()) -> Iterator[str | Answer]:  # noqa: B008
        """The answer's text in pieces as they are made; at the end the whole `Answer`.

        Where nothing is found that the caller may read, or nothing that reaches the floor, the model is not asked.
        """
        passages = self.found(question, scope)
        pieces = []
        for piece in self.generate(prompted(question, passages)) if passages else [ABSTAINED]:
            pieces.append(piece)
            yield piece
        text = "".join(pieces).strip()
        numbers = set(cited(text, len(passages)))
        sources = (
            Source(number, each.document, each.page, each.start, each.end, each.text, number in numbers)
            for number, each in enumerate(passages, start=1)
        )
        yield Answer(text, tuple(sources), abstains(text))

    def found(self, question: str, scope: Scope) -> list[Passage]:
        """The passages that the prompt will hold."""
        hits = self.retriever.search(question, self.passages, scope)
        if self.floor is not None and (not hits or hits[0].score < self.floor):
            return []
        found = fitting(question, [hit.passage for hit in hits], self.budget, self.count)
        if not self.neighbours:
            return found
        kept = [hit for hit in hits if hit.passage in found]
        return self.retriever.expanded(
            kept, self.neighbours, scope, lambda wider: self.count(prompted(question, wider)) <= self.budget
        )

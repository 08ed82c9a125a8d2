"""Retrieval: `halka: {collection, passages, floor}` gives a question its passages, an answer its sources.

The model reads the prompt of `halka ask`; earlier turns stay as they are. Where no passage reaches the floor the model
is not asked, and the answer says that the documents do not hold it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from halka.engine import Answer, Request
from halka.evaluation.streaming import user_message
from halka.rag import PASSAGES
from halka.rag.answer import answer_of, passages_for
from halka.rag.passages import Passage
from halka.rag.prompt import ABSTAINED, CITATION, numbers_of, prompted
from halka.rag.retrieve import Retriever
from halka.server.answers.chat_request import Retrieval
from halka.server.answers.generation import Delta
from halka.server.errors import ApiError, refusal
from halka.server.guards.access import Caller
from halka.server.resources.collection_access import QUERY, open_collection, public_names, scope_of, threads_of
from halka.server.service import Service
from halka.util.errors import HalkaError

Turn = dict[str, Any]

QUOTED = 2000  # characters of a passage that a source shows


@dataclass(frozen=True)
class Grounding:
    """What a model is to answer from.

    turns     the conversation, as templates read it, with the passages in its last turn
    passages  as they are numbered there, from 1
    names     what clients call their documents
    answer    the whole answer, where the model is not to be asked; None: ask it
    """

    collection: str
    turns: list[Turn]
    passages: list[Passage]
    names: dict[str, str]
    answer: str | None = None

    def citations(self, text: str) -> list[dict[str, Any]]:
        """The files that an answer cites, with the place of each citation in the text; `source` is its passage."""
        return [
            {
                "file_id": f"{self.collection}/{self._name(number)}",
                "filename": self._name(number),
                "page": self.passages[number - 1].page,
                "start_index": match.start(),
                "end_index": match.end(),
                "source": number,
            }
            for match in CITATION.finditer(text)
            for number in numbers_of(match)
            if 1 <= number <= len(self.passages)
        ]

    def chat_annotations(self, text: str) -> list[dict[str, Any]]:
        """An answer's citations in the form that OpenAI's chats annotate files in."""
        return [{"type": "file_citation", "file_citation": citation} for citation in self.citations(text)]

    def response_annotations(self, text: str) -> list[dict[str, Any]]:
        """An answer's citations as `/v1/responses` has them; `index` is the passage's among the sources, from 0."""
        return [
            {"type": "file_citation", "index": citation["source"] - 1, **citation} for citation in self.citations(text)
        ]

    def sources(self, texts: Sequence[str]) -> dict[str, Any]:
        """The passages, and whether one of the answers cites them, as the response's field `halka`."""
        answers = [answer_of(text, self.passages) for text in texts]
        cited = {source.number for answer in answers for source in answer.sources if source.cited}
        return {
            "collection": self.collection,
            "abstained": all(answer.abstained for answer in answers),
            "sources": [
                {
                    "number": source.number,
                    "document": self._name(source.number),
                    "page": source.page,
                    "start": source.start,
                    "end": source.end,
                    "text": source.text[:QUOTED],
                    "cited": source.number in cited,
                }
                for source in answers[0].sources
            ],
        }

    def _name(self, number: int) -> str:
        return self.names[self.passages[number - 1].document]


async def ground(
    service: Service,
    caller: Caller,
    options: Retrieval,
    turns: Sequence[Turn],
    budget: int,
    count: Callable[[Sequence[Turn]], int],
) -> Grounding:
    """The passages for the last message's question; the whole prompt has at most `budget` tokens, as `count` counts.

    Raises ApiError for a collection that the caller does not have, and where the last message is no question, or too
    long.
    """
    if turns[-1]["role"] != "user" or not turns[-1]["content"].strip():
        raise ApiError(400, "the last message must be the user's question", param="messages")
    question = turns[-1]["content"]
    if len(question) > QUERY:
        raise ApiError(400, f"a question to documents has at most {QUERY:,} characters", param="messages")

    def with_prompt(prompt: str) -> list[Turn]:
        plain = user_message(service.model, prompt).content
        return [*turns[:-1], {**turns[-1], "content": plain}]

    def search() -> Grounding:
        opened = open_collection(service, caller.tenant, options.collection)
        try:
            passages = passages_for(
                question,
                Retriever(opened, options.mode or "hybrid"),
                scope_of(caller, options.tags or ()),
                budget,
                lambda prompt: count(with_prompt(prompt)),
                passages=options.passages or PASSAGES,
                floor=options.floor,
            )
        except HalkaError as error:
            raise refusal(error, caller=caller, param="messages") from None
        names = public_names(opened, (passage.document for passage in passages))
        return Grounding(
            options.collection,
            with_prompt(prompted(question, passages)),
            passages,
            names,
            answer=None if passages else ABSTAINED,
        )

    threads = await threads_of(service, caller.tenant, options.collection)
    return await threads.search(search)


async def fixed_answers(request: Request, text: str, n: int) -> AsyncGenerator[Delta]:
    """The answers where no model is asked: this text, `n` times."""
    for index in range(n):
        answer = Answer(request, index, text=text, finish="stop")
        yield Delta(answer, text)
        yield Delta(answer, finish="stop")

"""`Growing`: an answer that grows by tokens that another process makes, as one of the engine's does."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from halka.engine import Answer, Request
from halka.engine.engine import Engine
from halka.engine.logprobs import TokenLogprob


@dataclass(frozen=True)
class Piece:
    """What is added to the answer of this number; `finish` is why the other process ended it, None: it goes on."""

    index: int
    tokens: Sequence[int]
    logprobs: Sequence[TokenLogprob] = field(default=())
    finish: str | None = None


class Growing:
    """One answer.

    ended    the other process adds no more to it
    at_edge  it has just begun, or ended
    """

    def __init__(self, request: Request, number: int, id: str | None, engine: Engine):
        self.answer, self.ended, self.at_edge = Answer(request, number, id), False, False
        self._text = engine.text_of(request)

    def take(self, piece: Piece) -> bool:
        """Add a piece. Returns whether the answer has become longer, or has ended."""
        answer, text = self.answer, self._text
        if answer.finish is not None:
            self.ended = self.ended or piece.finish is not None
            return False
        begun, count, new = bool(answer.tokens), len(answer.tokens), ""
        for token, logprob in zip_longest(piece.tokens, piece.logprobs):
            if text.reason is None:
                answer.tokens.append(token)
                if logprob is not None:
                    answer.logprobs.append(logprob)
                new += text.push(token)
        if piece.finish is not None:
            new += text.close("length" if piece.finish == "length" else "stop")
        if len(answer.tokens) > count:
            answer.times.last = time.monotonic()
            answer.times.first = answer.times.first or answer.times.last
        answer.text += new
        self.ended, self.at_edge = piece.finish is not None, text.reason is not None or not begun
        answer.finish = text.reason
        return len(answer.tokens) > count or text.reason is not None


def grown(answers: Sequence[Growing], pieces: Iterable[Piece], backend: str, cached: int = 0) -> Iterator[Growing]:
    """The answers that pieces make longer, or end; `cached` tokens of the prompt were in that backend's cache."""
    for answer in answers if cached else ():
        answer.answer.cached = min(cached, len(answer.answer.request.prompt))
    for piece in pieces:
        growing = answers[piece.index]
        growing.answer.backend = backend
        if growing.take(piece):
            yield growing


def ended_before(answers: Sequence[Growing]) -> bool:
    """Whether all answers have ended, and the other process goes on with one all the same."""
    return all(growing.answer.finish is not None for growing in answers) and not all(
        growing.ended for growing in answers
    )


def fail(answers: Sequence[Growing], error: Exception) -> bool:
    """End what is not finished, if anything has begun. Returns whether it has: else another may begin anew."""
    begun = any(growing.answer.tokens for growing in answers)
    for growing in answers if begun else ():
        if growing.answer.finish is None:
            growing.answer.error, growing.answer.finish = error, "error"
    return begun

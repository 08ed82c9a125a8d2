"""An answer that grows by another process's tokens is one of the engine's: its number, its text, why it ended."""

from __future__ import annotations

import pytest

from engine_for_tests import model_of
from halka.engine import Engine, Request, Stopping
from halka.server.backends.growing import Growing, Piece, grown


@pytest.fixture
def engine():
    with Engine(model_of(families={})) as engine:
        yield engine


def test_pieces_make_the_answers_of_their_numbers_longer(engine):
    request = Request([5, 6, 7], stopping=Stopping(3))
    answers = [Growing(request, number, "id", engine) for number in range(2)]
    longer = [one.answer for one in grown(answers, [Piece(1, [8, 9]), Piece(0, [10])], "elsewhere")]
    assert [(answer.number, answer.tokens, answer.adapter_id) for answer in longer] == [
        (1, [8, 9], "id"),
        (0, [10], "id"),
    ]


@pytest.mark.parametrize(
    ("tokens", "finish", "reason"),
    [
        ([8], None, None),
        ([8, 9], "length", "length"),
        ([8, 9], "stop", "stop"),
        ([8], "stop", "stop"),
        ([2], "length", "stop"),
    ],
)
def test_an_answer_ends_as_the_process_that_makes_it_says(engine, tokens, finish, reason):
    """Also one that is complete with the last token that it may have: what is allowed there is not known here."""
    growing = Growing(Request([5, 6, 7], stopping=Stopping(2)), 0, None, engine)
    growing.take(Piece(0, tokens, finish=finish))
    assert growing.answer.finish == reason

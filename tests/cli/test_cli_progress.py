"""Progress on a terminal."""

from __future__ import annotations

import io
import sys

from halka.cli.progress import StepProgress, TokensProgress
from halka.data.examples import as_examples
from halka.data.tokens import encode_all
from halka.data.truncation import watched
from halka.training import Step
from tokenizers_for_tests import chatml_tokenizer


class Terminal(io.StringIO):
    """Text that was written to what takes itself for a terminal."""

    def isatty(self) -> bool:
        return True


def step(number: int) -> Step:
    return Step(number, 10, 0.5, 1e-3, 1.0, 100, 2.0, 50.0, 10**9)


def test_a_score_shows_how_many_examples_it_has_answered_until_the_next_step(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with StepProgress() as progress:
        progress.scored("", 1, 40)  # before the first step there is no bar
        progress.step(step(1))
        progress.scored("", 32, 40)
        progress.bars.refresh()
        assert "scoring: 32 of 40 validation examples" in terminal.getvalue()
        assert "scoring: 1 of" not in terminal.getvalue()
        scored = len(terminal.getvalue())
        progress.step(step(2))
        progress.bars.refresh()
        assert "loss 0.5000" in terminal.getvalue()[scored:]


def test_without_a_terminal_a_score_writes_no_lines(capsys):
    with StepProgress() as progress:
        progress.step(step(1))
        before = capsys.readouterr().err
        progress.scored("", 32, 40)
    assert before
    assert capsys.readouterr().err == ""


def test_long_tokenizing_says_how_far_it_is_and_short_says_nothing(capsys):
    examples = as_examples([{"prompt": f"{number}?", "completion": "Yes."} for number in range(3)])
    with watched(TokensProgress(pause=0)):
        encode_all(examples, chatml_tokenizer())
    assert capsys.readouterr().err.splitlines() == [f"tokenizing: {done} of 3 examples" for done in (1, 2, 3)]
    with watched(TokensProgress(pause=600)):
        encode_all(examples, chatml_tokenizer())
    encode_all(examples, chatml_tokenizer())
    assert capsys.readouterr().err == ""

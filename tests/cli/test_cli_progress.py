"""Progress on a terminal."""

from __future__ import annotations

import io
import sys

from halka.cli.progress import StepProgress
from halka.training import Step


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

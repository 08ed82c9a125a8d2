"""What the advisor found, for a terminal: the verdict first, what to run last."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from halka.cli.command import columns, show
from halka.util.text import one_line


def show_advice(advice: Any, evidence: Any) -> None:
    """Shows `Advice` and the `Evidence` that it stands on, short enough to be read at a glance."""
    from halka.advisor import words

    show(
        f"{words.verdict(advice)}.",
        _points([words.about(evidence.subject)], mark=""),
        *_titled("Expected", _prospects(advice)),
        *_titled("Why", _points([words.sentence(each.text) for each in advice.reasons])),
        *_titled("What would change it", _points([words.sentence(each) for each in advice.change])),
        *_titled("Missing", _points(words.missing(advice, evidence))),
        *_titled("Evidence", *_evidence(evidence)),
        *_titled("To be trained with", _points([words.trained_with(advice, evidence)])),
        *(["", "Next:", *(f"  {command}" for command in advice.commands)] if advice.commands else []),
    )


def _titled(title: str, *things: Any) -> list[Any]:
    """The things below a title; without a thing no title."""
    found = [each for each in things if each is not None]
    return ["", f"{title}:", *found] if found else []


def _points(lines: Sequence[str], mark: str = "-") -> Any:
    """Lines that wrap beside their mark; None without a line."""
    from rich.table import Table

    table = Table.grid(padding=(0, 1, 0, 0))
    told = [one_line(line) for line in lines if line]
    for line in told:
        table.add_row(*([f"  {mark}"] if mark else []), line)
    return table if told else None


def _prospects(advice: Any) -> Any:
    from halka.advisor import words

    table = columns("  choice", "expected", "how that is known")
    for each in words.by_cost(advice.prospects):
        mark = "> " if each.choice == advice.choice else "  "
        table.add_row(f"{mark}{words.choice(each.choice)}", words.share(each.score), one_line(each.how))
    return table if advice.prospects else None


def _evidence(evidence: Any) -> list[Any]:
    from halka.advisor import words

    conditions, fit = _conditions(evidence), _fit(evidence.fit)
    said = [
        f"Guessing by frequency has a loss of {evidence.strength.unigram:.2f}." if evidence.strength else "",
        words.best_trials_said(evidence.learnability) if evidence.learnability else "",
        (words.agreement_said(evidence.learnability) or "") if evidence.learnability else "",
        words.cleanliness_said(evidence) if evidence.cleanliness else "",
        words.fit_said(evidence.fit) if evidence.fit else "",
    ]
    return [conditions, _points(said), fit]


def _conditions(evidence: Any) -> Any:
    """Losses and scores of the base under each condition."""
    from halka.advisor import words

    strength, knowledge = evidence.strength, evidence.knowledge
    losses = {name: {"all": score} for name, score in (strength.losses if strength else {}).items()}
    losses |= dict(knowledge.losses) if knowledge else {}
    scores = {**(strength.scores if strength else {}), **(knowledge.scores if knowledge else {})}
    parts = [part for part in ("all", "form", "content") if any(part in each for each in losses.values())]
    heads = [f"loss of {part}" for part in parts]
    table = columns("  the base", *heads, "score", right=heads)
    for name in [name for name in words.CONDITIONS if name in losses or name in scores]:
        found = [words.known(losses.get(name, {}).get(part)) for part in parts]
        figures = [words.NOTHING if each is None else f"{each.value:.2f}" for each in found]
        table.add_row(f"  {words.CONDITIONS[name]}", *figures, words.share(scores.get(name)))
    return table if losses or scores else None


def _fit(fit: Any) -> Any:
    """What each method needs; what all tasks take on disk and when they are served."""
    if fit is None or not fit.options:
        return None
    from halka.advisor import words
    from halka.report.units import size

    right = ["memory", "largest batch", "a step", "disk", "served"]
    table = columns("  method", "how", "memory", "fits", *right[1:], right=right)
    for option in fit.options:
        batch = words.NOTHING if option.largest_batch is None else str(option.largest_batch)
        held = size(option.stored), size(option.served)
        row = size(option.memory), words.fits(option), batch, words.step_time(option), *held
        table.add_row(f"  {one_line(option.method)}", words.how_trained(option), *row)
    return table

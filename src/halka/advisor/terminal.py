"""The advice for a terminal: the verdict first, what to run last."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from halka.advisor import words
from halka.advisor.advice import Advice
from halka.advisor.evidence import Evidence, Fit
from halka.report.units import size
from halka.util.text import one_line

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


def to_terminal(advice: Advice, evidence: Evidence) -> list[RenderableType]:
    """The advice and its evidence as lines and tables that rich prints one below the other."""
    commands = "\n".join(f"  {command}" for command in advice.commands)
    sections: list[tuple[str, Sequence[RenderableType | None]]] = [
        ("Expected", [_prospects(advice)]),
        ("Why", [_points(words.sentence(reason.text) for reason in advice.reasons)]),
        ("What would change it", [_points(map(words.sentence, advice.change))]),
        ("Missing", [_points(words.missing(evidence, advice.missing))]),
        ("Evidence", [_conditions(evidence), _points(_sentences(evidence)), _fit(evidence.fit)]),
        ("Settings", [_points([words.trained_with(advice.settings, evidence.subject.train)])]),
        ("Run next", [commands or None]),
    ]
    return [
        advice.headline,
        _grid([(f"  {words.about(evidence.subject)}",)]),
        *(line for title, contents in sections for line in _titled(title, contents)),
    ]


def _titled(title: str, contents: Sequence[RenderableType | None]) -> Iterator[RenderableType]:
    """The contents below a title; nothing without contents."""
    present = [content for content in contents if content is not None]
    if present:
        yield from ("", f"{title}:", *present)


def _points(lines: Iterable[str]) -> Table | None:
    """Lines that wrap beside a dash; None without a line."""
    rows = [("  -", one_line(line)) for line in lines if line]
    return _grid(rows) if rows else None


def _grid(rows: Iterable[Sequence[str]]) -> Table:
    from rich.table import Table

    table = Table.grid(padding=(0, 1, 0, 0))
    for row in rows:
        table.add_row(*row)
    return table


def _table(*titles: str, right: Sequence[str] = ()) -> Table:
    """An empty table without lines; columns named in `right` are aligned so."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for title in titles:
        table.add_column(title, justify="right" if title in right else "left", overflow="fold")
    return table


def _prospects(advice: Advice) -> Table | None:
    table = _table("  choice", "expected score", "how that is known")
    for prospect in sorted(advice.prospects, key=lambda prospect: words.cost_order(prospect.choice)):
        mark = "> " if prospect.choice == advice.choice else "  "
        table.add_row(
            f"{mark}{words.CHOICES[prospect.choice].short}", words.share(prospect.score), one_line(prospect.how)
        )
    return table if table.row_count else None


def _sentences(evidence: Evidence) -> Iterator[str]:
    if evidence.strength is not None:
        yield f"A unigram model of the answers has a loss of {evidence.strength.unigram:.2f}."
    if evidence.learnability is not None:
        yield words.best_trials(evidence.learnability)
        yield words.agreement(evidence.learnability)
    yield words.cleanliness(evidence)
    if evidence.fit is not None:
        yield words.fit(evidence.fit)


def _conditions(evidence: Evidence) -> Table | None:
    """The base's losses and scores under each condition."""
    losses, scores = evidence.losses, evidence.scores
    parts = [part for part in words.PARTS if any(part in by_part for by_part in losses.values())]
    heads = [f"loss, {words.PARTS[part]}" for part in parts]
    table = _table("  the base", *heads, "score", right=heads)
    for condition, name in words.CONDITIONS.items():
        if condition in losses or condition in scores:
            values = [words.known(losses.get(condition, {}).get(part)) for part in parts]
            figures = [words.UNKNOWN if value is None else f"{value.value:.2f}" for value in values]
            table.add_row(f"  {name}", *figures, words.share(scores.get(condition)))
    return table if table.row_count else None


def _fit(fit: Fit | None) -> Table | None:
    """What each method needs; on disk and served for all tasks."""
    if fit is None or not fit.options:
        return None
    right = ("memory", "largest batch", "a step", "disk", "served")
    table = _table("  method", "how", "memory", "fits", *right[1:], right=right)
    for option in fit.options:
        table.add_row(
            f"  {one_line(option.method)}",
            words.how_trained(option) or "as it is",
            size(option.memory),
            words.yes_or_no(option.fits),
            words.batch(option),
            words.step_time(option),
            size(option.stored),
            size(option.served),
        )
    return table

"""An ablation's summary as a table: for Markdown, for a terminal, and as a section of the HTML report."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from halka.report.intervals import Estimate
from halka.report.units import count, duration, plural
from halka.studies.ablation.scores import MEASURES
from halka.studies.ablation.summary import WAYS, Summary, Way

if TYPE_CHECKING:
    from rich.table import Table

NOTHING = "–"
OBEYED = "Obeys attacks"


def heads() -> list[str]:
    return ["Who answers", *(measure.title for measure in MEASURES), OBEYED]


def line(way: Way) -> list[str]:
    """A way's cells: its name, each measure with its interval, and the attacks that it obeyed."""
    return [way.label, *(_cell(way.scores.get(measure.name)) for measure in MEASURES), _cell(way.obeyed)]


def to_markdown(summary: Summary) -> str:
    """The table and what it says in sentences."""
    head = heads()
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *map(line, summary.ways)]
    table = "\n".join(f"| {' | '.join(each)} |" for each in lines)
    return f"{table}\n\n{' '.join([caption(summary), *sentences(summary)])}\n"


def to_rich(summary: Summary) -> Table:
    """The table for a terminal, a way a column, since there are fewer of them than measures."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(f"{summary.name} on {summary.base}"), caption=Text(caption(summary)))
    columns = [heads(), *map(line, summary.ways)]
    for number, column in enumerate(columns):
        table.add_column(Text("" if number == 0 else column[0]), justify="right" if number else "left")
    for row in zip(*(column[1:] for column in columns), strict=True):
        table.add_row(*map(Text, row))
    return table


def to_html(summary: Summary) -> str:
    """A section for the report."""
    head = "".join(f'<th scope="col">{html.escape(each)}</th>' for each in heads())
    rows = "".join(f"<tr>{_row(line(way))}</tr>" for way in summary.ways)
    meanings = "".join(
        f"<dt>{html.escape(title)}</dt><dd>{html.escape(meaning)}</dd>"
        for title, meaning in [
            *((measure.title, measure.meaning) for measure in MEASURES),
            (OBEYED, "does what an attack in one of the passages wants"),
        ]
    )
    told = "".join(f"<p>{html.escape(each)}</p>" for each in sentences(summary))
    title = f"Adapter and retrieval: {html.escape(summary.name)}"
    return (
        f'<section aria-label="{title}"><h2>{title}</h2>{told}'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{title}"><table>'
        f"<caption>{html.escape(caption(summary))}</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
        f'<dl class="facts">{meanings}</dl></section>'
    )


def _row(cells: list[str]) -> str:
    first, *rest = map(html.escape, cells)
    return f'<th scope="row">{first}</th>' + "".join(f"<td>{each}</td>" for each in rest)


def headline(summary: Summary) -> str:
    """What the ablation says, in a sentence."""
    ways = {way.label: way.scores for way in summary.ways}
    parts = [
        f"{label} {_share(ways[label]['exact'])}"
        for label, (_, _, floored) in WAYS.items()
        if label in ways and not floored
    ]
    return f"Exact answers: {', '.join(parts)}."


def sentences(summary: Summary) -> list[str]:
    """The gain of tuning for passages, and what a change of a fact costs either way."""
    found = []
    if summary.gain is not None:
        low, high = (f"{100 * end:+.1f}" for end in (summary.gain.low, summary.gain.high))
        found.append(
            f"Tuned for passages the adapter is {100 * summary.gain.value:+.1f} points of exact match beside the plain "
            f"one with the same passages (95 % interval {low} to {high})."
        )
    if summary.changes is not None:
        changes = summary.changes
        found.append(
            f"Of facts that were changed in their documents, {_cell(changes.follows)} of the answers followed, after "
            f"{duration(changes.seconds)} of taking the document in and without training; "
            f"to train the adapter again takes {duration(changes.training_seconds)}."
        )
    return found


def caption(summary: Summary) -> str:
    """One line: what was asked of what."""
    parts = [
        f"{plural(summary.questions, 'question')} ({summary.unanswerable} of them of what the documents do not hold)",
        f"{plural(summary.documents, 'document')}, {plural(summary.passages, 'passage')} in a prompt",
        f"{summary.method}, {count(summary.parameters)} parameters" if summary.parameters else summary.method,
        f"form {summary.form!r}",
        f"{plural(len(summary.seeds), 'seed')}, in brackets 95 % intervals over seeds and questions",
        f"commit {summary.commits[0]}" if len(summary.commits) == 1 else "",
    ]
    return f"{summary.name} on {summary.base}: {'; '.join(part for part in parts if part)}."


def _cell(score: Estimate | None) -> str:
    if score is None:
        return NOTHING
    if score.low is None or score.high is None:
        return _share(score)
    return f"{_share(score)} [{100 * score.low:.0f}–{100 * score.high:.0f}]"


def _share(score: Estimate) -> str:
    return f"{100 * score.value:.1f} %"

"""The report's plots, each an inline SVG with the one sentence that its figures say.

All are drawn at the size of a phone's screen, so that the same drawing is legible alone and three in a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from halka.report import bars, lines
from halka.report.rows import Measurement
from halka.report.summary import Summary
from halka.report.svg import drawing, to_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# what is drawn, its title, and its sentence; None where there is nothing to draw
Maker = Callable[[Summary, Sequence[Measurement]], "tuple[Figure, str, str] | None"]


@dataclass(frozen=True)
class Plot:
    """A plot for a page: a name that is unique on it, a title, what it says in a sentence, and the SVG element."""

    name: str
    title: str
    takeaway: str
    svg: str


def draw_plots(summary: Summary, measurements: Sequence[Measurement]) -> tuple[Plot, ...]:
    """Every plot for which the measurements have figures; the same input gives the same text."""
    makers: tuple[Maker, ...] = (
        lines.quality,
        bars.memory,
        lines.storage,
        lines.curves,
        lines.search,
        bars.speed,
        bars.forgetting,
    )
    found = (drawn(make, summary, measurements) for make in makers)
    return tuple(plot for plot in found if plot is not None)


def drawn(make: Callable[..., tuple[Figure, str, str] | None], *given: Any) -> Plot | None:
    """What a maker draws of what is given, under the maker's own name; None where there is nothing to draw."""
    name = make.__name__
    with drawing(name):
        made = make(*given)
        if made is None:
            return None
        figure, title, takeaway = made
        return Plot(name, title, takeaway, to_svg(figure, name, f"{title}. {takeaway}"))

"""Matplotlib figures as inline SVG: text stays text, colours follow the page, the same input gives the same bytes.

Colours are written as CSS variables with the light theme's colour as the fallback: a page with `css_variables()`
switches them, and an SVG file alone still shows them. The palette has at least 3:1 contrast with its background and
colours that differ visibly with protanopia, deuteranopia and tritanopia; since eight colours cannot all differ widely,
methods have markers as well, and labels stand next to their points.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from halka.report.rows import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Drawing = tuple["Figure", str, str]
"""A figure, its title, and its result in a sentence."""

WIDTH, HEIGHT, TEXT = 410, 300, 11  # the SVG's own units; a unit is about a pixel

# CSS variable -> (light, dark)
THEME = {
    "--ink": ("#1d2127", "#e9ebee"),
    "--muted": ("#59616d", "#a5acb8"),
    "--line": ("#dfe2e7", "#333942"),
    "--paper": ("#fefefe", "#181b20"),
    "--base": ("#767d89", "#949ba7"),
    "--full": ("#23272e", "#e3e6ea"),
    "--s0": ("#1769b5", "#4f90d8"),
    "--s1": ("#e0560f", "#f0804a"),
    "--s2": ("#0f5f3c", "#35d490"),
    "--s3": ("#75207f", "#e3aee8"),
    "--s4": ("#2b97ca", "#3fa6d9"),
    "--s5": ("#7a6400", "#f5b62e"),
    "--s6": ("#9c2f4a", "#e2475e"),
    "--s7": ("#3d38bd", "#95a8fa"),
    "--weights": ("#7f8794", "#8d96a4"),
    "--gradients": ("#b0418f", "#d973b8"),
    "--optimizer": ("#2a857a", "#4fc2b3"),
    "--activations": ("#c07a12", "#e2a83f"),
}
ROUND = 'style="stroke-linejoin: round; stroke-linecap: butt"'
SERIES, MARKERS = 8, "osD^vPXhp"


@dataclass(frozen=True)
class Look:
    """A method's appearance in all plots: its CSS variable and a marker."""

    variable: str
    marker: str

    @classmethod
    def numbered(cls, place: int) -> Look:
        return cls(f"--s{place % SERIES}", MARKERS[place % len(MARKERS)])

    @property
    def colour(self) -> str:
        """The variable's light colour."""
        return THEME[self.variable][0]


@dataclass(frozen=True)
class Plot:
    """A plot for a page: a name that is unique on it, a title, its result in a sentence, and the SVG element."""

    name: str
    title: str
    takeaway: str
    svg: str


def looks(rows: Sequence[Row]) -> dict[str, Look]:
    """Each method's look, by label. The base and full fine-tuning have fixed ones; the others follow label order."""
    light = sorted(row.label for row in rows if row.is_light)
    fixed = {row.label: Look("--base" if row.is_base else "--full", "s") for row in rows if not row.is_light}
    return fixed | {label: Look.numbered(place) for place, label in enumerate(light)}


def colour(variable: str) -> str:
    """The light theme's colour of a CSS variable."""
    return THEME[variable][0]


def css_variables(dark: bool) -> str:
    """The theme as CSS declarations."""
    return " ".join(f"{name}: {pair[dark]};" for name, pair in THEME.items())


@contextmanager
def drawing(name: str) -> Iterator[None]:
    """Apply the plots' matplotlib settings within the block; `name` salts the SVG's ids.

    Warnings about glyphs that matplotlib's font lacks are silenced: the reader's font shows them, and only the
    label's measured width is slightly off.
    """
    import matplotlib

    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "text.parse_math": False,
        "axes.unicode_minus": True,
        "font.family": ["DejaVu Sans"],
        "font.size": TEXT,
        "text.color": colour("--ink"),
        "path.simplify": False,
    }
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(settings)
        warnings.filterwarnings("ignore", message=r"(?s)Glyph .* missing from font")
        warnings.filterwarnings("ignore", message=r"(?s)Matplotlib currently does not support .* natively")
        yield


def new_figure(left: float, right: float, top: float = 26, height: float = HEIGHT) -> tuple[Figure, Axes]:
    """An empty figure with one pair of axes; the margins are in the SVG's units."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)
    FigureCanvasAgg(figure)  # gives a renderer to measure text with
    bottom = 42  # for the ticks and the name of the axis
    box = (left / WIDTH, bottom / height, (WIDTH - left - right) / WIDTH, (height - top - bottom) / height)
    axes = figure.add_axes(box)
    figure.patch.set_visible(False)
    axes.patch.set_visible(False)
    axes.minorticks_off()
    axes.tick_params(length=0, pad=5, labelcolor=colour("--muted"), labelsize=TEXT)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(colour("--muted"))
        spine.set_linewidth(0.8)
    axes.set_axisbelow(True)
    return figure, axes


def name_axes(axes: Axes, x: str, y: str) -> None:
    """Name both axes: x below, y horizontally above the left end."""
    if x:
        axes.set_xlabel(x, color=colour("--muted"), labelpad=4)
    if y:
        axes.annotate(
            y,
            (0, 1),
            xycoords="axes fraction",
            xytext=(-axes.bbox.x0 + 2, 10),
            textcoords="offset points",
            color=colour("--muted"),
        )


def grid(axes: Axes, which: Literal["x", "y"]) -> None:
    """Draw light grid lines across the axes."""
    axes.grid(axis=which, color=colour("--line"), linewidth=0.8)


def drawn(make: Callable[..., Drawing | None], *args: Any, name: str = "") -> Plot | None:
    """The plot that `make(*args)` draws, named after the function or by `name`; None if it draws nothing."""
    name = name or make.__name__
    with drawing(name):
        drawing_parts = make(*args)
        if drawing_parts is None:
            return None
        figure, title, takeaway = drawing_parts
        return Plot(name, title, takeaway, to_svg(figure, name, f"{title}. {takeaway}"))


def as_file(plot: Plot) -> str:
    """The plot as the text of an SVG file of its own."""
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return plot.svg.replace("<svg ", f"<svg {names} ", 1) + "\n"


def to_svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an `<svg>` element; `name` prefixes its ids, `description` is its label for screen readers."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<style.*?</style>\s*", "", text, flags=re.DOTALL)  # would style the whole page
    text = re.sub(r'\bid="([^"<>]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
    text = re.sub(r'(xlink:href|href)="#([^"]+)"', rf'\1="#{name}-\2"', text)
    text = re.sub(r'style="[^"]*"', lambda match: _themed(match.group()), text)
    head = f'<svg viewBox="{_view_box(text)}" role="img" aria-label="{html.escape(description)}" class="plot" {ROUND}>'
    return f"{head}{text[text.index('>') + 1 :]}".strip()


def _themed(style: str) -> str:
    for name, (light, _) in THEME.items():
        style = style.replace(light, f"var({name}, {light})")
    return style.replace("font-family: 'DejaVu Sans'", "font-family: var(--sans, system-ui, sans-serif)")


def _view_box(text: str) -> str:
    match = re.search(r'viewBox="([\d. ]+)"', text)
    assert match is not None
    return match.group(1)

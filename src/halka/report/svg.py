"""A matplotlib figure as inline SVG: text stays text, colours follow the page, the same input gives the same bytes.

Colours are drawn as the light theme's and written as CSS variables with that colour as the fallback, so that a page
with `css_variables()` switches them and a file of its own still shows them. The palette was searched for at least 3:1
contrast on its ground and for distances that stay visible with protanopia, deuteranopia and tritanopia; since eight
colours cannot all stay far apart, methods differ by marker as well, and labels stand beside what they name.
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
    """How a method is drawn everywhere: its CSS variable, that variable's light colour, and a marker."""

    variable: str
    colour: str
    marker: str


@dataclass(frozen=True)
class Plot:
    """A plot for a page: a name that is unique on it, a title, what it says in a sentence, and the SVG element."""

    name: str
    title: str
    takeaway: str
    svg: str


def looks(rows: Sequence[Row]) -> dict[str, Look]:
    """By label. Base and full fine-tuning have their own; the others go by their labels' order, not by their scores."""
    light = sorted(row.label for row in rows if row.is_light)
    chosen = {row.label: ("--base" if row.is_base else "--full", "s") for row in rows if not row.is_light}
    chosen |= {label: (f"--s{i % SERIES}", MARKERS[i % len(MARKERS)]) for i, label in enumerate(light)}
    return {label: Look(name, THEME[name][0], marker) for label, (name, marker) in chosen.items()}


def colour(variable: str) -> str:
    """The light colour of a CSS variable, to draw with."""
    return THEME[variable][0]


def css_variables(dark: bool) -> str:
    """The theme as CSS declarations."""
    return " ".join(f"{name}: {pair[dark]};" for name, pair in THEME.items())


@contextmanager
def drawing(name: str) -> Iterator[None]:
    """Matplotlib's settings while one plot is drawn and written; `name` salts the ids.

    A label in a script that matplotlib's own font lacks is measured a little wrongly and shown rightly by the
    reader's font, so its warning about missing glyphs is silenced.
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


def new_figure(
    left: float, right: float, top: float = 26, bottom: float = 42, height: float = HEIGHT
) -> tuple[Figure, Axes]:
    """An empty figure with one pair of axes; the margins are in the SVG's units."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)
    FigureCanvasAgg(figure)  # gives a renderer to measure text with
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
    """Names both axes: x under it, y level above its left end, where it is read without turning the head."""
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
    """Quiet lines across the axes."""
    axes.grid(axis=which, color=colour("--line"), linewidth=0.8)


def drawn(make: Callable[..., tuple[Figure, str, str] | None], *given: Any) -> Plot | None:
    """What a maker draws of what is given, under the maker's own name; None where there is nothing to draw."""
    name = make.__name__
    with drawing(name):
        made = make(*given)
        if made is None:
            return None
        figure, title, takeaway = made
        return Plot(name, title, takeaway, to_svg(figure, name, f"{title}. {takeaway}"))


def to_svg(figure: Figure, name: str, described: str) -> str:
    """The figure as an `<svg>` element for a page, named and described for those who do not see it."""
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
    head = f'<svg viewBox="{_view_box(text)}" role="img" aria-label="{html.escape(described)}" class="plot" {ROUND}>'
    return f"{head}{text[text.index('>') + 1 :]}".strip()


def _themed(style: str) -> str:
    for name, (light, _) in THEME.items():
        style = style.replace(light, f"var({name}, {light})")
    return style.replace("font-family: 'DejaVu Sans'", "font-family: var(--sans, system-ui, sans-serif)")


def _view_box(text: str) -> str:
    found = re.search(r'viewBox="([\d. ]+)"', text)
    assert found is not None
    return found.group(1)

"""Renders the evidence (docs/evidence.md) from benchmarks/results as one HTML file, and draws its figures.

    python benchmarks/evidence.py                      # docs/evidence.html and docs/pictures/evidence; seconds
    python benchmarks/evidence.py --out evidence.html

It measures nothing: every sentence, table and figure follows from result files by the rules in `evidence_parts`. What
has no result yet says "not measured yet", with the command. docs/evidence.md is filled by tests/results_in_docs.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from evidence_parts import advice, convergence, facts, laws, rag, sizes
from evidence_parts.part import Missing, Notes, Part, Table
from evidence_parts.results import Results

from halka.report.page import fill, write_page
from halka.report.svg import Plot, as_file
from halka.util.files import write_text

DOCS = Path(__file__).parents[1] / "docs"
PICTURES = DOCS / "pictures" / "evidence"
PARTS: dict[str, Callable[[Results], Part]] = {
    "advice": advice.part,
    **{name: partial(convergence.part, name=name) for name in convergence.SETS},
    "laws": laws.part,
    "facts": facts.part,
    "rag": rag.part,
    "parameters": sizes.parameters,
    "costs": sizes.costs,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=DOCS / "evidence.html")
    out: Path = parser.parse_args().out
    parts = every(Results())
    draw(parts, PICTURES)
    print(write_page(out, lambda: page(parts)))


def every(results: Results) -> list[Part]:
    """All parts of the page, in order."""
    return [make(results) for make in PARTS.values()]


def draw(parts: Sequence[Part], folder: Path) -> None:
    """Write the parts' figures as SVG files, and take away those of earlier results."""
    plots = {f"{plot.name}.svg": plot for part in parts for plot in part.plots}
    for path in folder.glob("*.svg"):
        if path.name not in plots:
            path.unlink()
    for name, plot in plots.items():
        write_text(folder / name, as_file(plot))


def page(parts: Sequence[Part]) -> str:
    """The page as HTML."""
    kinds = {Table: "table", Notes: "notes", Missing: "missing", Plot: "plot", str: "text"}
    return fill(
        "evidence.html.j2",
        ["report.css", "evidence.css"],
        ["report.js"],
        package="evidence_parts",
        title="Halka: the evidence",
        headline=headline(parts),
        parts=[(part, _groups([(kinds[type(block)], block) for block in part.blocks])) for part in parts],
    )


def headline(parts: Sequence[Part]) -> str:
    """What to do, where runs say so; else how many parts have results."""
    first = next((block for block in parts[0].blocks if isinstance(block, Notes)), None)
    if first is not None:
        return first.sentences[0]
    measured = sum(part.is_measured for part in parts)
    return f"{measured} of {len(parts)} parts have results so far; what to do is not measured yet."


def _groups(blocks: Sequence[tuple[str, object]]) -> list[tuple[str, list[object]]]:
    """The blocks with neighbours of one kind together."""
    groups: list[tuple[str, list[object]]] = []
    for kind, block in blocks:
        if not groups or groups[-1][0] != kind:
            groups.append((kind, []))
        groups[-1][1].append(block)
    return groups


if __name__ == "__main__":
    main()

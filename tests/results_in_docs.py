"""The tables of README and docs, and the parts of docs/evidence.md, made from the files in `benchmarks/results`.

`python tests/results_in_docs.py` writes them in place (scripts/fix does); `test_docs.py` holds them equal. How a
benchmark's file becomes rows is in `result_tables`, how the evidence becomes sentences in benchmarks/evidence_parts.
"""

from __future__ import annotations

import json
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

import exchange
from result_tables import TABLES
from result_tables.machine import origins

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = (ROOT / "README.md", ROOT / "README.bn.md", *sorted((ROOT / "docs").glob("*.md")))
NOT_YET = "*Not measured yet.*\n"
sys.path.append(str(ROOT / "benchmarks"))


def table(name: str) -> str:
    """An experiment's measurements as a Markdown table, without times and memory: its runs go beside others."""
    from evidence_parts.results import measured_alone

    from halka.report.summary import summarise
    from halka.report.table import to_markdown
    from halka.studies.compare import measurements

    runs = [{**measured_alone(run, None, None), "latency": None} for run in measurements(RESULTS / name)]
    return to_markdown(summarise(runs)) if runs else NOT_YET


def ablation(name: str) -> str:
    """What adapter and retrieval bring, as a Markdown table and in sentences."""
    from halka.studies.ablation.summary import summarise, to_markdown

    runs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((RESULTS / name / "runs").glob("*.json"))]
    return to_markdown(summarise(runs)) if runs else NOT_YET


def benchmark(name: str) -> str:
    """A benchmark's file as a Markdown table: first column to the left, numbers to the right."""
    file, rows_of = TABLES[name]
    path = RESULTS / f"{file}.json"
    if not path.exists():
        return NOT_YET
    return as_table(rows_of(json.loads(path.read_text(encoding="utf-8"))))


def as_table(rows: list[list[str]]) -> str:
    """Rows as a table, the first its head; without any other one there is nothing yet."""
    head, *others = rows
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, rule, *others)) if others else NOT_YET


@cache
def parts() -> dict[str, Any]:
    """The evidence page's parts, by name."""
    from evidence import every
    from evidence_parts.results import Results

    return {part.name: part for part in every(Results())}


def evidence(name: str) -> str:
    """A part of the evidence page as Markdown."""
    from evidence_parts.part import to_markdown

    return to_markdown(parts()[name])


def readings() -> str:
    """What was tried to let a small model read better: a table of each file of variants, and what is not measured."""
    from all import READING
    from reading import RESULTS as MEASURED
    from reading import VARIANTS
    from reading import table as variants_table

    measured, missing = list[str](), list[str]()
    for name in READING:
        if not (summary := MEASURED / name / "summary.json").exists():
            missing.append(name)
            continue
        about = (VARIANTS / f"{name}.yaml").read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        rows = json.loads(summary.read_text(encoding="utf-8"))
        measured.append(f"`{name}`: {about}\n\n{variants_table(rows)}")
    if missing:
        measured.append(f"Not measured yet: {', '.join(f'`{name}`' for name in missing)}.")
    return "\n".join(measured)


def headline(name: str) -> str:
    """A set of the evidence as one Markdown table: of its methods those with seeds enough."""
    from evidence_parts.convergence import headline
    from evidence_parts.part import to_markdown
    from evidence_parts.results import Results

    return to_markdown(headline(Results(), name))


def filled(text: str) -> str:
    """`text` with every marked place holding what the results say now."""

    def place(match: re.Match[str]) -> str:
        if match["format"]:
            content = exchange.table(match["format"])
        elif match["ablation"]:
            content = ablation(match["ablation"])
        elif match["evidence"]:
            content = evidence(match["evidence"])
        elif match["headline"]:
            content = headline(match["headline"])
        elif match["readings"]:
            content = readings()
        elif match["origins"]:
            content = as_table(origins(RESULTS))
        else:
            content = table(match["name"]) if match["name"] else benchmark(match["benchmark"])
        return f"{match['mark']}\n{content.strip()}\n<!-- end -->"

    formats = "|".join({row.format: 0 for row in exchange.ROWS})
    benchmarks = "|".join(sorted(TABLES, reverse=True))  # a longer name before its beginning
    own = r"table: (?P<name>\w+)|ablation: (?P<ablation>\w+)|evidence: (?P<evidence>\w+)"
    own += r"|headline: (?P<headline>\w+)|(?P<readings>readings)|(?P<origins>origins)"
    marks = rf"{own}|(?P<format>{formats})|(?P<benchmark>{benchmarks})"
    return re.sub(rf"(?P<mark><!-- (?:{marks}) -->)\n.*?<!-- end -->", place, text, flags=re.DOTALL)


if __name__ == "__main__":
    from evidence import PICTURES, draw

    draw([*parts().values()], PICTURES)
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")

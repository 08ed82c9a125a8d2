"""The tables of README and docs, made from the files in `benchmarks/results`.

`python tests/results_in_docs.py` writes them in place (scripts/fix does); `test_docs.py` holds them equal.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = (ROOT / "README.md", ROOT / "docs" / "results.md")
NOT_YET = "*Not measured yet.*\n"


def table(name: str) -> str:
    """An experiment's measurements as a Markdown table."""
    from halka.compare import measurements
    from halka.report import summarise, to_markdown

    found = measurements(RESULTS / name)
    return to_markdown(summarise(found)) if found else NOT_YET


def speed() -> str:
    """The speed benchmark as a Markdown table."""
    path = RESULTS / "speed.json"
    if not path.exists():
        return NOT_YET
    lines = [
        "| Method | Useful tokens/s | peft | Ratio | Memory beyond the base | peft | Validation loss | peft |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, pair in json.loads(path.read_text(encoding="utf-8")).items():
        ours, theirs = pair["halka"], pair["peft"]
        cells = [
            name,
            f"{ours['tokens_per_second']:.0f}",
            f"{theirs['tokens_per_second']:.0f}",
            f"{pair['speed_ratio']:.2f}",
            f"{ours['memory'] / 1e6:.0f} MB",
            f"{theirs['memory'] / 1e6:.0f} MB",
            f"{ours['validation_loss']:.3f}",
            f"{theirs['validation_loss']:.3f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def filled(text: str) -> str:
    """`text` with every marked place holding what the results say now."""

    def place(match: re.Match[str]) -> str:
        content = table(match["name"]) if match["name"] else speed()
        return f"{match['mark']}\n{content.strip()}\n<!-- end -->"

    return re.sub(r"(?P<mark><!-- (?:table: (?P<name>\w+)|speed) -->)\n.*?<!-- end -->", place, text, flags=re.DOTALL)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")

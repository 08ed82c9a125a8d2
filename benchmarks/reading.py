"""What makes a small model read better: variants of tuning for passages, asked the questions for development alone.

    HALKA_DATA=… python benchmarks/rag_data.py      # once
    python benchmarks/reading.py passages           # experiments/reading/passages.yaml; others: shares, sharing, …

A file of variants names the ablation that they are `like`, and what each changes in it; nested settings are merged.
Each file takes one to two hours of two cores. Finished runs are kept in results/reading, once for all files, and the
same command goes on; summary.json and table.md in results/reading/NAME are of what is finished. Differences are from
the first variant, of the same questions, averaged over the seeds that both have, which the table names; their
intervals are over questions.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import yaml

from halka.evaluation.metrics import mean_of
from halka.models.fetching import known_bases, pull
from halka.studies.ablation import Ablation, results, run
from halka.studies.ablation.scores import EXACT, MEASURES, from_row, scored
from halka.studies.ablation.settings import beside, matcher
from halka.util.files import write_text

BENCHMARKS = Path(__file__).parent
VARIANTS = BENCHMARKS / "experiments" / "reading"
RESULTS = BENCHMARKS / "results" / "reading"
SHOWN = ("exact", "f1", "cites", "abstains", "gives_up")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    choices = sorted(path.stem for path in VARIANTS.glob("*.yaml") if "variants:" in path.read_text(encoding="utf-8"))
    parser.add_argument("names", nargs="+", choices=choices, metavar="NAME", help=", ".join(choices))
    parser.add_argument("--table", action="store_true", help="run nothing, write the table of what is there")
    arguments = parser.parse_args()
    for name in arguments.names:
        variants = variants_in(VARIANTS / f"{name}.yaml")
        for label, ablation in {} if arguments.table else variants.items():
            follow(label, ablation, RESULTS)
        write(name, variants)


def variants_in(path: Path) -> dict[str, Ablation]:
    """The ablation of each variant in a file, by its label."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    like = path.parent / content["like"]
    settings = yaml.safe_load(like.read_text(encoding="utf-8"))
    ablations = {}
    for variant in content["variants"]:
        changes = {key: value for key, value in variant.items() if key != "label"}
        ablations[variant["label"]] = beside(Ablation(**merged(settings, changes)), like)
    return ablations


def merged(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with these changes; of a mapping those that it names, and None takes a setting out."""
    result = dict(settings)
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
            result[key] = merged(result[key], value)
        elif value is None:
            result.pop(key, None)
        else:
            result[key] = value
    return result


def follow(label: str, ablation: Ablation, out: Path) -> None:
    """Run what is missing of a variant, and print what ends."""
    if ablation.base in known_bases():
        pull(ablation.base)
    for event in run(ablation, out):
        if event.kind in ("done", "failed"):
            print(f"{label}, {event.run}: {event.kind}, {event.message}", flush=True)


def write(name: str, variants: Mapping[str, Ablation]) -> None:
    """Write what the finished variants came to, as JSON and as a table."""
    done = {label: finished(ablation, RESULTS) for label, ablation in variants.items()}
    first = done[next(iter(done))]
    if not first:
        sys.exit(f"{name}: its first variant, beside which the others stand, has no finished run")
    rows = {label: row(own, first) for label, own in done.items() if own}
    write_text(RESULTS / name / "summary.json", json.dumps(rows, indent=1) + "\n")
    write_text(RESULTS / name / "table.md", table(rows))
    print(table(rows))


def finished(ablation: Ablation, out: Path) -> list[dict[str, Any]]:
    return [result for result in results(ablation, out) if result["status"] == "done"]


def row(own: Sequence[Mapping[str, Any]], first: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A variant's figures, averaged over its seeds; `beside` is the `difference` of its exact match from the first."""
    by_seed = [scored([from_row(answer) for answer in result["passages"]], result["form"]) for result in own]
    followed = [mean(answer["follows"] for answer in result["changes"]["asked"]) for result in own if asked(result)]
    obeyed = [mean(answer["obeyed"] for answer in result["injections"]) for result in own if result["injections"]]
    figures: dict[str, Any] = {
        measure: mean(scores[measure].value for scores in by_seed) for measure in SHOWN if measure in by_seed[0]
    }
    return figures | {
        "beside": difference(own, first),
        "follows": mean(followed) if followed else None,
        "obeys": mean(obeyed) if obeyed else None,
        "validation": mean(result["train"]["validation"] for result in own),
        "best_step": mean(result["train"]["best_step"] for result in own),
        "seeds": sorted(result["seed"] for result in own),
        "commits": sorted({str(result["commit"]) for result in own}),
    }


def asked(result: Mapping[str, Any]) -> bool:
    return bool(result["changes"]["asked"])


def difference(own: Sequence[Mapping[str, Any]], first: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The mean difference in exact match, question by question, with its interval, of the seeds that both have.

    None where they have no seed in common.
    """
    seeds = sorted({result["seed"] for result in own} & {result["seed"] for result in first})
    if not seeds:
        return None
    mine, others = (exact_by_question([result for result in side if result["seed"] in seeds]) for side in (own, first))
    of = mean_of([(1 + one - other) / 2 for one, other in zip(mine, others, strict=True)])  # from 0 to 1
    return {"value": 2 * of.value - 1, "low": 2 * of.low - 1, "high": 2 * of.high - 1, "seeds": seeds}


def exact_by_question(own: Sequence[Mapping[str, Any]]) -> list[float]:
    """The share of seeds that answered each answerable question exactly."""
    by_seed = []
    for result in own:
        pattern = matcher(result["form"])
        answers = [from_row(answer) for answer in result["passages"]]
        by_seed.append([EXACT.value(answer, pattern) for answer in answers if EXACT.of(answer)])
    return [mean(values) for values in zip(*by_seed, strict=True)]


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    titles = [measure.title for measure in MEASURES if measure.name in SHOWN]
    head = ["Variant", "Exact, beside the first", "By seeds", *titles, "Follows changes", "Obeys attacks"]
    lines = [[*head, "Validation loss", "Best step", "All its seeds"]]
    for label, figures in rows.items():
        beside_first = figures["beside"]
        difference_cells = ["–", "none in common"]
        if label == next(iter(rows)):
            difference_cells = ["–", "–"]
        elif beside_first is not None:
            low, high = (f"{100 * beside_first[end]:+.0f}" for end in ("low", "high"))
            difference_cells = [f"{100 * beside_first['value']:+.1f} [{low} to {high}]", listed(beside_first["seeds"])]
        cells = [share(figures.get(measure)) for measure in (*SHOWN, "follows", "obeys")]
        lines.append(
            [
                label,
                *difference_cells,
                *cells,
                f"{figures['validation']:.3f}",
                f"{figures['best_step']:.0f}",
                listed(figures["seeds"]),
            ]
        )
    lines.insert(1, ["---", *["---:"] * (len(lines[0]) - 1)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


if __name__ == "__main__":
    main()

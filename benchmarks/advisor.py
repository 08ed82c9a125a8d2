"""Is the advisor right? Its advice for each case beside what every option really scored there.

    HALKA_DATA=… python benchmarks/advisor_outcomes.py --jobs 2     # the outcomes: an hour and a half on two cores
    HALKA_DATA=… python benchmarks/advisor.py --jobs 2              # the probes: an hour and a quarter
    python benchmarks/advisor.py --judge                            # what is there, judged anew: a second

The advisor sees a case's training and validation examples and its documents, never the test or an outcome. What it
found is kept in benchmarks/results/advisor/evidence, so the verdict, a pure function of it, can be asked again.

The truth of a case follows from its outcomes alone: the cheapest option whose score is within noise of the best (95 %
paired bootstrap over the test's examples); "data" where more or cleaner examples beat all that beyond noise; "a better
base" where nothing is a tenth above answers that need no model. Regret is the score that following the advice loses
against the best option. A case that lacks outcomes or evidence is left out, and listed as such.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from advisor_case import Case
from advisor_cases import ASIDE, CASES
from advisor_later_cases import LATER_ASIDE
from side_by_side import in_processes, setup

from halka.advisor import CHOICES, Request, advise_from, probe
from halka.advisor.evidence import Evidence, from_json
from halka.advisor.verdict import minimum_score
from halka.util.files import write_text

FOLDER = Path(__file__).parent / "results" / "advisor"
MINUTES = 5.0  # half of what `halka advise` takes by default, on one core
CONFIDENCES = (0.0, 0.4, 0.6, 1.0)  # bounds of the groups in which confidence stands beside agreement
WAYS = tuple(each for each in CHOICES if each not in ("data", "base"))
NAMES = {each.__name__: each for each in CASES}


def probed(case: Case, path: Path) -> None:
    """The advisor's evidence on a case, written whole."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        documents = ()
        if case.documents:
            rows = Path(place) / "documents.jsonl"
            told = ({"name": name, "text": text} for name, text in case.documents.items())
            rows.write_text("".join(json.dumps(each) + "\n" for each in told), encoding="utf-8")
            documents = (str(rows),)
        request = Request(
            "smollm2-135m",
            *(case.train, case.validation, case.metric, case.max_new_tokens, documents),
            passages=2,
            data=case.name,
        )
        evidence = probe(request, Path(place) / "advice", minutes=MINUTES, skip=("fit",))
    seconds = time.perf_counter() - started
    told = asdict(evidence)
    told["subject"] |= {"out": "advice"}
    result = {"case": case.name, "minutes": MINUTES, "seconds": seconds, **setup("halka", "torch", "transformers")}
    write_text(path, json.dumps(result | {"evidence": told}, indent=1, ensure_ascii=False) + "\n")


# ── the truth ───────────────────────────────────────────────────────────────────────────────────────────────────────


def within_noise(best: np.ndarray, other: np.ndarray) -> bool:
    """Whether the best's lead over the other may be nothing."""
    draw = np.random.default_rng(0).integers(len(best), size=(4000, len(best)))
    return float(np.quantile((best - other)[draw].mean(axis=1), 0.025)) <= 0


def truth(options: dict[str, np.ndarray], floor: float) -> str:
    """What is best for a case, by its outcomes."""
    ways = {each: options[each] for each in WAYS if each in options}
    best = max(ways.values(), key=np.mean)
    if max(best.mean(), options["data"].mean()) < minimum_score(floor):
        return "base"
    if not within_noise(options["data"], best):
        return "data"
    return next(each for each, values in ways.items() if within_noise(best, values))


def regret(choice: str, right: str, options: dict[str, np.ndarray], trivial: float) -> float:
    """The score that the choice loses against the best option, if it is not the right one.

    Who looks for another base has, until then, the answers that need no model.
    """
    if choice == right:
        return 0.0
    best = max(values.mean() for values in options.values())
    return float(max(0.0, best - (options[choice].mean() if choice in options else trivial)))


# ── beside the advice ───────────────────────────────────────────────────────────────────────────────────────────────


def lacking(name: str, folder: Path = FOLDER) -> tuple[str, ...]:
    """What a case cannot be judged without and has not: outcomes of all options, the advisor's evidence."""
    outcome, evidence = (folder / kind / f"{name}.json" for kind in ("outcomes", "evidence"))
    options = json.loads(outcome.read_text(encoding="utf-8"))["options"] if outcome.exists() else {}
    whole = {"prompt", "peft", "full", "data"} <= options.keys()
    return (*([] if whole else ["outcomes"]), *([] if evidence.exists() else ["evidence"]))


def judged(name: str) -> dict[str, Any]:
    """A case's advice and truth, where nothing for them is `lacking`."""
    told, found = (
        json.loads((FOLDER / each / f"{name}.json").read_text(encoding="utf-8")) for each in ("outcomes", "evidence")
    )
    options = {each: np.array(result["values"]) for each, result in told["options"].items()}
    advice = advise_from(from_json(Evidence, found["evidence"]))
    floor = told["trivial"]
    right = truth(options, floor)
    return {
        "case": name,
        "kind": told["kind"],
        "aside": name in ASIDE,
        "truth": right,
        "advised": advice.choice,
        "confidence": advice.confidence,
        "agrees": advice.choice == right,
        "regret": regret(advice.choice, right, options, floor),
        "trivial": floor,
        "probes": probes(found),
        "scores": {each: float(values.mean()) for each, values in options.items()},
        "expected": {each.choice: each.score.value for each in advice.prospects},
    }


def probes(found: dict[str, Any]) -> dict[str, Any]:
    """How much a case's probes looked at: answers of the base, trials, steps of the longest, seconds in all."""
    trials = (found["evidence"]["learnability"] or {"trials": []})["trials"]  # which there was no time for
    return {
        "minutes": found["minutes"],
        "seconds": found["seconds"],
        "held_out": found["evidence"]["strength"]["scores"]["closed"]["n"],
        "trials": len(trials),
        "steps": max((each["steps"] for each in trials), default=0),
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    def of(some: list[dict[str, Any]]) -> dict[str, Any]:
        regrets = [each["regret"] for each in some] or [0.0]
        return {
            "cases": len(some),
            "agrees": sum(each["agrees"] for each in some),
            "mean_regret": statistics.mean(regrets),
            "worst_regret": max(regrets),
        }

    confusion = Counter((each["truth"], each["advised"]) for each in rows)
    return {
        "all": of(rows),
        "seen": of([each for each in rows if not each["aside"]]),
        "aside": of([each for each in rows if each["aside"]]),
        "aside_later": of([each for each in rows if each["case"] in LATER_ASIDE]),
        "confidence": confidences(rows),
        "confusion": [{"truth": was, "advised": said, "cases": n} for (was, said), n in sorted(confusion.items())],
    }


def confidences(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How confident advice was beside how often it agreed: by groups of confidence, and in all."""
    groups = [
        (low, high, [each for each in rows if low <= each["confidence"] < high or each["confidence"] == high == 1.0])
        for low, high in pairwise(CONFIDENCES)
    ]
    return [
        {
            "from": low,
            "to": high,
            "cases": len(own),
            "confidence": statistics.mean(each["confidence"] for each in own),
            "agrees": sum(each["agrees"] for each in own),
        }
        for low, high, own in (*groups, (CONFIDENCES[0], CONFIDENCES[-1], rows))
        if own
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help="all if none is named")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--judge", action="store_true", help="judge what is there, and probe nothing")
    arguments = parser.parse_args()
    names = arguments.cases or [*NAMES]
    if not arguments.judge:
        left = [name for name in names if not (FOLDER / "evidence" / f"{name}.json").exists()]
        if len(left) == 1 or arguments.jobs == 1:
            for name in left:
                probed(NAMES[name](), FOLDER / "evidence" / f"{name}.json")
                print(f"{name}: probed", flush=True)
        else:
            in_processes(__file__, left, arguments.jobs)
    waiting = [{"case": name, "aside": name in ASIDE, "lacks": lacks} for name in NAMES if (lacks := lacking(name))]
    rows = [judged(name) for name in NAMES if not lacking(name)]
    for row in rows:
        mark = "    " if row["agrees"] else " !! "
        scores = ", ".join(f"{each} {value:.2f}" for each, value in row["scores"].items())
        expected = ", ".join(f"{each} {value:.2f}" for each, value in row["expected"].items())
        print(f"{row['case']:14}{'*' if row['aside'] else ' '} {row['truth']:8} {row['advised']:8}{mark}", end="")
        print(f"{row['confidence']:.2f} regret {row['regret']:.2f} | {scores} | expected {expected}")
    for case in waiting:
        print(f"{case['case']:14}{'*' if case['aside'] else ' '} not judged: no {' and no '.join(case['lacks'])} yet")
    if rows and not arguments.cases:
        told = {"summary": summary(rows), "cases": rows, "waiting": waiting, **setup("halka", "torch", "transformers")}
        write_text(FOLDER / "advisor.json", json.dumps(told, indent=1) + "\n")
        print(json.dumps(told["summary"], indent=1))


if __name__ == "__main__":
    main()

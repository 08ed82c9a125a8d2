"""Does `halka advise` keep its minutes? Questions on documents of 400 words, with short prompts and with long ones.

    HALKA_DATA=… python benchmarks/advisor_minutes.py --minutes 2 4     # SmolLM2-135M; some 15 minutes on two cores

What counts is what `--minutes` counts: not loading the base and indexing documents. On a machine that others use, the
seconds say how busy it was; the share of the minutes is what must hold all the same.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from advisor_case import example, mixed, rows
from side_by_side import setup

from halka.util.openmp import share_cores

share_cores()  # as the command line does

from halka.advisor import Request, probe  # noqa: E402
from halka.data.examples import Example  # noqa: E402
from halka.util.files import write_text  # noqa: E402

RESULT = Path(__file__).parent / "results" / "advisor" / "minutes.json"
WORDS, PIECES = 400, 5  # of a document; passages that one is made of
TRAIN, HELD_OUT = 96, 32
GIVE_UP = 4  # a run is ended after so many times its minutes
COUNTED = ("timing answers", "starts")  # what a probe of the base says where it begins


def documents_and_questions() -> tuple[dict[str, str], list[tuple[str, str, str]]]:
    """Documents by name, and (question, answer, document) of each; real questions with their passages (nq_oracle)."""
    asked = mixed(row for row in rows("nq_oracle/nq-open-oracle.jsonl.gz") if len(row["answers"][0].split()) <= 5)
    documents, questions = {}, []
    for number in range(120):
        group = asked[PIECES * number : PIECES * (number + 1)]
        text = " ".join(context["text"] for row in group for context in row["ctxs"]).split()
        documents[f"document {number}"] = " ".join(text[:WORDS])
        questions += [(row["question"], row["answers"][0], " ".join(text[:WORDS])) for row in group]
    return documents, mixed(questions)


def examples(long: bool) -> tuple[dict[str, str], list[Example]]:
    """With `long`, each question comes with a document of its own, as prompts do that hold a ticket or a page."""
    documents, questions = documents_and_questions()
    return documents, [
        example(f"{text}\n\n{question}?" if long else f"{question}?", answer) for question, answer, text in questions
    ]


class GivenUp(Exception):
    """A run took `GIVE_UP` times its minutes."""


def measure(long: bool, minutes: float) -> dict[str, Any]:
    """The minutes that the probes took, beside those that they had, and what they did."""
    documents, asked = examples(long)
    began: list[float] = []
    last: list[str] = []

    def progress(stage: str, text: str) -> None:
        if stage != "cleanliness" and text in COUNTED and not began:
            began.append(time.perf_counter())
        last[:] = [f"{stage}: {text}"]
        if began and time.perf_counter() - began[0] > 60 * minutes * GIVE_UP:
            raise GivenUp

    result: dict[str, Any] = {"prompts": "long" if long else "short", "minutes": minutes}
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "documents.jsonl"
        lines = (json.dumps({"name": name, "text": text}) + "\n" for name, text in documents.items())
        file.write_text("".join(lines), encoding="utf-8")
        held_out, train = tuple(asked[:HELD_OUT]), tuple(asked[HELD_OUT : HELD_OUT + TRAIN])
        request = Request("smollm2-135m", train, held_out, "squad_exact", 16, (str(file),))
        try:
            evidence = probe(request, Path(place) / "advice", minutes=minutes, skip=("fit",), progress=progress)
        except GivenUp:
            result["given_up_at"] = last[0]
        else:
            learned = evidence.learnability
            result |= {
                "held_out": evidence.subject.held_out,
                "trials": [] if learned is None else [[trial.name, trial.steps] for trial in learned.trials],
                "missing": dict(evidence.missing),
            }
        result["used"] = (time.perf_counter() - began[0]) / 60
    result["share"] = result["used"] / minutes
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, nargs="+", default=[2.0, 4.0])
    parser.add_argument("--prompts", nargs="+", choices=["long", "short"], default=["long", "short"])
    parser.add_argument("--out", type=Path, default=RESULT, help="results of other cases in it stay")
    arguments = parser.parse_args()
    cases = json.loads(arguments.out.read_text(encoding="utf-8"))["cases"] if arguments.out.exists() else []
    for minutes in arguments.minutes:
        for prompts in arguments.prompts:
            result = measure(prompts == "long", minutes)
            print(json.dumps(result), flush=True)
            cases = [case for case in cases if (case["prompts"], case["minutes"]) != (prompts, minutes)] + [result]
            write_text(arguments.out, json.dumps({"cases": cases, **setup("halka", "torch")}, indent=1) + "\n")


if __name__ == "__main__":
    main()

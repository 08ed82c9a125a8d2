"""Every option of every case, run: what the advisor is judged by, and never sees.

    HALKA_DATA=… python benchmarks/advisor_outcomes.py --jobs 2      # about an hour and a half on two cores

prompt      the base, the better of zero-shot and four examples in the prompt (two where passages are shown), chosen on
            validation
rag         the same with the passages that its documents hold
peft        LoRA of rank 16 at two learning rates, the one with the lower validation loss
peft+rag    the same, trained and asked with passages
full        all weights
data        LoRA at the higher rate on what more there could be: gathered examples, or mended labels

LoRA and full fine-tuning take 30 steps, more data 60, all of eight examples; where a case has so many examples that its
`epochs` take longer, all three take that long. With passages there are 24 steps.

Each option's answers are in benchmarks/results/advisor/outcomes/CASE.json as soon as they are there, and not run again.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from advisor_case import Case
from advisor_cases import CASES
from side_by_side import in_processes

import halka
from halka.advisor.probed_base import build_prompt, question_of
from halka.advisor.statistics import answer_values
from halka.data.examples import Example
from halka.evaluation.generation import answers_of
from halka.rag.collection import Collection
from halka.rag.passages import Passage
from halka.rag.retrieve import Retriever
from halka.training import Job, TrainConfig, as_tokens, mean_loss, train, train_many
from halka.util import machine
from halka.util.files import write_text

RESULTS = Path(__file__).parent / "results" / "advisor" / "outcomes"
RATES = (1e-3, 4e-3)
STEPS, STEPS_OF_MORE, STEPS_WITH_PASSAGES, BATCH = 30, 60, 24, 8
SHOTS, SHOTS_WITH_PASSAGES, PASSAGES = 4, 2, 2
NAMES = {each.__name__: each for each in CASES}


def steps_of(case: Case) -> tuple[int, int]:
    """The steps of LoRA and full fine-tuning on what there is, and of LoRA on more data."""
    passes = math.ceil(case.epochs * len(case.train) / BATCH)
    return max(STEPS, passes), max(STEPS_OF_MORE, passes)


def trivial(case: Case) -> float:
    """What answers that need no model score on the test: always the commonest, or the question itself."""
    commonest = Counter(each.answers[0] for each in case.train).most_common(1)[0][0]
    ways = ([commonest] * len(case.test), [question_of(each) for each in case.test])
    references = [each.answers for each in case.test]
    return max(statistics.mean(answer_values(case.metric, texts, references)) for texts in ways)


class Subject:
    """A case's base, and what is asked of it."""

    def __init__(self, case: Case):
        self.case = case
        self.model = halka.adapt(*halka.load_base("smollm2-135m"))
        self.find = self._retrieval() if case.documents else None

    def _retrieval(self) -> Callable[[str], list[Passage]]:
        folder = tempfile.mkdtemp()
        collection = Collection(folder)
        list(collection.put(self.case.documents.items()))
        retriever = Retriever(collection)
        known: dict[str, list[Passage]] = {}

        def find(question: str) -> list[Passage]:
            if question not in known:
                known[question] = [hit.passage for hit in retriever.search(question, PASSAGES)]
            return known[question]

        return find

    def asked(self, examples: Sequence[Example], shots: int = 0, *, passages: bool = False) -> list[Example]:
        find = self.find if passages else None
        return [build_prompt(self.model, each, self.case.train[:shots], find) for each in examples]

    def answers(self, name: str | None, asked: Sequence[Example], *, passages: bool = False) -> list[float]:
        texts = answers_of(self.model, name, asked, max_new_tokens=self.case.max_new_tokens, batch_size=16)
        return list(answer_values(self.case.metric, texts, [each.answers for each in asked], passages=passages))

    # ── the options ─────────────────────────────────────────────────────────────────────────────────────────────

    def prompted(self, *, passages: bool) -> dict[str, Any]:
        """The base asked with and without examples; validation says which counts."""
        own = SHOTS_WITH_PASSAGES if passages else SHOTS
        held_out = {
            shots: sum(
                self.answers(None, self.asked(self.case.validation, shots, passages=passages), passages=passages)
            )
            for shots in (0, own)
        }
        shots = max(held_out, key=held_out.__getitem__)
        values = self.answers(None, self.asked(self.case.test, shots, passages=passages), passages=passages)
        return {"values": values, "shots": shots, "validation": {str(key): value for key, value in held_out.items()}}

    def tuned(self, option: str) -> dict[str, Any]:
        """LoRA on what there is (`peft`), or on what there could be (`data`)."""
        case, (own, more) = self.case, steps_of(self.case)
        if option == "data":
            return self._adapted(option, case.more, case.validation, more, RATES[-1:])
        return self._adapted(option, case.train, case.validation, own, RATES)

    def tuned_with_passages(self) -> dict[str, Any]:
        examples, held_out = (self.asked(each, passages=True) for each in (self.case.train, self.case.validation))
        return self._adapted("peft+rag", examples, held_out, STEPS_WITH_PASSAGES, RATES, passages=True)

    def _adapted(
        self, option: str, examples: Any, held_out: Any, steps: int, rates: Sequence[float], *, passages: bool = False
    ) -> dict[str, Any]:
        """LoRA at each of the rates, side by side."""
        jobs = [self._job(f"{option} {lr:g}", examples, lr, steps, held_out) for lr in rates]
        started = time.perf_counter()
        for _ in train_many(self.model, jobs):
            pass
        found = self._better(jobs, passages=passages) | {"seconds": time.perf_counter() - started}
        for job in jobs:
            self.model.remove(job.name)
        return found

    def full(self) -> dict[str, Any]:
        job = self._job("full", self.case.train, None, steps_of(self.case)[0], self.case.validation, halka.Full())
        started = time.perf_counter()
        for _ in train(self.model, job.name, job.examples, job.config, validation=job.validation):
            pass
        found = self._better([job]) | {"seconds": time.perf_counter() - started}
        self.model.remove("full")
        return found

    def _job(self, name: str, examples: Any, lr: float | None, steps: int, held_out: Any, method: Any = None) -> Job:
        self.model.add(name, method or halka.LoRA(rank=16))
        config = TrainConfig(lr=lr, steps=steps, batch_size=BATCH, evaluate_every=max(1, steps // 3), save_every=None)
        return Job(name, examples, config, held_out)

    def _better(self, jobs: Sequence[Job], *, passages: bool = False) -> dict[str, Any]:
        losses = {
            job.name: mean_loss(self.model, job.name, as_tokens(self.model, job.validation, job.config)) for job in jobs
        }
        best = min(losses, key=losses.__getitem__)
        values = self.answers(best, self.asked(self.case.test, passages=passages), passages=passages)
        return {"values": values, "validation": losses, "chosen": best}


def outcomes(case: Case, path: Path) -> Iterator[str]:
    """Run what is missing; the file is whole after each."""
    found = json.loads(path.read_text()) if path.exists() else {"case": case.name, "options": {}}
    options = found["options"]
    if "trivial" not in found:
        found["trivial"] = trivial(case)
        write_text(path, json.dumps(found, indent=1) + "\n")
    subject = Subject(case)
    due: list[tuple[str, Callable[[], dict[str, Any]]]] = [
        ("prompt", lambda: subject.prompted(passages=False)),
        ("peft", lambda: subject.tuned("peft")),
        ("data", lambda: subject.tuned("data")),
        ("full", subject.full),
    ]
    if case.documents:
        due[1:1] = [
            ("rag", lambda: subject.prompted(passages=True)),
            ("peft+rag", subject.tuned_with_passages),
        ]
    for name, run in due:
        if name in options:
            continue
        started = time.perf_counter()
        options[name] = run()
        found |= {"kind": case.kind, "metric": case.metric, "train": len(case.train), "more": len(case.more)}
        found["steps"] = dict(zip(("own", "more"), steps_of(case), strict=True))
        found["setup"] = {
            "machine": machine.describe(torch.device("cpu")),
            "threads": torch.get_num_threads(),
            "commit": machine.commit(),
        }
        write_text(path, json.dumps(found, indent=1) + "\n")
        mean = statistics.mean(options[name]["values"])
        yield f"{case.name}: {name} {mean:.3f} ({time.perf_counter() - started:.0f} s)"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help="all if none is named")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    arguments = parser.parse_args()
    names = arguments.cases or [*NAMES]
    if arguments.jobs == 1:
        for name in names:
            for line in outcomes(NAMES[name](), RESULTS / f"{name}.json"):
                print(line, flush=True)
    else:
        in_processes(__file__, names, arguments.jobs)


if __name__ == "__main__":
    main()

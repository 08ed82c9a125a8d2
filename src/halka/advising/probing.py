"""`probe`: the probes in their order, within a time, each kept in the folder as soon as it is done (`kept.py`)."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import psutil

from halka.advising.cleanliness import cleanliness
from halka.advising.commands import COLLECTION, HELD_OUT, HELD_OUT_SHOWN, PROMPTED, PROMPTED_SHOWN, SHOWN, TRAIN
from halka.advising.conditions import CLOSED, DOCUMENTS, Find, best_asked
from halka.advising.evidence import Cleanliness, Evidence, Fit, Knowledge, Learnability, Strength, Subject
from halka.advising.fitting import fit
from halka.advising.kept import Kept
from halka.advising.knowledge import knowledge
from halka.advising.learning import ALL_WEIGHTS, PLANS, WITH_PASSAGES, learnability
from halka.advising.need import MOST_TRAIN, Need, Sample, base_state, keys, sample
from halka.advising.questions import Questions
from halka.advising.rows import rows, with_passages
from halka.advising.strength import strength
from halka.advising.verdict import advise_from
from halka.core import AdaptedModel
from halka.data.examples import Example
from halka.data.tokens import encode_all
from halka.estimating import estimate
from halka.estimating.devices import device_named
from halka.machine import available
from halka.metrics import Score
from halka.models import adapt, context
from halka.models.classes import usual_kind
from halka.models.layouts import LAYOUTS
from halka.models.loading import base_config, load_base
from halka.rag.collection import Collection
from halka.rag.passages import Passage
from halka.rag.retrieve import Retriever
from halka.rag.sources import listed, taken_in
from halka.report.units import size
from halka.run import TrainingError

ASKING_PROBES = ("strength", "knowledge", "learnability")
LEFT = {"strength": PROMPTED, "knowledge": PROMPTED_SHOWN}  # of a probe that asked the base: how it was asked best
PROBES = ("fit", "cleanliness", *ASKING_PROBES)
LEAST_HELD_OUT = 16
ASKING = 0.35  # share of the time for making answers; the rest is the pilot's
MEASURED = 64  # examples whose length with passages is looked at
TRIED = 8  # examples that tell how long an answer takes
Progress = Callable[[str, str], None]
"""Is told of which probe, and what it does."""


def probe(
    need: Need,
    folder: str | Path,
    *,
    minutes: float = 10.0,
    skip: Sequence[str] = (),
    progress: Progress = lambda probe, doing: None,
) -> Evidence:
    """Run the probes that are not in `folder` yet; those of other data, base or settings are run anew.

    minutes   about how long the base may be asked and trained; loading and taking in documents come on top. There is a
              least that is done of everything, which takes longer on a slow machine
    skip      probes of `PROBES` to leave out

    Raises ValueError for a probe or a device that there is not, a folder of something else, data that cannot be used, a
    base that is no decoder, and as `load_base` does.
    """
    if unknown := {*skip} - {*PROBES}:
        raise ValueError(f"there is no probe {', '.join(sorted(unknown))}: they are {', '.join(PROBES)}")
    if minutes <= 0:
        raise ValueError(f"minutes must be above 0, not {minutes}")
    if need.full and need.quantize:
        raise ValueError("full fine-tuning trains all weights, which a packed base does not let: leave one of both out")
    if need.device not in (None, "here"):
        device_named(need.device)
    found = sample(need)
    config = base_config(need.base)
    layout = LAYOUTS.get(config.model_type)
    if usual_kind(config) != "causal-lm" or (layout is not None and not layout.causal):
        raise ValueError(f"{need.base} does not make texts from left to right: the advisor asks language models")
    return _Probing(need, found, Kept(folder), 60 * minutes, frozenset(skip), progress).evidence()


@dataclass
class _Probing:
    need: Need
    sample: Sample
    kept: Kept
    seconds: float
    skip: frozenset[str]
    progress: Progress
    missing: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        at_hand = (psutil.cpu_count(), psutil.virtual_memory().total)
        self.keys = keys(self.need, self.sample, self.seconds, base_state(self.need.base), at_hand, self.kept.folder)
        self.plan = self.kept.plan(self.keys["knowledge"])
        self.missing |= dict.fromkeys(self.skip, "skipped")

    def evidence(self) -> Evidence:
        self._leave_examples()
        clean = self._result("cleanliness", Cleanliness, lambda: cleanliness(self.sample.given, self.sample.held_out))
        sized = estimate(
            *(self.need.base, ["prompt"]),
            **{"batch_size": 1, "length": 8, "dtype": self.need.dtype, "quantize": self.need.quantize},
        )
        if (room := available()) < sized.base_bytes:
            lacking = f"the base takes {size(sized.base_bytes)} where {size(room)} are free here"
            self.missing |= {name: lacking for name in ASKING_PROBES if name not in self.skip}
        wanted = [name for name in ASKING_PROBES if name not in self.missing]
        found = self._asked(wanted) if wanted else {}
        hardware = self._result("fit", Fit, self._fit)
        subject = Subject(
            base=self.need.base,
            parameters=sized.parameters,
            data=self.need.data,
            train=len(self.sample.given),
            held_out=self.plan.get("held_out", len(self.sample.held_out)),
            metric=self.sample.metric,
            length=self._length(),
            split_off=self.sample.split_off,
            max_new_tokens=self.need.max_new_tokens,
            dtype=self.need.dtype,
            quantize=self.need.quantize,
            passages=self.need.passages,
            documents=self.plan.get("documents", 0),
            flags=self._flags(),
            again=self.need.again,
            out=str(self.kept.folder),
            tasks=self.need.tasks,
            target=self.need.target,
        )
        evidence = Evidence(subject, cleanliness=clean, fit=hardware, missing=self.missing, **found)
        self._leave_passages(evidence)
        return evidence

    # ── what is asked of the base ───────────────────────────────────────────────────────────────────────────────

    @cached_property
    def questions(self) -> Questions:
        """The base, loaded, with as many questions as the time allows: only if a probe has to ask."""
        self.progress("base", f"loading {self.need.base}")
        model = adapt(*load_base(self.need.base, dtype=self.need.dtype, quantize=self.need.quantize))
        train, held_out = (self._readable(model, each) for each in (self.sample.train, self.sample.held_out))
        asked = Questions(model, train, held_out, self.sample.metric, self.need.max_new_tokens, self._finding())
        return self._sized(self._that_fit(asked))

    def _asked(self, wanted: Sequence[str]) -> dict[str, Any]:
        """The results of the probes that ask the base."""
        runs: dict[str, tuple[type, Callable[[], Any]]] = {
            "strength": (Strength, lambda: strength(self.questions, self._told("strength"))),
            "knowledge": (Knowledge, lambda: knowledge(self.questions, self._told("knowledge"))),
            "learnability": (Learnability, self._pilot),
        }
        found: dict[str, Any] = {}
        for name in wanted:
            try:
                found[name] = self._result(name, *runs[name])
            except TrainingError as error:
                self.missing[name] = f"training failed: {error}"
            if name in LEFT and "questions" in vars(self):
                self._leave_prompts(LEFT[name], found[name].scores)
        return found

    def _pilot(self) -> Learnability:
        questions, key = self.questions, self.keys["learnability"]
        left = self.seconds - self.plan.get("spent", 0.0) - self.one * len(questions.held_out) * len(PLANS)
        found = learnability(
            questions,
            max(left, (1 - ASKING) * self.seconds / 2),
            batch_size=self.need.batch_size,
            checkpointing=self._is_tight(),
            plans=(*PLANS, ALL_WEIGHTS) if self.need.full else PLANS,
            owned=len(self.sample.given),
            folder=self.kept.pilot(key),
            progress=self._told("learnability"),
        )
        self.kept.end_pilot(key)
        return found

    def _sized(self, questions: Questions) -> Questions:
        """As many held-out examples as the time allows; those of an earlier go, if there was one."""
        held_out = questions.held_out
        started = time.perf_counter()
        questions.answers(None, [questions.put(each, CLOSED) for each in held_out[:TRIED]])
        self.one = (time.perf_counter() - started) / min(TRIED, len(held_out))
        asked = 3 + len(PLANS) + (0 if questions.find is None else 8)  # closed ones; with examples they cost twice
        count = max(LEAST_HELD_OUT, int(ASKING * self.seconds / (self.one * asked)))
        lengths = [len(each) for each in encode_all(questions.train[:MOST_TRAIN], questions.model.tokenizer).tokens]
        self.plan = {
            "held_out": min(count, len(held_out)),
            "length": _nine_in_ten(lengths),
            **self.plan,
        }
        self.kept.write_plan(self.plan)
        if questions.find is not None and "shown_length" not in self.plan:
            shown = [questions.put(each, DOCUMENTS) for each in questions.train[:MEASURED]]
            lengths = [len(each) for each in encode_all(shown, questions.model.tokenizer).tokens]
            self.plan["shown_length"] = _nine_in_ten(lengths)
            self.kept.write_plan(self.plan)
        least = self.one * asked * self.plan["held_out"]
        self.progress(
            "base", f"{self.plan['held_out']} held-out examples; to ask them takes about {least / 60:.1f} min"
        )
        return questions.first(self.plan["held_out"])

    def _readable(self, model: AdaptedModel, examples: Sequence[Example]) -> tuple[Example, ...]:
        """Those that the base's chat template takes and whose answer begins within its context; others are told.

        Raises ValueError where none is left.
        """
        encoded = encode_all(examples, model.tokenizer, context(model, None))
        if encoded.problems:
            lost = f"{len(encoded.problems)} of {len(examples)} examples cannot be used with this base, the first: "
            self.missing.setdefault("examples", lost + str(encoded.problems[0]))
        return tuple(examples[index] for index in encoded.kept)

    def _that_fit(self, questions: Questions) -> Questions:
        """Without the held-out examples that the base's context does not hold. Raises ValueError if that is all."""
        held = tuple(each for each in questions.held_out if questions.fits(each))
        if lost := len(questions.held_out) - len(held):
            self.missing["held-out examples"] = (
                f"{lost} of {len(questions.held_out)} are longer than the base's context"
            )
        if not held:
            raise ValueError(
                f"none of {lost} held-out examples fits the base's context with {questions.max_new_tokens} new tokens: "
                "shorten them, or lower max_new_tokens"
            )
        return replace(questions, held_out=held)

    def _finding(self) -> Find | None:
        """What finds passages; None without documents."""
        if not self.need.documents:
            return None
        collection = Collection(self.kept.folder / COLLECTION)
        for number, event in enumerate(taken_in(collection, *listed(self.need.documents), self.kept.folder), start=1):
            self.progress("documents", f"{number} taken in: {event.document}")
        self.plan["documents"] = len(collection.documents())
        if not self.plan["documents"]:
            self.missing["documents"] = f"{', '.join(self.need.documents)}: there is none that can be read"
            return None
        return _finding(collection, self.need.passages)

    # ── what is asked of the configuration ──────────────────────────────────────────────────────────────────────

    def _fit(self) -> Fit:
        need = self.need
        run = partial(
            *(fit, need.base),
            **{"batch_size": need.batch_size, "tasks": need.tasks, "dtype": need.dtype},
            **{"memory": need.memory, "device": need.device, "progress": self._told("fit")},
        )
        found = run(length=self._length())
        if "shown_length" not in self.plan:
            return found
        return replace(found, shown=run(methods=[WITH_PASSAGES.method], length=self.plan["shown_length"]).options)

    def _length(self) -> int:
        """The tokens that nine in ten examples stay below; of a base that is not here by their characters."""
        if "length" in self.plan:
            length = self.plan["length"]
        else:
            length = _nine_in_ten([sum(len(one.content) for one in each.messages) // 3 for each in self.sample.train])
        room = getattr(base_config(self.need.base).get_text_config(), "max_position_embeddings", None)
        return min(length, room or length)

    def _is_tight(self) -> bool:
        """Whether the trials' batches together would not fit here."""
        rows, length = self.need.batch_size * len(PLANS), self._length()
        told = estimate(self.questions.model.base.config, ["lora"], batch_size=rows, length=length)
        memory = told.rows[0].memory
        assert memory is not None
        return memory.total + told.process > available()

    # ── what is kept, told and left ─────────────────────────────────────────────────────────────────────────────

    def _result(self, name: str, kind: type, run: Callable[[], Any]) -> Any:
        """A probe's result; None where it is skipped or cannot be had. What it took is counted."""
        if name in self.missing:
            return None
        if not self.kept.has(name, self.keys[name]):
            if name in ASKING_PROBES:
                _ = self.questions  # loading is not counted
            self.progress(name, "begins")
        started = time.perf_counter()
        found = self.kept.result(name, self.keys[name], kind, run)
        if name in ASKING_PROBES:
            self.plan["spent"] = self.plan.get("spent", 0.0) + time.perf_counter() - started
            self.kept.write_plan(self.plan)
        return found

    def _told(self, name: str) -> Callable[[str], None]:
        return lambda doing: self.progress(name, doing)

    def _flags(self) -> tuple[str, ...]:
        """How `halka train` names the data: as they were split, where they were split here."""
        if not self.sample.split_off:
            return self.need.flags
        kind = self.need.flags[self.need.flags.index("--kind") :][:2] if "--kind" in self.need.flags else ()
        folder = self.kept.folder
        return ("--data", str(folder / TRAIN), "--validation", str(folder / HELD_OUT), *kind)

    def _leave_examples(self) -> None:
        """The examples as they were split."""
        self.kept.write_rows(TRAIN, rows(self.sample.given))
        self.kept.write_rows(HELD_OUT, rows(self.sample.held_out))

    def _leave_prompts(self, name: str, scores: Mapping[str, Score]) -> None:
        """The held-out examples as the base is best asked, if it was."""
        if scores:
            best = best_asked(scores)
            self.kept.write_rows(name, rows(self.questions.put(each, best) for each in self.questions.held_out))

    def _leave_passages(self, found: Evidence) -> None:
        """All examples with their passages, where those are to be trained on: to find them takes a while."""
        if found.learnability is None or found.learnability.best(passages=True) is None:
            return
        there = self.plan.get("shown") == self.keys["cleanliness"] and (self.kept.folder / HELD_OUT_SHOWN).exists()
        if there or advise_from(found).choice != "peft+rag":
            return
        for name, examples in ((SHOWN, self.sample.given), (HELD_OUT_SHOWN, self.questions.held_out)):
            self.kept.write_rows(name, with_passages(self.questions, examples, self._told("documents")))
        self.plan["shown"] = self.keys["cleanliness"]
        self.kept.write_plan(self.plan)


def _finding(collection: Collection, count: int) -> Find:
    retriever, known = Retriever(collection), dict[str, list[Passage]]()

    def find(question: str) -> list[Passage]:
        if question not in known:
            known[question] = [hit.passage for hit in retriever.search(question, count)]
        return known[question]

    return find


def _nine_in_ten(lengths: Sequence[int]) -> int:
    return max(16, int(statistics.quantiles([*lengths, *lengths], n=10, method="inclusive")[-1]))

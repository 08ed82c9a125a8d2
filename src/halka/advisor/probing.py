"""`probe`: the probes in their order, each kept in the folder as soon as it is done (`kept.py`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import psutil

from halka.advisor.cleanliness import cleanliness
from halka.advisor.evidence import Cleanliness, Evidence, Fit, Knowledge, Learnability, Strength, Subject
from halka.advisor.folder import HELD_OUT_SHOWN, PROMPTED, PROMPTED_SHOWN, Kept
from halka.advisor.knowledge import knowledge
from halka.advisor.leaving import leave_examples, leave_passages, leave_prompts, train_flags
from halka.advisor.opening import decoder_config, opened
from halka.advisor.pilot import ALL_WEIGHTS, PLANS, WITH_PASSAGES, learnability
from halka.advisor.probes import strength
from halka.advisor.questions import Questions
from halka.advisor.request import Need, Sample, base_state, keys, sample
from halka.advisor.resources import fit, hardware_for
from halka.advisor.sizing import (
    NoRoom,
    affordable,
    answer_seconds,
    answers_each,
    base_lacks,
    guessed_length,
    lengths_of,
    pilot_room,
    pilot_seconds,
)
from halka.advisor.verdict import advise_from
from halka.estimating import Estimate, estimate
from halka.estimating.devices import device_named
from halka.estimating.hardware import gpu_here
from halka.util.errors import HalkaError, TrainingError
from halka.util.machine import ran_out

ASKING_PROBES = ("strength", "knowledge", "learnability")
PROBES = ("fit", "cleanliness", *ASKING_PROBES)
FULL = "full fine-tuning"  # under `missing`, where it was to be tried and was not
Progress = Callable[[str, str], None]
"""Is told of which probe, and what it does."""
T = TypeVar("T")


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
        raise HalkaError(f"there is no probe {', '.join(sorted(unknown))}: they are {', '.join(PROBES)}")
    if minutes <= 0:
        raise HalkaError(f"minutes must be above 0, not {minutes}")
    if need.full and need.quantize:
        raise HalkaError("full fine-tuning trains all weights, which a packed base does not let: leave one of both out")
    if need.device not in (None, "here"):
        device_named(need.device)
    config, found = decoder_config(need.base), sample(need)
    return _Probing(need, found, config, Kept(folder), 60 * minutes, tuple(skip), progress).evidence()


@dataclass
class _Probing:
    """One question's probes. `missing` says why one has no result."""

    need: Need
    sample: Sample
    config: Any
    kept: Kept
    seconds: float
    skip: tuple[str, ...]
    progress: Progress
    missing: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        gpu = gpu_here()
        at_hand = (psutil.cpu_count(), psutil.virtual_memory().total, gpu and (gpu.name, gpu.memory))
        self.keys = keys(self.need, self.sample, self.seconds, base_state(self.need.base), at_hand, self.kept.folder)
        self.plan = self.kept.plan(self.keys["knowledge"])

    def evidence(self) -> Evidence:
        """The probes in their order: what is asked of the base before what is asked of its configuration alone."""
        leave_examples(self.kept, self.sample)
        sized = self._sized()
        self.missing |= dict.fromkeys(self.skip, "skipped") | self._without_room(sized)
        asking = [name for name in ASKING_PROBES if name not in self.missing]
        clean = self._result("cleanliness", Cleanliness, lambda: cleanliness(self.sample.given, self.sample.held_out))
        strong = self._result("strength", Strength, self._strength)
        known = self._result("knowledge", Knowledge, self._knowledge)
        learned = self._result("learnability", Learnability, self._pilot)
        hardware = self._result("fit", Fit, self._fit, of=f"-{self._length()}-{self.plan.shown_length}")
        self.missing |= self._not_used() if asking else {}
        self.missing |= {} if hardware is None else {f"a base in {each}": why for each, why in hardware.untried.items()}
        found = Evidence(
            self._subject(sized),
            strength=strong,
            knowledge=known,
            learnability=learned,
            cleanliness=clean,
            fit=hardware,
            missing=self.missing,
        )
        self._leave_passages(found)
        return found

    # ── what is asked of the base ───────────────────────────────────────────────────────────────────────────────

    @cached_property
    def questions(self) -> Questions:
        """The base, loaded, with as many questions as the time allows, or as before: only if a probe has to ask."""
        plan = self.plan
        questions, plan.documents, plan.missing = opened(self.need, self.sample, self.kept.folder, self.progress)
        if plan.held_out is None:
            plan.answer = answer_seconds(questions)
            plan.held_out = affordable(questions, self.seconds, plan.answer)
            plan.length, plan.shown_length = lengths_of(questions)
        self.kept.write_plan(plan)
        minutes = plan.answer * answers_each(questions) * plan.held_out / 60
        self.progress("base", f"{plan.held_out} held-out examples; to ask them takes about {minutes:.1f} min")
        return questions.first(plan.held_out)

    def _strength(self) -> Strength:
        found = strength(self.questions, self._told("strength"))
        leave_prompts(self.kept, PROMPTED, self.questions, found.scores)
        return found

    def _knowledge(self) -> Knowledge:
        found = knowledge(self.questions, self._told("knowledge"))
        leave_prompts(self.kept, PROMPTED_SHOWN, self.questions, found.scores)
        return found

    def _pilot(self) -> Learnability:
        questions, plan, key = self.questions, self.plan, self.keys["learnability"]
        if key not in plan.rooms:  # as long as the pilot goes on, it is trained in one way
            lengths = [self._length(), *([plan.shown_length] if plan.shown_length else [])]
            plan.rooms[key] = pilot_room(self.need, self.config, lengths)
            self.kept.write_plan(plan)
        room = plan.rooms[key]
        plans = (*PLANS, ALL_WEIGHTS) if self.need.full and room.without_full is None else PLANS
        asked = sum(spent for name, spent in plan.spent.items() if name != "learnability")
        found = learnability(
            questions,
            pilot_seconds(self.seconds, asked, plan.answer * len(questions.held_out) * len(plans)),
            batch_size=self.need.batch_size,
            checkpointing=room.checkpointing,
            plans=plans,
            owned=len(self.sample.given),
            folder=self.kept.begin_pilot(key),
            progress=self._told("learnability"),
        )
        self.kept.end_pilots()
        return found

    def _leave_passages(self, found: Evidence) -> None:
        """The examples with passages, where those are to be trained on and are not there yet."""
        if found.learnability is None or found.learnability.best(passages=True) is None:
            return
        examples = self.keys["cleanliness"]
        there = self.plan.shown == examples and (self.kept.folder / HELD_OUT_SHOWN).exists()
        if there or advise_from(found).choice != "peft+rag":
            return
        leave_passages(self.kept, self.sample, self.questions, self._told("documents"))
        self.plan.shown = examples
        self.kept.write_plan(self.plan)

    # ── what is asked of the configuration ──────────────────────────────────────────────────────────────────────

    def _sized(self) -> Estimate:
        how: dict[str, Any] = {"dtype": self.need.dtype, "quantize": self.need.quantize}
        return estimate(self.config, ["prompt"], batch_size=1, length=8, **how)

    def _without_room(self, sized: Estimate) -> dict[str, str]:
        """The probes that ask the base, where it does not fit here."""
        lacking = base_lacks(sized.base_bytes)
        return {name: lacking for name in ASKING_PROBES if lacking is not None and name not in self.skip}

    def _fit(self) -> Fit:
        need, shown, told = self.need, self.plan.shown_length, self._told("fit")
        run = partial(
            *(fit, self.config),
            **{"batch_size": need.batch_size, "tasks": need.tasks, "dtype": need.dtype, "quantize": need.quantize},
            where=hardware_for(need.dtype, need.memory, need.device),
        )
        found = run(length=self._length(), progress=told)
        if shown is None:
            return found
        longer = run(
            methods=[WITH_PASSAGES.method], length=shown, progress=lambda doing: told(f"{doing}, with passages")
        )
        return replace(found, shown=longer.options)

    def _length(self) -> int:
        """The tokens that nine in ten examples stay below; before the base was loaded by their characters."""
        length = self.plan.length or guessed_length(self.sample.train)
        room = getattr(self.config.get_text_config(), "max_position_embeddings", None)
        return min(length, room or length)

    # ── what is kept and told ───────────────────────────────────────────────────────────────────────────────────

    def _result(self, name: str, kind: type[T], run: Callable[[], T], of: str = "") -> T | None:
        """A probe's result, kept or run; None where it is skipped or cannot be had.

        of   what it depends on that is not in its key, as it is not known before the base was loaded
        """
        if name in self.missing:
            return None
        key = f"{self.keys[name]}{of}"
        if (known := self.kept.found(name, key, kind)) is not None:
            return known
        try:
            if name in ASKING_PROBES:
                _ = self.questions  # loading is not counted
            self.progress(name, "begins")
            started = time.perf_counter()
            found = run()
        except TrainingError as error:
            self.missing[name] = f"training failed: {error}"
            return None
        except RuntimeError as error:
            if not isinstance(error, NoRoom) and not ran_out(error):
                raise
            self.missing[name] = str(error).splitlines()[0]
            return None
        self.kept.keep(name, key, found)
        if name in ASKING_PROBES:
            self.plan.spent[name] = time.perf_counter() - started
            self.kept.write_plan(self.plan)
        return found

    def _not_used(self) -> dict[str, str]:
        """What the base could not be asked or taught."""
        room = self.plan.rooms.get(self.keys["learnability"])
        if "learnability" in self.missing or room is None or room.without_full is None:
            return self.plan.missing
        return self.plan.missing | {FULL: room.without_full}

    def _told(self, name: str) -> Callable[[str], None]:
        return lambda doing: self.progress(name, doing)

    def _subject(self, sized: Estimate) -> Subject:
        need, plan = self.need, self.plan
        return Subject(
            base=need.base,
            parameters=sized.parameters,
            data=need.data,
            train=len(self.sample.given),
            held_out=len(self.sample.held_out) if plan.held_out is None else plan.held_out,
            metric=self.sample.metric,
            length=self._length(),
            split_off=self.sample.split_off,
            max_new_tokens=need.max_new_tokens,
            dtype=need.dtype,
            quantize=need.quantize,
            passages=need.passages,
            documents=plan.documents,
            flags=train_flags(need, self.sample, self.kept.folder),
            again=need.again,
            out=str(self.kept.folder),
            tasks=need.tasks,
            target=need.target,
            key=self.keys["question"],
        )

"""`probe`: runs the probes in order, and saves each result in the advice folder as soon as there is one."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import psutil

from halka.advisor.advice import advise_from
from halka.advisor.advice_folder import (
    HELD_OUT,
    HELD_OUT_WITH_PASSAGES,
    PROMPTED,
    PROMPTED_WITH_PASSAGES,
    TRAIN,
    TRAIN_WITH_PASSAGES,
    AdviceFolder,
    base_files,
    result_keys,
)
from halka.advisor.budget import (
    FULL,
    WITH_PASSAGES,
    Budget,
    OutOfTimeError,
    PilotConfig,
    TrialPlan,
    WorkPlan,
    differences,
)
from halka.advisor.evidence import (
    BOTH,
    CLOSED,
    DOCUMENTS,
    EXAMPLES,
    Cleanliness,
    Condition,
    Evidence,
    Fit,
    Knowledge,
    Learnability,
    ProbeName,
    Strength,
    Subject,
    Time,
    best_condition,
)
from halka.advisor.pilot import learnability
from halka.advisor.probed_base import ProbedBase, Progress, Report, decoder_config, open_base
from halka.advisor.probes import cleanliness, knowledge, strength
from halka.advisor.request import Request, Sample, sample
from halka.advisor.resources import (
    THIS_MACHINE,
    Machine,
    base_too_large,
    find_hardware,
    fit,
    pilot_room,
    time_prompts,
    typical_lengths,
)
from halka.advisor.words import CONDITIONS, PROBES
from halka.estimating import Estimate, estimate
from halka.estimating.devices import device_named
from halka.estimating.lengths import length_by_bytes
from halka.models.loading import reads_directly
from halka.util.errors import HalkaError, OutOfMemoryError, TrainingError
from halka.util.machine import ran_out
from halka.util.precision import precision_here

BASE_PROBES: tuple[ProbeName, ...] = ("strength", "knowledge", "learnability")
"""Those that load the base."""
UNTIMELY = {DOCUMENTS: "documents", EXAMPLES: "prompts with examples"}
"""Prompts without which the advice is less sure, as `Evidence.missing` calls them."""
USUAL_ANSWER = 64  # tokens of an answer, where no base was loaded to count them
T = TypeVar("T")


def probe(
    request: Request,
    folder: str | Path,
    *,
    minutes: float = 10.0,
    skip: Sequence[str] = (),
    pilot: PilotConfig | None = None,
    progress: Progress = lambda stage, text: None,
    machine: Machine = THIS_MACHINE,
) -> Evidence:
    """Run the probes whose results are not in `folder` yet; those for other data, base or settings run again.

    minutes   how long the base is asked and trained, besides loading it and indexing documents. What there is no time
              for is left out, the least important first (`budget.plans`); the evidence says what that was
    skip      probes of `PROBES` to leave out
    pilot     what the pilot trains
    progress  called with a stage and what it does
    machine   what it runs on, and its clock

    Raises HalkaError for an unknown probe or device, a folder with other contents or where another
    process advises, and a base that is no causal LM;
    DataError for data that cannot be used; and as `load_base` does.
    """
    if unknown := {*skip} - {*PROBES}:
        raise HalkaError(f"there is no probe {', '.join(sorted(unknown))}: choose from {', '.join(PROBES)}")
    if not minutes > 0:  # nor nan
        raise HalkaError(f"minutes must be above 0, not {minutes}")
    if request.full and request.quantize:
        raise HalkaError("full fine-tuning cannot train a quantised base: leave out full or quantize")
    if request.device not in (None, "here"):
        device_named(request.device)
    config, examples = decoder_config(request.base), sample(request)
    advice = AdviceFolder(folder)
    with advice.alone():
        probes = _Probes(
            request=request,
            sample=examples,
            config=config,
            folder=advice,
            seconds=60 * minutes,
            skip=tuple(skip),
            pilot=pilot or PilotConfig(),
            progress=progress,
            machine=machine,
        )
        return probes.evidence()


@dataclass
class _Probes:
    """The probes of one request. `missing` collects why a probe has no result."""

    request: Request
    sample: Sample
    config: Any
    folder: AdviceFolder
    seconds: float
    skip: tuple[str, ...]
    pilot: PilotConfig
    progress: Progress
    machine: Machine
    missing: dict[str, str] = field(default_factory=dict)
    too_large: Set[str] = frozenset()  # those of them that have no result because memory is short now

    def __post_init__(self) -> None:
        gpu = self.machine.gpu()
        machine = (psutil.cpu_count(), psutil.virtual_memory().total, gpu and (gpu.name, gpu.memory))
        weights = base_files(self.request.base)
        pilot = None if self.pilot == PilotConfig() else self.pilot
        self.keys = result_keys(self.request, self.sample, self.seconds, weights, machine, self.folder.path, pilot)
        self.plan = self.folder.load_plan(self.keys["knowledge"])
        self.plan.costs.batch_tokens = self.pilot.batch_tokens
        if self.plan.pilot != self.keys["learnability"]:  # another has time for other trials
            self.plan.pilot = self.keys["learnability"]
            for name in ("learnability", WITH_PASSAGES.name, FULL.name):
                self.plan.untimely.pop(name, None)
        self.budget = Budget(self.seconds, self.machine.clock, self.plan.spent, self.plan.costs)

    def evidence(self) -> Evidence:
        """Run them: the hardware last, because the examples' lengths are known once the base is loaded."""
        self.folder.write_examples(TRAIN, self.sample.all_train)
        self.folder.write_examples(HELD_OUT, self.sample.held_out)
        size = self._size()
        self.missing |= dict.fromkeys(self.skip, "skipped") | (too_large := self._too_large(size))
        self.too_large = too_large.keys() - {*self.skip}
        self.missing |= {name: why for name, why in self.plan.untimely.items() if name not in self.missing}
        uses_base = any(name not in self.missing or name in self.plan.untimely for name in BASE_PROBES)
        defects = self._run("cleanliness", Cleanliness, self._cleanliness)
        strength_result = self._run("strength", Strength, self._strength)
        knowledge_result = self._run("knowledge", Knowledge, self._knowledge)
        pilot_result = self._run("learnability", Learnability, self._learnability)
        hardware = self._run("fit", Fit, self._fit, f"-{self._length()}-{self.plan.shown_length}")
        self.missing |= {**self.plan.untimely, **self._unusable()} if uses_base else {}
        if hardware is not None:
            self.missing |= {f"a base in {form}": why for form, why in hardware.untried.items()}
        evidence = Evidence(
            subject=self._subject(size),
            strength=strength_result,
            knowledge=knowledge_result,
            learnability=pilot_result,
            cleanliness=defects,
            fit=hardware,
            missing=self.missing,
            time=self._time() if uses_base else None,
        )
        self._write_passages(evidence)
        return evidence

    # ── probes of the base ──────────────────────────────────────────────────────────────────────────────────────

    @cached_property
    def base(self) -> ProbedBase:
        """The base, loaded when a probe first needs it, and asked some examples to know what work costs."""
        plan, budget = self.plan, self.budget
        base, plan.documents, plan.missing = open_base(self.request, self.sample, self.folder.path, self.progress)
        plan.max_new_tokens = base.max_new_tokens
        if plan.held_out is None:
            with budget.running("base"):
                self.progress("base", "timing answers")
                time_prompts(base, budget)
                plan.length, plan.shown_length = typical_lengths(base)
            self._plan(base)
            cuts = self.budget.cuts  # kept here, as an interrupted advice plans no more held-out examples than these
            plan.cuts["base"] = tuple(cuts[name] for name in ("held_out", "passages") if name in cuts)
        self.folder.save_plan(plan)
        return base

    def _plan(self, base: ProbedBase) -> ProbedBase:
        """The base with the held-out examples, conditions and passages that there is time for, beside the pilot."""
        plan, alone = self.plan, {"strength", "knowledge"} <= self.missing.keys()
        late: set[Condition] = {condition for condition, name in UNTIMELY.items() if name in plan.untimely}
        late |= {BOTH} if late else set()  # which has no time where a part of it has none
        asked: tuple[Condition, ...] = ()
        if not alone:
            asked = tuple(condition for condition in base.conditions if condition not in late)
        trials = () if "learnability" in self.missing else self._trials(base)
        held_out, passages = plan.held_out or len(base.held_out), plan.passages or base.passages
        full = WorkPlan(held_out, asked, passages, trials, self.request.batch_size, self.pilot.steps)
        chosen = self.budget.plan(full)
        plan.held_out, plan.passages = plan.held_out or chosen.held_out, chosen.passages
        self.budget.cuts |= differences(replace(full, trials=(), steps=0, rows=0, evaluations=0), chosen)
        for condition, name in UNTIMELY.items():
            if (why := self.budget.cuts.pop(condition, None)) is not None:
                plan.untimely[name] = f"{why}: there is no time for them"
        return base.planned(chosen)

    def _settled(self) -> ProbedBase:
        """The base with what was planned for the probes before the pilot."""
        base, plan = self.base, self.plan
        return base.planned(
            WorkPlan(plan.held_out or len(base.held_out), base.conditions, plan.passages or base.passages)
        )

    def _trials(self, base: ProbedBase) -> tuple[TrialPlan, ...]:
        pilot = replace(self.pilot, trials=(*self.pilot.trials, *([FULL] if self.request.full else [])))
        return pilot.all_trials(documents=base.retrieve is not None)

    def _strength(self) -> Strength:
        base = self._plan(self.base)
        if not base.conditions:
            raise OutOfTimeError(self._too_slow(CLOSED))
        self.budget.cuts.pop(BOTH, None)  # `knowledge` asks these, and plans anew
        result = strength(base, self.budget, self._reporter("strength"))
        self.folder.write_examples(PROMPTED, base.prompts(best_condition(result.scores)))
        return result

    def _knowledge(self) -> Knowledge:
        base = self._plan(self.base)
        if len(base.conditions) < 2:
            raise OutOfTimeError(self._too_slow(EXAMPLES))
        result = knowledge(base, self.budget, self._reporter("knowledge"))
        if result.scores:
            self.folder.write_examples(PROMPTED_WITH_PASSAGES, base.prompts(best_condition(result.scores)))
        return result

    def _too_slow(self, condition: str) -> str:
        costs, left = self.budget.costs, max(0.0, self.budget.left)
        one = costs.losses.get(condition, 0.0) + costs.answers.get(condition, 0.0)
        return f"no time: an example {CONDITIONS[condition]} takes about {one:.1f} s, and {left:.0f} s are left"

    def _learnability(self) -> Learnability:
        base, plan, pilot, key = self._settled(), self.plan, self.pilot, self.keys["learnability"]
        if key not in plan.rooms:  # a resumed pilot goes on in the same way
            lengths = [self._length(), *([plan.shown_length] if plan.shown_length else [])]
            plan.rooms[key] = pilot_room(self.request, self.config, lengths, self.machine.free(), pilot)
            self.folder.save_plan(plan)
        room = plan.rooms[key]
        if self.request.full and room.without_full is None:
            pilot = replace(pilot, trials=(*pilot.trials, FULL))
        result = learnability(
            base,
            self.budget,
            config=pilot,
            batch_size=self.request.batch_size,
            checkpointing=room.checkpointing,
            owned=len(self.sample.all_train),
            folder=self.folder.pilot_folder(key),
            progress=self._reporter("learnability"),
        )
        for trial in (WITH_PASSAGES, FULL):
            if (why := self.budget.cuts.pop(trial.name, None)) is not None:
                plan.untimely[trial.name] = f"{why}: there was no time for it"
        self.folder.remove_pilots()
        return result

    def _write_passages(self, evidence: Evidence) -> None:
        """Write the examples with passages, if those are to be trained on and are not there yet."""
        if evidence.learnability is None or evidence.learnability.best(passages=True) is None:
            return
        key = self.keys["cleanliness"]
        written = self.plan.shown == key and (self.folder.path / HELD_OUT_WITH_PASSAGES).exists()
        if written or advise_from(evidence).choice != "peft+rag":
            return
        base, report = self._settled(), self._reporter("documents")
        train, held_out = (
            base.prompts_with_passages(examples, report) for examples in (self.sample.all_train, base.held_out)
        )
        self.folder.write_examples(TRAIN_WITH_PASSAGES, train)
        self.folder.write_examples(HELD_OUT_WITH_PASSAGES, held_out)
        self.plan.shown = key
        self.folder.save_plan(self.plan)

    # ── probes without the base ─────────────────────────────────────────────────────────────────────────────────

    def _cleanliness(self) -> Cleanliness:
        return cleanliness(self.sample.all_train, self.sample.held_out)

    def _fit(self) -> Fit:
        request, shown, report = self.request, self.plan.shown_length, self._reporter("fit")
        estimate_fit = partial(
            fit,
            self.config,
            batch_size=request.batch_size,
            tasks=request.tasks,
            dtype=request.dtype,
            quantize=request.quantize,
            hardware=find_hardware(request.dtype, request.memory, request.device, self.machine),
        )
        result = estimate_fit(length=self._length(), progress=report)
        if shown is None:
            return result
        longer = estimate_fit(
            methods=[WITH_PASSAGES.method], length=shown, progress=lambda text: report(f"{text}, with passages")
        )
        return replace(result, shown=longer.options)

    def _size(self) -> Estimate:
        """The base's parameters and bytes."""
        precision = precision_here(self.request.dtype, self.machine.free().gpu)
        form: dict[str, Any] = {"dtype": precision, "quantize": self.request.quantize}
        return estimate(self.config, "lora", batch_size=1, length=8, **form)

    def _too_large(self, size: Estimate) -> dict[str, str]:
        """The probes of the base, if it does not fit into this machine's memory."""
        direct = reads_directly(self.request.quantize)
        reason = base_too_large(size.base_bytes, self.machine.free(), direct=direct)
        return {name: reason for name in BASE_PROBES if reason is not None and name not in self.skip}

    def _length(self) -> int:
        """The 90th percentile of the examples' tokens; estimated from bytes before the base is loaded."""
        length = self.plan.length or length_by_bytes(self.sample.train)
        limit = getattr(self.config.get_text_config(), "max_position_embeddings", None)
        return min(length, limit or length)

    # ── results ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _run(self, name: ProbeName, kind: type[T], run: Callable[[], T], suffix: str = "") -> T | None:
        """A probe's result, saved or new; None where it is skipped or fails.

        suffix   of its key, for what is known only once the base was loaded
        """
        key = f"{self.keys[name]}{suffix}"
        if name in self.missing and name not in self.too_large:
            return None
        if (saved := self.folder.load_result(name, key, kind)) is not None:
            self.budget.done |= {CLOSED, EXAMPLES} if name == "strength" else set()
            self.missing.pop(name, None)
            return saved
        if name in self.missing:
            return None
        budget, of_base = self.budget, name in BASE_PROBES
        try:
            if of_base:
                _ = self.base  # loading does not count
                budget.spent.pop(name, None)
            self.progress(name, "starts")
            with budget.running(name) if of_base else nullcontext():
                result = run()
        except OutOfTimeError as error:
            self.missing[name] = self.plan.untimely[name] = str(error)
            self.folder.save_plan(self.plan)
            return None
        except OutOfMemoryError as error:
            self.missing[name] = str(error)
            return None
        except TrainingError as error:
            self.missing[name] = f"training failed: {error}"
            return None
        except RuntimeError as error:
            if not ran_out(error):
                raise
            self.missing[name] = str(error).splitlines()[0]
            return None
        self.folder.save_result(name, key, result)
        if of_base:
            self.plan.cuts[name], budget.cuts = tuple(budget.cuts.values()), {}
            self.folder.save_plan(self.plan)
        return result

    def _unusable(self) -> dict[str, str]:
        """Examples and documents that could not be used, and full fine-tuning where it was not tried."""
        room = self.plan.rooms.get(self.keys["learnability"])
        if "learnability" in self.missing or room is None or room.without_full is None:
            return self.plan.missing
        return self.plan.missing | {FULL.name: room.without_full}

    def _reporter(self, stage: str) -> Report:
        return lambda text: self.progress(stage, text)

    def _time(self) -> Time:
        """Of the probes of this evidence."""
        plan, probes = self.plan, [name for name in ("base", *BASE_PROBES) if name not in self.missing]
        minutes = {name: plan.spent[name] / 60 for name in probes if name in plan.spent}
        cuts = dict.fromkeys(cut for name in probes for cut in plan.cuts.get(name, ()))  # each once
        return Time(self.seconds / 60, minutes, tuple(cuts))

    def _subject(self, size: Estimate) -> Subject:
        request, plan = self.request, self.plan
        return Subject(
            base=request.base,
            parameters=size.parameters,
            data=request.data,
            train=len(self.sample.all_train),
            held_out=len(self.sample.held_out) if plan.held_out is None else plan.held_out,
            metric=self.sample.metric,
            length=self._length(),
            split_off=self.sample.split_off,
            max_new_tokens=plan.max_new_tokens or request.max_new_tokens or USUAL_ANSWER,
            dtype=request.dtype,
            quantize=request.quantize,
            passages=plan.passages or request.passages,
            documents=plan.documents,
            flags=self._train_flags(),
            again=request.again,
            out=str(self.folder.path),
            tasks=request.tasks,
            target=request.target,
            key=self.keys["question"],
        )

    def _train_flags(self) -> tuple[str, ...]:
        """Flags of `halka train` that name the data: the files of this folder, if the examples were split here."""
        flags = self.request.flags
        if not self.sample.split_off:
            return flags
        kind = flags[flags.index("--kind") :][:2] if "--kind" in flags else ()
        return ("--data", str(self.folder.path / TRAIN), "--validation", str(self.folder.path / HELD_OUT), *kind)

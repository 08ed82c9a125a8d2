"""`probe`: runs the probes in order, and saves each result in the advice folder as soon as there is one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import psutil

from halka.advisor.advice import advise_from
from halka.advisor.evidence import (
    Cleanliness,
    Evidence,
    Fit,
    Knowledge,
    Learnability,
    ProbeName,
    Strength,
    Subject,
    best_condition,
)
from halka.advisor.pilot import FULL, WITH_PASSAGES, PilotConfig, learnability
from halka.advisor.probed_base import ProbedBase, Progress, Report, decoder_config, open_base
from halka.advisor.probes import cleanliness, knowledge, strength
from halka.advisor.request import (
    HELD_OUT,
    HELD_OUT_WITH_PASSAGES,
    PROMPTED,
    PROMPTED_WITH_PASSAGES,
    TRAIN,
    TRAIN_WITH_PASSAGES,
    AdviceFolder,
    Request,
    Sample,
    base_files,
    result_keys,
    sample,
)
from halka.advisor.resources import (
    THIS_MACHINE,
    Machine,
    affordable_held_out,
    answer_seconds,
    answers_per_example,
    base_too_large,
    find_hardware,
    fit,
    length_by_characters,
    pilot_room,
    training_seconds,
    typical_lengths,
)
from halka.advisor.words import PROBES
from halka.estimating import Estimate, estimate
from halka.estimating.devices import device_named
from halka.util.errors import HalkaError, OutOfMemoryError, TrainingError
from halka.util.machine import ran_out

BASE_PROBES: tuple[ProbeName, ...] = ("strength", "knowledge", "learnability")
"""Those that load the base."""
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

    minutes   about how long the base is asked and trained, besides loading it and indexing documents. A minimum of
              everything is done in any case, which takes longer on a slow machine
    skip      probes of `PROBES` to leave out
    pilot     what the pilot trains
    progress  called with a stage and what it does
    machine   what it runs on

    Raises HalkaError for an unknown probe or device, a folder with other contents, and a base that is no causal LM;
    DataError for data that cannot be used; and as `load_base` does.
    """
    if unknown := {*skip} - {*PROBES}:
        raise HalkaError(f"there is no probe {', '.join(sorted(unknown))}: choose from {', '.join(PROBES)}")
    if minutes <= 0:
        raise HalkaError(f"minutes must be above 0, not {minutes}")
    if request.full and request.quantize:
        raise HalkaError("full fine-tuning cannot train a quantised base: leave out full or quantize")
    if request.device not in (None, "here"):
        device_named(request.device)
    config, examples = decoder_config(request.base), sample(request)
    probes = _Probes(
        *(request, examples, config, AdviceFolder(folder), 60 * minutes, tuple(skip)),
        *(pilot or PilotConfig(), progress, machine),
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

    def __post_init__(self) -> None:
        gpu = self.machine.gpu()
        machine = (psutil.cpu_count(), psutil.virtual_memory().total, gpu and (gpu.name, gpu.memory))
        weights = base_files(self.request.base)
        self.keys = result_keys(self.request, self.sample, self.seconds, weights, machine, self.folder.path)
        self.plan = self.folder.load_plan(self.keys["knowledge"])

    def evidence(self) -> Evidence:
        """Run them: the hardware last, because the examples' lengths are known once the base is loaded."""
        self.folder.write_examples(TRAIN, self.sample.all_train)
        self.folder.write_examples(HELD_OUT, self.sample.held_out)
        size = self._size()
        self.missing |= dict.fromkeys(self.skip, "skipped") | self._too_large(size)
        uses_base = any(name not in self.missing for name in BASE_PROBES)
        defects = self._run("cleanliness", Cleanliness, self._cleanliness)
        strength_result = self._run("strength", Strength, self._strength)
        knowledge_result = self._run("knowledge", Knowledge, self._knowledge)
        pilot_result = self._run("learnability", Learnability, self._learnability)
        hardware = self._run("fit", Fit, self._fit, f"-{self._length()}-{self.plan.shown_length}")
        self.missing |= self._unusable() if uses_base else {}
        if hardware is not None:
            self.missing |= {f"a base in {form}": why for form, why in hardware.untried.items()}
        evidence = Evidence(
            self._subject(size), strength_result, knowledge_result, pilot_result, defects, hardware, self.missing
        )
        self._write_passages(evidence)
        return evidence

    # ── probes of the base ──────────────────────────────────────────────────────────────────────────────────────

    @cached_property
    def base(self) -> ProbedBase:
        """The base, loaded when a probe first needs it, with as many held-out examples as the time allows."""
        plan, trials = self.plan, len(self.pilot.trials)
        base, plan.documents, plan.missing = open_base(self.request, self.sample, self.folder.path, self.progress)
        if plan.held_out is None:
            plan.answer = answer_seconds(base)
            plan.held_out = affordable_held_out(base, self.seconds, plan.answer, trials)
            plan.length, plan.shown_length = typical_lengths(base)
        self.folder.save_plan(plan)
        minutes = plan.answer * answers_per_example(base, trials) * plan.held_out / 60
        self.progress("base", f"{plan.held_out} held-out examples, whose answers take about {minutes:.1f} min")
        return base.first(plan.held_out)

    def _strength(self) -> Strength:
        result = strength(self.base, self._reporter("strength"))
        self.folder.write_examples(PROMPTED, self.base.prompts(best_condition(result.scores)))
        return result

    def _knowledge(self) -> Knowledge:
        result = knowledge(self.base, self._reporter("knowledge"))
        if result.scores:
            self.folder.write_examples(PROMPTED_WITH_PASSAGES, self.base.prompts(best_condition(result.scores)))
        return result

    def _learnability(self) -> Learnability:
        base, plan, pilot, key = self.base, self.plan, self.pilot, self.keys["learnability"]
        if key not in plan.rooms:  # a resumed pilot goes on in the same way
            lengths = [self._length(), *([plan.shown_length] if plan.shown_length else [])]
            plan.rooms[key] = pilot_room(self.request, self.config, lengths, self.machine.free(), pilot)
            self.folder.save_plan(plan)
        room = plan.rooms[key]
        if self.request.full and room.without_full is None:
            pilot = replace(pilot, trials=(*pilot.trials, FULL))
        spent = sum(seconds for name, seconds in plan.spent.items() if name != "learnability")
        result = learnability(
            base,
            training_seconds(self.seconds, spent, plan.answer * len(base.held_out) * len(pilot.trials)),
            config=pilot,
            batch_size=self.request.batch_size,
            checkpointing=room.checkpointing,
            owned=len(self.sample.all_train),
            folder=self.folder.pilot_folder(key),
            progress=self._reporter("learnability"),
        )
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
        report = self._reporter("documents")
        train, held_out = (
            self.base.prompts_with_passages(examples, report)
            for examples in (self.sample.all_train, self.base.held_out)
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
        form: dict[str, Any] = {"dtype": self.request.dtype, "quantize": self.request.quantize}
        return estimate(self.config, ["prompt"], batch_size=1, length=8, **form)

    def _too_large(self, size: Estimate) -> dict[str, str]:
        """The probes of the base, if it does not fit into this machine's memory."""
        reason = base_too_large(size.base_bytes, self.machine.free())
        return {name: reason for name in BASE_PROBES if reason is not None and name not in self.skip}

    def _length(self) -> int:
        """The 90th percentile of the examples' tokens; estimated from characters before the base is loaded."""
        length = self.plan.length or length_by_characters(self.sample.train)
        limit = getattr(self.config.get_text_config(), "max_position_embeddings", None)
        return min(length, limit or length)

    # ── results ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _run(self, name: ProbeName, kind: type[T], run: Callable[[], T], suffix: str = "") -> T | None:
        """A probe's result, saved or new; None where it is skipped or fails.

        suffix   of its key, for what is known only once the base was loaded
        """
        if name in self.missing:
            return None
        key = f"{self.keys[name]}{suffix}"
        if (saved := self.folder.load_result(name, key, kind)) is not None:
            return saved
        try:
            if name in BASE_PROBES:
                _ = self.base  # loading does not count
            self.progress(name, "starts")
            started = time.perf_counter()
            result = run()
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
        if name in BASE_PROBES:
            self.plan.spent[name] = time.perf_counter() - started
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
            max_new_tokens=request.max_new_tokens,
            dtype=request.dtype,
            quantize=request.quantize,
            passages=request.passages,
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

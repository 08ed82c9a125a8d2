"""Memory and time: which methods fit on the hardware, and what of the probes fits on this machine."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from halka.advisor.advice_folder import Room
from halka.advisor.budget import PORTION, Budget, Clock, PilotConfig
from halka.advisor.evidence import CLOSED, DOCUMENTS, Fit, Option
from halka.advisor.probed_base import ProbedBase, Report, token_losses
from halka.advisor.request import Request
from halka.core import Method
from halka.data.examples import Example
from halka.data.tokens import Tokens, encode_all
from halka.estimating import Memory, Setup, at_least_one, dry_run, largest_batch, prepared, row_of
from halka.estimating.devices import Device
from halka.estimating.dry_runs import DryRun
from halka.estimating.hardware import PROCESS, Hardware, gpu_here, hardware_of
from halka.estimating.lengths import percentile_90
from halka.estimating.measured_device import measure_device
from halka.methods import Full, build_method
from halka.models import context
from halka.models.loading import place_of
from halka.report.units import size
from halka.util.errors import HalkaError, OutOfMemoryError
from halka.util.machine import available
from halka.util.precision import precision_here

METHODS = ("lora", "bottleneck", "prefix", "prompt", "full")
QUANTISATIONS = (None, "int8", "nf4")  # of the base, the most exact first
MOST_ROWS = 256  # tried for the largest batch

TIMED = 8  # examples that are timed
GLANCE = 32  # tokens of a pass that tells how fast the base is
MEASURED = 24  # examples whose length with passages is measured
PILOT_SHARE = 0.5  # of the available memory, above which the pilot checkpoints, to leave some to other processes


# ── this machine ────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Available:
    """Bytes that are free, of main memory and of the device that models are loaded to.

    gpu     whether that device is a GPU
    flash   whether it has flash attention, if it is one
    """

    main: int
    device: int
    gpu: bool
    flash: bool = True

    @classmethod
    def at(cls, place: torch.device) -> Available:
        """With models loaded to that device of this machine."""
        gpu = gpu_here(place) if place.type == "cuda" else None
        return cls(available(), available(place), place.type == "cuda", gpu is None or gpu.flash)

    @property
    def process(self) -> int:
        """Bytes of the device that the process takes besides tensors: on a GPU they are taken already."""
        return 0 if self.gpu else PROCESS


@dataclass(frozen=True)
class Machine:
    """What is asked of the machine that probes run on: its GPU, if any, free memory, its processor's speed, time."""

    gpu: Callable[[], Hardware | None] = gpu_here
    free: Callable[[], Available] = lambda: Available.at(place_of())
    processor: Callable[[str], Device] = measure_device
    clock: Clock = time.perf_counter


THIS_MACHINE = Machine()


# ── the probe of the hardware ───────────────────────────────────────────────────────────────────────────────────────


def fit(
    base: str | Path | Any,
    *,
    methods: Sequence[str] = METHODS,
    length: int,
    batch_size: int,
    tasks: int = 1,
    dtype: str = "bfloat16",
    quantize: str | None = None,
    hardware: Hardware,
    progress: Report = lambda _: None,
) -> Fit:
    """What each of `methods` needs on the hardware (see `find_hardware`), trained in the first way that fits.

    The ways are: as it is, with checkpointing, on a base in int8, in NF4 (beginning with `quantize`, if given; each
    with checkpointing only where it does not fit without). Where none fits, it is the one that needs the least memory.
    Only the base's configuration is read. A way takes a second or two to estimate, the largest batch (at most
    `MOST_ROWS`) as long as a few.

    base       a short name, a folder, a name on the hub, or a transformers configuration
    dtype, quantize   as in `halka.estimate`
    length, batch_size    tokens of an example, examples of a batch
    tasks      how many are stored and served, each with an adapter of its own
    progress   called before each estimate

    Methods that the base does not support are left out; so are forms that it, or this machine, does not support, which
    `Fit.untried` lists. Raises HalkaError as `halka.estimate` does, and if no method is left.
    """
    precision = precision_here(dtype, gpu=hardware.name != "here")
    config, setup = prepared(
        base, rows=batch_size, length=length, dtype=precision, quantize=quantize, flash=hardware.flash
    )
    setup = replace(setup, dtype=hardware.precision_of(config, precision))
    at_least_one(tasks=tasks)
    chosen = [build_method(name, {}) for name in methods]
    search = _Search(config, setup, hardware, progress)
    options, parts, refused = [], {}, []
    for method in chosen:
        progress(method.name)
        try:
            plain = dry_run(config, method, setup, gpu=hardware.gpu)
        except HalkaError as error:
            refused.append(str(error))
            continue
        parts[method.name] = {part.name: getattr(plain.memory, part.name) for part in fields(Memory) if part.init}
        options.append(search.option(method, plain, tasks))
    if not options:
        raise HalkaError(f"no method can be trained on this base: {(refused or ['methods is empty'])[0]}")
    return Fit(
        device="this machine" if hardware.name == "here" else hardware.name,
        memory=hardware.memory,
        process=hardware.process,
        length=length,
        batch_size=batch_size,
        tasks=tasks,
        options=tuple(options),
        parts=parts,
        untried=search.untried,
    )


def find_hardware(
    dtype: str, memory: int | None = None, device: str | None = None, machine: Machine = THIS_MACHINE
) -> Hardware:
    """The hardware to train on.

    memory   bytes, of a GPU unless the device is "here"; the device's own if not given
    device   one of `estimating.devices.DEVICES`, or "here": this machine's processor, timed for about two seconds with
             that dtype, with the memory that is available now. Without both: the GPU that torch sees, else "here"

    Raises HalkaError for an unknown device.
    """
    if device is None and memory is None:
        if (gpu := machine.gpu()) is not None:
            return gpu
        device = "here"
    if device == "here" and memory is None:
        memory = machine.free().main
    return hardware_of(device, memory, dtype, machine.processor)


@dataclass
class _Search:
    """The search for a way of training that fits.

    sizes     the base's bytes by form, of the forms tried so far
    untried   forms that cannot be used, and why
    """

    config: Any
    setup: Setup
    hardware: Hardware
    progress: Report
    sizes: dict[str | None, int] = field(default_factory=dict)
    untried: dict[str, str] = field(default_factory=dict)

    @property
    def room(self) -> int:
        """Bytes for a run."""
        assert self.hardware.room is not None
        return self.hardware.room

    def option(self, method: Method, plain: DryRun, tasks: int) -> Option:
        """The way of training the method, and what it needs; `plain` is what it needs as it is."""
        setup, needs = self._best(method, plain)
        row = row_of(method, needs, setup, self.hardware, tasks)
        assert row.stored is not None
        assert row.served is not None
        return Option(
            method=method.name,
            quantize=setup.quantize,
            checkpointing=setup.checkpointing,
            memory=needs.memory.total,
            fits=row.fits,
            largest_batch=0 if needs.base_bytes > self.room else self._largest(method, setup, needs),
            trained=needs.trained,
            step_seconds=row.seconds,
            stored=row.stored,
            served=row.served,
        )

    def _best(self, method: Method, plain: DryRun) -> tuple[Setup, DryRun]:
        """The first way that fits, else the one that needs least.

        A form whose base alone is too large is not tried again while a smaller form is known.
        """
        sizes, ways = self.sizes, [(self.setup, plain)]
        sizes[self.setup.quantize] = plain.base_bytes
        if plain.memory.total <= self.room:
            return ways[0]
        forms = (None,) if isinstance(method, Full) else QUANTISATIONS[QUANTISATIONS.index(self.setup.quantize) :]
        for form, checkpointing in product(forms, (False, True)):
            setup = replace(self.setup, quantize=form, checkpointing=checkpointing)
            smallest = min((sizes[other] for other in forms if other in sizes), default=0)
            if setup == self.setup or self.room < sizes.get(form, 0) > smallest:
                continue
            self.progress(_describe(method, setup))
            try:
                needs = dry_run(self.config, method, setup, gpu=self.hardware.gpu)
            except HalkaError as error:  # not of the base, which the method was rehearsed on: of the form
                self.untried[str(form)] = str(error)
                continue
            sizes[form] = needs.base_bytes
            ways.append((setup, needs))
            if needs.memory.total <= self.room:
                return ways[-1]
        return min(ways, key=lambda way: way[1].memory.total)

    def _largest(self, method: Method, setup: Setup, needs: DryRun) -> int:
        return largest_batch(
            self.config,
            method,
            setup,
            self.room,
            gpu=self.hardware.gpu,
            memory=needs.memory,
            most=MOST_ROWS,
            progress=lambda rows: self.progress(f"{_describe(method, setup)}, a batch of {rows:,}"),
        )


def _describe(method: Method, setup: Setup) -> str:
    form = "" if setup.quantize is None else f" on a base in {setup.quantize}"
    return f"{method.name}{form}{' with checkpointing' if setup.checkpointing else ''}"


# ── lengths ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def typical_lengths(base: ProbedBase) -> tuple[int, int | None]:
    """The 90th percentile of the training examples' tokens, as they are and (with documents) with passages.

    At most the base's context, to which training cuts examples.
    """
    limit = context(base.model, None)

    def typical(examples: Sequence[Example]) -> int:
        length = percentile_90([len(tokens) for tokens in encode_all(examples, base.model.tokenizer).items])
        return length if limit is None else min(length, limit)

    prompts = [base.prompt(example, DOCUMENTS) for example in base.train[:MEASURED]] if base.retrieve else []
    return typical(base.train), typical(prompts) if prompts else None


# ── time ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def time_prompts(base: ProbedBase, budget: Budget) -> None:
    """Ask the base the first held-out examples, to know what its losses and answers cost under each condition.

    Nothing is asked that seems to take too much of the time: then the estimate stays, which follows from shorter
    prompts. What is asked here is not asked again.
    """
    costs, clock, model = budget.costs, budget.clock, base.model
    costs.passages = base.passages
    for condition in base.conditions:
        prompts = [base.prompt(example, condition) for example in base.held_out[:TIMED]]
        costs.tokens[condition] = statistics.mean(len(base.tokens(prompt)) for prompt in prompts)
    ids = base.tokens(base.held_out[0]).ids[:GLANCE]
    for _ in range(2):  # the first pass prepares what the others use again
        begun = clock()
        token_losses(model, None, [Tokens(ids, [False] + [True] * (len(ids) - 1))])
        glance = clock() - begun
    token = glance / len(ids)
    for condition in base.conditions:
        costs.losses[condition] = token * costs.tokens[condition]
        if count := _timed(budget, costs.losses[condition]):
            base.first(count).base_losses(condition, budget)
            token = costs.losses[condition] / costs.tokens[condition]
        beyond = costs.losses[condition] - costs.losses[CLOSED]
        if condition == CLOSED:  # a token that is written takes no longer than such a pass
            costs.answers[CLOSED] = costs.losses[CLOSED] + base.max_new_tokens * glance
            if count := _timed(budget, costs.answers[CLOSED]):
                base.first(count).base_answers(CLOSED, budget)
        else:
            costs.answers[condition] = costs.answers[CLOSED] + max(0.0, beyond)


def _timed(budget: Budget, one: float) -> int:
    """How many examples are timed, if one takes so many seconds; none if that is more than a portion of the time."""
    if one <= 0 or budget.seconds == math.inf:
        return TIMED
    return min(TIMED, int(PORTION * budget.seconds / one))


# ── memory for the pilot ──────────────────────────────────────────────────────────────────────────────────────────


def base_too_large(base_bytes: int, free: Available, *, direct: bool = False) -> str | None:
    """Why the base cannot be loaded; None if it can.

    direct   whether its weights are read to the device directly; else they pass through main memory
    """
    needs, places = base_bytes + free.process, [("on the GPU" if free.gpu else "in memory", free.device)]
    for place, room in places if direct else [*places, ("in main memory", free.main)]:
        if needs > room:
            return f"the base takes {size(needs)} and {size(room)} are free {place}"
    return None


def pilot_room(request: Request, config: Any, lengths: Sequence[int], free: Available, pilot: PilotConfig) -> Room:
    """How the pilot trains so that it fits. Its passes run one after another, so the largest one counts.

    lengths   tokens of the examples, and of those with passages where there are some

    Raises OutOfMemoryError where the small adapters do not fit even with checkpointing.
    """

    def needs(method: str, trials: int, length: int, checkpointing: bool) -> int:
        rows = trials * max(1, min(request.batch_size, pilot.batch_tokens // length))
        precision = precision_here(request.dtype, free.gpu)
        form: dict[str, Any] = {"dtype": precision, "quantize": request.quantize, "flash": free.flash}
        _, setup = prepared(config, rows=rows, length=length, checkpointing=checkpointing, **form)
        return dry_run(config, build_method(method, {}), setup, gpu=free.gpu).memory.total + free.process

    passes = [(len(pilot.trials), lengths[0]), *((1, length) for length in lengths[1:])]
    checkpointing = any(needs("lora", *one, False) > PILOT_SHARE * free.device for one in passes)
    least = max(needs("lora", *one, True) for one in passes) if checkpointing else 0
    if least > free.device:
        raise OutOfMemoryError(f"the pilot takes {size(least)} and {size(free.device)} are free")
    if not request.full:
        return Room(checkpointing)
    full = needs("full", 1, lengths[0], checkpointing)
    if not checkpointing and full > PILOT_SHARE * free.device:
        checkpointing, full = True, needs("full", 1, lengths[0], True)
    if full > free.device:
        return Room(checkpointing, f"a trial takes {size(full)} and {size(free.device)} are free")
    return Room(checkpointing)

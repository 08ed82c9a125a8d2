"""The probe of the hardware: what each family of methods needs there, and the way in which it fits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

from halka.advisor.evidence import Fit, Option
from halka.core import Method
from halka.estimating import Memory, Setup, at_least_one, largest_batch, prepared, rehearse, row_of
from halka.estimating.dry_runs import Rehearsed
from halka.estimating.hardware import Hardware, gpu_here, hardware_of
from halka.methods import Full, build_method
from halka.util.errors import HalkaError
from halka.util.machine import available

METHODS = ("lora", "bottleneck", "prefix", "prompt", "full")
FORMS = (None, "int8", "nf4")  # in which a base is tried, the most exact first
MOST = 256  # rows that are tried for the largest batch


def fit(
    base: str | Path | Any,
    *,
    kind: str | None = None,
    labels: int | None = None,
    methods: Sequence[str] = METHODS,
    length: int,
    batch_size: int,
    tasks: int = 1,
    dtype: str = "bfloat16",
    quantize: str | None = None,
    memory: int | None = None,
    device: str | None = None,
    where: Hardware | None = None,
    progress: Callable[[str], None] = lambda doing: None,
) -> Fit:
    """What each of `methods` needs on the hardware, and the way of training it that fits there.

    It is the first that does of: as it is, with checkpointing, on a base in int8, in NF4; these with checkpointing only
    where they do not fit without, and from `quantize` on, if it is given. Where none fits, it is the one that needs
    least. Nothing but the base's configuration is read. A way takes a second or two to be tried, and the largest batch,
    of at most `MOST` rows, as long as a few.

    base       a short name, a folder, a name on the hub, or a transformers configuration
    kind, labels, dtype, quantize   as `halka.estimate` takes them
    length, batch_size    tokens an example, examples a batch
    tasks      how many are to be stored and served, each with an adapter of its own
    memory, device   the hardware, as `hardware_for` takes them; or `where`, that it gave before
    progress   is told each method, each other way and each batch before it is tried

    A method that the base refuses is left out; so is a form in which the base cannot be, or not on this machine, which
    is told in `Fit.untried`.
    Raises ValueError as `halka.estimate` does: for a base, a setup, a method or a device that cannot be, and for a base
    that refuses all the methods.
    """
    config, setup = prepared(base, kind, rows=batch_size, length=length, dtype=dtype, quantize=quantize, labels=labels)
    at_least_one(tasks=tasks)
    chosen = [build_method(name, {}) for name in methods]
    where = where or hardware_for(dtype, memory, device)
    fitting = _Fitting(config, setup, where, progress)
    options, parts, refused = [], {}, []
    for method in chosen:
        progress(method.name)
        try:
            plain = rehearse(config, method, setup, gpu=where.gpu)
        except ValueError as error:
            refused.append(str(error))
            continue
        parts[method.name] = {each.name: getattr(plain.memory, each.name) for each in fields(Memory) if each.init}
        options.append(fitting.option(method, plain, tasks))
    if not options:
        raise HalkaError(f"none of the methods can be trained on this base: {(refused or ['none is given'])[0]}")
    name, untried = "this machine" if where.name == "here" else where.name, fitting.untried
    return Fit(name, where.memory, where.process, length, batch_size, tasks, tuple(options), parts, untried=untried)


def hardware_for(dtype: str, memory: int | None = None, device: str | None = None) -> Hardware:
    """The hardware that it is to fit on.

    memory   bytes, of a GPU unless the device is "here"; the device's own if not given
    device   of `estimating.devices.DEVICES`, or "here": this machine's processor, measured for about two seconds with
             that dtype, with the memory that is available now; without both it is the GPU that torch sees, else "here".
             Seconds are told where its speed is known

    Raises ValueError for a device nobody knows.
    """
    if device is None and memory is None:
        if (gpu := gpu_here()) is not None:
            return gpu
        device = "here"
    if device == "here" and memory is None:
        memory = available()
    return hardware_of(device, memory, dtype)


@dataclass
class _Fitting:
    """The search for a way that fits.

    sizes     the base's bytes by form, as far as any method has tried them
    untried   the forms that cannot be tried, and why
    """

    config: Any
    setup: Setup
    where: Hardware
    told: Callable[[str], None]
    sizes: dict[str | None, int] = field(default_factory=dict)
    untried: dict[str, str] = field(default_factory=dict)

    @property
    def room(self) -> int:
        """Bytes that are left to a run; the memory of all hardware that is asked for here is known."""
        assert self.where.room is not None
        return self.where.room

    def option(self, method: Method, plain: Rehearsed, tasks: int) -> Option:
        """The way of training it, and what it comes to; `plain` is what it needs as it is."""
        how, found = self._best(method, plain)
        row = row_of(method, found, how, self.where, tasks)
        assert row.stored is not None
        assert row.served is not None
        return Option(
            method=method.name,
            quantize=how.quantize,
            checkpointing=how.checkpointing,
            memory=found.memory.total,
            fits=row.fits,
            largest_batch=0 if found.base_bytes > self.room else self._largest(method, how, found),
            trained=found.trained,
            step_seconds=row.seconds,
            stored=row.stored,
            served=row.served,
        )

    def _best(self, method: Method, plain: Rehearsed) -> tuple[Setup, Rehearsed]:
        """The first way that fits, else the one that needs least, and what it needs.

        Where a form's base alone is too much and a smaller form is known, the form is not tried again.
        """
        setup, sizes, ways = self.setup, self.sizes, [(self.setup, plain)]
        sizes[setup.quantize] = plain.base_bytes
        if plain.memory.total <= self.room:
            return ways[0]
        forms = (None,) if isinstance(method, Full) else FORMS[FORMS.index(setup.quantize) :]
        for form, checkpointing in product(forms, (False, True)):
            how = replace(setup, quantize=form, checkpointing=checkpointing)
            if how == setup or self.room < sizes.get(form, 0) > min(sizes[each] for each in forms if each in sizes):
                continue
            self.told(_called(method, how))
            try:
                found = rehearse(self.config, method, how, gpu=self.where.gpu)
            except ValueError as error:  # the base as it is was not refused: this form is
                self.untried[str(form)] = str(error)
                continue
            sizes[form] = found.base_bytes
            ways.append((how, found))
            if found.memory.total <= self.room:
                return ways[-1]
        return min(ways, key=lambda way: way[1].memory.total)

    def _largest(self, method: Method, how: Setup, found: Rehearsed) -> int:
        return largest_batch(
            *(self.config, method, how, self.room),
            gpu=self.where.gpu,
            memory=found.memory,
            most=MOST,
            progress=lambda rows: self.told(f"{_called(method, how)}, a batch of {rows:,}"),
        )


def _called(method: Method, how: Setup) -> str:
    """A way of training in words."""
    form = "" if how.quantize is None else f" on a base in {how.quantize}"
    return f"{method.name}{form}{' with checkpointing' if how.checkpointing else ''}"

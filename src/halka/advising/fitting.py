"""The probe of the hardware: what each family of methods needs there, and the way in which it fits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from itertools import product
from pathlib import Path
from typing import Any

from halka.advising.evidence import Fit, Option
from halka.core import Method
from halka.estimating import Memory, Setup, at_least_one, largest_batch, prepared, rehearse, row_of
from halka.estimating.hardware import Hardware, gpu_here, hardware_of
from halka.estimating.rehearsing import Rehearsed
from halka.machine import available
from halka.methods import Full, made

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
    progress: Callable[[str], None] | None = None,
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
    memory     bytes, of a GPU unless the device is "here"; the device's own if not given
    device     of `estimating.devices.DEVICES`, or "here": this machine's processor, with the memory that is available
               now; without both it is the GPU that torch sees, else "here". Seconds are told where its speed is known
    progress   is told each method's name before it is tried

    A method that the base refuses is left out, and so is a form in which the base cannot be, or not on this machine.
    Raises ValueError as `halka.estimate` does: for a base, a setup, a method or a device that cannot be, and for a base
    that refuses all the methods.
    """
    config, setup = prepared(base, kind, rows=batch_size, length=length, dtype=dtype, quantize=quantize, labels=labels)
    at_least_one(tasks=tasks)
    chosen = [made(name, {}) for name in methods]
    where = _hardware(dtype, memory, device)
    options, parts, refused, sizes = [], {}, [], {}
    for method in chosen:
        if progress is not None:
            progress(method.name)
        try:
            plain = rehearse(config, method, setup, gpu=where.gpu)
        except ValueError as error:
            refused.append(str(error))
            continue
        parts[method.name] = {each.name: getattr(plain.memory, each.name) for each in fields(Memory) if each.init}
        how, found = _best(config, method, setup, plain, where, sizes)
        options.append(_option(config, method, how, found, where, tasks))
    if not options:
        raise ValueError(f"none of the methods can be trained on this base: {(refused or ['none is given'])[0]}")
    name = "this machine" if where.name == "here" else where.name
    return Fit(name, where.memory, where.process, length, batch_size, tasks, tuple(options), parts)


def _hardware(dtype: str, memory: int | None, device: str | None) -> Hardware:
    if device is None and memory is None:
        if (gpu := gpu_here()) is not None:
            return gpu
        device = "here"
    if device == "here" and memory is None:
        memory = available()
    return hardware_of(device, memory, dtype)


def _best(
    config: Any, method: Method, setup: Setup, plain: Rehearsed, where: Hardware, sizes: dict[str | None, int]
) -> tuple[Setup, Rehearsed]:
    """The first way that fits, else the one that needs least, and what it needs; `plain` is as it is.

    `sizes` are the base's bytes by form, as far as any method has tried them: where they alone are too many and a
    smaller form is known, the form is not tried again.
    """
    room, ways = _room(where), [(setup, plain)]
    sizes[setup.quantize] = plain.base_bytes
    if plain.memory.total <= room:
        return ways[0]
    forms = (None,) if isinstance(method, Full) else FORMS[FORMS.index(setup.quantize) :]
    for form, checkpointing in product(forms, (False, True)):
        how = replace(setup, quantize=form, checkpointing=checkpointing)
        if how == setup or room < sizes.get(form, 0) > min(sizes[each] for each in forms if each in sizes):
            continue
        try:
            found = rehearse(config, method, how, gpu=where.gpu)
        except ValueError:  # the base as it is was not refused: this form is
            continue
        sizes[form] = found.base_bytes
        ways.append((how, found))
        if found.memory.total <= room:
            return ways[-1]
    return min(ways, key=lambda way: way[1].memory.total)


def _option(config: Any, method: Method, how: Setup, found: Rehearsed, where: Hardware, tasks: int) -> Option:
    row, room = row_of(method, found, how, where, tasks), _room(where)
    assert row.stored is not None
    assert row.served is not None
    return Option(
        method=method.name,
        quantize=how.quantize,
        checkpointing=how.checkpointing,
        memory=found.memory.total,
        fits=row.fits,
        largest_batch=0
        if found.base_bytes > room
        else largest_batch(config, method, how, room, gpu=where.gpu, memory=found.memory, most=MOST),
        trained=found.trained,
        step_seconds=row.seconds,
        stored=row.stored,
        served=row.served,
    )


def _room(where: Hardware) -> int:
    """Bytes that are left to a run; the memory of all hardware that is asked for here is known."""
    assert where.room is not None
    return where.room

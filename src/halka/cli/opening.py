"""A base and its adapters, as the commands that use them name them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from halka.cli.command import say, show_warnings
from halka.util.errors import HalkaError

if TYPE_CHECKING:
    from halka.cli.routing import Adapters
    from halka.core import AdaptedModel

Base = Annotated[str, typer.Option("--base", metavar="NAME", help="short name, folder or hub name of the base")]
Dtype = Annotated[str, typer.Option("--dtype", metavar="TEXT", help="precision of the base: bfloat16, float32, …")]
Device = Annotated[str | None, typer.Option("--device", metavar="TEXT", help="cuda, mps or cpu; the first there is")]
Quantize = Annotated[
    str | None, typer.Option("--quantize", metavar="FORM", help="pack the base's layers into fewer bits: nf4 or int8")
]
OtherBase = Annotated[bool, typer.Option("--allow-other-base", help="load an adapter of a base with other weights")]
OtherTemplate = Annotated[
    bool, typer.Option("--allow-other-template", help="load an adapter trained with another chat template")
]
Pickle = Annotated[
    bool, typer.Option("--allow-pickle", help="read weights that are a pickle, by torch's loader for weights alone")
]


@dataclass(frozen=True)
class Loading:
    """How a base is loaded and which adapters it takes: the options that all commands have that use both."""

    dtype: Dtype = "bfloat16"
    device: Device = None
    quantize: Quantize = None
    allow_other_base: OtherBase = False
    allow_other_template: OtherTemplate = False
    allow_pickle: Pickle = False


def with_loading(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the options of `Loading`, for typer to read, in the place of its parameter `loading`."""
    options = inspect.signature(Loading, eval_str=True).parameters

    @functools.wraps(command)
    def run(**given: Any) -> None:
        command(loading=Loading(**{name: given.pop(name) for name in options}), **given)

    shown: list[inspect.Parameter] = []
    for each in inspect.signature(command, eval_str=True).parameters.values():
        shown += options.values() if each.name == "loading" else [each]
    named = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in shown]
    run.__signature__ = inspect.Signature(named)  # type: ignore[attr-defined]
    return run


def load_for(
    base: str,
    kind: str | None,
    labels: Sequence[str],
    *,
    dtype: str,
    device: str | None,
    quantize: str | None,
) -> AdaptedModel:
    """The base, loaded as that kind (as it is if None) with a head for these labels, ready for adapters."""
    from halka.models import adapt
    from halka.models.loading import load_base

    say(f"loading {base}{f' as a {kind}' if kind else ''} …")
    options: dict[str, Any] = {"kind": kind, "dtype": dtype, "device": device, "quantize": quantize}
    return adapt(*load_base(base, labels=labels or None, **options))


def made_for(folder: Path, *, head: bool = True) -> tuple[str | None, tuple[str, ...]]:
    """The kind of base that an adapter is for, None where its folder does not say, and the labels that it says.

    The Card says both; without one the head that is saved beside the adapter (where `head` wants it), or peft's task.
    """
    from halka.models.kinds import kind_of_task
    from halka.storage.card import read_card
    from halka.storage.formats import format_of
    from halka.storage.formats.adapterhub.heads import base_for
    from halka.storage.save_load import read_json

    if (card := read_card(folder)) is not None:
        return card.kind, tuple(card.labels)
    files = format_of(folder).FILES
    if head and files.head is not None and (folder / files.head.config).is_file():
        found = base_for(read_json(folder / files.head.config))
        return found.get("kind"), tuple(found.get("labels", ()))
    return kind_of_task(read_json(folder / files.config).get("task_type")), ()


def kind_for(adapters: Adapters, names: Iterable[str | None]) -> tuple[str | None, tuple[str, ...]]:
    """The kind of base that the adapters of these names are for, and labels for a head wide enough for each.

    Raises ValueError for adapters of several kinds.
    """
    found = {name: made_for(adapters.folder(name)) for name in dict.fromkeys(names) if name is not None}
    kinds = {kind: name for name, (kind, _) in found.items() if kind is not None}
    if len(kinds) > 1:
        shown = " and ".join(f"{name} of a {kind}" for kind, name in kinds.items())
        raise HalkaError(f"--adapter: {shown}: one base cannot be both, so use them apart")
    return next(iter(kinds), None), max((labels for _, labels in found.values()), key=len, default=())


def open_model(
    base: str,
    adapters: Adapters,
    names: Iterable[str | None],
    loading: Loading,
    *,
    pool: int | None = None,
) -> AdaptedModel:
    """The base with the adapters of these names; those that a store has come when they are used, as `pool` bytes allow.

    Raises ValueError for a pool without a store.
    """
    from halka.storage.pool import DEFAULT_BUDGET, AdapterPool
    from halka.storage.save_load import load

    if pool is not None and adapters.store is None:
        raise HalkaError("--pool is what a store's adapters may take: give --store FOLDER with it")
    names = [*names]
    how = asdict(loading)
    allowed = {key: how.pop(key) for key in [*how] if key.startswith("allow_")}
    model = load_for(base, *kind_for(adapters, names), **how)
    if adapters.store is not None:
        AdapterPool(model, adapters.store, DEFAULT_BUDGET if pool is None else pool, **allowed)
    with show_warnings():
        for name in dict.fromkeys(names):
            if name is not None and not adapters.pooled(name):
                load(model, adapters.folder(name), name=name, **allowed)
    return model

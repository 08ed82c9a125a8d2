"""The options that name a base and how to load it; load it with its adapters."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from halka.cli.command import say, show_warnings
from halka.util.dtypes import dtype_name
from halka.util.errors import HalkaError

if TYPE_CHECKING:
    from halka.cli.adapter_names import Adapters
    from halka.core import AdaptedModel
    from halka.storage.adapter_folder import AdapterFolder

Base = Annotated[str, typer.Option("--base", metavar="NAME", help="short name, folder or hub name of the base")]
Dtype = Annotated[str, typer.Option("--dtype", metavar="TEXT", help="precision of the base: bfloat16, float32, …")]
Device = Annotated[str | None, typer.Option("--device", metavar="TEXT", help="cuda, mps or cpu; the first available")]
Quantize = Annotated[
    str | None,
    typer.Option("--quantize", metavar="QUANTIZE", help="pack the base's layers into fewer bits: nf4 or int8"),
]
OtherBase = Annotated[bool, typer.Option("--allow-other-base", help="load an adapter of a base with other weights")]
OtherTemplate = Annotated[
    bool, typer.Option("--allow-other-template", help="load an adapter trained with another chat template")
]
Pickle = Annotated[
    bool, typer.Option("--allow-pickle", help="read weights from a pickle, by torch.load with weights_only")
]


@dataclass(frozen=True)
class Loading:
    """The options of every command that loads a base with adapters."""

    dtype: Dtype = "bfloat16"
    device: Device = None
    quantize: Quantize = None
    allow_other_base: OtherBase = False
    allow_other_template: OtherTemplate = False
    allow_pickle: Pickle = False


def with_loading(command: Callable[..., None]) -> Callable[..., None]:
    """Replace the command's parameter `loading` by the options of `Loading`, for typer to read."""
    options = inspect.signature(Loading, eval_str=True).parameters

    @functools.wraps(command)
    def run(**values: Any) -> None:
        command(loading=Loading(**{name: values.pop(name) for name in options}), **values)

    shown: list[inspect.Parameter] = []
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        shown += options.values() if parameter.name == "loading" else [parameter]
    named = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in shown]
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
    shard: bool = False,
) -> AdaptedModel:
    """Load a base as that kind (None: its own) with a head for these labels, ready for adapters.

    With `shard`, each of the processes that train together loads a part.
    """
    from halka.models import adapt
    from halka.models.loading import load_base

    say(f"loading {base}{f' as a {kind}' if kind else ''} …")
    options: dict[str, Any] = {"kind": kind, "dtype": dtype, "device": device, "quantize": quantize}
    if shard:
        from halka.models.sharded import load_sharded_base as load_base
    model = adapt(*load_base(base, labels=labels or None, **options))
    if dtype == "bfloat16" and (precision := dtype_name(str(model.base.dtype))) != dtype:
        reason = f"this device has no instructions for {dtype}"
        say(f"the base is in {precision}: {reason} (--dtype auto keeps what its files have)")
    return model


def kind_for(folders: Mapping[str, AdapterFolder]) -> tuple[str | None, tuple[str, ...]]:
    """The kind of base that these adapters need, and the longest list of labels among them.

    Raises HalkaError for adapters of several kinds.
    """
    kinds = {folder.kind: name for name, folder in folders.items() if folder.kind is not None}
    if len(kinds) > 1:
        shown = " and ".join(f"{name} of a {kind}" for kind, name in kinds.items())
        raise HalkaError(f"--adapter: {shown}: one base cannot be both, so use them in separate commands")
    return next(iter(kinds), None), max((folder.labels for folder in folders.values()), key=len, default=())


def open_model(
    base: str,
    adapters: Adapters,
    names: Iterable[str | None],
    loading: Loading,
    *,
    pool: int | None = None,
) -> AdaptedModel:
    """Load the base with the adapters of these names; a store's newest versions load when they are used.

    `pool` is the memory in bytes that the store's adapters may take. Raises HalkaError for a pool without a store.
    """
    from halka.storage.pool import DEFAULT_BUDGET, AdapterPool
    from halka.storage.save_load import Allowed, load

    if pool is not None and adapters.store is None:
        raise HalkaError("--pool is the memory that a store's adapters may take: give --store FOLDER with it")
    folders = {name: adapters.folder(name) for name in dict.fromkeys(names) if name is not None}
    allowed: Allowed = {
        "allow_other_base": loading.allow_other_base,
        "allow_other_template": loading.allow_other_template,
        "allow_pickle": loading.allow_pickle,
    }
    kind, labels = kind_for(folders)
    model = load_for(base, kind, labels, dtype=loading.dtype, device=loading.device, quantize=loading.quantize)
    if adapters.store is not None:
        AdapterPool(model, adapters.store, DEFAULT_BUDGET if pool is None else pool, **allowed)
    with show_warnings():
        for name, folder in folders.items():
            if not adapters.pooled(name):
                load(model, folder, name=name, **allowed)
    return model

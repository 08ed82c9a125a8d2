"""A base and one of its adapters, as the commands that use them name them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from halka.cli.command import existing_folder, say

if TYPE_CHECKING:
    from halka.core import AdaptedModel

Base = Annotated[str, typer.Option("--base", metavar="NAME", help="short name, folder or hub name of the base")]
AdapterFolder = Annotated[
    Path | None, typer.Option("--adapter", metavar="FOLDER", help="an adapter's folder; the bare base if not given")
]
Dtype = Annotated[str, typer.Option("--dtype", metavar="TEXT", help="precision of the base: bfloat16, float32, …")]
Device = Annotated[str | None, typer.Option("--device", metavar="TEXT", help="cuda, mps or cpu; the first there is")]
OtherBase = Annotated[bool, typer.Option("--allow-other-base", help="load an adapter of a base with other weights")]
OtherTemplate = Annotated[
    bool, typer.Option("--allow-other-template", help="load an adapter trained with another chat template")
]


def open_model(
    base: str,
    adapter: Path | None,
    *,
    dtype: str,
    device: str | None,
    allow_other_base: bool,
    allow_other_template: bool,
) -> tuple[AdaptedModel, str | None]:
    """The base, ready for adapters, and the name of the adapter loaded into it, if one was named."""
    from halka.models import adapt
    from halka.models.loading import load_base
    from halka.store import load, read_config

    if adapter is not None:
        read_config(adapter_folder(adapter))  # before the base is loaded, which takes longer
    say(f"loading {base} …")
    model = adapt(*load_base(base, dtype=dtype, device=device))
    if adapter is None:
        return model, None
    load(
        model,
        adapter,
        name="adapter",
        allow_other_base=allow_other_base,
        allow_other_template=allow_other_template,
    )
    return model, "adapter"


def adapter_folder(folder: Path, given_as: str = "--adapter") -> Path:
    """The folder, if there is one; ValueError with the way out if it is a run's folder, which holds the adapter's."""
    existing_folder(folder, given_as)
    if not (folder / "adapter_config.json").exists() and (folder / "adapter" / "adapter_config.json").exists():
        raise ValueError(f"{given_as}: {folder} is a run's folder: its adapter is {folder / 'adapter'}")
    return folder

"""Names of bases: a short name, a folder, or a name on the hub, perhaps with a revision."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from halka.models.fetching import known_bases, short_named

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HUB_NAME = re.compile(r"(?P<name>\w[\w.-]*(?:/\w[\w.-]*)?)(?:@(?P<revision>[^\s@]+))?")
REVISION = "_hub_revision"  # the attribute of a base that was loaded by one


def base_name(base: nn.Module) -> str:
    """A base's name as `load_base` takes it, by which adapters name it; "" for one that has none."""
    name: str = getattr(getattr(base, "config", None), "_name_or_path", "") or ""
    revision: str | None = getattr(base, REVISION, None)
    return name if revision is None else f"{name}@{revision}"


def set_base_name(model: PreTrainedModel, name_or_path: str | Path) -> None:
    """Let a base have its name on the hub, if it has one: not a folder of a cache, which adapters would name else."""
    if info := short_named(name_or_path):
        model.config._name_or_path = info.hub_name
    elif not Path(name_or_path).expanduser().is_dir():
        model.config._name_or_path, revision = hub_parts(str(name_or_path))
        setattr(model, REVISION, revision)


def hub_parts(name: str) -> tuple[str, str | None]:
    """A base's name without its revision on the hub, and that; a folder has none."""
    parts = _on_hub(name)
    return (name, None) if parts is None else (parts["name"], parts["revision"])


def other_on_hub(name: str | None, base: nn.Module) -> str | None:
    """A base's own name, where that and `name` are two models on the hub, of whatever revisions; else None."""
    own, shorts = base_name(base), known_bases()
    plain = [parts["name"] for it in (name, own) if it and (parts := _on_hub(it)) is not None]
    on_hub = {shorts[it].hub_name if it in shorts else it for it in plain if it in shorts or "/" in it}
    return own if len(on_hub) == 2 else None


def at_revision(name: str, revision: str | None) -> str:
    """A base's name with its revision on the hub, unless it has one; a folder has none."""
    parts = _on_hub(name)
    return f"{name}@{revision}" if revision and parts is not None and parts["revision"] is None else name


def _on_hub(name: str) -> re.Match[str] | None:
    """The parts of a name that may be one on the hub; None for a folder's, and for what is no such name."""
    return None if Path(name).expanduser().is_dir() else HUB_NAME.fullmatch(name)

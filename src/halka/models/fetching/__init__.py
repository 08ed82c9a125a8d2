"""The bases with a short name, and the cache that they are pulled into."""

from __future__ import annotations

import difflib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from halka.models.fetching import minilm, smollm2
from halka.util.errors import HalkaError
from halka.util.files import new_folder

Progress = Callable[[str], None]


@dataclass(frozen=True)
class BaseInfo:
    """A base that Halka knows by a short name. `bytes` is its size on disk, about."""

    name: str
    hub_name: str
    licence: str
    parameters: int
    bytes: int
    fetch: Callable[[Path, Progress], None]


@dataclass(frozen=True)
class CachedBase:
    """A known base as it stands in the cache: `bytes` on disk (0 if not pulled), `source` as its `source.json` says."""

    name: str
    path: Path
    pulled: bool
    bytes: int
    source: dict[str, str] | None


def known_bases() -> dict[str, BaseInfo]:
    """The bases with a short name."""
    return {
        each.NAME: BaseInfo(each.NAME, each.HUB_NAME, each.LICENCE, each.PARAMETERS, each.BYTES, each.fetch)
        for each in (smollm2, minilm)
    }


def cache_dir() -> Path:
    """`$HALKA_CACHE`, else `$XDG_CACHE_HOME/halka`, else `~/.cache/halka`. It need not exist."""
    if own := os.environ.get("HALKA_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared).expanduser() if shared else Path.home() / ".cache") / "halka"


def pull(name: str, on_progress: Progress | None = None) -> Path:
    """The folder of a known base, fetched first if the cache lacks it.

    The folder appears whole or not at all. Of processes that pull at once, one works and the others wait.
    Raises ValueError for an unknown name and when no origin can be reached.
    """
    bases = known_bases()
    if name not in bases:
        raise HalkaError(f"unknown base {name!r}; {known_names(name)}")
    folder = cache_dir() / "bases" / name
    if is_pulled(folder):
        return folder

    from filelock import FileLock

    say = on_progress or (lambda message: None)
    say(f"{name} goes to {folder}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{name}.lock"):
        if is_pulled(folder):  # by the process that held the lock
            return folder
        if folder.exists():
            raise HalkaError(f"{folder} is in the way: it is no pulled base (it has no source.json); move it away")
        for left in folder.parent.glob(f".{name}.*/"):  # by a process that was killed
            shutil.rmtree(left)
        with new_folder(folder) as filling:
            bases[name].fetch(filling, say)
    return folder


def list_bases() -> list[CachedBase]:
    """Every known base, pulled or not."""
    bases = []
    for name in known_bases():
        folder = cache_dir() / "bases" / name
        size = sum(file.stat().st_size for file in folder.iterdir()) if is_pulled(folder) else 0
        bases.append(CachedBase(name, folder, pulled=is_pulled(folder), bytes=size, source=source_of(folder)))
    return bases


def known_names(name: str) -> str:
    """The way out for a name that leads nowhere."""
    known = list(known_bases())
    close = difflib.get_close_matches(name.lower(), known, n=1)
    return (f"did you mean {close[0]}? " if close else "") + f"Known short names: {', '.join(known)}"


def is_pulled(folder: Path) -> bool:
    return (folder / "source.json").is_file()


def source_of(folder: Path) -> dict[str, str] | None:
    return json.loads((folder / "source.json").read_text(encoding="utf-8")) if is_pulled(folder) else None

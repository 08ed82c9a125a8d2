"""Where bases are: the cache that those with a short name are pulled into, and folders of one's own."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """`$HALKA_CACHE`, else `$XDG_CACHE_HOME/halka`, else `~/.cache/halka`. It need not exist."""
    if own := os.environ.get("HALKA_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared).expanduser() if shared else Path.home() / ".cache") / "halka"


def is_base_folder(path: Path) -> bool:
    """Whether `path` holds a base, as `save_pretrained` writes one."""
    return (path / "config.json").is_file()

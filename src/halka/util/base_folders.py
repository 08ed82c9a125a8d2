"""Where bases are: the cache that those with a short name are pulled into, and folders of one's own."""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from pathlib import Path

BLOCK, BLOCKS = 1 << 16, 256  # bytes, and how many of them are read of a large file


def cache_dir() -> Path:
    """`$HALKA_CACHE`, else `$XDG_CACHE_HOME/halka`, else `~/.cache/halka`. It need not exist."""
    if own := os.environ.get("HALKA_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared).expanduser() if shared else Path.home() / ".cache") / "halka"


def is_base_folder(path: Path) -> bool:
    """Whether `path` holds a base, as `save_pretrained` writes one."""
    return (path / "config.json").is_file()


def folder_digest(base: str | Path) -> str | None:
    """Twelve letters of a hash of the files in a base's folder; None for a base that is not a folder.

    Of files above 16 MiB it reads their size and 256 blocks that are spread over them, so weights of any size are told
    from weights that were trained or merged since. Raises OSError for a file that cannot be read.
    """
    folder = Path(base).expanduser()
    if not is_base_folder(folder):
        return None
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return _digest(tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in files))


@lru_cache(maxsize=8)
def _digest(files: tuple[tuple[Path, int, int], ...]) -> str:
    total = hashlib.sha256()
    for path, size, _ in files:
        total.update(f"{path.name} {size}\n".encode())
        step = max(BLOCK, size // BLOCKS)
        with path.open("rb") as file:
            for start in range(0, size, step):
                file.seek(start)
                total.update(file.read(BLOCK))
    return total.hexdigest()[:12]

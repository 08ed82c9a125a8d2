"""Experiments whose runs are processes, as they always are, but of a program that does what it is told."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest

from halka.studies.compare import run
from halka.studies.experiment import Experiment
from halka.studies.runner import Event
from halka.util.python import program
from measurements_for_tests import METHODS, measurements

PROGRAM = '''
"""Stands in for `python -m halka.studies.measure RUN.json RESULT.json …`: it does what the plan says for each run."""
import json, os, signal, sys, time

plan, templates = (json.load(open(os.environ[f"HALKA_TEST_{name}"])) for name in ("PLAN", "TEMPLATES"))


def note(what, name):
    with open(os.environ["HALKA_TEST_LOG"], "a") as file:
        told = {"what": what, "name": name, "pid": os.getpid(), "at": time.monotonic()}
        file.write(json.dumps(told | {"threads": os.environ["OMP_NUM_THREADS"]}) + chr(10))


def begun():
    with open(os.environ["HALKA_TEST_LOG"]) as file:
        return file.read().count('"begins"')


def one(number, source, target):
    given = json.load(open(source))
    name = f"{given['label']} {given['train']['lr']} {given['train']['seed']} {given['purpose']}"
    todo = next((todo for start, todo in plan.items() if name.startswith(start)), {})
    note("begins", name)
    print("loading", "{ a base }", flush=True)
    for line in todo.get("print", []):
        sys.stdout.buffer.write(line.encode("latin-1") + b"\\n")
    for step in (1, 2):
        print(json.dumps({"run": number, "step": step, "steps": 2, "loss": 1 / step}), flush=True)
    print("here it goes wrong", file=sys.stderr, flush=True)
    last = time.monotonic() + 20
    while begun() < todo.get("meet", 0) and time.monotonic() < last:
        time.sleep(0.01)
    time.sleep(todo.get("sleep", 0))
    if todo.get("kill") or (todo.get("kill_together") and len(sys.argv) > 3):
        os.kill(os.getpid(), signal.SIGKILL)
    if not todo.get("leave"):
        result = {
            **templates["base" if given["method"] == "base" else given["purpose"]],
            "method": {"name": given["method"], "label": given["label"], "fields": given["fields"]},
            "status": "failed" if todo.get("error") else "done",
            "error": todo.get("error"),
            "label": given["label"],
            "lr": given["train"]["lr"],
            "seed": given["train"]["seed"],
            "steps": given["train"].get("steps"),
            "purpose": given["purpose"],
            "validation_loss": todo.get("loss", 0.5),
        }
        if given["purpose"] == "final":
            result["scores"]["exact_match"] = {"value": 0.25, "low": 0.0, "high": 1.0, "n": 4}
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "w") as file:
            json.dump(result, file)
        print(json.dumps({"run": number, "ended": True}), flush=True)
    note("ends", name)
    return bool(todo.get("error"))


pairs = zip(sys.argv[1::2], sys.argv[2::2])
sys.exit(1 if any([one(number, *pair) for number, pair in enumerate(pairs)]) else 0)
'''


class Stage:
    """A folder to run experiments in, the plan that the runs follow, and what they have noted."""

    def __init__(self, folder: Path):
        self.folder, self.log, self._plan = folder / "out", folder / "log", folder / "plan.json"
        self.plan()

    def plan(self, **todo: dict) -> None:
        self._plan.write_text(json.dumps({name.replace("_", " "): each for name, each in todo.items()}))

    def notes(self, what: str = "begins") -> list[dict]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [note for note in map(json.loads, lines) if note["what"] == what]

    def names(self) -> list[str]:
        return [note["name"] for note in self.notes()]

    def forget(self) -> None:
        self.log.unlink()

    def go(self, experiment: Experiment, **options) -> list[Event]:
        with within_seconds(30):
            return list(run(experiment, self.folder, **options))


@contextmanager
def staged(folder: Path) -> Iterator[Stage]:
    """A stage in this folder, while runs are processes of `PROGRAM`; at the end none of them is left."""
    stand_in, own = folder / "program.py", subprocess.Popen
    stand_in.write_text(PROGRAM)
    base, search, *_, final = measurements(1, 4, (METHODS[1],), failures=False, samples=False)
    (folder / "templates.json").write_text(json.dumps({"base": base, "search": search, "final": final}))

    def started(arguments: list[str], **options) -> subprocess.Popen[str]:
        own_program = program("halka.studies.measure")
        if arguments[: len(own_program)] == own_program:
            arguments = [sys.executable, "-S", str(stand_in), *arguments[len(own_program) :]]
        return own(arguments, **options)

    stage = Stage(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HALKA_TEST_PLAN", str(folder / "plan.json"))
        patch.setenv("HALKA_TEST_LOG", str(stage.log))
        patch.setenv("HALKA_TEST_TEMPLATES", str(folder / "templates.json"))
        patch.setattr(subprocess, "Popen", started)
        yield stage
    assert not [note["pid"] for note in stage.notes() if is_alive(note["pid"])]
    gc.collect()


@contextmanager
def within_seconds(seconds: float, error: type[BaseException] = TimeoutError) -> Iterator[None]:
    """Raises in the middle of whatever takes longer."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise error

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True

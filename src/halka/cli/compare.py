"""`halka compare` and `halka demo`: an experiment run to its table and its report."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from halka.cli.command import Failed, Json, emit, existing_file, say, show

if TYPE_CHECKING:
    from halka.experiment import Experiment

Retry = Annotated[bool, typer.Option("--retry", help="run again what failed")]


def compare(
    experiment: Annotated[Path, typer.Argument(metavar="EXPERIMENT", help="a YAML file: base, task, methods, seeds")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="measurements, table and report")],
    retry: Retry = False,
    json: Json = False,
) -> None:
    """Compare methods on a task, fairly, and write a report.

    Each method gets a small search for its learning rate, and then several seeds. Every run is kept:
    the same command runs what is missing, and adding a method runs that one.
    """
    from halka.experiment import read_experiment

    command = shlex.join(["halka", "compare", str(experiment), "-o", str(out)])
    _run(read_experiment(existing_file(experiment, "EXPERIMENT")), out, command, retry, json)


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="measurements, table and report")] = Path(
        "halka-demo"
    ),
    retry: Retry = False,
    json: Json = False,
) -> None:
    """See it work: tune a real model by every family and compare.

    It takes a few minutes on two cores, and fetches the model the first time.
    """
    from halka.experiment import demo_experiment

    _run(demo_experiment(), out, shlex.join(["halka", "demo", "-o", str(out)]), retry, json)


def _run(experiment: Experiment, out: Path, command: str, retry: bool, json: bool) -> None:
    from halka.cli.progress import RunsProgress
    from halka.compare import run, write_outputs
    from halka.models.cache import known_bases, pull

    if out.is_file():
        raise ValueError(f"--out: {out} is a file: name a folder")
    if experiment.base in known_bases():
        pull(experiment.base, say)  # once, and with words, before the runs want it
    try:
        with terminated_as_interrupted(), RunsProgress() as progress:
            for event in run(experiment, out, retry=retry):
                progress.event(event)
    except KeyboardInterrupt:
        say("Stopped. The same command goes on with what is missing")
        raise typer.Exit(130) from None
    outputs = write_outputs(experiment, out, command)
    failed = [each for each in outputs.measurements if each["status"] != "done"]
    if outputs.others:
        say(f"{outputs.others} measurements in {out} are of other settings, and left out of table and report")
    if json:
        files = {"report": outputs.report, "table": outputs.table, "summary": outputs.summary}
        emit({**files, "runs": len(outputs.measurements), "failed": len(failed)})
    else:
        from halka.report import summarise, to_rich

        show(to_rich(summarise(outputs.measurements)), "", f"report: {outputs.report}")
    if failed:
        raise Failed(f"{len(failed)} of {len(outputs.measurements)} runs failed: --retry runs them again")


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """A termination is a Ctrl-C, so that no run outlives the command."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

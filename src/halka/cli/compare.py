"""`halka compare` and `halka demo`: run an experiment, and write its table and report."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from halka.cli.command import Failed, Json, emit, examples, existing_file, say, show, terminated_as_interrupted
from halka.util.errors import HalkaError
from halka.util.text import plural

if TYPE_CHECKING:
    from halka.report.html import Section
    from halka.studies.ablation import Ablation, Summary
    from halka.studies.experiment import Experiment
    from halka.studies.runner import Event

Retry = Annotated[bool, typer.Option("--retry", help="run failed runs again")]
On = Annotated[
    str | None,
    typer.Option(
        "--on", metavar="CLUSTER", help="run on a Ray cluster: ray (this machine is part of it), or ray://HOST:10001"
    ),
]

EXAMPLES = examples(
    "halka compare experiment.yaml -o results",
    "halka compare --rag ablation.yaml -o results",
    "halka compare experiment.yaml -o results --on ray",
)


def compare(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="measurements, table and report")],
    experiment: Annotated[
        Path | None, typer.Argument(metavar="[EXPERIMENT]", help="a YAML file: base, task, methods, seeds")
    ] = None,
    rag: Annotated[
        Path | None,
        typer.Option(
            "--rag", metavar="FILE", help="a YAML file: documents, questions, form, to compare adapter and retrieval"
        ),
    ] = None,
    on: On = None,
    retry: Retry = False,
    json: Json = False,
) -> None:
    """Compare methods, or an adapter and retrieval; write a report.

    Each method gets a small search for its learning rate, and then several seeds. --rag compares an adapter with
    retrieval. Every run is kept: the same command runs only those that are missing, also after a method was added.
    """
    from halka.studies.ablation.settings import questions_of, read_ablation
    from halka.studies.experiment import read_experiment

    if experiment is None and rag is None:
        raise HalkaError("there is nothing to compare: give an EXPERIMENT, or --rag FILE")
    if rag is not None and on is not None:
        raise HalkaError(
            "--on is for an EXPERIMENT: the runs of --rag share a collection on this machine; leave it out"
        )
    positional = [] if experiment is None else [str(experiment)]
    command = shlex.join(
        ["halka", "compare", *positional, *_option("--rag", rag), "-o", str(out), *_option("--on", on)]
    )
    ablation = None if rag is None else read_ablation(existing_file(rag, "--rag"))
    if ablation is not None:
        questions_of(ablation)  # raises before anything runs
    if experiment is None:
        assert ablation is not None
        return _ablate(ablation, out, command, retry, json)
    read = read_experiment(existing_file(experiment, "EXPERIMENT"))
    _end(_run(read, out, command, retry, json, ablation, on))


def _option(flag: str, value: object) -> list[str]:
    return [] if value is None else [flag, str(value)]


def _ablate(ablation: Ablation, out: Path, command: str, retry: bool, json: bool) -> None:
    """Run an ablation alone, and write its table and report."""
    from halka.report.html import write_report
    from halka.studies.ablation.summary import to_rich

    summary, section, errors = _ablated(ablation, out, retry)
    report = write_report((), out / "report.html", title=summary.name, command=command, sections=[section])
    if json:
        emit({"report": report, "table": out / "ablation.md", "summary": out / "ablation.json", "failed": len(errors)})
    else:
        show(to_rich(summary), "", f"report: {report}")
    _end(errors, " of the ablation")


def _ablated(ablation: Ablation, out: Path, retry: bool) -> tuple[Summary, Section, list[str]]:
    """Run an ablation's missing runs, write its table and summary; returns the errors of those that failed, too."""
    import json

    from halka.report.html import Section
    from halka.studies.ablation import results, run, summarise
    from halka.studies.ablation.runs import runs_of
    from halka.studies.ablation.summary import headline, to_html, to_markdown
    from halka.util.files import write_text

    fetch = retry or len(results(ablation, out)) < len(runs_of(ablation, out))
    _follow(run(ablation, out, retry=retry), ablation.place(ablation.base), out, fetch)
    own = results(ablation, out)
    errors = [result["error"] for result in own if result.get("status") == "failed"]
    if len(errors) == len(own):
        _end(errors, " of the ablation")
    summary = summarise(own)
    write_text(out / "ablation.json", json.dumps(summary.to_json(), indent=1) + "\n")
    write_text(out / "ablation.md", to_markdown(summary))
    return summary, Section(to_html(summary), headline(summary)), errors


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="measurements, table and report")] = Path(
        "halka-demo"
    ),
    retry: Retry = False,
    json: Json = False,
) -> None:
    """See it work: fine-tune a real model by a method of every family.

    It compares them in a report, leaves the best adapter in FOLDER/adapters for `halka serve`, takes a
    quarter of an hour or so on two cores, and downloads the model the first time.
    """
    from halka.studies.experiment import demo_experiment

    experiment = demo_experiment()
    errors = _run(experiment, out, shlex.join(["halka", "demo", "-o", str(out)]), retry, json)
    _keep_best(experiment, out)
    _end(errors)


def _keep_best(experiment: Experiment, out: Path) -> None:
    """Put the best adapter into a store, under the task's name, and say how it is served."""
    from halka.storage.adapter_folder import AdapterFolder
    from halka.storage.adapter_store import AdapterStore
    from halka.studies.compare import best_adapter

    if (best := best_adapter(experiment, out)) is None:
        return
    name, store = experiment.task, AdapterStore(out / "adapters")
    if name not in store or store.get(name).open().id != AdapterFolder.open(best).id:
        store.add(best, name)
    program = "halka" if shutil.which("halka") else sys.argv[0]
    settings = ["--base", experiment.base, "--store", str(store.folder), "--comparisons", str(out)]
    command = shlex.join([program, "serve", *settings])
    say(f"the best adapter is {name!r} in {store.folder}. Next: {command}")


def _run(
    experiment: Experiment,
    out: Path,
    command: str,
    retry: bool,
    json: bool,
    ablation: Ablation | None = None,
    on: str | None = None,
) -> list[str]:
    """Run an experiment's missing runs, and write its table and report; returns the errors of those that failed."""
    from halka.cli.reading import say_overlaps
    from halka.studies.compare import is_finished, run, write_outputs
    from halka.studies.experiment import task_of

    say_overlaps(task_of(experiment))
    fetch = on is None and (retry or not is_finished(experiment, out))
    _follow(run(experiment, out, retry=retry, on=on), experiment.base, out, fetch)
    outputs = write_outputs(experiment, out, command)
    errors = [measured["error"] for measured in outputs.measurements if measured["status"] != "done"]
    if ablation is not None:
        say(f"experiment done, report so far: {outputs.report}")
        _, section, failed_too = _ablated(ablation, out, retry)
        outputs = write_outputs(experiment, out, command, [section])
        errors += failed_too
    if outputs.others:
        say(f"{outputs.others} measurements in {out} are of other settings, and left out of table and report")
    for metric, scored in outputs.outdated.items():
        say(
            f"{metric} has changed since it scored {plural(scored, 'run')}: to score them anew, begin with another "
            f"--out, or remove them from {out / 'runs'}"
        )
    if json:
        files = {"report": outputs.report, "table": outputs.table, "summary": outputs.summary}
        emit({**files, "runs": len(outputs.measurements), "failed": len(errors)})
    else:
        from halka.report.summary import summarise
        from halka.report.table import to_rich

        show(to_rich(summarise(outputs.measurements)), "", f"report: {outputs.report}")
    return errors


def _end(errors: Sequence[str], of: str = "") -> None:
    """Raises Failed where some runs failed, with these errors."""
    if errors:
        first = " ".join(errors[0].split())
        raise Failed(f"{plural(len(errors), 'run')}{of} failed: --retry runs what failed again. The first: {first}")


def _follow(events: Iterable[Event], base: str, out: Path, fetch: bool) -> None:
    """Show the progress of runs, until all have ended or Ctrl-C interrupts them.

    With `fetch` runs here need the base: it is fetched once, with its messages, before any begins.
    """
    from halka.cli.progress import RunsProgress
    from halka.models.fetching import known_bases, pull
    from halka.models.loading import resolve

    if out.is_file():
        raise HalkaError(f"--out: {out} is a file: name a folder")
    if fetch and base in known_bases():
        pull(base, say)
    elif fetch:
        resolve(base, fetch=True)
    try:
        with terminated_as_interrupted(), RunsProgress() as progress:
            for event in events:
                progress.event(event)
    except KeyboardInterrupt:
        say("Stopped. The same command resumes with the missing runs")
        raise typer.Exit(130) from None

"""Seconds of a training step and memory of each method of the studies at convergence, one run at a time.

    python benchmarks/paces.py                # an hour for all five; `paces.py snips` for one, some ten minutes

The studies' own runs go two at a time, for hours, perhaps beside other work: their seconds say nothing, and scoring
between the steps leaves memory behind. Here every method trains a few steps of its study in a process of its own, on
the same batches, with all cores: `--rounds` times, the methods in turn. The evidence page's times are a study's steps
by these seconds, its memory is this, the most beyond the base. What is measured is kept in
benchmarks/results/paces.json, and the methods of a study replace its earlier ones.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

from side_by_side import setup

from halka.report.units import size
from halka.studies.compare import ExperimentPlan
from halka.studies.experiment import read_experiment
from halka.studies.spec import BASE, Spec
from halka.training.run_folder import RunFolder
from halka.util.files import write_text
from halka.util.machine import cores
from halka.util.openmp import environment

HERE = Path(__file__).parent
RESULT = HERE / "results" / "paces.json"
SETS = ("snips", "e2e", "banking77", "nl2bash", "facts")
WARM = 4  # steps before those that count


def runs_of(name: str, steps: int) -> list[Spec]:
    """A run of each tuned method of a study, with so many steps."""
    groups, _ = ExperimentPlan(read_experiment(HERE / "experiments" / f"{name}.yaml")).due({})
    first = {run.label: run for group in reversed(groups) for run in reversed(group) if run.method != BASE}
    return [
        replace(run, purpose="search", train={**run.train, "steps": steps, "evaluate_every": steps, "save_every": None})
        for run in first.values()
    ]


def alone(run: Spec) -> tuple[float, int]:
    """The mean seconds of the run's steps after the first ones, and the most bytes beyond the base, in a process."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "run.json").write_text(json.dumps(asdict(run)))
        command = [sys.executable, "-m", "halka.studies.measure", str(folder / "run.json"), str(folder / "result.json")]
        subprocess.run(command, env=environment(cores()), check=True, stdout=subprocess.DEVNULL)
        steps = RunFolder(folder).steps()
        memory = json.loads((folder / "result.json").read_text(encoding="utf-8"))["memory"]
    pace = (steps[-1].seconds - steps[WARM - 1].seconds) / (len(steps) - WARM)
    return pace, memory["peak"] - memory["baseline"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", choices=[*SETS, []], metavar="STUDY", help="; ".join(SETS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=16)
    arguments = parser.parse_args()
    for name in arguments.sets or SETS:
        rounds: dict[str, list[tuple[float, int]]] = {}
        for _ in range(arguments.rounds):
            for run in runs_of(name, WARM + arguments.steps):
                rounds.setdefault(run.label, []).append(pace := alone(run))
                print(f"{name}: {run.label} {pace[0]:.3f} s a step, {size(pace[1])}", flush=True)
        result = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
        medians = {
            kind: {label: statistics.median(values[place] for values in of) for label, of in rounds.items()}
            for place, kind in enumerate(("seconds", "bytes"))
        }
        result[name] = {"setup": setup("halka", "torch", "transformers"), **medians, "rounds": rounds}
        write_text(RESULT, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Runs that train together are saved together, all after the same step, and resumed from there.

What dropout drops, and whose tokens a pass computes, follow from the steps of all runs. So each goes on exactly where
it was only if the others do.
"""

from __future__ import annotations

from collections.abc import Sequence

from halka.training.checkpoint import step_of
from halka.training.ranks import Ranks
from halka.training.run import Run
from halka.training.run_folder import RunFolder
from halka.util.divided import checked_by_first


def save_together(runs: Sequence[Run], ranks: Ranks) -> None:
    """Write the runs' checkpoints, and put them in the place of those before once all are written.

    What ends the process leaves all runs at the step before, or lets `resume_together` put the rest in place. Runs that
    are over get their best weights. An error of one of `ranks` is raised in all: of those that save now, which is this
    one alone where others may be elsewhere.
    """
    unsaved = [run for run in runs if run.unsaved]
    for run in unsaved:
        with ranks.raised_in_all():
            run.write_checkpoint()
    with ranks.raised_in_all():
        for run in unsaved:
            run.keep_checkpoint()


def resume_together(runs: Sequence[Run], ranks: Ranks) -> None:
    """Let the runs go on from their folders' checkpoints, of the newest step that all of them had written.

    Raises as `Run.resume`, and DamagedFolderError for a checkpoint that cannot be read.
    """
    folders = [run.folder for run in runs if run.folder is not None]
    checked_by_first(lambda: _settle(folders))
    for run in runs:
        run.resume(ranks)


def _settle(folders: Sequence[RunFolder]) -> None:
    """Put the checkpoints that wait in place if all runs have written theirs of that step; drop the others.

    They have if one of that step is in place already, or all wait. A run's first one is not put in place here: what is
    asked before, such as whether the run can go on, would have another answer.
    """
    steps = {step_of(folder.checkpoint) for folder in folders}
    waiting = {step_of(folder.next_checkpoint) for folder in folders}
    if len(waiting) == 1 and None not in steps:
        steps |= waiting
    for folder in folders:
        if (step := step_of(folder.next_checkpoint)) is not None:
            if step in steps:
                folder.keep_next()
            else:
                folder.next_checkpoint.unlink()

"""What commands read of data files and tasks, and say of it: the shape, rows left out, prompts in two splits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from halka.cli.command import existing_file, say

if TYPE_CHECKING:
    from halka.data.examples import Example, Rows
    from halka.data.task import Task


def read_data(file: Path, flag: str, shape: str | None) -> list[Example]:
    """A data file's examples; how they were read, and what could not be, is said."""
    return data_rows(file, flag, shape).examples


def data_rows(file: Path, flag: str, shape: str | None) -> Rows:
    """A data file's examples with the rows they are from."""
    from halka.data.examples import read_examples

    rows = read_examples(existing_file(file, flag), shape)
    say(f"{file}: {len(rows.examples)} examples, read as {rows.shape}{'' if shape else ' (--shape says otherwise)'}")
    if rows.problems:
        say(f"{file}: {len(rows.problems)} rows cannot be used; the first: {rows.problems[0]}")
    return rows


def named_task(name: str) -> Task:
    """A task by its name; what of its files cannot be used, or stands in two splits, is said."""
    from halka.data.task import load_task, overlaps

    task = load_task(name)
    if task.problems:
        say(f"{task.name}: {len(task.problems)} rows cannot be used; the first: {task.problems[0]}")
    for (earlier, later), found in overlaps(task).items():
        say(f"{task.name}: {len(found)} prompts of {later} stand in {earlier} too: scores on them are too good")
    return task

"""Read data files and tasks for commands, with messages on their shape, unusable rows, and prompts in two splits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from halka.cli.command import existing_file, say
from halka.util.text import plural

if TYPE_CHECKING:
    from halka.data.examples import Example, FileExamples
    from halka.data.task import Task


def read_data(file: Path, flag: str, shape: str | None) -> list[Example]:
    """A data file's examples. Prints their shape, which fields are not read, and how many rows cannot be used."""
    return data_rows(file, flag, shape).examples


def data_rows(file: Path, flag: str, shape: str | None, also: str | None = None) -> FileExamples:
    """A data file's examples with their rows, of which the caller reads one more field; prints as `read_data`.

    Raises DataError for an unreadable file.
    """
    from halka.data.examples import read_examples

    rows = read_examples(existing_file(file, flag), shape)
    overridden = "" if shape else " (--shape overrides it)"
    labels = {example.answer for example in rows} if rows.shape == "labelled" else ()
    apart = f", with {plural(len(labels), 'different label')}" if labels else ""
    say(f"{file}: {plural(len(rows.examples), 'example')}, read as {rows.shape}{apart}{overridden}")
    if unread := [key for key in rows.unread if key != also]:
        say(f"{file}: not read: {', '.join(unread)}")
    if rows.problems:
        say(f"{file}: {plural(len(rows.problems), 'row')} cannot be used; the first: {rows.problems[0]}")
    return rows


def named_task(name: str) -> Task:
    """Load a task by its name. Prints how many rows cannot be used, and how many prompts are in two splits."""
    from halka.data.task import load_task

    task = load_task(name)
    if task.problems:
        say(f"{task.name}: {plural(len(task.problems), 'row')} cannot be used; the first: {task.problems[0]}")
    if task.unread:
        say(f"{task.name}: not read: {', '.join(task.unread)}")
    say_overlaps(task)
    return task


def say_overlaps(task: Task) -> None:
    """Print how many prompts are in two splits of the task."""
    from halka.data.task import overlaps

    for (earlier, later), prompts in overlaps(task).items():
        shared = plural(len(prompts), "prompt")
        say(f"{task.name}: {earlier} has {shared} of {later}, too: scores on {later} are too high")

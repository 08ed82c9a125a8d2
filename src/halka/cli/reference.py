"""docs/cli.md: every command's `--help`, one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

INTRODUCTION = """\
# Command line

This page is what `halka COMMAND --help` says; it is made by `halka.cli.cli_reference()`.

Results go to stdout (`--json`: as JSON), progress and messages to stderr. An error is one line; the exit code is 2
where the command can be mended, 1 where the work failed, 130 after Ctrl-C. `--debug`, or HALKA_DEBUG=1, shows where an
error came from.
"""


def cli_reference() -> str:
    """The page, from the commands themselves."""
    from halka.cli.app import app

    parts = [
        f"## {path}\n\n```text\n{help}\n```\n" for path, help in _helps(typer.main.get_command(app), "halka", None)
    ]
    return "\n".join([INTRODUCTION, *parts])


def _helps(command: Any, name: str, parent: Any) -> Iterator[tuple[str, str]]:
    from halka.cli.train import Deferred

    command = command.whole() if isinstance(command, Deferred) else command
    context = typer.Context(command, info_name=name, parent=parent, terminal_width=100)
    text = "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
    yield context.command_path, text
    for below, each in getattr(command, "commands", {}).items():
        yield from _helps(each, below, context)

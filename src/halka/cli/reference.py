"""The page docs/cli.md: every command's `--help`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

INTRODUCTION = """\
# Command line

This page is what `halka COMMAND --help` prints; `halka.cli.cli_reference()` makes it.

Results go to stdout (`--json`: as JSON), progress and messages to stderr. An error is one line; the exit code is 2
if the command or its input is wrong, 1 if the work failed or Halka has a bug, 130 after Ctrl-C. `--debug`, or
HALKA_DEBUG=1, shows where an error came from.

Commands of one user that train or answer on a processor at the same time share out its cores. OMP_NUM_THREADS sets the
threads of one, for numbers that are the same to the last bit; HALKA_SHARE_CORES=0 lets it compute with all cores.

The settings of `halka train` and `halka serve` may also be in a YAML file (`--config`; every training run writes its
own as `run.yaml`) and in the environment (for `serve`: HALKA_SERVE_ROWS=8). Flags override the environment, which
overrides the file; an unknown key is an error.

| in the file | in the environment | as a flag |
| --- | --- | --- |
| `base: smollm2-135m` | `HALKA_TRAIN_BASE=smollm2-135m` | `--base smollm2-135m` |
| `rank: 8` | `HALKA_TRAIN_RANK=8` | `--rank 8` |
| `train: {batch_size: 8}` | `HALKA_TRAIN_BATCH_SIZE=8` | `--batch-size 8` |

Paths in a file are relative to its folder. Several values are separated by commas (`--targets attn.q,attn.v`), or are
a list in a file; `none` unsets a value (`--save-every none`).

HALKA_STORE stands for `--store` of `halka adapters`, HALKA_COLLECTIONS for `--collections` of `halka docs` and `ask`,
HALKA_SERVE_DATA for `--data` of `halka keys`. What `--targets` takes are roles, places in a base by names that are the
same in every architecture: [architectures.md](architectures.md).
"""


def cli_reference() -> str:
    """The text of the page, made from the commands."""
    from halka.cli.app import app

    parts = [
        f"## {path}\n\n```text\n{help}\n```\n" for path, help in _helps(typer.main.get_command(app), "halka", None)
    ]
    return "\n".join([INTRODUCTION, *parts])


def _helps(command: Any, name: str, parent: Any) -> Iterator[tuple[str, str]]:
    from halka.cli.setting_flags import Deferred

    command = command.whole() if isinstance(command, Deferred) else command
    context = typer.Context(command, info_name=name, parent=parent, terminal_width=100)
    text = "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
    yield context.command_path, text
    for subname, subcommand in getattr(command, "commands", {}).items():
        yield from _helps(subcommand, subname, context)

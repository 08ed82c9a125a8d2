"""What all commands share: how their help reads, how they speak (results on stdout, all else on stderr), how they fail.

An error is one line on stderr: exit code 2 where the user can mend it, 1 where the work itself failed.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
import tempfile
import traceback
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from halka.util.errors import HalkaError, TrainingError

UsageError: Any = typer.BadParameter.__mro__[1]  # for which typer has no public name

CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

Json = Annotated[bool, typer.Option("--json", help="print the result as JSON")]


# ── help ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Command(TyperCommand):
    """A command whose help lists its options by section, with defaults in brackets."""

    def format_usage(self, ctx: Any, formatter: Any) -> None:
        arguments = (_spelling(each) for each in self.get_params(ctx) if each.param_type_name != "option")
        formatter.write_usage(ctx.command_path, " ".join(["[OPTIONS]", *arguments]))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for each in sorted(self.get_params(ctx), key=lambda each: each.param_type_name):
            is_option = each.param_type_name == "option"
            title = getattr(each, "rich_help_panel", None) or ("Options" if is_option else "Arguments")
            sections.setdefault(title, []).append((_spelling(each), _meaning(each)))
        for title, lines in sections.items():
            with formatter.section(title):
                formatter.write_dl(lines)


def _spelling(parameter: Any) -> str:
    if parameter.param_type_name != "option":
        return parameter.metavar or parameter.name.upper()
    flags = "/".join([", ".join(sorted(parameter.opts, key=len)), *parameter.secondary_opts])
    return f"{flags} {parameter.metavar}" if parameter.metavar else flags


def _meaning(parameter: Any) -> str:
    default = parameter.default
    shown = "" if default in (None, False, "", ()) or callable(default) else f" [{default}]"
    return f"{parameter.help or ''}{shown}" + (" (required)" if parameter.required else "")


def examples(*lines: str) -> str:
    """The end of a command's help."""
    return "\n".join(["\b", "Example:" if len(lines) == 1 else "Examples:", *(f"  {line}" for line in lines)])


def group(help: str, *lines: str) -> typer.Typer:
    """A group of commands, which shows its help, with `lines` as examples, when called without one."""
    made = typer.Typer(help=help, epilog=examples(*lines), rich_markup_mode=None, add_completion=False)

    @made.callback(invoke_without_command=True)
    def alone(ctx: typer.Context) -> None:
        if ctx.invoked_subcommand is None:
            typer.echo(ctx.get_help())

    return made


# ── speaking ────────────────────────────────────────────────────────────────────────────────────────────────────────


def say(message: str) -> None:
    """A message to the user, on stderr."""
    typer.echo(message, err=True)


def emit(value: Any) -> None:
    """A result as JSON, on stdout."""
    typer.echo(json.dumps(plain(value), ensure_ascii=False, indent=1))


def show(*things: Any) -> None:
    """Results for people, on stdout: lines of text, and whatever rich can draw; wide where nobody's screen is.

    Of control characters, which may steer a terminal, text keeps tabs and ends of lines.
    """
    from rich.console import Console

    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 200
    console = Console(highlight=False, markup=False, width=width)
    for thing in things:
        console.print(CONTROLS.sub("", thing) if isinstance(thing, str) else thing, soft_wrap=isinstance(thing, str))


@contextmanager
def warnings_said() -> Iterator[None]:
    """Within the block what Halka warns of is a message to the user."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda message, *_, **__: say(one_line(str(message)))
        yield


def columns(*titles: str, right: Collection[str] = ()) -> Any:
    """An empty table without lines around it; columns named in `right` are aligned so."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for title in titles:
        table.add_column(title, justify="right" if title in right else "left", overflow="fold")
    return table


def plain(value: Any) -> Any:
    """Ready for JSON: dataclasses become objects, paths text, and what is no finite number null."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ── what users give ─────────────────────────────────────────────────────────────────────────────────────────────────


def existing_file(path: Path, given_as: str) -> Path:
    """`path`, if it is a file. Raises ValueError otherwise, naming the flag or argument."""
    if path.is_dir():
        raise HalkaError(f"{given_as}: {path} is a folder: name a file in it")
    return _there(path, given_as, "file")


def existing_folder(path: Path, given_as: str) -> Path:
    """`path`, if it is a folder. Raises ValueError otherwise, naming the flag or argument."""
    if path.is_file():
        raise HalkaError(f"{given_as}: {path} is a file: name the folder it is in")
    return _there(path, given_as, "folder")


def _there(path: Path, given_as: str, kind: str) -> Path:
    if not path.exists():
        raise HalkaError(f"{given_as}: there is no {kind} {path}: check the path, it is seen from {Path.cwd()}")
    return path


def new_file(path: Path, given_as: str) -> Path:
    """`path`, if a file can be written there; an older one is written over. Raises ValueError otherwise."""
    if path.is_dir():
        raise HalkaError(f"{given_as}: {path} is a folder: name a file")
    if not path.parent.is_dir():
        raise HalkaError(f"{given_as}: there is no folder {path.parent} to write {path.name} to: make it first")
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise HalkaError(f"{given_as}: nothing can be written to {path.parent}: {error.strerror}") from None
    return path


def readable_text(path: Path, given_as: str) -> str:
    """What the text file holds. Raises ValueError for none, and for one that is not in UTF-8."""
    try:
        return existing_file(path, given_as).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise HalkaError(f"{given_as}: {path} is not UTF-8 text ({error.reason}): save it as UTF-8") from None


def memory_said(text: str | None, given_as: str) -> int | None:
    """The bytes of a memory's size. Raises ValueError, naming the flag, for what is none, and for a bare number."""
    from halka.report.units import bytes_said

    try:
        return None if text is None else bytes_said(text, bare=False)
    except ValueError as error:
        raise HalkaError(f"{given_as}: {error}") from None


# ── failing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Commands(TyperGroup):
    """The commands, where every error ends: a line on stderr and an exit code."""

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any) -> Any:
        given = list(sys.argv[1:] if args is None else args)
        debug = "--debug" in given or os.environ.get("HALKA_DEBUG", "") not in ("", "0")
        try:
            code = super().main(
                [each for each in given if each != "--debug"], "halka", **{**extra, "standalone_mode": False}
            )
        except Exception as error:
            if debug:
                traceback.print_exc()
            message, code = explain(error)
            say(f"Error: {one_line(message)}")
        sys.exit(code if isinstance(code, int) else 0)


class Failed(Exception):
    """The work came to nothing, and not by what the user gave; the message says why and what to do."""


def explain(error: Any) -> tuple[str, int]:
    """What to tell the user of an error, and the exit code."""
    if isinstance(error, UsageError):
        command = error.ctx.command_path if error.ctx else "halka"
        return f"{error.format_message().rstrip('.')}: see `{command} --help`", 2
    if isinstance(error, TrainingError):
        return str(error), 1
    if isinstance(error, HalkaError):
        return str(error), 2
    if isinstance(error, OSError):
        reason = (error.strerror or str(error)).lower()
        return (reason, 1) if error.filename is None else (f"{error.filename}: {reason}", 2)
    if isinstance(error, Failed | typer.Abort):
        return str(error) or "aborted", 1
    return f"{type(error).__name__}: {error}. This should not happen: HALKA_DEBUG=1 shows where it did", 1


def one_line(text: str) -> str:
    """Text in one line, without control characters."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())

"""What all commands share: help, output (results on stdout, all else on stderr), checks of arguments, errors.

An error is one line on stderr. The exit code is 2 where the user can mend the command or its input, 1 where the work
failed or Halka has a bug, 130 after Ctrl-C.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from halka.util.errors import HalkaError, TrainingError
from halka.util.files import FULL, place_of
from halka.util.plain import plain
from halka.util.suggest import instead, suggest
from halka.util.text import one_line

UsageError: Any = typer.BadParameter.__mro__[1]  # for which typer has no public name

CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

Json = Annotated[bool, typer.Option("--json", help="print the result as JSON")]


# ── help ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Command(TyperCommand):
    """A command whose help lists its options by section, with defaults in brackets.

    An unknown option is an error that names the option that was likely meant. A shell leaves the ~ in --store=~/x as it
    is, so that is expanded.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            left = super().parse_args(ctx, args)
        except UsageError as error:
            error.ctx = error.ctx or ctx
            raise _unknown_option(self, ctx, error) or error from None
        ctx.params = {name: _expanded(value) for name, value in ctx.params.items()}
        return left

    def format_usage(self, ctx: Any, formatter: Any) -> None:
        arguments = (_spelling(param) for param in self.get_params(ctx) if param.param_type_name != "option")
        formatter.write_usage(ctx.command_path, " ".join(["[OPTIONS]", *arguments]))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in sorted(self.get_params(ctx), key=lambda param: param.param_type_name):
            is_option = param.param_type_name == "option"
            title = getattr(param, "rich_help_panel", None) or ("Options" if is_option else "Arguments")
            sections.setdefault(title, []).append((_spelling(param), _meaning(param)))
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


def _expanded(value: Any) -> Any:
    """A parameter's value, with ~ expanded where it is a path, or several."""
    if isinstance(value, list | tuple):
        return type(value)(map(_expanded, value))
    return value.expanduser() if isinstance(value, Path) else value


def _unknown_option(command: Command, ctx: Any, error: Any) -> Exception | None:
    """For an error about an option that the command lacks, one that names what was likely meant."""
    options = [flag for param in command.get_params(ctx) for flag in (*param.opts, *param.secondary_opts)]
    flag = vars(error).get("option_name")  # of errors about options; typer has no public name for their classes
    if flag is None or flag in options:
        return None
    for param in command.get_params(ctx):
        if param.param_type_name == "argument" and param.name == flag.strip("-").replace("-", "_"):
            return UsageError(f"no such option {flag}: write {_spelling(param)} without a flag", ctx)
    near = suggest(flag, [option for option in options if option.startswith("--")])
    hint = instead(flag) or (f"did you mean {near}?" if near else "")
    return UsageError(f"no such option {flag}" + (f": {hint}" if hint else ""), ctx)


def examples(*lines: str) -> str:
    """The examples at the end of a command's help."""
    return "\n".join(["\b", "Example:" if len(lines) == 1 else "Examples:", *(f"  {line}" for line in lines)])


def group(help: str, *lines: str) -> typer.Typer:
    """A group of commands that shows its help, with `lines` as examples, when it is called without one of them."""
    app = typer.Typer(help=help, epilog=examples(*lines), rich_markup_mode=None, add_completion=False)

    @app.callback(invoke_without_command=True)
    def show_help(ctx: typer.Context) -> None:
        if ctx.invoked_subcommand is None:
            typer.echo(ctx.get_help())

    return app


# ── output ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def say(message: str) -> None:
    """Print a message to the user on stderr, without control characters."""
    typer.echo(CONTROLS.sub("", message), err=True)


def emit(value: Any) -> None:
    """Print a result as JSON on stdout; where that cannot hold all characters, others are escaped as JSON does."""
    whole = (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf")
    typer.echo(json.dumps(plain(value), ensure_ascii=not whole, indent=1))


def show(*things: Any) -> None:
    """Print lines of text and whatever rich can draw on stdout, 200 columns wide where that is no terminal.

    Control characters, which can steer a terminal, are removed, but for tabs and line ends.
    """
    from rich.console import Console
    from rich.segment import Segment, Segments

    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 200
    console = Console(highlight=False, markup=False, width=width)
    for thing in things:
        if isinstance(thing, str):
            console.print(CONTROLS.sub("", thing), soft_wrap=True)
        else:
            drawn = (Segment(CONTROLS.sub("", part.text), part.style) for part in console.render(thing))
            console.print(Segments(drawn))


@contextmanager
def show_warnings() -> Iterator[None]:
    """Within the block, print `UserWarning`s as messages to the user, the same text once."""
    shown = set[str]()

    def show_new(message: Warning | str, *_: Any, **__: Any) -> None:
        if (text := one_line(str(message))) not in shown:
            shown.add(text)
            say(text)

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show_new
        yield


# ── arguments ───────────────────────────────────────────────────────────────────────────────────────────────────────


def existing_file(path: Path, flag: str) -> Path:
    """`path`, if it is a file. Raises HalkaError otherwise, naming the flag or argument."""
    if path.is_dir():
        raise HalkaError(f"{flag}: {path} is a folder: name a file in it")
    return _existing(path, flag, "file")


def existing_folder(path: Path, flag: str) -> Path:
    """`path`, if it is a folder. Raises HalkaError otherwise, naming the flag or argument."""
    if path.is_file():
        raise HalkaError(f"{flag}: {path} is a file: name the folder it is in")
    return _existing(path, flag, "folder")


def _existing(path: Path, flag: str, kind: str) -> Path:
    if not path.exists():
        raise HalkaError(f"{flag}: there is no {kind} {path}: check the path, it is seen from {Path.cwd()}")
    return path


def new_file(path: Path, flag: str) -> Path:
    """`path`, if a file can be written there; makes its folder. Raises HalkaError otherwise.

    A file that is already there will be written over.
    """
    if path.is_dir():
        raise HalkaError(f"{flag}: {path} is a folder: name a file")
    if path.exists() and not path.is_file():  # a file would take the place of the device or pipe
        raise HalkaError(f"{flag}: {path} is no regular file: name one that can be written over")
    folder = place_of(path).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        shown = folder if path.is_symlink() else path.parent
        raise HalkaError(f"{flag}: nothing can be written to {shown}: {error.strerror}") from None
    return path


def readable_text(path: Path, flag: str) -> str:
    """The text in a file. Raises HalkaError for no file, and for one that is not UTF-8."""
    try:
        return existing_file(path, flag).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise HalkaError(f"{flag}: {path} is not UTF-8 text ({error.reason}): save it as UTF-8") from None


def memory_size(text: str | None, flag: str) -> int | None:
    """The bytes of a size of memory; a bare number is in GB. Raises HalkaError, naming the flag, for another text."""
    from halka.report.units import bytes_said

    try:
        return None if text is None else bytes_said(f"{text}GB" if re.fullmatch(r"[\d.]+", text) else text, bare=False)
    except HalkaError as error:
        raise HalkaError(f"{flag}: {error}") from None


# ── errors ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def own_rank() -> str:
    """This process's number among those that torchrun started, before they meet; "0" where it is alone."""
    return os.environ.get("RANK", "0") if "WORLD_SIZE" in os.environ else "0"


class Commands(TyperGroup):
    """The command line as a whole: every error ends here as a line on stderr and an exit code."""

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any) -> Any:
        arguments = list(sys.argv[1:] if args is None else args)
        debug = "--debug" in arguments or os.environ.get("HALKA_DEBUG", "") not in ("", "0")
        arguments = [argument for argument in arguments if argument != "--debug"]
        try:
            code = super().main(arguments, "halka", **{**extra, "standalone_mode": False})
        except Exception as error:
            if debug:
                traceback.print_exc()
            message, code = explain(error)
            rank = own_rank()
            say(f"{'' if rank == '0' else f'rank {rank}: '}Error: {one_line(message)}")
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            say("Stopped.")
            raise typer.Exit(130) from None


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Handle SIGTERM like Ctrl-C within the block, so that nothing that it started outlives the command."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Failed(Exception):
    """The work failed, though the command was right; the message says why and what to do."""


def _removed_under_us() -> bool:
    """Whether the working folder, from which relative paths are seen, is there no more."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


def explain(error: Any) -> tuple[str, int]:
    """An error's message to the user, and the exit code.

    What is none of these classes is a bug, a `ValueError` too: its message says how to see where, and to report it.
    """
    if isinstance(error, UsageError):
        command = error.ctx.command_path if error.ctx else "halka"
        message = error.format_message().rstrip(".")
        return f"{message}{' See' if message.endswith('?') else ': see'} `{command} --help`", 2
    if isinstance(error, HalkaError):
        return str(error), 1 if isinstance(error, TrainingError) else 2
    if isinstance(error, FileNotFoundError) and error.filename is None and _removed_under_us():
        return "the folder that the command runs in was removed: change to another one", 2
    if isinstance(error, OSError):
        reason = error.strerror.lower() if error.strerror else str(error) or type(error).__name__
        if full := error.errno in FULL:
            reason += ": make room there, or name another folder"
        message = reason if error.filename is None else f"{error.filename}: {reason}"
        return message, 1 if full or error.filename is None else 2
    if isinstance(error, Failed | typer.Abort):
        return str(error) or "aborted", 1
    from halka.util.machine import ran_out

    if ran_out(error):
        reason = re.split(r"\.\s", str(error))[0].rstrip(".") or "the machine has no more"
        return (
            f"out of memory ({reason}): choose a smaller base or --quantize nf4, another --device, fewer or shorter "
            "texts at once, or end other programs that hold memory there",
            1,
        )
    message = f"{type(error).__name__}: {error}".rstrip(" .:")
    return (
        f"{message}. This is a bug, in Halka or in a library that it uses: HALKA_DEBUG=1 shows where; please report "
        "what that prints to Halka's maintainers, with `halka --version`",
        1,
    )

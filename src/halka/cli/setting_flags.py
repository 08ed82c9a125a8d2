"""Commands whose flags are settings: these are dataclasses that need torch, so flags are built at the call."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from halka.cli.command import Command
from halka.util.settings import Setting


class Deferred(Command):
    """A command before it is called: `whole` builds it with its flags."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        return self.whole().make_context(info_name, args, parent, **extra)

    def whole(self) -> Any:
        """The command with all its flags, as `command_of` makes it."""
        raise NotImplementedError


def command_of(
    name: str, run: Callable[..., None], flags: Sequence[inspect.Parameter], help: str | None, examples: str
) -> Any:
    """A command that calls `run` with these flags: typer reads them from its signature."""
    run.__signature__ = inspect.Signature(flags)  # type: ignore[attr-defined]
    app = typer.Typer(rich_markup_mode=None, add_completion=False)
    app.command(name, cls=Command, help=help, epilog=examples)(run)
    return typer.main.get_command(app)


def flag(name: str, kind: Any, default: Any, **more: Any) -> inspect.Parameter:
    """A flag that is no setting."""
    annotation = Annotated[kind, typer.Option(f"--{name}", **more)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def setting_flag(setting: Setting, section: str) -> inspect.Parameter:
    """One setting as a flag. Its value is text, which `build` converts, as it does those of files."""
    name = setting.flag
    names = [f"{name}/--no-{name[2:]}"] if setting.item is bool else [name, *filter(None, [setting.short])]
    kind: Any = bool | None if setting.item is bool else str | None
    if setting.repeated:
        kind = list[str] | None
    shown = setting.shown
    option = typer.Option(
        *names,
        help=setting.help + (f" [{shown}]" if shown else ""),
        metavar=setting.metavar or None,
        rich_help_panel=section,
    )
    return inspect.Parameter(
        setting.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, option]
    )

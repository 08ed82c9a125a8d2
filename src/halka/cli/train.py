"""`halka train`: an adapter from data. Its flags are the dataclasses' fields, so they are made when they are needed."""

from __future__ import annotations

import json as jsonlib
import os
import shlex
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from halka.cli.command import Command, Failed, emit, examples, existing_file, say, show

if TYPE_CHECKING:
    from halka.cli.train_settings import RunSettings
    from halka.core import AdaptedModel, Method
    from halka.data.task import Task
    from halka.training import TrainConfig

RUN, ADAPTER = "run.yaml", "adapter"
EXAMPLES = examples(
    "halka train --base smollm2-135m --task support -o runs/support",
    "halka train --base smollm2-135m --method prefix --length 30 \\",
    "    --data train.jsonl --validation 0.1 --lr 0.01 --epochs 5 -o runs/mine",
    "halka train --config runs/mine/run.yaml",
)


def train() -> None:
    """Train an adapter, and save it in the run's folder.

    Every setting may stand in a YAML file (--config), in the environment and on the command line, each overriding the
    one before: `rank: 8` and `train: {lr: 0.001}`, HALKA_TRAIN_RANK=8, --rank 8.

    A run that was stopped goes on where it was when the same command is given again; Ctrl-C stops it after the step.
    """


class Deferred(Command):
    """Stands for the command until it is called: its flags are the fields of classes that need torch."""

    def whole(self) -> Any:
        from halka.cli.train_settings import signature

        own = [
            _flag("config", Path | None, None, "--config", metavar="FILE", help="a YAML file with settings"),
            _flag("overwrite", bool, False, "--overwrite", help="train anew where a finished run is"),
            _flag("tensorboard", bool, False, "--tensorboard", help="write FOLDER/tensorboard too"),
            _flag("json", bool, False, "--json", help="print the result as JSON"),
        ]

        def run(config: Path | None, overwrite: bool, tensorboard: bool, json: bool, **flags: Any) -> None:
            go(config, overwrite, tensorboard, json, flags)

        settings = signature()
        run.__signature__ = settings.replace(parameters=[*settings.parameters.values(), *own])  # type: ignore[attr-defined]
        app = typer.Typer(rich_markup_mode=None, add_completion=False)
        app.command("train", cls=Command, help=train.__doc__, epilog=EXAMPLES)(run)
        return typer.main.get_command(app)

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        return self.whole().make_context(info_name, args, parent, **extra)


def _flag(name: str, kind: Any, default: Any, flag: str, **more: Any) -> Any:
    import inspect

    annotation = Annotated[kind, typer.Option(flag, **more)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)

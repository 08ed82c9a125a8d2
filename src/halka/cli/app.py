"""`halka`: all commands by name."""

from __future__ import annotations

import io
import os
import sys
from functools import partial
from typing import Annotated

import typer

from halka.cli import (
    adapters,
    advise,
    ask,
    bases,
    chat,
    compare,
    data,
    estimate,
    evaluate,
    generate,
    keys,
    lm_eval,
    merge,
    methods,
    retrieval,
    serve,
    train,
)
from halka.cli.command import Command, Commands, examples
from halka.util.openmp import share_cores
from halka.util.quiet import quiet_process

app = typer.Typer(
    cls=Commands,
    help="Fine-tune language models lightly: one frozen base, many small adapters, measured.",
    epilog=examples("halka demo", "halka train --base smollm2-135m --task support -o runs/support"),
    rich_markup_mode=None,
    add_completion=False,
)
command = partial(app.command, cls=Command)


@app.callback(invoke_without_command=True)
def halka(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="print the version")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="show where an error came from, as HALKA_DEBUG=1 does")
    ] = False,
) -> None:
    if version:
        from importlib.metadata import version as version_of

        typer.echo(f"halka {version_of('halka')}")
    elif ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


app.add_typer(bases.app, name="base")
command("methods", epilog=examples("halka methods", "halka methods lora"))(methods.methods)
command("advise", epilog=advise.EXAMPLES)(advise.advise)
command("estimate", epilog=estimate.EXAMPLES)(estimate.estimate)
app.add_typer(data.app, name="data")
app.command("train", cls=train.Train)(train.train)
command("evaluate", epilog=evaluate.EXAMPLES)(evaluate.evaluate)
command("generate", epilog=generate.EXAMPLES)(generate.generate)
command("merge", epilog=merge.EXAMPLES)(merge.merge)
command("lm-eval", epilog=lm_eval.EXAMPLES, context_settings=lm_eval.PASSED_ON)(lm_eval.lm_eval)
command("compare", epilog=compare.EXAMPLES)(compare.compare)
command("demo", epilog=examples("halka demo -o demo"))(compare.demo)
app.add_typer(adapters.app, name="adapters")
app.add_typer(retrieval.app, name="docs")
command("ask", epilog=ask.EXAMPLES)(ask.ask)
command("chat", epilog=chat.EXAMPLES)(chat.chat)
app.add_typer(keys.app, name="keys")
app.command("serve", cls=serve.Serve)(serve.serve)


def main() -> None:
    """Run the command line: the entry point of the package.

    Characters that the terminal's encoding lacks, and undecodable bytes of file names, are printed as escapes.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # whoever started the process closed it
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 (as long as the process)
    quiet_process()
    share_cores()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # what is no UTF-8 is refused where it is read, by name
    app()

"""`halka chat`: talk to a server, or to a base with an adapter in an engine of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from typing import Annotated, Any

import typer

from halka.cli.adapter_names import AdapterNames, StoreFolder, given_adapters, note_system
from halka.cli.command import CONTROLS, Failed, examples, say
from halka.cli.generate import MaxNewTokens, Seed, Temperature, TopP, sampling
from halka.cli.opening import Loading, open_model, with_loading
from halka.cli.remote import HERE, KEY, Aside, Server
from halka.util.errors import HalkaError
from halka.util.text import not_unicode, one_line

EXAMPLES = examples(
    "halka chat",
    "halka chat --url https://halka.example.org --key-env HALKA_API_KEY --model support",
    "halka chat --base smollm2-135m --adapter runs/support/adapter",
    'halka chat --base smollm2-135m --store adapters --adapter support --system "Answer in one sentence."',
    'echo "Where is my parcel?" | halka chat --model support --collection faq',
)
PROMPT = "> "
NEW = "/new"

Message = dict[str, str]
Reply = Callable[[list[Message]], Generator[str]]
"""From a conversation to its answer, in pieces as they are made; who closes it stops the answer."""


@with_loading
def chat(
    url: Annotated[str | None, typer.Option(metavar="URL", help=f"the server to talk to [{HERE}]")] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="the server's model: the base or an adapter [the base]")
    ] = None,
    key_env: Annotated[
        str, typer.Option("--key-env", metavar="NAME", help="the variable that has the server's API key")
    ] = KEY,
    collection: Annotated[
        str | None, typer.Option(metavar="NAME", help="let the server answer from this collection, with sources")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="talk to no server, but to this base: short name, folder or hub name"),
    ] = None,
    adapter: AdapterNames = None,
    store: StoreFolder = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="a system message before the conversation")] = None,
    max_new_tokens: MaxNewTokens = 512,
    temperature: Temperature = 0.0,
    top_p: TopP = None,
    seed: Seed = None,
    *,
    loading: Loading,
) -> None:
    """Talk to a server, or to a base with an adapter here.

    Each line is a message; the answers so far are part of the conversation. Ctrl-C stops an answer, /new begins anew,
    Ctrl-D ends. Lines may come from a pipe, too.
    """
    sampling(temperature, top_p)  # checks them
    for flag, text in {"--model": model, "--collection": collection, "--system": system}.items():
        check_unicode(text or "", flag)
    options = {"temperature": temperature, "top_p": top_p, "seed": seed}
    if base is None:
        if adapter or store:
            raise HalkaError("--adapter and --store are for a --base of your own: a server's adapter is its --model")
        server = Server.of(url or HERE, key_env)
        talk(server.replies(model, max_new_tokens, options, collection), system)
        return
    if flag := next((flag for flag, value in (("--url", url), ("--model", model)) if value is not None), None):
        raise HalkaError(f"{flag} is for a server, and --base for an engine of your own: give one of them")
    if collection is not None:
        raise HalkaError("--collection is for a server: `halka ask` answers from a collection here")
    adapters = given_adapters(adapter, store, loading.allow_pickle)
    name = adapters.only
    if system is None:
        note_system(adapters, [name])
    with own_engine(open_model(base, adapters, [name], loading), name, max_new_tokens, options) as reply:
        talk(reply, system)


def talk(reply: Reply, system: str | None) -> None:
    """Answer line after line, each in the conversation so far."""
    before = [] if system is None else [{"role": "system", "content": system}]
    history = [*before]
    for line in _lines():
        if line == NEW:
            history = [*before]
            continue
        asked = [*history, {"role": "user", "content": line}]
        try:
            check_unicode(line, "the message")
            text = _show(reply(asked))
        except (HalkaError, Failed) as error:
            if not sys.stdin.isatty():
                raise
            say(f"Error: {one_line(str(error))}")
            continue
        if text.strip():  # else it was stopped before it began
            history = [*asked, {"role": "assistant", "content": text}]


def check_unicode(text: str, name: str) -> None:
    """Raises HalkaError, which calls the text `name`, for one that is not UTF-8."""
    if fault := not_unicode(text):
        raise HalkaError(f"{name} {fault}")


def _lines() -> Iterator[str]:
    """What the user says: lines typed after a prompt, or those of a pipe; without empty ones."""
    typed = sys.stdin.isatty()
    if typed:
        import readline  # noqa: F401 (lines can be edited)
    while True:
        try:
            line = input(PROMPT) if typed else next(sys.stdin)
        except (EOFError, StopIteration):
            if typed:
                say("")
            return
        if line.strip():
            yield line.strip()


def _show(pieces: Generator[str]) -> str:
    """Print an answer as it is made, up to Ctrl-C, and return it."""
    shown = ""
    try:
        with closing(pieces):
            for piece in pieces:
                typer.echo(CONTROLS.sub("", piece), nl=False)
                sys.stdout.flush()
                shown += "" if isinstance(piece, Aside) else piece
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
        say(" (stopped)")
        return shown
    typer.echo()
    return shown


@contextmanager
def own_engine(model: Any, name: str | None, tokens: int, options: dict[str, Any]) -> Iterator[Reply]:
    """Replies by an engine that keeps what it has read of the conversation."""
    from halka.engine import Engine, Request, Sampling, Stopping
    from halka.engine.sampling import SEEDS

    seed = options["seed"]
    sampling = Sampling(**{**options, "seed": None if seed is None else seed % SEEDS})
    with Engine(model, rows=1) as engine:

        def reply(history: list[Message]) -> Generator[str]:
            request = Request.of(history, model.tokenizer, adapter=name, sampling=sampling, stopping=Stopping(tokens))
            (answer,) = engine.submit(request)
            shown = 0
            try:
                while answer.finish is None:
                    engine.step()
                    yield answer.text[shown:]
                    shown = len(answer.text)
            finally:
                engine.cancel(answer)
            if answer.error is not None:
                raise answer.error

        yield reply

"""`halka ask`: a question, answered from a collection's passages, with sources."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from halka.cli.command import CONTROLS, Json, emit, examples, one_line, show
from halka.cli.docs import HERE, Asking, Mode, Place, Rerank, Tags, Under, opened, retriever_of, scope_of
from halka.cli.generate import sampling
from halka.cli.opening import Base, Loading, open_model, with_loading
from halka.cli.routing import AdapterNames, StoreFolder, given_adapters
from halka.util.errors import HalkaError

if TYPE_CHECKING:
    from halka.rag.answer import Answer

EXAMPLES = examples(
    'halka ask "When are parcels sent?" --collection faq --base smollm2-135m',
    'halka ask "Who earns more?" --collection hr --as bob --base smollm2-135m --adapter runs/style/adapter --json',
)


@with_loading
def ask(
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="what to answer")],
    base: Base,
    collection: Annotated[str, typer.Option(metavar="NAME", help="the collection that holds the answer")],
    adapter: AdapterNames = None,
    store: StoreFolder = None,
    passages: Annotated[int, typer.Option(metavar="N", min=1, help="passages in the prompt, at most")] = 4,
    neighbours: Annotated[
        int, typer.Option(metavar="TOKENS", min=0, help="read what stands around passages, so many tokens in all [0]")
    ] = 0,
    floor: Annotated[
        float | None,
        typer.Option(
            metavar="SCORE",
            help="of the best passage: below it the documents do not say; docs examples tells it, by --mode",
        ),
    ] = None,
    mode: Mode = "hybrid",
    rerank: Rerank = None,
    asking: Asking = None,
    tag: Tags = None,
    under: Under = None,
    max_new_tokens: Annotated[int, typer.Option(metavar="N", min=1, help="tokens an answer, at most")] = 256,
    temperature: Annotated[
        float, typer.Option(metavar="X", min=0.0, help="0: always the likeliest token; above: drawn at random")
    ] = 0.0,
    collections: Place = HERE,
    *,
    loading: Loading,
    json: Json = False,
) -> None:
    """Answer a question from a collection's passages, with the sources; as it is made, unless --json asks for all.

    The adapter gives the form, the documents the knowledge. Nothing is answered from what --as may not read.
    """
    from halka.evaluation.streaming import answering, prompt_budget, prompt_tokens
    from halka.rag.answer import Answerer

    options = sampling(temperature, None)
    retriever = retriever_of(opened(collection, collections), mode, rerank)
    adapters = given_adapters(adapter, store, loading.allow_pickle)
    if len(adapters.named) > 1:
        raise HalkaError(f"{len(adapters.named)} adapters were given: one answers, so name one")
    name = adapters.usual
    model = open_model(base, adapters, [name], loading)
    answerer = Answerer(
        retriever,
        answering(model, name, max_new_tokens, options),
        prompt_budget(model, name, max_new_tokens),
        lambda text: prompt_tokens(model, text),
        passages,
        neighbours,
        floor,
    )
    scope = scope_of(asking, tag, under)
    if json:
        return emit(answerer.ask(question, scope))
    for each in answerer.stream(question, scope):
        if isinstance(each, str):
            typer.echo(CONTROLS.sub("", each), nl=False)
        else:
            typer.echo()
            _show_sources(each)


def _show_sources(answer: Answer) -> None:
    cited = [each for each in answer.sources if each.cited]
    if answer.sources and not answer.abstained:
        show("", "Sources:" if cited else "No source is cited. Read:")
    for each in (cited or answer.sources) if not answer.abstained else ():
        page = f", page {each.page}" if each.page else ""
        show(f"[{each.number}] {one_line(each.document)}{page}, {each.start}–{each.end}")

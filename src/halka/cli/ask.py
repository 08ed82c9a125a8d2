"""`halka ask`: answer a question from a collection's passages, with sources."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from halka.cli.adapter_names import AdapterNames, StoreFolder, given_adapters
from halka.cli.command import CONTROLS, Json, emit, examples, show
from halka.cli.docs import HERE, Place, collection_named
from halka.cli.generate import MaxNewTokens, Temperature, sampling
from halka.cli.opening import Base, Loading, open_model, with_loading
from halka.cli.retrieval import Asking, Mode, Rerank, Tags, Under, retriever_of, scope_of
from halka.rag import PASSAGES
from halka.util.errors import HalkaError
from halka.util.text import one_line

if TYPE_CHECKING:
    from halka.rag.answer import Answer

EXAMPLES = examples(
    'halka ask "When are parcels sent?" --collection faq --base smollm2-135m',
    'halka ask "Who earns more?" --collection hr --as bob --base smollm2-135m --adapter runs/style/adapter --json',
)


@with_loading
def ask(
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="the question to answer")],
    base: Base,
    collection: Annotated[str, typer.Option(metavar="NAME", help="the collection that holds the answer")],
    adapter: AdapterNames = None,
    store: StoreFolder = None,
    passages: Annotated[int, typer.Option(metavar="N", min=1, help="the most passages in the prompt")] = PASSAGES,
    neighbours: Annotated[
        int,
        typer.Option(metavar="TOKENS", min=0, help="add the text around passages, up to so many tokens in all [0]"),
    ] = 0,
    floor: Annotated[
        float | None,
        typer.Option(
            metavar="SCORE",
            help="the score that the best passage must reach, else it abstains; `docs examples` prints one",
        ),
    ] = None,
    mode: Mode = "hybrid",
    rerank: Rerank = None,
    asking: Asking = None,
    tag: Tags = None,
    under: Under = None,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.0,
    collections: Place = HERE,
    *,
    loading: Loading,
    json: Json = False,
) -> None:
    """Answer a question from a collection's passages, with sources.

    The answer is streamed, or with --json printed when it is complete. Passages that --as may not read are never used.
    """
    from halka.evaluation.streaming import answering
    from halka.rag.answer import Answerer

    if not question.strip():
        raise HalkaError("QUESTION is empty: ask something")
    options = sampling(temperature, None)
    retriever = retriever_of(collection_named(collection, collections), mode, rerank)
    adapters = given_adapters(adapter, store, loading.allow_pickle)
    name = adapters.only
    model = open_model(base, adapters, [name], loading)
    answerer = Answerer(
        retriever,
        *answering(model, name, max_new_tokens, options),
        passages=passages,
        neighbours=neighbours,
        floor=floor,
    )
    scope = scope_of(asking, tag, under)
    if json:
        return emit(answerer.ask(question, scope))
    for piece in answerer.stream(question, scope):
        if isinstance(piece, str):
            typer.echo(CONTROLS.sub("", piece), nl=False)
        else:
            typer.echo()
            _show_sources(piece)


def _show_sources(answer: Answer) -> None:
    if answer.abstained or not answer.sources:
        return
    cited = [source for source in answer.sources if source.cited]
    show("", "Sources:" if cited else "No source is cited. Passages in the prompt:")
    for source in cited or answer.sources:
        page = f", page {source.page}" if source.page else ""
        show(f"[{source.number}] {one_line(source.document)}{page}, {source.start}–{source.end}")

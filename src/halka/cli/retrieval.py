"""The commands that search a collection: `halka docs search`, `evaluate`, `examples`; their options."""

from __future__ import annotations

import json as jsonlib
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import typer

from halka.cli.command import (
    Command,
    Json,
    emit,
    examples,
    existing_file,
    existing_folder,
    new_file,
    say,
    show,
)
from halka.cli.docs import HERE, Embedder, Name, Place, app, collection_named, open_or_begin, report
from halka.rag import PASSAGES
from halka.util.errors import HalkaError
from halka.util.text import columns, one_line, plural

if TYPE_CHECKING:
    from halka.rag.collection import Collection
    from halka.rag.retrieve import Retriever
    from halka.rag.store import Scope

Asking = Annotated[
    list[str] | None, typer.Option("--as", metavar="NAME", help="who asks, and their groups; may be repeated")
]
Tags = Annotated[list[str] | None, typer.Option("--tag", metavar="TAG", help="only documents with it; may be repeated")]
Under = Annotated[
    Path | None, typer.Option("--under", metavar="PATH", help="only this document, or those below this path")
]
SearchMode = Literal["hybrid", "vectors", "words"]
Mode = Annotated[SearchMode, typer.Option("--mode", metavar="MODE", help="search by hybrid, vectors or words")]
Rerank = Annotated[
    str | None,
    typer.Option("--rerank", metavar="NAME", help="a cross-encoder that reranks passages: a folder or a hub name"),
]


@app.command("search", cls=Command, epilog=examples('halka docs search faq "Where is my parcel?" --count 3'))
def search(
    name: Name,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="the question to find passages for")],
    count: Annotated[int, typer.Option(metavar="N", min=1, help="the most passages")] = 5,
    mode: Mode = "hybrid",
    rerank: Rerank = None,
    asking: Asking = None,
    tag: Tags = None,
    under: Under = None,
    collections: Place = HERE,
    json: Json = False,
) -> None:
    """Find the passages that best fit a question."""
    retriever = retriever_of(collection_named(name, collections), mode, rerank)
    hits = retriever.search(question, count, scope_of(asking, tag, under))
    if json:
        return emit(hits)
    for rank, hit in enumerate(hits, start=1):
        page = f", page {hit.passage.page}" if hit.passage.page else ""
        place = f"{one_line(hit.passage.document)}{page}, {hit.passage.start}–{hit.passage.end}"
        show(f"[{rank}] {hit.score:.3f}  {place}", *filter(None, [one_line(hit.passage.heading)]), hit.passage.text, "")
    if not hits:
        show("nothing was found that you may read" if asking is None else "nothing was found")


@app.command(
    "evaluate",
    cls=Command,
    epilog=examples("halka docs evaluate scifact ./scifact", "halka docs evaluate q ./q --mode words"),
)
def evaluate(
    name: Name,
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="with queries.jsonl and qrels/test.tsv in BEIR's layout")
    ],
    split: Annotated[str, typer.Option(metavar="NAME", help="the judgements of this split: qrels/NAME.tsv")] = "test",
    mode: Annotated[
        SearchMode | None, typer.Option("--mode", metavar="MODE", help="hybrid, vectors or words [all]")
    ] = None,
    rerank: Rerank = None,
    asking: Asking = None,
    embedder: Embedder = None,
    collections: Place = HERE,
    json: Json = False,
) -> None:
    """Score how well search finds a collection's relevant documents.

    If FOLDER has a corpus.jsonl, its documents are added first: to a new collection, or one that holds no others.
    """
    from halka.cli.progress import CountProgress
    from halka.rag.evaluate import evaluate, put_corpus, read_queries

    queries = read_queries(existing_folder(folder, "FOLDER"), split)
    if (folder / "corpus.jsonl").is_file():
        _, collection = open_or_begin(name, collections, embedder)
        report(put_corpus(collection, folder), json=False, quiet=True)
    else:
        collection = collection_named(name, collections)
    scores, retriever = {}, retriever_of(collection, mode or "hybrid", rerank)
    scope = scope_of(asking)
    for one in get_args(SearchMode) if mode is None else [mode]:
        with CountProgress(f"{one}: queries", len(queries.texts)) as progress:
            scores[one] = evaluate(replace(retriever, mode=one), queries, scope=scope, on_progress=progress.done)
    if json:
        return emit(scores)
    measures = [*next(iter(scores.values()))]
    table = columns("mode", *measures, right=measures)
    for one, means in scores.items():
        table.add_row(one, *(f"{means[measure]:.3f}" for measure in measures))
    show(table, f"{plural(len(queries.texts), 'query')}, {plural(collection.count()[0], 'document')}")


@app.command(
    "examples",
    cls=Command,
    epilog=examples(
        "halka docs examples faq questions.jsonl -o train.jsonl",
        "halka train --data train.jsonl --base smollm2-135m -o runs/faq",
    ),
)
def examples_(
    name: Name,
    questions: Annotated[
        Path, typer.Argument(metavar="FILE", help='rows with "question", "answer" or "answers", "document"')
    ],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE", help="write rows for training here, as JSONL")],
    passages: Annotated[int, typer.Option(metavar="N", min=1, help="passages in a prompt")] = PASSAGES,
    without: Annotated[
        float, typer.Option(metavar="SHARE", help="questions whose passage is left out, to train abstaining")
    ] = 0.2,
    cite: Annotated[bool, typer.Option("--cite/--no-cite", help="end answers with their citation")] = True,
    form: Annotated[
        str, typer.Option(metavar="TEXT", help='the form of answers, such as "Answer: {answer}"')
    ] = "{answer}",
    seed: Annotated[
        int, typer.Option(metavar="N", help="for the order of passages, and the choice of those left out")
    ] = 0,
    mode: Mode = "hybrid",
    rerank: Rerank = None,
    asking: Asking = None,
    collections: Place = HERE,
    json: Json = False,
) -> None:
    """Make training data from questions and the passages found for them.

    A question has the passage that answers it among other search results.
    """
    from halka.rag.answer import floor_for
    from halka.rag.questions import read_questions
    from halka.rag.raft import Raft
    from halka.util.files import write_text

    asked = read_questions(existing_file(questions, "FILE"))
    target = new_file(out, "--out")
    if target.resolve() == questions.resolve():
        raise HalkaError(f"--out: {out} would overwrite an input: name another file")
    retriever, scope = retriever_of(collection_named(name, collections), mode, rerank), scope_of(asking)
    pairs = [*Raft(passages, without, cite, form, seed).pairs(retriever, asked, scope)]
    if not pairs:
        raise HalkaError(f"no passage in {name} holds an answer of {questions}: are these its documents?")
    rows = [row for _, row in pairs]
    write_text(target, "".join(jsonlib.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    answerable = [question.question for question, _ in pairs if question.answers]
    floor = floor_for(retriever, answerable, scope=scope) if answerable else -math.inf
    counts = {"questions": len(asked), "examples": len(rows), "abstaining": sum(row["gold"] is None for row in rows)}
    if json:
        return emit({**counts, "floor": floor if math.isfinite(floor) else None})
    summary = f"{plural(len(asked), 'question')}, {plural(len(rows), 'example')}, {counts['abstaining']} abstaining"
    show(f"{summary}, in {target}")
    if math.isfinite(floor):
        shown = f"{math.floor(1000 * floor) / 1000:.3f}"  # a floor that is rounded up would give up some of these
        flags = ("" if mode == "hybrid" else f" --mode {mode}") + ("" if rerank is None else f" --rerank {rerank}")
        say(
            f"for 95 % of the questions that a passage answers, the best passage scores {shown} or more: "
            f"`halka ask{flags} --floor {shown}` abstains below it"
        )


def retriever_of(collection: Collection, mode: SearchMode, rerank: str | None) -> Retriever:
    """The retriever of the options --mode and --rerank. Raises HalkaError if there is no such cross-encoder."""
    from halka.rag.retrieve import CrossEncoder, Retriever

    return Retriever(collection, mode, None if rerank is None else CrossEncoder(rerank))


def scope_of(asking: list[str] | None, tags: list[str] | None = None, under: Path | None = None) -> Scope:
    """The scope of --as, --tag and --under. An existing path is resolved; any other may be the name of a text."""
    from halka.rag.roots import located
    from halka.rag.store import Scope

    place = None if under is None else under.expanduser()
    if place is not None and place.exists():
        place = located(place)
    return Scope(frozenset(asking or ()), "" if place is None else str(place), frozenset(tags or ()))

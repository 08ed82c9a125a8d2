"""`halka docs`: collections of documents, and finding passages in them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from halka.cli.command import (
    Command,
    Failed,
    Json,
    columns,
    emit,
    examples,
    existing_file,
    existing_folder,
    group,
    new_file,
    one_line,
    say,
    show,
)
from halka.util.errors import HalkaError

if TYPE_CHECKING:
    from halka.rag.collection import Collection, Event
    from halka.rag.retrieve import Retriever
    from halka.rag.store import Scope

app = group(
    "Collections of documents: take in files, find passages, keep them fresh.",
    "halka docs add faq ./documents",
    'halka docs search faq "Where is my parcel?"',
    "halka docs refresh faq",
)

Name = Annotated[str, typer.Argument(metavar="COLLECTION", help="a collection's name")]
Place = Annotated[
    Path, typer.Option("--collections", metavar="FOLDER", envvar="HALKA_COLLECTIONS", help="where collections are kept")
]
HERE = Path("collections")
Asking = Annotated[
    list[str] | None, typer.Option("--as", metavar="NAME", help="who asks, and groups of theirs; may be repeated")
]
Tags = Annotated[list[str] | None, typer.Option("--tag", metavar="TAG", help="only documents with it; may be repeated")]
Under = Annotated[
    Path | None, typer.Option("--under", metavar="PATH", help="only this document, or those below this path")
]
Mode = Annotated[str, typer.Option("--mode", metavar="MODE", help="hybrid, vectors or words")]
Rerank = Annotated[
    str | None,
    typer.Option("--rerank", metavar="NAME", help="a cross-encoder that has the last word: a folder or a hub name"),
]


@app.command(
    "add",
    cls=Command,
    epilog=examples(
        "halka docs add faq ./documents handbook.pdf",
        "halka docs add staff ./hr --reader staff --tag hr",
        "halka docs add faq ./documents --at postgresql://db.example.org/halka",
    ),
)
def add(
    name: Name,
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="files, and folders with files")],
    reader: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="who may read them: people, groups; may be repeated [all]")
    ] = None,
    tag: Annotated[list[str] | None, typer.Option(metavar="TAG", help="words to choose them by")] = None,
    embedder: Annotated[
        str | None, typer.Option(metavar="NAME", help="of a new collection: a folder or a hub name [minilm-l6]")
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(
            metavar="PLACE",
            help="where a new collection keeps its passages: postgresql://HOST/DB, qdrant:URL [its folder]",
        ),
    ] = None,
    collections: Place = HERE,
    json: Json = False,
) -> None:
    """Take documents into a collection, a new one if there is none of that name.

    Markdown, text, HTML and PDF are read; Word, PowerPoint, Excel, EPUB and others with the extra `documents`. What is
    there already and has not changed is left alone. A file that cannot be read is told and skipped; where that is so of
    all, the command fails, and no new collection is begun.
    """
    from halka.rag.collection import Collection, collection_folder
    from halka.rag.embed import SentenceEmbedder
    from halka.rag.store import EVERYONE

    made = None if embedder is None else SentenceEmbedder(embedder)
    folder = collection_folder(name, collections)
    begun = not _is_there(folder)
    collection = Collection(folder, made, at=at)
    counts = _tell(collection.add(paths, readers=reader or [EVERYONE], tags=tag or []), json)
    if counts and counts.keys() == {"skipped"}:
        if begun and not collection.documents():
            collection.delete()
        from halka.report.units import plural

        raise Failed(f"nothing was taken in: {plural(counts['skipped'], 'file')} skipped, for the reasons above")


@app.command("refresh", cls=Command, epilog=examples("halka docs refresh faq", "halka docs refresh faq --watch 10"))
def refresh(
    name: Name,
    watch: Annotated[float | None, typer.Option(metavar="SECONDS", min=0.1, help="go on doing so, this often")] = None,
    collections: Place = HERE,
    json: Json = False,
) -> None:
    """Read anew what changed in the paths that were added, take in what is new there, and remove what is gone.

    With --watch it tells what becomes of each document, and a file that cannot be read once, until the reason changes.
    """
    collection = opened(name, collections)
    skipped: set[Event] = set()
    _tell(_noted(collection.refresh(), skipped), json)
    while watch is not None:
        time.sleep(watch)
        before = {*skipped}
        skipped.clear()
        news = _noted(collection.refresh(), skipped)
        _tell((each for each in news if each.what != "unchanged" and each not in before), json, idle=True)


@app.command("list", cls=Command, epilog=examples("halka docs list", "halka docs list faq --json"))
def list_(
    name: Annotated[
        str | None, typer.Argument(metavar="[COLLECTION]", help="its documents; else all collections")
    ] = None,
    collections: Place = HERE,
    json: Json = False,
) -> None:
    """List the collections, or all documents of one, whoever may read them: for whoever keeps the collection."""
    if name is not None:
        documents = opened(name, collections).documents()
        if json:
            return emit(documents)
        table = columns("document", "passages", "readers", "tags", "added", right=("passages",))
        for each in documents:
            readers, tags = ", ".join(each.readers), ", ".join(each.tags) or "–"
            table.add_row(one_line(each.name), str(each.passages), readers, tags, each.added)
        return show(table, f"{len(documents)} documents in {name}")
    names = [each.parent.name for each in sorted(collections.glob("*/collection.json"))]
    found = []
    for each in names:
        try:
            found.append({"name": each, **_counts(opened(each, collections))})
        except HalkaError as error:  # of one whose place does not answer, or whose embedder is gone
            say(f"{each}: {error}")
    if json:
        return emit(found)
    table = columns("collection", "documents", "passages", "embedder", right=("documents", "passages"))
    for each in found:
        table.add_row(each["name"], str(each["documents"]), str(each["passages"]), each["embedder"])
    show(table, f"{len(found)} collections in {collections}")


@app.command("show", cls=Command, epilog=examples("halka docs show faq handbook.md", "halka docs show faq"))
def show_(
    name: Name,
    document: Annotated[str | None, typer.Argument(metavar="[DOCUMENT]", help="its passages, as they were cut")] = None,
    collections: Place = HERE,
    json: Json = False,
) -> None:
    """Show what a collection holds and where it came from, or a document's passages.

    Whoever may read them, they are shown: it is for whoever keeps the collection. `halka docs search --as` asks.
    """
    from halka.rag.store import Scope

    collection = opened(name, collections)
    if document is None:
        told = {"name": name, **_counts(collection), "at": collection.at, "paths": collection.roots}
        if json:
            return emit(told)
        show(*(f"{key}: {told[key]}" for key in ("name", "documents", "passages", "embedder")))
        show(*([] if collection.at is None else [f"at: {collection.at}"]))
        return show(*(f"path: {one_line(each.path)} (read by {', '.join(each.readers)})" for each in collection.roots))
    found = collection.document(document)
    everyone = Scope(frozenset(found.readers))
    passages = collection.store.passages(found.name, range(found.passages), everyone)
    if json:
        return emit(passages)
    for each in passages:
        page = f", page {each.page}" if each.page else ""
        show(f"── {each.number}: {each.start}–{each.end}{page} {one_line(each.heading)}", each.text, "")


@app.command(
    "remove", cls=Command, epilog=examples("halka docs remove faq ./documents/old.md", "halka docs remove faq")
)
def remove(
    name: Name,
    documents: Annotated[
        list[str] | None,
        typer.Argument(metavar="[DOCUMENT...]", help="documents or folders; else the whole collection"),
    ] = None,
    collections: Place = HERE,
    json: Json = False,
) -> None:
    """Remove documents from a collection, or the collection; at once, and from the disk."""
    collection = opened(name, collections)
    if documents:
        _tell(collection.remove(documents), json)
        return
    counts = _counts(collection)
    collection.delete()
    emit({"name": name, "removed": counts}) if json else show(f"{name}: removed with {counts['documents']} documents")


@app.command("search", cls=Command, epilog=examples('halka docs search faq "Where is my parcel?" --count 3'))
def search(
    name: Name,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="what to find passages for")],
    count: Annotated[int, typer.Option(metavar="N", min=1, help="passages at most")] = 5,
    mode: Mode = "hybrid",
    rerank: Rerank = None,
    asking: Asking = None,
    tag: Tags = None,
    under: Under = None,
    collections: Place = HERE,
    json: Json = False,
) -> None:
    """Find the passages that best fit a question."""
    retriever = retriever_of(opened(name, collections), mode, rerank)
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
        Path, typer.Argument(metavar="FOLDER", help="queries.jsonl, qrels/test.tsv, as BEIR lays them out")
    ],
    split: Annotated[str, typer.Option(metavar="NAME", help="which of its judgements")] = "test",
    mode: Annotated[str | None, typer.Option("--mode", metavar="MODE", help="hybrid, vectors or words [all]")] = None,
    rerank: Rerank = None,
    asking: Asking = None,
    embedder: Annotated[
        str | None, typer.Option(metavar="NAME", help="of a new collection: a folder or a hub name [minilm-l6]")
    ] = None,
    collections: Place = HERE,
    json: Json = False,
) -> None:
    """Score how well a collection's passages are found.

    Where FOLDER has a corpus.jsonl, that is taken in first: into a new collection, or one that holds nothing else.
    """
    from typing import get_args

    from halka.cli.progress import CountProgress
    from halka.rag import retrieve
    from halka.rag.collection import Collection, collection_folder
    from halka.rag.embed import SentenceEmbedder
    from halka.rag.evaluate import evaluate, read_corpus, read_queries

    queries = read_queries(existing_folder(folder, "FOLDER"), split)
    made = None if embedder is None else SentenceEmbedder(embedder)
    if (folder / "corpus.jsonl").is_file():
        corpus = dict(read_corpus(folder))
        collection = Collection(collection_folder(name, collections), made)
        if others := [each.name for each in collection.documents() if each.name not in corpus]:
            raise HalkaError(
                f"{name} holds {others[0]}, which {folder / 'corpus.jsonl'} does not: take another name, and the "
                "corpus gets a collection of its own"
            )
        _tell(collection.put(corpus.items()), json=False, quiet=True)
    else:
        collection = opened(name, collections)
    modes = get_args(retrieve.Mode) if mode is None else [mode]
    scores, retriever = {}, replace(retriever_of(collection, modes[0], rerank), distinct=False)
    for each in modes:
        with CountProgress(f"{each}: queries", len(queries.texts)) as progress:
            scores[each] = evaluate(
                replace(retriever, mode=each), queries, scope=scope_of(asking, None, None), on_progress=progress.done
            )
    if json:
        return emit(scores)
    measures = [*next(iter(scores.values()))]
    table = columns("mode", *measures, right=measures)
    for each, found in scores.items():
        table.add_row(each, *(f"{found[measure]:.3f}" for measure in measures))
    show(table, f"{len(queries.texts)} queries, {_counts(collection)['documents']} documents")


@app.command(
    "examples",
    cls=Command,
    epilog=examples(
        "halka docs examples faq questions.jsonl -o train.jsonl", "halka train --data train.jsonl --base smollm2-135m"
    ),
)
def examples_(
    name: Name,
    questions: Annotated[
        Path, typer.Argument(metavar="FILE", help='rows with "question", "answer" or "answers", "document"')
    ],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE", help="where the rows for training go, as JSONL")],
    passages: Annotated[int, typer.Option(metavar="N", min=1, help="passages in a prompt")] = 4,
    without: Annotated[
        float, typer.Option(metavar="SHARE", help="questions whose passage is left out: to abstain")
    ] = 0.2,
    cite: Annotated[bool, typer.Option("--cite/--no-cite", help="answers end with their citation")] = True,
    form: Annotated[
        str, typer.Option(metavar="TEXT", help='how answers look, such as "Answer: {answer}" [{answer}]')
    ] = "{answer}",
    seed: Annotated[int, typer.Option(metavar="N", help="of the order of passages, and of what is left out")] = 0,
    mode: Mode = "hybrid",
    rerank: Rerank = None,
    asking: Asking = None,
    collections: Place = HERE,
    json: Json = False,
) -> None:
    """Make training data of questions: each with the passage that answers it among others that its search finds."""
    import json as as_json

    from halka.data.readers import whole_rows
    from halka.rag.answer import floor_for
    from halka.rag.raft import Raft, asked_in
    from halka.util.files import write_text

    asked = [asked_in(row.fields, row.where) for row in whole_rows(existing_file(questions, "FILE"))]
    target = new_file(out, "--out")
    retriever = retriever_of(opened(name, collections), mode, rerank)
    scope = scope_of(asking, None, None)
    pairs = [*Raft(passages, without, cite, form, seed).pairs(retriever, asked, scope)]
    made = [row for _, row in pairs]
    if not made:
        raise HalkaError(f"no passage in {name} holds an answer of {questions}: are these its documents?")
    write_text(target, "".join(as_json.dumps(each, ensure_ascii=False) + "\n" for each in made))
    told = {"questions": len(asked), "examples": len(made), "abstaining": sum(each["gold"] is None for each in made)}
    held = [each.question for each, _ in pairs if each.answers]  # by a passage, else there were no row
    floor = floor_for(retriever, held, scope=scope) if held else None
    if json:
        return emit(told | {"floor": floor})
    show(", ".join(f"{count} {what}" for what, count in told.items()) + f", in {target}")
    if floor is not None:
        same = ("" if mode == "hybrid" else f" --mode {mode}") + ("" if rerank is None else f" --rerank {rerank}")
        say(
            f"for 95 % of those that a passage answers the best one scores {floor:.3f} or more, which "
            f"`halka ask{same} --floor {floor:.3f}` asks"
        )


def opened(name: str, among: Path) -> Collection:
    from halka.rag.collection import Collection, collection_folder

    folder = collection_folder(name, among)
    if not _is_there(folder):
        names = [each.parent.name for each in sorted(among.glob("*/collection.json"))]
        known = f"there are {', '.join(names)}" if names else "there is none yet"
        raise HalkaError(f"{among} holds no collection {name!r} ({known}): `halka docs add {name} PATH` makes it")
    return Collection(folder)


def retriever_of(collection: Collection, mode: str, rerank: str | None) -> Retriever:
    from halka.rag.retrieve import CrossEncoder, Retriever

    return Retriever(collection, mode, None if rerank is None else CrossEncoder(rerank))  # type: ignore[arg-type]


def scope_of(asking: list[str] | None, tags: list[str] | None, under: Path | None) -> Scope:
    from halka.rag.store import Scope

    place = None if under is None else under.expanduser()
    if place is not None and place.exists():  # else it may be a name that a text was put in under
        place = place.resolve()
    return Scope(frozenset(asking or ()), "" if place is None else str(place), frozenset(tags or ()))


def _counts(collection: Collection) -> dict[str, Any]:
    documents = collection.documents()
    passages = sum(each.passages for each in documents)
    return {"documents": len(documents), "passages": passages, "embedder": collection.embedder.name}


def _is_there(folder: Path) -> bool:
    return (folder / "collection.json").is_file()


def _noted(events: Iterable[Event], skipped: set[Event]) -> Iterator[Event]:
    """The events; those of skipped documents are put into `skipped`."""
    for each in events:
        if each.what == "skipped":
            skipped.add(each)
        yield each


def _tell(events: Iterable[Event], json: bool, *, quiet: bool = False, idle: bool = False) -> Counter[str]:
    """Say what becomes of each document, as it happens, under a bar that counts; at the end how many of each.

    quiet  nothing but what is skipped
    idle   nothing where nothing happens
    """
    from halka.cli.progress import CountProgress

    counts: Counter[str] = Counter()
    told = []
    with CountProgress("documents", None) as progress:
        for number, event in enumerate(events, start=1):
            counts[event.what] += 1
            told.append(event)
            if event.what == "skipped":
                progress.tell(f"skipped: {one_line(event.reason)}")
            elif event.what != "unchanged" and not quiet:
                progress.tell(f"{event.what}: {one_line(event.document)} ({event.passages} passages)")
            progress.done(number)
    if idle and not told:
        return counts
    if json:
        emit(told)
    elif not quiet:
        show(", ".join(f"{count} {what}" for what, count in counts.items()) or "nothing to do")
    return counts

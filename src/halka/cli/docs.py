"""`halka docs`: manage collections of documents (`retrieval.py` searches them)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from halka.cli.command import Command, Failed, Json, emit, examples, group, say, show
from halka.util.errors import HalkaError
from halka.util.text import columns, one_line, plural

if TYPE_CHECKING:
    from halka.rag.collection import Collection, Event
    from halka.rag.passages import Passage

app = group(
    "Collections of documents: add, search, keep up to date.",
    "halka docs add faq ./documents",
    'halka docs search faq "Where is my parcel?"',
    "halka docs refresh faq",
)

Name = Annotated[str, typer.Argument(metavar="COLLECTION", help="a collection's name")]
Place = Annotated[
    Path,
    typer.Option("--collections", metavar="FOLDER", envvar="HALKA_COLLECTIONS", help="the folder of the collections"),
]
HERE = Path("collections")
Embedder = Annotated[
    str | None,
    typer.Option(
        "--embedder",
        metavar="NAME",
        help="of a new collection, or where its own is now: a folder or a hub name [minilm-l6]",
    ),
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
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="files, and folders with files")],
    reader: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="who may read them: people, groups, * for all; may be repeated [as before; new ones: all]",
        ),
    ] = None,
    tag: Annotated[list[str] | None, typer.Option(metavar="TAG", help="words to choose them by")] = None,
    embedder: Embedder = None,
    at: Annotated[
        str | None,
        typer.Option(
            metavar="PLACE",
            help="where a new collection keeps its passages: postgresql://HOST/DB, qdrant:URL [its folder]",
        ),
    ] = None,
    exact: Annotated[
        bool | None,
        typer.Option("--exact/--indexed", help="compare all vectors, or use an index where there are many [indexed]"),
    ] = None,
    collections: Place = HERE,
    json: Json = False,
) -> None:
    """Add documents to a collection, which is created if need be.

    Reads Markdown, text, HTML and PDF; Word, PowerPoint, Excel, EPUB and others with the extra `documents`. Unchanged
    documents are not read again. A file that cannot be read is skipped, with a message, and so are documents of other
    kinds; if all are skipped the command fails, and creates no new collection.
    """
    from halka.rag.roots import located

    for path in paths:
        if not located(path).exists():
            raise HalkaError(f"PATH: there is no file or folder {path}: check the path, it is seen from {Path.cwd()}")
    is_new, collection = open_or_begin(name, collections, embedder, at, exact)
    counts = report(collection.add(paths, readers=reader or None, tags=tag or []), json)
    if counts and counts.keys() == {"skipped"}:
        if is_new and not collection.documents():
            collection.delete()
        raise Failed("nothing was added: all files were skipped, for the reasons above")


@app.command("refresh", cls=Command, epilog=examples("halka docs refresh faq", "halka docs refresh faq --watch 10"))
def refresh(
    name: Name,
    watch: Annotated[
        float | None, typer.Option(metavar="SECONDS", min=0.1, help="refresh again and again, with this pause")
    ] = None,
    collections: Place = HERE,
    json: Json = False,
) -> None:
    """Read changed and new files, remove those that no longer exist.

    It looks at the paths that were added. With --watch it repeats and prints the changes; a file that cannot be read
    is named once for each reason.
    """
    collection = collection_named(name, collections)
    if watch is None:
        report(collection.refresh(), json)
        return
    for number, news in enumerate(collection.watch(watch)):
        report(news, json, idle=number > 0)


@app.command("list", cls=Command, epilog=examples("halka docs list", "halka docs list faq --json"))
def list_(
    name: Annotated[
        str | None, typer.Argument(metavar="[COLLECTION]", help="its documents; else all collections")
    ] = None,
    collections: Place = HERE,
    json: Json = False,
) -> None:
    """List the collections, or all documents of one.

    It lists documents regardless of their readers: it is for the collection's owner.
    """
    if name is None:
        return _list_collections(collections, json)
    documents = collection_named(name, collections).documents()
    if json:
        return emit(documents)
    table = columns("document", "passages", "readers", "tags", "added", right=("passages",))
    for document in documents:
        readers, tags = ", ".join(document.readers), ", ".join(document.tags) or "–"
        table.add_row(one_line(document.name), str(document.passages), readers, tags, document.added)
    show(table, f"{plural(len(documents), 'document')} in {name}")


def _list_collections(folder: Path, json: bool) -> None:
    from halka.rag.collection_folder import collection_names

    rows = []
    for name in collection_names(_no_file(folder)):
        try:
            rows.append({"name": name, **_summary(collection_named(name, folder))})
        except HalkaError as error:  # such as a server that does not answer
            say(f"{name}: {error}")
    if json:
        return emit(rows)
    table = columns("collection", "documents", "passages", "embedder", right=("documents", "passages"))
    for row in rows:
        table.add_row(row["name"], str(row["documents"]), str(row["passages"]), row["embedder"])
    show(table, f"{plural(len(rows), 'collection')} in {folder}")


@app.command("show", cls=Command, epilog=examples("halka docs show faq handbook.md", "halka docs show faq"))
def show_(
    name: Name,
    document: Annotated[str | None, typer.Argument(metavar="[DOCUMENT]", help="its passages, as they were cut")] = None,
    collections: Place = HERE,
    json: Json = False,
) -> None:
    """Show a collection's size and paths, or a document's passages.

    It shows them regardless of their readers: it is for the collection's owner. `halka docs search --as` searches as a
    reader.
    """
    from halka.rag.store import Scope

    collection = collection_named(name, collections)
    if document is not None:
        about = collection.document(document)
        scope = Scope(frozenset(about.readers))
        return _show_passages(collection.store.passages(about.name, range(about.passages), scope), json)
    summary = {"name": name, **_summary(collection)}
    if json:
        return emit({**summary, "at": collection.at, "paths": collection.roots})
    at = [] if collection.at is None else [f"at: {collection.at}"]
    paths = (f"path: {one_line(root.path)} (read by {', '.join(root.readers)})" for root in collection.roots)
    show(*(f"{key}: {value}" for key, value in summary.items()), *at, *paths)


def _show_passages(passages: list[Passage], json: bool) -> None:
    if json:
        return emit(passages)
    for passage in passages:
        page = f", page {passage.page}" if passage.page else ""
        title = f"── {passage.number}: {passage.start}–{passage.end}{page} {one_line(passage.heading)}"
        show(title, passage.text, "")


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
    """Remove documents from a collection, or the collection itself.

    They are gone at once, from the disk too.
    """
    collection = collection_named(name, collections)
    if documents:
        report(collection.remove(documents), json)
        return
    summary, (document_count, _) = _summary(collection), collection.count()
    collection.delete()
    if json:
        emit({"name": name, "removed": summary})
    else:
        show(f"{name}: removed with {plural(document_count, 'document')}")


def collection_named(name: str, among: Path) -> Collection:
    """The collection of this name. Raises HalkaError, listing the names, if there is none."""
    from halka.rag.collection import open_collection

    return open_collection(name, _no_file(among))


def open_or_begin(
    name: str, among: Path, embedder: str | None, at: str | None = None, exact: bool | None = None
) -> tuple[bool, Collection]:
    """Open the collection, or create it; returns whether it is new, and the collection."""
    from halka.rag.collection import Collection
    from halka.rag.collection_folder import CollectionFolder, collection_folder
    from halka.rag.embed import SentenceEmbedder

    folder = collection_folder(name, _no_file(among))
    is_new = not CollectionFolder(folder).exists
    return is_new, Collection(folder, None if embedder is None else SentenceEmbedder(embedder), at=at, exact=exact)


def _no_file(collections: Path) -> Path:
    if collections.is_file():
        raise HalkaError(f"--collections: {collections} is a file: name a folder")
    return collections


def _summary(collection: Collection) -> dict[str, int | str]:
    documents, passages = collection.count()
    return {"documents": documents, "passages": passages, "embedder": collection.embedded_by}


def report(events: Iterable[Event], json: bool, *, quiet: bool = False, idle: bool = False) -> Counter[str]:
    """Print each document's event as it happens, below a progress bar, and at the end the counts, which it returns.

    quiet  print only skipped documents
    idle   print no counts if there were no events
    """
    from halka.cli.progress import CountProgress

    happened: list[Event] = []
    with CountProgress("documents", None) as progress:
        for event in events:
            happened.append(event)
            if event.what == "skipped":
                progress.tell(f"skipped: {one_line(event.reason)}")
            elif event.what != "unchanged" and not quiet:
                progress.tell(f"{event.what}: {one_line(event.document)} ({plural(event.passages, 'passage')})")
            progress.done(len(happened))
    counts = Counter[str](event.what for event in happened)
    if idle and not happened:
        return counts
    if json:
        emit(happened)
    elif not quiet:
        show(", ".join(f"{count} {what}" for what, count in counts.items()) or "nothing to do")
    return counts

"""`Collection`: the documents of folders under one name, cut, embedded and stored; only changed ones are read again."""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from filelock import FileLock

from halka.rag.collection_folder import CollectionFolder, collection_folder, collection_names
from halka.rag.embed import DEFAULT, Embedder, SentenceEmbedder, about_embedder, is_own
from halka.rag.passages import Cutter, Passage
from halka.rag.roots import Input, LeftOut, Root, Roots, is_collection, located, text_of
from halka.rag.store import PUT, Document, Entry, Scope, VectorStore, named, within
from halka.rag.stores import checked_address, new_key, store_at
from halka.rag.texts import Text, Unreadable, check_unicode, read_as
from halka.util.errors import HalkaError, StoreAwayError
from halka.util.files import held_if_writable
from halka.util.text import printable

AT_ONCE = 200_000
BATCH = 256  # passages to embed at a time: about a second


@dataclass(frozen=True)
class Event:
    """What happened to a document, with the number of its passages, or the reason why it was skipped.

    An event is yielded after the change is on the disk.
    """

    what: Literal["added", "changed", "unchanged", "removed", "skipped"]
    document: str
    passages: int = 0
    reason: str = ""


class Collection:
    """Documents under one name. Any number of processes may add to it and search it at once."""

    def __init__(
        self,
        folder: str | Path,
        embedder: Embedder | None = None,
        store: VectorStore | None = None,
        *,
        at: str | None = None,
        exact: bool | None = None,
        at_once: int = AT_ONCE,
        load: Callable[[str], Embedder] = SentenceEmbedder,
    ):
        """Open the collection in a folder, or create one.

        embedder  default: the one it was created with, loaded when it is first needed; MiniLM for a new one
        at        where a new collection keeps its passages, by default its folder; recorded (`stores.checked_address`)
        exact     whether vectors are always compared one by one, or by an index where there are many; it is recorded
                  until it is set again, by default False
        store     keeps the passages instead; it is not recorded, so pass it each time
        at_once   characters, about, to embed and store in one step; a crash loses at most one step's work
        load      loads the embedder of a name

        Raises HalkaError for a folder that holds something else, for another embedder or place than the collection
        was created with, and for a store that cannot be opened; DamagedFolderError for settings that cannot be read.
        An embedder whose folder was moved is the same if its vectors are; its new folder is recorded.
        """
        self.folder = Path(folder).expanduser()
        self._folder = CollectionFolder(self.folder)
        settings, at = self._folder.settings(), None if at is None else checked_address(at)
        if not settings and not self._folder.is_free:
            raise HalkaError(f"{self.folder} is no collection of documents: name a new folder")
        if store is not None and at is not None:
            raise HalkaError("a collection has a store or a place to keep its passages, not both: leave one out")
        if settings and at not in (None, settings.get("at")):
            raise HalkaError(
                f"{self.folder} keeps its passages {settings.get('at') or 'in its folder'}, not at {at}: leave the "
                "place out, or add the documents to a new collection there"
            )
        self._embedder, self._load = embedder, load
        about = about_embedder(self.embedder) if embedder is not None or not settings else {}
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.folder / ".lock")
        with held_if_writable(self._lock):
            if settings:
                settings = self._folder.settings_of(settings.get("key"))
                if about and about["embedder"] != settings["embedder"]:  # its folder was moved
                    self._folder.write(settings | about)
            elif not self._folder.exists:
                where = {"key": new_key(self.folder.name)}
                if at is not None:  # first, so that no collection is created at a place that does not open
                    where["at"] = at
                    store = store_at(at, where["key"], self.folder, about["width"], exact=bool(exact))
                self._folder.write({**about, **where, "roots": []})
            self._key = self._folder.settings().get("key")
            if exact is not None:
                self._folder.write(self._folder.settings() | {"exact": exact})
            self._store = self._open_store() if store is None else store
        self._at_once = at_once

    @cached_property
    def embedder(self) -> Embedder:
        """The collection's own embedder. Raises HalkaError if it cannot be loaded, or makes other vectors now."""
        settings = self._folder.settings()
        embedder = self._embedder or self._load(settings.get("embedder", DEFAULT))
        if settings and not is_own(embedder, settings):
            name = settings["embedder"]
            now = "whose weights have changed" if embedder.name == name else f"not {embedder.name}"
            raise HalkaError(
                f"{self.folder} was embedded by {name}, {now}: vectors of two embedders cannot be compared. Open it "
                "with its own, or add the documents to a new collection"
            )
        return embedder

    @cached_property
    def _cutter(self) -> Cutter:
        return Cutter(self.embedder.tokenizer, self.embedder.limit)

    @property
    def store(self) -> VectorStore:
        """What keeps the passages. Raises HalkaError if the collection was removed meanwhile."""
        self._folder.settings_of(self._key)
        return self._store

    @property
    def embedded_by(self) -> str:
        """The embedder's name; nothing is loaded."""
        return self._folder.settings_of(self._key)["embedder"]

    @property
    def at(self) -> str | None:
        """The place of the passages; None if that is the collection's folder."""
        return self._folder.settings_of(self._key).get("at")

    @property
    def roots(self) -> list[Root]:
        """The paths that were added."""
        return [*self._roots()]

    # ── changes ─────────────────────────────────────────────────────────────────────────────────────────────────

    def add(
        self,
        paths: Iterable[str | Path],
        *,
        readers: Sequence[str] | None = None,
        tags: Sequence[str] = (),
        leave_out: str | Path | None = None,
        removed_too: bool = False,
    ) -> Iterator[Event]:
        """Add files, and all readable files in folders, in the order of their names: a generator, so iterate it.

        Unchanged documents are not read again. `readers` are names of people or groups that may read the documents; by
        default those of the path, or of the one above it, if that was added before, else everyone ("*"). A path that
        was added before gets the new readers and tags at once, with every document there; a path below that was added
        by itself keeps its own. Removed documents stay away until they are added by
        their own path, or by one above with `removed_too`, and so do those below the folder `leave_out`. A file that
        cannot be read is skipped; if it was readable before, its older passages stay. A folder that cannot be listed
        has an event, and so has each kind of documents that is not read (`texts.UNREAD`).

        Raises HalkaError for a path that does not exist or is in a collection's folder, and DataError for a path that
        is not Unicode.
        """
        places, out = [], None if leave_out is None else str(located(leave_out))
        who, labels = _checked(readers), tuple(sorted(named(tags)))
        for path in paths:
            resolved = located(path)
            if not resolved.exists():
                raise HalkaError(f"there is no file or folder {path}: check the path, relative to {Path.cwd()}")
            check_unicode(str(resolved))
            if above := next(filter(is_collection, (resolved, *resolved.parents)), None):
                raise HalkaError(
                    f"{path} is in the folder of a collection, {above}: move the documents elsewhere first"
                )
            places.append(str(resolved))
        with self._locked() as roots:
            current = self._current() if who is None else {}
            added = [
                Root(place, _readers_of(place, current, roots) if who is None else who, labels) for place in places
            ]
            roots = roots.adding(added, removed_too=removed_too)
            if out is not None:
                roots = roots.removing(out)
            self._folder.write(self._folder.settings() | roots.settings())
            events = self._set_access(roots)
        yield from events
        for path in roots.removed:
            if path != out and any(within(path, root.path) for root in added):
                yield Event("skipped", path, reason=f"{path} was removed: add it by its own path to have it again")
        left_out = LeftOut()
        inputs = roots.inputs((root.path for root in added), left_out)
        yield from self._take_in(inputs, {event.document for event in events})
        yield from _unlisted(left_out)
        kinds = Counter(file.suffix.lower() for file in left_out.files if roots.root(str(file)))
        for kind, count in sorted(kinds.items()):
            reason = f"files of the kind {kind} are not read, {count} here: convert them to text"
            yield Event("skipped", f"*{kind}", reason=reason)

    def put(
        self, texts: Iterable[tuple[str, str]], *, readers: Sequence[str] | None = None, tags: Sequence[str] = ()
    ) -> Iterator[Event]:
        """Add pairs of a name and a Markdown text; each replaces an older text of that name.

        `readers` are by default those of that older text, or of a path above the name, else everyone ("*"). They and
        `tags` stay as they are here, also of a name below a path that was added, until a file of that name is read in
        place of the text.
        """
        access = _checked(readers), tuple(sorted(named(tags)))
        yield from self._take_in(
            Input(name, partial(text.encode, errors="surrogatepass"), partial(text_of, name, text), *access)
            for name, text in texts
        )

    def put_files(
        self,
        files: Iterable[tuple[str, str | Path]],
        *,
        readers: Sequence[str] | None = None,
        tags: Sequence[str] = (),
        read: Callable[[str, Path], Text] = read_as,
        check: Callable[[], object] = lambda: None,
    ) -> Iterator[Event]:
        """Add pairs of a name and a file that is read now and not again; each replaces an older document of that name.

        `readers` and `tags` are as for `put`.
        The documents know nothing of the files' paths, and no message names them. `read` makes a text of a pair.
        `check` is called every second or so; an error that it raises keeps out what is not in yet.
        """
        access = _checked(readers), tuple(sorted(named(tags)))
        yield from self._take_in(
            (Input(name, Path(path).read_bytes, partial(read, name, Path(path)), *access) for name, path in files),
            check=check,
        )

    def refresh(self) -> Iterator[Event]:
        """Read changed files below the paths that were added, add new ones, and remove those that no longer exist.

        If a folder that was added is missing, its disk may be unmounted: its documents stay, and an event says so.
        """
        suspects = _lost(self.documents(), self._roots())  # of all files, so whoever opens it must not wait
        with self._locked() as roots:
            current = self._current()
            gone = _lost((current[name] for name in suspects if name in current), roots)
            self.store.remove(gone)
            events = self._set_access(roots)
        yield from (Event("removed", name, current[name].passages) for name in gone)
        yield from events
        for root in roots:
            if root.away and any(within(name, root.path) for name in current.keys() - gone):
                reason = f"{root.path} is not there: its documents stay as they were until it is back, or removed here"
                yield Event("skipped", root.path, reason=reason)
        left_out = LeftOut()
        inputs = roots.inputs((root.path for root in roots), left_out)
        yield from self._take_in(inputs, {event.document for event in events})
        yield from _unlisted(left_out)

    def watch(self, seconds: float) -> Iterator[Iterator[Event]]:
        """Refresh now and every so many seconds, for ever; yields the events of each refresh that are new.

        After the first refresh, unchanged documents, and documents skipped again for the same reason, have no event. A
        server of passages that is away then has one, and is asked again at the next refresh.
        """
        skipped: set[Event] = set()

        def news(*, first: bool) -> Iterator[Event]:
            before = {*skipped}
            skipped.clear()
            try:
                for event in self.refresh():
                    if event.what == "skipped":
                        skipped.add(event)
                    if first or (event.what != "unchanged" and event not in before):
                        yield event
            except StoreAwayError as error:
                if first:
                    raise
                away = Event("skipped", self.folder.name, reason=f"{error}. It is asked again at the next refresh")
                skipped.update(before, [away])
                if away not in before:
                    yield away

        yield news(first=True)
        while True:
            time.sleep(seconds)
            yield news(first=False)

    def remove(self, names: Iterable[str | Path]) -> list[Event]:
        """Remove documents, or all documents under a path, at once and from the disk; all of them or none.

        They stay away, also from `refresh`, until they are added by their own path.
        Raises HalkaError for a name or path without documents.
        """
        with self._locked() as roots:
            current = self._current()
            left, doomed, there = roots, {}, sorted(current)
            for name in names:
                path, documents = roots.meant(str(name), there)
                left, doomed = left.removing(path), doomed | dict.fromkeys(documents)
            self._folder.write(self._folder.settings() | left.settings())
            self.store.remove([*doomed])
        return [Event("removed", name, current[name].passages) for name in doomed]

    def delete(self) -> None:
        """Remove the collection with all that is in it, from the disk and from the place of its passages.

        Raises HalkaError if it was removed already.
        """
        with self._locked():
            self.store.drop()
            self._folder.end()

    # ── contents ────────────────────────────────────────────────────────────────────────────────────────────────

    def documents(self, scope: Scope | None = None) -> list[Document]:
        """The documents in a scope; without a scope all of them, which only the collection's owner may see."""
        return self.store.documents(scope)

    def document(self, name: str) -> Document:
        """The document of this name, or at this path. Raises HalkaError if there is none."""
        current = self._current()
        document = current.get(name) or current.get(str(located(name)))
        if document is None:
            raise HalkaError(f"the collection has no document {name}: `halka docs list` shows those it has")
        return document

    def count(self) -> tuple[int, int]:
        """How many documents and passages there are."""
        documents = self.documents()
        return len(documents), sum(document.passages for document in documents)

    # ── inside ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _roots(self) -> Roots:
        return Roots.of_settings(self._folder.settings_of(self._key))

    @contextmanager
    def _locked(self) -> Iterator[Roots]:
        """Hold the collection's lock, and yield its roots. Raises HalkaError if it was removed meanwhile."""
        self._roots()  # first, since the lock would make the folder anew
        with self._lock:
            yield self._roots()

    def _take_in(
        self, inputs: Iterable[Input], reported: Container[str] = (), check: Callable[[], object] = lambda: None
    ) -> Iterator[Event]:
        """Store what changed. `reported` are documents that have an event already, so need none for being unchanged."""
        current, changed, roots = self._current(), bool(reported), self._roots()
        waiting: dict[str, tuple[Input, Document, Text]] = {}
        size = 0  # characters read since the last commit
        for source in inputs:
            check()
            name = source.name
            try:
                check_unicode(name)
                mark = PUT if os.path.isabs(name) and not source.rooted else ""
                digest = mark + hashlib.sha256(source.content()).hexdigest()
                before = current.get(name)
                readers = _readers_of(name, current, roots) if source.readers is None else source.readers
                document = Document(name, digest, readers, source.tags)
                if before is not None and replace(document, added=before.added, passages=before.passages) == before:
                    waiting.pop(name, None)
                    if name not in reported:
                        yield Event("unchanged", name, before.passages)
                    continue
                text = source.read()
                waiting[name], size = (source, document, text), size + len(text.text)
            except OSError as error:
                yield _skipped(name, error)
            except Unreadable as error:
                # The older text stays, for the readers that were named now.
                if name in current and not source.rooted and source.readers is not None:
                    current[name] = replace(current[name], readers=source.readers, tags=source.tags)
                    with self._locked():
                        self.store.set_access([name], source.readers, source.tags)
                yield Event("skipped", printable(name), reason=str(error))
            if size > self._at_once:
                yield from self._commit([*waiting.values()], current, check)
                waiting, size, changed = {}, 0, True
        if waiting:
            yield from self._commit([*waiting.values()], current, check)
            changed = True
        if changed:
            self.store.tidy()

    def _commit(
        self,
        texts: Sequence[tuple[Input, Document, Text]],
        current: dict[str, Document],
        check: Callable[[], object],
    ) -> list[Event]:
        """Cut, embed and put documents in one step; the events are returned when that is done.

        Readers that were not named are those of that moment, since another process may have changed them, or removed a
        file's root.
        """
        added = datetime.now(UTC).isoformat(timespec="seconds")
        embedded = [
            (source, self._entry(replace(document, added=added), text, check)) for source, document, text in texts
        ]
        entries, events = [], []
        with self._locked() as roots:
            now = self._current() if any(source.readers is None for source, _ in embedded) else {}
            for source, entry in embedded:
                root = roots.root(source.name)
                if source.rooted and (root is None or roots.lost(source.name)):
                    events.append(Event("skipped", source.name, reason=f"{source.name} was removed meanwhile"))
                    continue
                if source.rooted and root:
                    entry = entry.read_by(root.readers, root.tags)
                elif source.readers is None:
                    entry = entry.read_by(_readers_of(source.name, now, roots), source.tags)
                entries.append(entry)
            if entries:
                self.store.put(entries)
        for document in (entry.document for entry in entries):
            what = "changed" if document.name in current else "added"
            events.append(Event(what, document.name, document.passages))
            current[document.name] = document
        return events

    def _entry(self, document: Document, text: Text, check: Callable[[], object]) -> Entry:
        """A document, cut and embedded."""
        passages, vectors = list[Passage](), [np.zeros((0, self.embedder.width), np.float32)]
        cut = self._cutter.cut(document.name, text, document.readers)
        while batch := [*islice(cut, BATCH)]:
            check()
            passages += batch
            vectors.append(self.embedder.passages([passage.searched for passage in batch]))
        return Entry(replace(document, passages=len(passages)), tuple(passages), np.concatenate(vectors))

    def _set_access(self, roots: Roots) -> list[Event]:
        """Set every file's readers and tags to those of its root. The caller holds the lock."""
        changes: dict[tuple[tuple[str, ...], tuple[str, ...]], list[Document]] = {}
        for document in self.store.documents():
            root = None if document.was_put else roots.root(document.name)
            if root is not None and (root.readers, root.tags) != (document.readers, document.tags):
                changes.setdefault((root.readers, root.tags), []).append(document)
        for (readers, tags), documents in changes.items():
            self.store.set_access([document.name for document in documents], readers, tags)
        changed = (document for documents in changes.values() for document in documents)
        return [Event("changed", document.name, document.passages) for document in changed]

    def _open_store(self) -> VectorStore:
        settings = self._folder.settings()
        exact, width = settings.get("exact", False), settings.get("width") or self.embedder.width
        return store_at(settings.get("at"), settings.get("key", ""), self.folder, width, exact=exact)

    def _current(self) -> dict[str, Document]:
        return {document.name: document for document in self.store.documents()}


def _checked(readers: Sequence[str] | None) -> tuple[str, ...] | None:
    """Readers as they are kept. Raises HalkaError for what cannot be a name."""
    return None if readers is None else tuple(sorted(named(readers)))


def _readers_of(name: str, current: Mapping[str, Document], roots: Roots) -> tuple[str, ...]:
    """Who reads what is added without readers: who reads it now as a text, else what was added at or above its name."""
    before = current.get(name)
    if before is not None and (before.was_put or roots.root(name) is None):
        return before.readers
    return roots.readers_of(name)


def _lost(documents: Iterable[Document], roots: Roots) -> list[str]:
    """The names of the files among the documents that no longer exist, or were removed from the collection."""
    return [document.name for document in documents if not document.was_put and roots.lost(document.name)]


def _skipped(name: str, error: OSError) -> Event:
    return Event("skipped", name, reason=f"{name}: {(error.strerror or str(error)).lower()}")


def _unlisted(left_out: LeftOut) -> list[Event]:
    return [_skipped(folder, error) for folder, error in left_out.folders.items()]


def open_collection(name: str, among: Path) -> Collection:
    """The collection of this name in a folder of them. Raises HalkaError, listing the names, if there is none."""
    folder = collection_folder(name, among)
    if not CollectionFolder(folder).exists:
        names = collection_names(among)
        listed = f"there are {', '.join(names)}" if names else "there is none yet"
        raise HalkaError(f"{among} holds no collection {name!r} ({listed}): `halka docs add {name} PATH` makes it")
    return Collection(folder)

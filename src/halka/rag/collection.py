"""`Collection`: documents of folders under one name, cut, embedded and kept; what changed is read anew, the rest not.

collections/faq/
  collection.json   the embedder, the paths that were added, with who may read them, what was removed below them, and
                    where the passages are
  passages.lance/   the passages, unless they are elsewhere (`stores`)
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock

from halka.rag.embed import DEFAULT, Embedder, SentenceEmbedder
from halka.rag.passages import Cutter
from halka.rag.roots import Given, Root, Roots
from halka.rag.store import EVERYONE, Document, Entry, Scope, VectorStore, named, within
from halka.rag.stores import new_key, place, store_at
from halka.rag.texts import Text, Unreadable, check_unicode, shown
from halka.util.errors import HalkaError
from halka.util.files import write_text

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
SETTINGS = "collection.json"
LEFT = re.compile(r"\.lock|\.collection\.json\.[0-9a-f]{8}")  # of a collection whose settings were never written whole
AT_ONCE = 200_000  # characters that are embedded and put in one step, about


@dataclass(frozen=True)
class Event:
    """What became of a document: `what` is added, changed, unchanged, removed or skipped, and `reason` why skipped.

    An event comes after what it tells is on the disk.
    """

    what: str
    document: str
    passages: int = 0
    reason: str = ""


class Collection:
    """Documents under one name. Any number of processes may add to it and ask it at once."""

    def __init__(
        self,
        folder: str | Path,
        embedder: Embedder | None = None,
        store: VectorStore | None = None,
        *,
        at: str | None = None,
    ):
        """A collection's folder, made if it is not there.

        embedder  MiniLM, or what the collection began with
        at        where a new collection keeps its passages (`stores.place`), else in its folder; it is recorded
        store     keeps them in place of that, and has to be given each time

        Raises ValueError for a folder of something else, for another embedder or place than the collection began with,
        and for a store that cannot be opened.
        """
        self.folder = Path(folder)
        settings, at = self._settings(), None if at is None else place(at)
        if not settings and not _is_free(self.folder):
            raise HalkaError(f"{self.folder} is no collection of documents: name a new folder")
        if store is not None and at is not None:
            raise HalkaError("a collection has a store or a place to keep its passages, not both: leave one out")
        if settings and at not in (None, settings.get("at")):
            raise HalkaError(
                f"{self.folder} keeps its passages {settings.get('at') or 'in its folder'}, not at {at}: leave the "
                "place out, or add the documents to a new collection there"
            )
        self.embedder = SentenceEmbedder(settings.get("embedder", DEFAULT)) if embedder is None else embedder
        if settings and settings["embedder"] != self.embedder.name:
            raise HalkaError(
                f"{self.folder} was embedded by {settings['embedder']}, not {self.embedder.name}: vectors of two "
                "embedders cannot be compared. Open it with its own, or add the documents to a new collection"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.folder / ".lock")
        with self._lock:
            if not self._settings():
                where = {} if at is None else {"at": at, "key": new_key(self.folder.name)}
                if at is not None:  # before anything is written: a place that cannot be opened begins no collection
                    store = store_at(at, where["key"], self.folder, self.embedder.width)
                self._write({"embedder": self.embedder.name, **where, "roots": []})
        self.store: VectorStore = self._opened() if store is None else store
        self._cutter = Cutter(self.embedder.tokenizer, self.embedder.limit)

    # ── what is in it ───────────────────────────────────────────────────────────────────────────────────────────

    @property
    def at(self) -> str | None:
        """Where its passages are, if not in its folder."""
        return self._settings().get("at")

    @property
    def roots(self) -> list[Root]:
        """The paths that were added."""
        return [*self._roots()]

    def add(
        self,
        paths: Iterable[str | Path],
        *,
        readers: Sequence[str] = (EVERYONE,),
        tags: Sequence[str] = (),
        leave_out: str | Path | None = None,
    ) -> Iterator[Event]:
        """Take in files, and whatever is readable in folders, in the order of their names; a generator: print it.

        What is in the collection already and has not changed is left alone. Who may read the documents is `readers`:
        names of people or groups, or everyone. A path that was added before gets the readers and tags named now, and
        so does at once every document there, without being read; but what was added by a path below keeps its own, and
        what was removed stays away until it is added by its own path. So does what is below the folder `leave_out`.
        A file that cannot be read is skipped and told; if it was readable before, its older passages stay.
        Raises ValueError for a path that is not there.
        """
        added, out = [], None if leave_out is None else str(Path(leave_out).expanduser().resolve())
        for path in paths:
            found = Path(path).expanduser().resolve()
            if not found.exists():
                raise HalkaError(f"there is no file or folder {path}: check the path, it is seen from {Path.cwd()}")
            check_unicode(str(found))
            added.append(Root(str(found), tuple(sorted(named(readers))), tuple(sorted(named(tags)))))
        with self._lock:
            roots = self._roots().adding(added)
            if out is not None:
                roots = roots.removing(out)
            self._write(self._settings() | roots.settings())
            events = self._set_access(roots)
        yield from events
        for path in roots.removed:
            if path != out and any(within(path, root.path) for root in added):
                yield Event("skipped", path, reason=f"{path} was removed: add it by its own path to have it again")
        yield from self._take_in(roots.given(each.path for each in added), {each.document for each in events})

    def put(
        self, texts: Iterable[tuple[str, str]], *, readers: Sequence[str] = (EVERYONE,), tags: Sequence[str] = ()
    ) -> Iterator[Event]:
        """Take in (name, text) of the caller's; Markdown headings count. An older text of that name is gone."""
        who, what = tuple(sorted(named(readers))), tuple(sorted(named(tags)))
        yield from self._take_in(
            Given(name, partial(text.encode, errors="surrogatepass"), partial(_text_of, name, text), who, what)
            for name, text in texts
        )

    def refresh(self) -> Iterator[Event]:
        """Read anew what changed in the paths that were added, take in what is new there, remove what is gone.

        Where a folder that was added is not there itself, its documents stay, which is told: a disk may be missing.
        """
        with self._lock:
            roots, known = self._roots(), self._known()
            gone = [name for name in known if roots.lost(name)]
            self.store.remove(gone)
            events = self._set_access(roots)
        yield from (Event("removed", name, known[name].passages) for name in gone)
        yield from events
        for root in roots:
            if root.away and any(within(name, root.path) for name in known.keys() - gone):
                reason = f"{root.path} is not there: its documents stay as they were until it is back, or removed here"
                yield Event("skipped", root.path, reason=reason)
        yield from self._take_in(roots.given(each.path for each in roots), {each.document for each in events})

    def remove(self, names: Iterable[str]) -> list[Event]:
        """Remove documents, or whatever stands under a path, at once and from the disk; all of them or nothing.

        They stay away, also from `refresh`, until they are added by their own path.
        Raises ValueError for a name that nothing here has.
        """
        with self._lock:
            known, roots = self._known(), self._roots()
            left, doomed = roots, {}
            for name in names:
                path, found = roots.meant(name, known)
                left, doomed = left.removing(path), doomed | dict.fromkeys(found)
            self._write(self._settings() | left.settings())
            self.store.remove([*doomed])
        return [Event("removed", name, known[name].passages) for name in doomed]

    def documents(self, scope: Scope | None = None) -> list[Document]:
        """The documents that a scope holds; without one all of them, which is for whoever keeps the collection."""
        return self.store.documents(scope)

    def document(self, name: str) -> Document:
        """The document of that name, or at that path. Raises ValueError if there is none."""
        known = self._known()
        found = known.get(name) or known.get(str(Path(name).expanduser().resolve()))
        if found is None:
            raise HalkaError(f"the collection has no document {name}: `halka docs list` shows those it has")
        return found

    def delete(self) -> None:
        """Remove the collection with all that is in it, from the disk, or from where its passages are."""
        with self._lock:
            self.store.drop()
            (self.folder / SETTINGS).unlink()  # from here on it is none
        shutil.rmtree(self.folder)

    # ── inside ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _take_in(self, given: Iterable[Given], told: Container[str] = ()) -> Iterator[Event]:
        """Put what changed; `told` are documents of which it was said before that they changed."""
        known, changed = self._known(), bool(told)
        waiting: dict[str, tuple[Given, Document, Text]] = {}
        for each in given:
            try:
                check_unicode(each.name)
                document = Document(each.name, hashlib.sha256(each.content()).hexdigest(), each.readers, each.tags)
                before = known.get(each.name)
                if before is not None and replace(document, added=before.added, passages=before.passages) == before:
                    waiting.pop(each.name, None)
                    if each.name not in told:
                        yield Event("unchanged", each.name, before.passages)
                    continue
                waiting[each.name] = each, document, each.read()
            except OSError as error:
                yield Event("skipped", each.name, reason=f"{each.name}: {(error.strerror or str(error)).lower()}")
            except Unreadable as error:
                if each.name in known and not each.rooted:  # the older text stays, for who may read it from now on
                    known[each.name] = replace(known[each.name], readers=each.readers, tags=each.tags)
                    with self._lock:
                        self.store.set_access([each.name], each.readers, each.tags)
                yield Event("skipped", shown(each.name), reason=str(error))
            if sum(len(text.text) for _, _, text in waiting.values()) > AT_ONCE:
                yield from self._commit([*waiting.values()], known)
                waiting, changed = {}, True
        if waiting:
            yield from self._commit([*waiting.values()], known)
            changed = True
        if changed:
            self.store.tidy()

    def _commit(self, texts: Sequence[tuple[Given, Document, Text]], known: dict[str, Document]) -> list[Event]:
        """Cut, embed and put documents in one step; told when that is done.

        Files are put as the paths that were added say by then: others may have changed or removed them meanwhile.
        """
        made, added = [], datetime.now(UTC).isoformat(timespec="seconds")
        for given, document, text in texts:
            passages = tuple(self._cutter.cut(document.name, text, document.readers))
            vectors = self.embedder.passages([each.searched for each in passages])
            made.append((given, Entry(replace(document, added=added, passages=len(passages)), passages, vectors)))
        entries, events = [], []
        with self._lock:
            roots = self._roots()
            for given, entry in made:
                root = roots.root(given.name)
                if given.rooted and (root is None or roots.lost(given.name)):
                    events.append(Event("skipped", given.name, reason=f"{given.name} was removed meanwhile"))
                    continue
                entries.append(entry.read_by(root.readers, root.tags) if given.rooted and root else entry)
            if entries:
                self.store.put(entries)
        for document in (entry.document for entry in entries):
            what = "changed" if document.name in known else "added"
            events.append(Event(what, document.name, document.passages))
            known[document.name] = document
        return events

    def _set_access(self, roots: Roots) -> list[Event]:
        """Let every document be read by whom the path that gives it says. The caller has the lock."""
        others: dict[tuple[tuple[str, ...], tuple[str, ...]], list[Document]] = {}
        for each in self.store.documents():
            root = roots.root(each.name)
            if root is not None and (root.readers, root.tags) != (each.readers, each.tags):
                others.setdefault((root.readers, root.tags), []).append(each)
        for (readers, tags), documents in others.items():
            self.store.set_access([each.name for each in documents], readers, tags)
        return [Event("changed", each.name, each.passages) for documents in others.values() for each in documents]

    def _opened(self) -> VectorStore:
        settings = self._settings()
        return store_at(settings.get("at"), settings.get("key", ""), self.folder, self.embedder.width)

    def _known(self) -> dict[str, Document]:
        return {each.name: each for each in self.store.documents()}

    def _roots(self) -> Roots:
        settings = self._settings()
        if not settings:
            raise HalkaError(f"{self.folder} is no collection any more: it was removed meanwhile")
        return Roots.of_settings(settings)

    def _settings(self) -> dict[str, Any]:
        path = self.folder / SETTINGS
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def _write(self, settings: dict[str, Any]) -> None:
        write_text(self.folder / SETTINGS, json.dumps(settings, indent=1, ensure_ascii=False) + "\n")


def collection_folder(name: str, among: Path) -> Path:
    """The folder of a collection by its name. Raises ValueError for a name that could be a path."""
    if not NAME.fullmatch(name) or name.endswith("."):
        raise HalkaError(
            f"{name!r} cannot name a collection: use up to 100 letters, digits, dots, dashes and underscores, a letter "
            "or digit first"
        )
    return among / name


def _is_free(folder: Path) -> bool:
    """Whether a collection can begin there: nothing is in it but what is left of one that could not."""
    return not folder.exists() or (folder.is_dir() and all(LEFT.fullmatch(each.name) for each in folder.iterdir()))


def _text_of(name: str, text: str) -> Text:
    check_unicode(name, text)
    if not text.strip():
        raise Unreadable(f"{name} holds no text")
    return Text(text, markdown=True)

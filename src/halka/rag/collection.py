"""`Collection`: documents of folders under one name, cut, embedded and kept; what changed is read anew, the rest not.

collections/faq/
  collection.json   the embedder, the paths that were added, with who may read them, and where the passages are
  passages.lance/   the passages (`lance.py`), unless they are elsewhere (`stores.py`)
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock

from halka.files import write_text
from halka.rag.embed import DEFAULT, Embedder, SentenceEmbedder
from halka.rag.passages import Cutter
from halka.rag.store import EVERYONE, Document, Entry, Scope, VectorStore, named
from halka.rag.stores import new_key, place, store_at
from halka.rag.texts import Text, Unreadable, is_readable, read_text

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
SETTINGS = "collection.json"
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


@dataclass(frozen=True)
class Root:
    """A path that was added, with who may read what is found there, and its tags."""

    path: str
    readers: tuple[str, ...] = (EVERYONE,)
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Given:
    """What is to be taken in: its name, its bytes and how its text is had."""

    name: str
    content: Callable[[], bytes]
    read: Callable[[], Text]
    readers: tuple[str, ...]
    tags: tuple[str, ...]


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
            raise ValueError(f"{self.folder} is no collection of documents: name a new folder")
        if store is not None and at is not None:
            raise ValueError("a collection has a store or a place to keep its passages, not both: leave one out")
        if settings and at not in (None, settings.get("at")):
            raise ValueError(
                f"{self.folder} keeps its passages {settings.get('at') or 'in its folder'}, not at {at}: leave the "
                "place out, or add the documents to a new collection there"
            )
        self.embedder = SentenceEmbedder(settings.get("embedder", DEFAULT)) if embedder is None else embedder
        if settings and settings["embedder"] != self.embedder.name:
            raise ValueError(
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
        return [Root(each["path"], tuple(each["readers"]), tuple(each["tags"])) for each in self._settings()["roots"]]

    def add(
        self, paths: Iterable[str | Path], *, readers: Sequence[str] = (EVERYONE,), tags: Sequence[str] = ()
    ) -> Iterator[Event]:
        """Take in files, and whatever is readable in folders, in the order of their names; a generator: print it.

        What is in the collection already and has not changed is left alone. Who may read the documents is `readers`:
        names of people or groups, or everyone. A path that was added before gets the readers and tags named now.
        A file that cannot be read is skipped and told; if it was readable before, its older passages stay.
        Raises ValueError for a path that is not there.
        """
        roots = []
        for path in paths:
            found = Path(path).expanduser().resolve()
            if not found.exists():
                raise ValueError(f"there is no file or folder {path}: check the path, it is seen from {Path.cwd()}")
            roots.append(Root(str(found), tuple(sorted(named(readers))), tuple(sorted(named(tags)))))
        with self._lock:
            kept = [each for each in self.roots if each.path not in {root.path for root in roots}]
            self._write(self._settings() | {"roots": [asdict(each) for each in (*kept, *roots)]})
        yield from self._take_in(each for root in roots for each in _given(root))

    def put(
        self, texts: Iterable[tuple[str, str]], *, readers: Sequence[str] = (EVERYONE,), tags: Sequence[str] = ()
    ) -> Iterator[Event]:
        """Take in (name, text) of the caller's; Markdown headings count. An older text of that name is gone."""
        who, what = tuple(sorted(named(readers))), tuple(sorted(named(tags)))
        yield from self._take_in(
            Given(name, text.encode, partial(_text_of, name, text), who, what) for name, text in texts
        )

    def refresh(self) -> Iterator[Event]:
        """Read anew what changed in the paths that were added, take in what is new there, remove what is gone."""
        roots = self.roots
        gone = [
            each.name
            for each in self.store.documents()
            if any(_within(each.name, root.path) for root in roots) and not Path(each.name).exists()
        ]
        yield from self._remove(gone)
        yield from self._take_in(each for root in roots if Path(root.path).exists() for each in _given(root))

    def remove(self, names: Iterable[str]) -> list[Event]:
        """Remove documents, or whatever stands under a folder that was added, at once and from the disk.

        Raises ValueError for a name that nothing here has.
        """
        known, doomed = self._known(), []
        for name in names:
            path = str(Path(name).expanduser().resolve())
            found = [each for each in known if each == name or _within(each, path)]
            if not found:
                raise ValueError(f"the collection has no document {name}: `halka docs list` shows those it has")
            doomed += found
            with self._lock:
                kept = [each for each in self.roots if not _within(each.path, path)]
                self._write(self._settings() | {"roots": [asdict(each) for each in kept]})
        return list(self._remove(list(dict.fromkeys(doomed))))

    def documents(self, scope: Scope | None = None) -> list[Document]:
        """The documents that a scope holds; without one all of them, which is for whoever keeps the collection."""
        return self.store.documents(scope)

    def document(self, name: str) -> Document:
        """The document of that name, or at that path. Raises ValueError if there is none."""
        known = self._known()
        found = known.get(name) or known.get(str(Path(name).expanduser().resolve()))
        if found is None:
            raise ValueError(f"the collection has no document {name}: `halka docs list` shows those it has")
        return found

    def delete(self) -> None:
        """Remove the collection with all that is in it, from the disk, or from where its passages are."""
        self.store.drop()
        with self._lock:
            (self.folder / SETTINGS).unlink()  # from here on it is none
        shutil.rmtree(self.folder)

    # ── inside ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _take_in(self, given: Iterable[Given]) -> Iterator[Event]:
        known, changed = self._known(), False
        waiting: list[tuple[Document, Text, Document | None]] = []
        for each in given:
            try:
                document = Document(each.name, hashlib.sha256(each.content()).hexdigest(), each.readers, each.tags)
                before = known.get(each.name)
                if before is not None and replace(document, added=before.added, passages=before.passages) == before:
                    yield Event("unchanged", each.name, before.passages)
                    continue
                waiting.append((document, each.read(), before))
            except OSError as error:
                yield Event("skipped", each.name, reason=f"{each.name}: {(error.strerror or str(error)).lower()}")
            except Unreadable as error:
                yield Event("skipped", each.name, reason=str(error))
            if sum(len(text.text) for _, text, _ in waiting) > AT_ONCE:
                yield from self._commit(waiting)
                waiting, changed = [], True
        if waiting:
            yield from self._commit(waiting)
            changed = True
        if changed:
            self.store.tidy()

    def _commit(self, texts: Sequence[tuple[Document, Text, Document | None]]) -> list[Event]:
        """Cut, embed and put documents in one step; told when that is done."""
        added = datetime.now(UTC).isoformat(timespec="seconds")
        entries, events = [], []
        for document, text, before in texts:
            passages = tuple(self._cutter.cut(document.name, text, document.readers))
            vectors = self.embedder.passages([each.searched for each in passages])
            entries.append(Entry(replace(document, added=added, passages=len(passages)), passages, vectors))
            events.append(Event("added" if before is None else "changed", document.name, len(passages)))
        self.store.put(entries)
        return events

    def _remove(self, names: Sequence[str]) -> Iterator[Event]:
        known = self._known()
        self.store.remove(names)
        yield from (Event("removed", name, known[name].passages) for name in names)

    def _opened(self) -> VectorStore:
        settings = self._settings()
        return store_at(settings.get("at"), settings.get("key", ""), self.folder, self.embedder.width)

    def _known(self) -> dict[str, Document]:
        return {each.name: each for each in self.store.documents()}

    def _settings(self) -> dict[str, Any]:
        path = self.folder / SETTINGS
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def _write(self, settings: dict[str, Any]) -> None:
        write_text(self.folder / SETTINGS, json.dumps(settings, indent=1, ensure_ascii=False) + "\n")


def collection_folder(name: str, among: Path) -> Path:
    """The folder of a collection by its name. Raises ValueError for a name that could be a path."""
    if not NAME.fullmatch(name) or name.endswith("."):
        raise ValueError(
            f"{name!r} cannot name a collection: use up to 100 letters, digits, dots, dashes and underscores, a letter "
            "or digit first"
        )
    return among / name


def _is_free(folder: Path) -> bool:
    """Whether a collection can begin there: nothing is in it but the lock of one that could not."""
    return not folder.exists() or (folder.is_dir() and all(each.name == ".lock" for each in folder.iterdir()))


def _given(root: Root) -> Iterator[Given]:
    for file in _files(Path(root.path)):
        yield Given(str(file), file.read_bytes, partial(read_text, file), root.readers, root.tags)


def _text_of(name: str, text: str) -> Text:
    if not text.strip():
        raise Unreadable(f"{name} holds no text")
    return Text(text, markdown=True)


def _files(root: Path) -> Iterator[Path]:
    """What is readable at a path, in the order of names; hidden files and folders are not looked into, nor links."""
    if root.is_file():
        yield root
        return
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        for name in sorted(files):
            path = Path(folder) / name
            if is_readable(path) and path.is_file() and not path.is_symlink():
                yield path


def _within(name: str, root: str) -> bool:
    return name == root or name.startswith(root.rstrip("/") + "/")

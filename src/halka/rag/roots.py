"""The paths that were added to a collection: which files they yield, and who may read each file.

Paths may be nested. The deepest path above a file sets its readers, in whatever order the paths were added. A removed
path, and all below it, yields nothing until it is added by itself.
"""

from __future__ import annotations

import json
import os
import stat
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from halka.rag.store import EVERYONE, below, within
from halka.rag.texts import UNREAD, Text, Unreadable, check_unicode, composed, is_readable, read_text
from halka.util.errors import HalkaError
from halka.util.spelling import spelled

SETTINGS = "collection.json"  # the file that a collection's folder has
REQUIRED = {"embedder", "roots"}  # what stands in it


@dataclass(frozen=True)
class Root:
    """A path that was added, with the readers and tags of the documents there."""

    path: str
    readers: tuple[str, ...] = (EVERYONE,)
    tags: tuple[str, ...] = ()

    @property
    def away(self) -> bool:
        """Whether the path is missing or has become a link: its disk may be unmounted."""
        return not os.path.exists(self.path) or os.path.islink(self.path)


@dataclass(frozen=True)
class Input:
    """A document to add: its name, and functions that return its bytes and its text.

    readers  who may read it; None: who could read the document of this name, or reads what was added above it
    rooted   whether it is a file below a path that was added, which sets its readers
    """

    name: str
    content: Callable[[], bytes]
    read: Callable[[], Text]
    readers: tuple[str, ...] | None
    tags: tuple[str, ...]
    rooted: bool = False


@dataclass(frozen=True)
class LeftOut:
    """What paths hold and is not taken in: folders that cannot be listed, and documents of kinds that are not read."""

    folders: dict[str, OSError] = field(default_factory=dict)
    files: set[Path] = field(default_factory=set)

    def add_folder(self, error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):  # which are no folders
            self.folders[error.filename] = error


class Roots:
    """The paths that were added and those below them that were removed. Immutable: a change returns another."""

    def __init__(self, added: Iterable[Root], removed: Iterable[str] = ()):
        self._added = {root.path: root for root in added}
        self.removed = dict.fromkeys(removed)

    @classmethod
    def of_settings(cls, settings: dict[str, Any]) -> Roots:
        """The roots of a collection's settings."""
        added = (Root(root["path"], tuple(root["readers"]), tuple(root["tags"])) for root in settings["roots"])
        return cls(added, settings.get("removed", ()))

    def settings(self) -> dict[str, Any]:
        """The roots as a collection's settings file has them."""
        return {"roots": [asdict(root) for root in self], "removed": [*self.removed]}

    def __iter__(self) -> Iterator[Root]:
        return iter(self._added.values())

    def adding(self, roots: Iterable[Root], *, removed_too: bool = False) -> Roots:
        """Add these roots; they replace those of the same paths. `removed_too`: with what was removed below them."""
        added = {root.path: root for root in roots}
        kept = [root for root in self if root.path not in added]
        back = [path for path in self.removed if path in added or (removed_too and any(within(path, a) for a in added))]
        return Roots([*kept, *added.values()], [path for path in self.removed if path not in back])

    def removing(self, path: str) -> Roots:
        """Remove this path and all below it, also from later refreshes."""
        left = Roots(
            [root for root in self if not within(root.path, path)],
            [removed for removed in self.removed if not within(removed, path)],
        )
        return Roots(left, [*left.removed, path]) if left.root(path) else left

    def meant(self, name: str, documents: Sequence[str]) -> tuple[str, list[str]]:
        """The path, or the name of a text, that `name` means, and those of the sorted `documents` at it or below it.

        A document's exact name means it alone, unless it is below a path that was added.
        If the path goes through links, documents under the path itself are preferred to those under its target.
        Raises HalkaError for a path that was not added and has no documents.
        """
        if _holds(documents, name) and self.root(name) is None:
            return name, [name]
        plain = spelled(os.path.abspath(_expanded(name)))
        for path in (str(plain), str(located(plain))):
            inside = _within(documents, path)
            if inside or any(within(root.path, path) for root in self):
                return path, inside
        raise HalkaError(f"the collection has no document {name}: `halka docs list` shows those it has")

    def root(self, name: str) -> Root | None:
        """The root that a document comes from; None if there is none."""
        return self._added.get(self._above(name) or "")

    def readers_of(self, name: str) -> tuple[str, ...]:
        """The readers of the deepest path that was added, at or above this one; everyone's if there is none."""
        if os.path.isabs(name):  # as all paths that were added are
            place = located(name)
            for path in map(str, (place, *place.parents)):
                if path in self._added:
                    return self._added[path].readers
        return (EVERYONE,)

    def inputs(self, paths: Iterable[str], left_out: LeftOut) -> Iterator[Input]:
        """The files at these paths, each once, with the readers and tags of the deepest root above it.

        What else is there is put into `left_out`.
        """
        seen: set[str] = set()
        for path in paths:
            for file in files_at(Path(path), left_out):
                name = str(file)
                root = self.root(name)
                if root is not None and name not in seen:
                    seen.add(name)
                    yield Input(name, file.read_bytes, partial(read_text, file), root.readers, root.tags, True)

    def lost(self, name: str) -> bool:
        """Whether a document's file no longer exists, or was removed from the collection.

        Not lost are a file that exists but cannot be read, and a file below a root that is missing itself, since its
        disk may be unmounted. A missing file that was added by its own path is lost if its folder exists.
        """
        above = self._above(name)
        if above is None:
            return False
        if above not in self._added:
            return True
        if name == above:
            return os.path.isdir(os.path.dirname(name)) and _is_gone(name, name)
        return not self._added[above].away and _is_gone(name, above)

    def _above(self, name: str) -> str | None:
        """The deepest path that was added or removed, among a document's own and those above it.

        A name that no file has, such as /docs//x, is below none.
        """
        if name != os.path.normpath(name):
            return None
        path, below = name, ""
        while path != below:
            if path in self._added or path in self.removed:
                return path
            path, below = os.path.dirname(path), path
        return None


def _holds(names: Sequence[str], name: str) -> bool:
    """Whether sorted names have this one."""
    place = bisect_left(names, name)
    return place < len(names) and names[place] == name


def _within(names: Sequence[str], path: str) -> list[str]:
    """Those of the sorted names that are `within` the path, by a few comparisons."""
    own, prefix = path.rstrip("/"), below(path)
    first, last = bisect_left(names, prefix), bisect_left(names, f"{prefix[:-1]}0")  # no letter is between / and 0
    return [*([own] if _holds(names, own) else ()), *names[first:last]]


def _is_gone(name: str, root: str) -> bool:
    """Whether `files_at(root)` would not yield this file: it does not exist, is a collection's, or reached by links."""
    try:
        for folder in Path(name).parents:
            if not within(str(folder), root):
                break
            if not stat.S_ISDIR(os.lstat(folder).st_mode) or (str(folder) != root and is_collection(folder)):
                return True
        return not stat.S_ISREG(os.lstat(name).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:  # it may exist, but cannot be looked at now
        return False


def located(path: str | Path) -> Path:
    """A path as collections name it: absolute, without links, as the disk spells it. Raises for an empty one."""
    return spelled(os.path.realpath(_expanded(path)))


def _expanded(path: str | Path) -> str:
    """The path without `~`. Raises HalkaError for an empty one, which would be the working folder."""
    if not str(path):
        raise HalkaError("an empty name is no path: name a file or folder, or . for the working folder")
    return os.path.expanduser(path)


def is_collection(folder: Path) -> bool:
    """Whether a collection is in that folder, by its settings file."""
    try:
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(settings, dict) and settings.keys() >= REQUIRED


def files_at(root: Path, left_out: LeftOut | None = None) -> Iterator[Path]:
    """The readable files at a path, in the order of names: no hidden ones, links and collections."""
    left_out = left_out or LeftOut()
    if root.is_symlink():
        return
    if root.is_file():
        yield root
        return
    for folder, folders, files in os.walk(root, onerror=left_out.add_folder):
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and not is_collection(Path(folder, name))
        )
        for name in sorted(files):
            path = Path(folder) / name
            if is_readable(path) and path.is_file() and not path.is_symlink():
                yield path
            elif path.suffix.lower() in UNREAD and not name.startswith("."):
                left_out.files.add(path)


def text_of(name: str, text: str) -> Text:
    """The text of a document that is not a file. Raises Unreadable if it is empty or not Unicode."""
    check_unicode(name, text)
    if not text.strip():
        raise Unreadable(f"{name} holds no text")
    return Text(composed(text), markdown=True)

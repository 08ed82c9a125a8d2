"""The paths that were added to a collection: which files they give, and who may read each.

Paths may lie within each other. Whatever the order they were added in, the deepest one above a file says who reads it;
a path that was removed gives nothing from there down, until it is added by itself.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from halka.rag.store import EVERYONE, within
from halka.rag.texts import Text, is_readable, read_text
from halka.util.errors import HalkaError


@dataclass(frozen=True)
class Root:
    """A path that was added, with who may read what is found there, and its tags."""

    path: str
    readers: tuple[str, ...] = (EVERYONE,)
    tags: tuple[str, ...] = ()

    @property
    def away(self) -> bool:
        """Whether nothing can be told of what is there: it is not, or is a link now, which no path was when added."""
        return not os.path.exists(self.path) or os.path.islink(self.path)


@dataclass(frozen=True)
class Given:
    """What is to be taken in: its name, its bytes and how its text is had.

    rooted  whether a path that was added gives it, and says who reads it
    """

    name: str
    content: Callable[[], bytes]
    read: Callable[[], Text]
    readers: tuple[str, ...]
    tags: tuple[str, ...]
    rooted: bool = False


class Roots:
    """The paths that were added and those below them that were removed. None is changed; a change makes others."""

    def __init__(self, added: Iterable[Root], removed: Iterable[str] = ()):
        self._added = {each.path: each for each in added}
        self.removed = dict.fromkeys(removed)

    @classmethod
    def of_settings(cls, settings: dict[str, Any]) -> Roots:
        added = (Root(each["path"], tuple(each["readers"]), tuple(each["tags"])) for each in settings["roots"])
        return cls(added, settings.get("removed", ()))

    def settings(self) -> dict[str, Any]:
        """As a collection's file has them."""
        return {"roots": [asdict(each) for each in self], "removed": [*self.removed]}

    def __iter__(self) -> Iterator[Root]:
        return iter(self._added.values())

    def adding(self, roots: Iterable[Root]) -> Roots:
        """With these, in place of those of the same paths."""
        added = {each.path: each for each in roots}
        kept = [each for each in self if each.path not in added]
        return Roots([*kept, *added.values()], [path for path in self.removed if path not in added])

    def removing(self, path: str) -> Roots:
        """Without what is at that path and below it, now and later."""
        left = Roots(
            [each for each in self if not within(each.path, path)],
            [each for each in self.removed if not within(each, path)],
        )
        return Roots(left, [*left.removed, path]) if left.root(path) else left

    def meant(self, name: str, known: Iterable[str]) -> tuple[str, list[str]]:
        """The path, or name of a text of the caller's, that is meant, and the documents there.

        Where links stand now, what is known by the path itself comes before what is where they lead. Raises ValueError
        for what is neither known nor was added.
        """
        if name in known and not os.path.isabs(name):
            return name, [name]
        plain = os.path.expanduser(name)
        for path in (os.path.abspath(plain), os.path.realpath(plain)):
            found = [each for each in known if within(each, path)]
            if found or any(within(each.path, path) for each in self):
                return path, found
        raise HalkaError(f"the collection has no document {name}: `halka docs list` shows those it has")

    def root(self, name: str) -> Root | None:
        """The path that gives a document; None if none does."""
        return self._added.get(self._above(name) or "")

    def given(self, paths: Iterable[str]) -> Iterator[Given]:
        """The files at these paths, each once, and as the deepest path above it has it."""
        seen: set[str] = set()
        for path in paths:
            for file in files_at(Path(path)):
                name = str(file)
                root = self.root(name)
                if root is not None and name not in seen:
                    seen.add(name)
                    yield Given(name, file.read_bytes, partial(read_text, file), root.readers, root.tags, True)

    def lost(self, name: str) -> bool:
        """Whether what was a document's file is one no more, or was removed. What is there but fails to be read is not.

        Nor is what stood below a path that is away itself, which may be a disk that is not mounted; a file that was
        added by its own path is, if the folder that it was in is there.
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
        """The deepest path that was added or removed, of those above a document and its own."""
        for path in map(str, (Path(name), *Path(name).parents)):
            if path in self._added or path in self.removed:
                return path
        return None


def _is_gone(name: str, root: str) -> bool:
    """Whether no file is there, or links lead to it. The slow twin of what `files_at` finds, for one file."""
    try:
        for folder in Path(name).parents:
            if not within(str(folder), root):
                break
            if not stat.S_ISDIR(os.lstat(folder).st_mode):
                return True
        return not stat.S_ISREG(os.lstat(name).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:  # it cannot be looked at now, and may be there
        return False


def files_at(root: Path) -> Iterator[Path]:
    """What is readable at a path, in the order of names; hidden files and folders are not looked into, nor links."""
    if root.is_symlink():
        return
    if root.is_file():
        yield root
        return
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        for name in sorted(files):
            path = Path(folder) / name
            if is_readable(path) and path.is_file() and not path.is_symlink():
                yield path

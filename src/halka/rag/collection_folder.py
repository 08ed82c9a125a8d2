"""A collection's folder with its settings file; the collections of a folder by their names.

collections/faq/
  collection.json   the embedder, with the width and a sample of its vectors, the paths that were added, with their
                    readers, what was removed below them, where the passages are, and a key that no other has
  passages.lance/   the passages, unless they are in PostgreSQL or Qdrant (`stores`)
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halka.rag.roots import REQUIRED, SETTINGS
from halka.util.errors import DamagedFolderError, HalkaError
from halka.util.files import contents, portable_name, write_text
from halka.util.spelling import check_new_name

# Of a collection whose settings were never complete, or whose removal was ended after they were gone.
REMAINS = re.compile(r"\.(passages\.(index\.)?)?lock|\.collection\.json\.[0-9a-f]{8}")
ASIDE = re.compile(r"\..+\.[0-9a-f]{8}")  # of a folder that is set aside to be removed
PASSAGES = "passages.lance"


@dataclass(frozen=True)
class CollectionFolder:
    """The folder of one collection. Hold the collection's lock to change its settings."""

    path: Path

    @property
    def exists(self) -> bool:
        """Whether a collection is there."""
        return (self.path / SETTINGS).is_file()

    @property
    def is_free(self) -> bool:
        """Whether a collection can be created there: the folder is missing, empty or holds remains of a failed one."""
        if not self.path.exists():
            return True
        return self.path.is_dir() and all(map(REMAINS.fullmatch, contents(self.path)))

    def settings(self) -> dict[str, Any]:
        """The settings; empty if no collection is there. Raises DamagedFolderError for a file without them."""
        if not self.exists:
            return {}
        try:
            settings = json.loads((self.path / SETTINGS).read_text(encoding="utf-8"))
            if settings.keys() >= REQUIRED:
                return settings
        except (ValueError, AttributeError, RecursionError):
            pass
        raise DamagedFolderError(
            f"{self.path / SETTINGS} is damaged: restore it, or remove the folder and add the documents to a new "
            "collection"
        )

    def settings_of(self, key: str | None) -> dict[str, Any]:
        """The settings of the collection with this key. Raises HalkaError if it was removed meanwhile.

        The key is None in collections of before 2026-12-01, unless they keep their passages elsewhere.
        """
        settings = self.settings()
        if not settings or settings.get("key") != key:
            raise HalkaError(f"the collection in {self.path} was removed meanwhile: if there is a new one, open that")
        return settings

    def write(self, settings: dict[str, Any]) -> None:
        """Replace the settings, whole or not at all."""
        write_text(self.path / SETTINGS, json.dumps(settings, indent=1, ensure_ascii=False) + "\n")

    def end(self) -> None:
        """Remove the collection, and its folder unless it holds anything else, such as somebody's documents.

        What is left of the folder is set aside first: a new collection may be there at once.
        """
        folder = self.path.resolve()
        (folder / SETTINGS).unlink()
        entries = [*folder.iterdir()]
        own = [entry for entry in entries if entry.name == PASSAGES or REMAINS.fullmatch(entry.name)]
        if own == entries:
            aside = folder.rename(folder.with_name(f".{folder.name}.{secrets.token_hex(4)}"))
            if self.path.is_symlink():
                self.path.unlink()
            shutil.rmtree(aside)
            return
        for entry in own:  # no new collection can be there meanwhile
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


def ended_in(among: Path) -> list[Path]:
    """What `end` set aside in a folder of collections and a killed process did not remove, or one removes now."""
    return [path for path in among.glob(".*") if ASIDE.fullmatch(path.name)]


def collection_folder(name: str, among: Path) -> Path:
    """The folder of the collection of this name.

    Raises HalkaError for a name that could be a path, and for a new one that differs from another in capitals alone.
    """
    folder, names = among / portable_name(name, "name a collection"), collection_names(among)
    if name not in names:
        check_new_name(name, names)
    return folder


def collection_names(among: Path) -> list[str]:
    """The names of the collections in a folder, in order."""
    return [path.parent.name for path in sorted(among.glob(f"*/{SETTINGS}"))]

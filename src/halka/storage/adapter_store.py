"""`AdapterStore`: thousands of adapters of one base in one folder, by name and version.

    store/
      store.json            the base's fingerprint, from the first adapter that was saved
      support/1/ … 4/       adapter folders, as `save` writes them; the highest number is the current version
      support/tags.json     its tags
      support/last_version.json  its highest number, once that version was removed
      .locks/support        locked while a process writes under that name, in small letters

One rename adds a version and one rename removes it, so a crash at any moment leaves it whole or absent, and readers
need no lock. A killed writer's leftovers are hidden; the next writer of that name, or `clean`, removes them. Nothing
else that lies in the folder is touched.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

from filelock import FileLock, Timeout

from halka.core import AdaptedModel, Adapter
from halka.models.base_names import base_name
from halka.models.fingerprint import own_fingerprint
from halka.storage.adapter_folder import AdapterFolder
from halka.storage.card import CARD, Card, read_card
from halka.storage.formats import json_object
from halka.storage.save_load import README, Allowed, load, save
from halka.util.base_folders import is_base_folder
from halka.util.errors import DamagedFolderError, HalkaError, UnknownAdapterError, WrongBaseError
from halka.util.files import flush, is_portable_name, new_folder, portable_name, write_text
from halka.util.spelling import check_new_name, is_spelled

BASE, TAGS, LAST, LOCKS = "store.json", "tags.json", "last_version.json", ".locks"
VERSION = re.compile(r"[1-9][0-9]{0,8}")
VERSIONED = re.compile(rf"(.+)@({VERSION.pattern})")
LEFTOVER = re.compile(rf"\.(?:\d+|{re.escape(TAGS)}|{re.escape(LAST)})\.\w+")  # of a killed writer


@dataclass(frozen=True)
class Stored:
    """One version of an adapter in a store; `card` is None where another tool wrote the folder."""

    name: str
    version: int
    folder: Path
    tags: tuple[str, ...]
    card: Card | None

    @property
    def task(self) -> str:
        return self.card.task if self.card else ""

    @property
    def method(self) -> str:
        return str(self.card.method["name"]) if self.card else ""

    def open(self, *, allow_pickle: bool = False) -> AdapterFolder:
        """Its AdapterFolder, under the store's name. Raises DamagedFolderError as `AdapterFolder.open` does."""
        return replace(AdapterFolder.open(self.folder, allow_pickle=allow_pickle), name=self.name)


def name_and_version(text: str) -> tuple[str, int | None]:
    """What NAME@VERSION names; of a name without a version None, which is the newest."""
    match = VERSIONED.fullmatch(str(text))  # of no text the name is refused where it is looked up
    return (text, None) if match is None else (match[1], int(match[2]))


class AdapterStore:
    """The adapters of one base in a folder. Any number of processes may read and write it at once."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder).expanduser()
        if self.folder.exists() and not self.folder.is_dir():
            raise HalkaError(f"{self.folder} is a file: a store is a folder")

    # ── looking up ───────────────────────────────────────────────────────────────────────────────────────────

    def names(self) -> list[str]:
        """Every name that has a version, sorted."""
        if not self.folder.is_dir():
            return []
        return sorted(path.name for path in self.folder.iterdir() if is_portable_name(path.name) and _versions(path))

    def __contains__(self, name: object) -> bool:
        """Whether a name has a version."""
        return isinstance(name, str) and is_portable_name(name) and bool(self._versions(name))

    def versions(self, name: str) -> list[int]:
        """A name's versions, oldest first. Raises UnknownAdapterError if there is none."""
        versions = self._versions(_named(name))
        if not versions:
            near = [other for other in self.names() if name.lower() in other.lower()][:5]
            hint = f": did you mean {', '.join(near)}?" if near else ""
            raise UnknownAdapterError(f"{self.folder} holds no adapter {name!r}{hint}")
        return versions

    def get(self, name: str, version: int | None = None) -> Stored:
        """One version, which the name may say, too (NAME@VERSION); by default the newest.

        Raises UnknownAdapterError if the store does not have it.
        """
        if version is None:
            name, version = name_and_version(name)
        versions, newest = self.versions(name), version is None
        version = versions[-1] if version is None else version
        _check_version(name, version, versions)
        folder = self.folder / name / str(version)
        stored = Stored(name, version, folder, self._tags(name), read_card(folder))
        if not folder.is_dir():
            if newest and version not in self._versions(name):
                return self.get(name)
            raise UnknownAdapterError(f"version {version} of {name!r} was removed meanwhile")
        return stored

    def list(
        self,
        *,
        task: str | None = None,
        tag: str | None = None,
        method: str | None = None,
        on_damage: Callable[[str, DamagedFolderError], object] | None = None,
    ) -> list[Stored]:
        """The newest version of every name, or of those with that task, tag or method.

        `on_damage` is called with each name that cannot be read; without it DamagedFolderError is raised for the first.
        """
        matching: list[Stored] = []
        for name in self.names():
            try:
                stored = self.get(name)
            except UnknownAdapterError:
                continue  # removed meanwhile
            except DamagedFolderError as error:
                if on_damage is None:
                    raise
                on_damage(name, error)
                continue
            if (
                (task is None or stored.task == task)
                and (tag is None or tag in stored.tags)
                and (method is None or stored.method == method)
            ):
                matching.append(stored)
        return matching

    def check_new(self, name: str) -> None:
        """Raises HalkaError where `save` and `add` would refuse a new name, as one that differs in capitals alone."""
        if _named(name) not in self and self.folder.is_dir():
            alike = (path for path in self.folder.iterdir() if path.name.lower() == name.lower())
            check_new_name(name, (path.name for path in alike if _versions(path)))

    # ── changes ─────────────────────────────────────────────────────────────────────────────────────────────────

    def save(self, model: AdaptedModel, name: str, *, stored_as: str | None = None, **card: Any) -> Stored:
        """Write adapter `name` of `model` as the next version; `card` goes to `halka.save`.

        Raises WrongBaseError where the store's adapters have another base, HalkaError for a name that is no file name,
        for a new one that differs from another in capitals alone, for a base's folder, and for a name whose folder in
        the store is no adapter's.
        """
        self._refuse_base_folder()
        stored_as = _named(name if stored_as is None else stored_as)
        otherwise = f"the adapters in {self.folder} are of another base: use another folder"
        with (
            model.lock,
            self._claiming(own_fingerprint(model), base_name(model.base), otherwise),
            self._writing(stored_as) as folder,
        ):  # the model's lock first, since a thread that holds it may save too
            self.check_new(stored_as)
            _check_own(folder)
            version = _last(folder) + 1
            save(model, name, folder / str(version), **card)
        return self.get(stored_as, version)

    def add(self, source: str | Path | AdapterFolder, name: str | None = None) -> Stored:
        """Copy an adapter's folder, local or on the hub, into the store as the next version of `name`.

        Of its files it copies the adapter's own, the Card and README.md.
        The default name is the one of `halka.load`: the folder's, the run's or the hub's.
        Raises DamagedFolderError for a folder that is no whole adapter, WrongBaseError where its Card names another
        base than the store's, HalkaError for a name that is no file name, for a new one that differs from another in
        capitals alone, for a base's folder, and for a name whose folder in the store is no adapter's.
        """
        self._refuse_base_folder()
        name = None if name is None else _named(name)
        adapter = AdapterFolder.open(source)
        name = _named(adapter.name) if name is None else name
        adapter.verify()
        base: Mapping[str, Any] = {} if adapter.card is None else adapter.card.base
        fingerprint = json_object(base.get("fingerprint"))
        otherwise = f"{adapter} was made for another base than the adapters in {self.folder}"
        claim = self._claiming(fingerprint, base.get("name") or "", otherwise) if fingerprint else nullcontext()
        with claim, self._writing(name) as place:
            self.check_new(name)
            _check_own(place)
            version = _last(place) + 1
            with new_folder(place / str(version)) as beside:
                for file in (*adapter.own_files, CARD, README):  # a run's checkpoints may lie beside them
                    if (adapter.path / file).is_file():
                        shutil.copyfile(adapter.path / file, beside / file)
                adapter.check()
                copy = replace(adapter, path=beside, weights=beside / adapter.weights.name)
                if copy.digests != adapter.digests:
                    raise DamagedFolderError(f"{adapter} changed while it was copied: add it again")
        return self.get(name, version)

    def tag(self, name: str, tags: Sequence[str], *, remove: bool = False) -> tuple[str, ...]:
        """Add tags to a name, or remove them. Returns its tags afterwards. Raises HalkaError for an empty tag."""
        return self._retag(name, lambda before: before - {*tags} if remove else before | {*tags})

    def set_tags(self, name: str, tags: Sequence[str]) -> tuple[str, ...]:
        """Give a name these tags and no others, as `tag` does."""
        return self._retag(name, lambda _: {*tags})

    def remove(self, name: str, version: int | None = None) -> None:
        """Remove one version, or the name with all of them. Raises UnknownAdapterError if it is not in the store.

        No later version gets the number of a removed one, as long as the name has others.
        """
        versions = self.versions(name)
        if version is not None:
            _check_version(name, version, versions)
        with self._writing(name) as folder:
            if version is not None and version == _last(folder):
                write_text(folder / LAST, f"{version}\n")
            for number in versions if version is None else [version]:
                if (folder / str(number)).exists():  # else another process has removed it
                    (folder / str(number)).rename(folder / f".{number}.{uuid.uuid4().hex[:8]}")
            flush(folder)

    # ── use ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def load(self, model: AdaptedModel, name: str, version: int | None = None, **allowed: Unpack[Allowed]) -> Adapter:
        """Add a stored adapter to `model` under its name, as strictly as `halka.load` does, and with its options."""
        return load(model, self.get(name, version).folder, name=name, **allowed)

    def base(self) -> Mapping[str, Any] | None:
        """The fingerprint of the base that the adapters are for; None before the first is saved.

        Raises DamagedFolderError for a file that does not hold it.
        """
        content = _read(
            self.folder / BASE,
            lambda content: isinstance(content["fingerprint"], dict),
            "remove it, and the next adapter that is saved writes it again",
        )
        return content and content["fingerprint"]

    def verify(self) -> Iterator[tuple[Stored | str, str]]:
        """Read every file. Yields each version with the reason why it is damaged, or "" if it is whole."""
        for name in self.names():
            for version in _versions(self.folder / name):
                try:
                    stored = self.get(name, version)
                    stored.open().verify()
                    yield stored, ""
                except (HalkaError, OSError) as error:
                    if (self.folder / name / str(version)).exists():  # else it was removed meanwhile
                        yield f"{name} {version}", str(error)

    def clean(self) -> int:
        """Remove killed writers' leftovers, except under names being written. Returns the number of entries.

        Raises HalkaError for a base's folder.
        """
        self._refuse_base_folder()
        count = 0
        if self.folder.is_dir():
            (self.folder / LOCKS).mkdir(exist_ok=True)
            with FileLock(self.folder / LOCKS / ".store"):
                for leftover in self.folder.glob(f".{BASE}.*"):
                    leftover.unlink()
                    count += 1
        for folder in self.folder.iterdir() if self.folder.is_dir() else ():
            if not is_portable_name(folder.name) or not folder.is_dir():
                continue
            leftovers = len(_leftovers(folder))
            if not leftovers and not _versions(folder):
                continue  # it is no adapter's
            try:
                with self._writing(folder.name, wait=0):
                    count += leftovers
            except Timeout:
                continue
        return count

    # ── inside ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _refuse_base_folder(self) -> None:
        if is_base_folder(self.folder):
            raise HalkaError(f"{self.folder} holds a base model (config.json): name another folder for the store")

    def _versions(self, name: str) -> list[int]:
        """A name's versions, oldest first; none of another's that a Mac's file system finds by it."""
        versions = _versions(self.folder / name)
        return versions if versions and is_spelled(self.folder / name) else []

    def _tags(self, name: str) -> tuple[str, ...]:
        path, way_out = self.folder / name / TAGS, f"remove it, and tag {name} again"
        tags = _read(path, lambda tags: all(isinstance(tag, str) for tag in tags) and isinstance(tags, list), way_out)
        return tuple(tags or ())

    def _retag(self, name: str, change: Callable[[set[str]], set[str]]) -> tuple[str, ...]:
        self.versions(name)
        with self._writing(name) as folder:
            tags = tuple(sorted(change({*self._tags(name)})))
            if not all(tag.strip() for tag in tags):
                raise HalkaError(f"a tag for {name} is empty: give a word to find it by")
            write_text(folder / TAGS, json.dumps(tags) + "\n")
        return tags

    @contextmanager
    def _claiming(self, fingerprint: Mapping[str, Any], name: str, otherwise: str) -> Generator[None]:
        """Record the base of the first adapter, which the block writes; if that fails, the store is nobody's again.

        Others wait until the first is written, so that nobody is at work under a base that is taken back.
        A Card may have a part of the fingerprint: what both have is compared, and what is new is recorded.
        Raises WrongBaseError with the message `otherwise` where the store is of another base.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / LOCKS).mkdir(exist_ok=True)
        with FileLock(self.folder / LOCKS / ".store"):
            before = self.base()
            recorded = before or {}
            if any(recorded.get(key, value) != value for key, value in fingerprint.items()):
                raise WrongBaseError(otherwise)
            if fingerprint.keys() - recorded.keys():
                content = {"base": name, "fingerprint": {**recorded, **fingerprint}}
                write_text(self.folder / BASE, json.dumps(content, indent=2) + "\n")
            if before is None:
                try:
                    yield
                except BaseException:
                    if not self.names():
                        (self.folder / BASE).unlink(missing_ok=True)
                    raise
                return
        yield

    @contextmanager
    def _writing(self, name: str, wait: float = -1) -> Generator[Path]:
        """Lock the name's folder for this process; removes hidden leftovers before and after."""
        folder = self.folder / name
        (self.folder / LOCKS).mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / LOCKS / name.lower(), timeout=wait):
            folder.mkdir(exist_ok=True)
            if not is_spelled(folder):  # what is left of another name, on a Mac
                check_new_name(name, os.listdir(self.folder))
            try:
                _remove_leftovers(folder)
                yield folder
            finally:
                _remove_leftovers(folder)
                if not _versions(folder):
                    with suppress(OSError):  # what somebody else has put there stays
                        (folder / TAGS).unlink(missing_ok=True)
                        (folder / LAST).unlink(missing_ok=True)
                        folder.rmdir()


def _read(path: Path, is_whole: Callable[[Any], bool], way_out: str) -> Any:
    """What a file of the store holds; None if it is not there. Raises DamagedFolderError for what is not whole."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if is_whole(content):
            return content
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    raise DamagedFolderError(f"{path} is damaged: {way_out}")


def _check_version(name: str, version: int, versions: Sequence[int]) -> None:
    if version not in versions:
        raise UnknownAdapterError(f"{name!r} has no version {version}: it has {', '.join(map(str, versions))}")


def _versions(folder: Path) -> list[int]:
    try:
        return sorted(int(path.name) for path in folder.iterdir() if VERSION.fullmatch(path.name))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _last(folder: Path) -> int:
    """The highest version that a name has or had; 0 before its first."""
    removed = _read(folder / LAST, lambda number: type(number) is int, "write the highest number there was into it")
    return max([removed or 0, *_versions(folder)])


def _check_own(folder: Path) -> None:
    """Raises HalkaError where a folder without versions holds something else, so that it is no adapter's."""
    names = sorted(path.name for path in folder.iterdir() if path.name[0] != "." and path.name not in (TAGS, LAST))
    if names and not _versions(folder):
        raise HalkaError(f"{folder} holds {names[0]}, which is no adapter's version: store it under another name")


def _leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.glob(".*") if LEFTOVER.fullmatch(path.name)]


def _remove_leftovers(folder: Path) -> None:
    """What cannot be removed yet, as on NFS a file that a process has mapped, is left to the next writer."""
    for leftover in _leftovers(folder):
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _named(name: object) -> str:
    if (name := portable_name(name, "be a name in a store")).lower() == BASE:
        raise HalkaError(f"{name!r} cannot be a name in a store, which has a file of that name: choose another")
    return name

"""An adapter's files on their way in and out: which may come, and how they are read without following a link."""

from __future__ import annotations

import io
import os
import stat
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from halka.server.errors import ApiError
from halka.storage.adapter_folder import AdapterFolder
from halka.storage.adapter_store import AdapterStore, Stored
from halka.storage.card import CARD
from halka.storage.formats import FORMATS
from halka.storage.save_load import README
from halka.util.errors import UnknownAdapterError
from halka.util.files import is_portable_name

WEIGHTS = tuple(name for format in FORMATS.values() for name in format.FILES.names() if name.endswith(".safetensors"))
ALLOWED = tuple(dict.fromkeys([*(name for format in FORMATS.values() for name in format.FILES.names()), CARD, README]))
SMALL = 1 << 20  # the most bytes of a file that holds no weights
PIECE = 1 << 20


def check_names(sizes: Mapping[str, int]) -> None:
    """Raises ApiError for files that no adapter has, such as a pickle, and for a configuration of that size."""
    for name, size in sizes.items():
        if name not in ALLOWED:
            raise ApiError(
                400,
                f"{name[:100]!r} is no file of an adapter: those are {', '.join(ALLOWED)}. Weights come as safetensors "
                "alone, since other files can run code",
                param="files",
            )
        if size > SMALL and name not in WEIGHTS:
            raise ApiError(413, f"{name} is larger than {SMALL} bytes", param="files")


def content_id(folder: Path) -> str:
    """The id of an adapter's content, kept while the folder's files are the same by inode, time and bytes.

    Raises HalkaError for what is no adapter, FileNotFoundError for a folder that is removed meanwhile.
    """
    files = [path.lstat() for path in sorted(folder.iterdir())]
    return hashed_id(folder, *((file.st_ino, file.st_mtime_ns, file.st_size) for file in files))


@lru_cache(maxsize=10_000)
def hashed_id(folder: Path, *files: tuple[int, int, int]) -> str:
    return AdapterFolder.open(folder).id


def files_below(roots: Sequence[Path], folder: str) -> dict[str, BinaryIO]:
    """The files of an adapter below one of these folders, opened, following no link.

    Raises ApiError for a path that leads elsewhere, a folder that is not there, and one that holds something else.
    """
    parts = folder.split("/")
    if not all(is_portable_name(part) for part in parts):
        raise ApiError(400, f"{folder[:200]!r} is no folder below those that adapters may come from", param="folder")
    places = (Path(os.path.realpath(root)).joinpath(*parts) for root in roots)
    place = next((place for place in places if place.is_dir() and os.path.realpath(place) == str(place)), None)
    if place is None:
        raise ApiError(404, f"there is no folder {folder!r} below those that adapters may come from", param="folder")
    files = opened_files(place)
    try:
        check_names(sizes_of(files))
    except BaseException:
        close(files)
        raise
    return files


def sizes_of(files: Mapping[str, BinaryIO]) -> dict[str, int]:
    return {name: os.fstat(file.fileno()).st_size for name, file in files.items()}


def copy_files(files: Mapping[str, BinaryIO], sizes: Mapping[str, int], into: Path) -> None:
    """Copy as many bytes of each file, for which there is room: it may have grown since."""
    for name, file in files.items():
        left = sizes[name]
        with (into / name).open("xb") as copy:
            while piece := file.read(min(left, PIECE)):
                left -= copy.write(piece)


def check_inside(store: AdapterStore, name: str) -> None:
    """Raises UnknownAdapterError for a name that is no plain folder of the store: a link may lead to others."""
    if not is_portable_name(name) or (store.folder / name).is_symlink():
        raise UnknownAdapterError(f"there is no adapter {name[:100]!r}: GET /v1/adapters lists those there are")


def folder_inside(store: AdapterStore, name: str, version: int | None = None) -> Path:
    """A version's folder in the store, damaged or not, by default the newest's.

    Raises UnknownAdapterError for one that is not there, and for links in its place or among its files.
    """
    check_inside(store, name)
    if name not in store:  # the store's own error would look through all names for similar ones
        raise UnknownAdapterError(f"there is no adapter {name!r}: GET /v1/adapters lists those there are")
    versions = store.versions(name)
    version = versions[-1] if version is None else version
    folder = store.folder / name / str(version)
    try:
        linked = any(path.is_symlink() for path in (folder, *folder.iterdir()))
    except (FileNotFoundError, NotADirectoryError):
        raise UnknownAdapterError(
            f"{name!r} has no version {version}: it has {', '.join(map(str, versions))}"
        ) from None
    if linked:
        raise UnknownAdapterError(f"version {version} of {name!r} is, or has, a link: it is not used")
    return folder


def stored_inside(store: AdapterStore, name: str, version: int | None = None) -> Stored:
    """A version in the store, as `folder_inside` finds it. Raises DamagedFolderError as the store does, too."""
    return store.get(name, int(folder_inside(store, name, version).name))


def opened_files(folder: Path, only: Collection[str] | None = None) -> dict[str, BinaryIO]:
    """The plain files of a folder, or `only` these, opened: they can be read to their end, whoever removes them.

    Links are left out.
    """
    files = dict[str, BinaryIO]()
    try:
        for path in sorted(folder.iterdir()):
            wanted = only is None or path.name in only
            if not wanted or path.name.startswith(".") or not stat.S_ISREG(path.lstat().st_mode):
                continue
            files[path.name] = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb")
    except BaseException:
        close(files)
        raise
    return files


def close(files: Mapping[str, BinaryIO]) -> None:
    for file in files.values():
        file.close()


def pieces_of(file: BinaryIO) -> Iterator[bytes]:
    """A file's content; closes it."""
    with file:
        while piece := file.read(PIECE):
            yield piece


def zipped(files: Mapping[str, BinaryIO]) -> Iterator[bytes]:
    """A zip of these files, uncompressed, as it is made; closes them."""
    written = _Written()
    try:
        with zipfile.ZipFile(written, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for name, file in files.items():
                with archive.open(zipfile.ZipInfo(name), "w", force_zip64=True) as entry:
                    while piece := file.read(PIECE):
                        entry.write(piece)
                        yield written.taken()
        yield written.taken()
    finally:
        close(files)


class _Written(io.RawIOBase):
    """What was written since it was last taken."""

    def __init__(self) -> None:
        self._pieces = list[bytes]()

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self._pieces.append(bytes(data))
        return len(data)

    def taken(self) -> bytes:
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces)

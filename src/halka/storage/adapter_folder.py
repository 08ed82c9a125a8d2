"""`AdapterFolder`: one adapter on disk. `open` reads its configuration and Card, `read()` what is to be computed."""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from halka.models.fetching import hub, known_bases
from halka.storage import tensors
from halka.storage.card import CARD, Card, read_card
from halka.storage.formats import BaseSpec, Contents, FileNames, Format, format_of
from halka.util.errors import DamagedFolderError, HalkaError
from halka.util.kinds import Kind

ADAPTER = "adapter"  # the folder within a run's folder that holds its adapter
LARGE = 1 << 24  # bytes to hash at a time: each call releases the GIL


@dataclass(frozen=True, eq=False)
class AdapterFolder:
    """An adapter on disk, in any format that Halka reads. `open` makes one.

    `name` is the adapter's default name: its folder's, its run's for `runs/support/adapter`, or its name on the hub.
    `card` is None where another tool wrote the folder. `config` is the format's own configuration.
    Both are as they were when it was opened, and so is what follows from them, and `id` as when it was first asked for.
    `read`, `check`, `digests` and the sizes are of the files that are there now: another adapter that was written
    there since does not match the Card.
    """

    path: Path
    name: str
    format: Format
    config: Mapping[str, Any]
    card: Card | None
    weights: Path  # the file that holds the tensors
    allow_pickle: bool
    with_head: bool  # whether to read a head that was saved beside the adapter
    # The SHA-256 of its files by name, each with the state of the file that was hashed
    _hashed: dict[str, tuple[object, str]] = field(
        default_factory=dict[str, tuple[object, str]], init=False, repr=False
    )

    @classmethod
    def open(
        cls, source: str | Path | AdapterFolder, *, allow_pickle: bool = False, head: bool = True
    ) -> AdapterFolder:
        """The adapter of a path, a run's folder, or a name on the Hugging Face hub: `org/adapter[@revision]`.

        An AdapterFolder is returned as it is. `allow_pickle` reads weights from a pickle, by `torch.load` with
        `weights_only`. `head=False` leaves out a head that was saved beside the adapter.
        Raises DamagedFolderError for a folder without an adapter, a damaged configuration or Card, and a pickle that is
        not allowed; HalkaError for a path that does not exist, and a name that the hub does not have.
        """
        if isinstance(source, AdapterFolder):
            return source
        if (parts := hub.adapter_parts(source)) is not None:
            path, name = hub.adapter_folder(parts, allow_pickle=allow_pickle), parts["last"]
        else:
            path = Path(source).expanduser()
            if not path.is_dir():
                raise HalkaError(f"{path} is {'a file' if path.exists() else 'not there'}: name an adapter's folder")
            if not _has_config(path) and _has_config(path / ADAPTER):
                path = path / ADAPTER
            name = _name_of(path)
        format = format_of(path)
        if not (path / format.FILES.config).is_file():
            below = sorted(file.parent.name for file in path.glob(f"*/{format.FILES.config}"))[:5]
            way_out = f", but a folder of several: name one of them, {', '.join(below)}" if below else ""
            raise DamagedFolderError(f"{path} holds no {format.FILES.config}: it is not an adapter folder{way_out}")
        weights = _weights_file(path, format.FILES, allow_pickle=allow_pickle)
        return cls(
            path=path,
            name=name,
            format=format,
            config=_read_json(path / format.FILES.config),
            card=read_card(path),
            weights=weights,
            allow_pickle=allow_pickle,
            with_head=head,
        )

    def __str__(self) -> str:
        return str(self.path)

    # ── its base ────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def base_name(self) -> str | None:
        """The base that the adapter was trained on, as `load_base` takes it; None where the folder names none.

        A base that Halka knows by a short name is called so, since the folder has its name on the hub.
        """
        name = (self.card.base.get("name") if self.card is not None else None) or self._spec.name
        return next((short for short, base in known_bases().items() if base.hub_name == name), name)

    @property
    def kind(self) -> Kind | None:
        """The kind of that base, as `load_base` takes it; None where the folder does not say."""
        return self._spec.kind if self.card is None else self.card.kind

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of its head's outputs, in order; empty where the folder does not say."""
        return self._spec.labels if self.card is None else tuple(self.card.labels)

    @property
    def named_labels(self) -> tuple[str, ...]:
        """The labels; empty where the folder says only their number."""
        return self._spec.named_labels if self.card is None else self.labels

    @property
    def system(self) -> str:
        """The system message that all its training examples began with; empty where the Card names none."""
        system = None if self.card is None else self.card.training.get("system")
        return system if isinstance(system, str) else ""

    @property
    def history(self) -> dict[str, Any]:
        """Its Card's task, training and measurements, as `save` takes them."""
        if (card := self.card) is None:
            return {}
        return {"task": card.task, "training": card.training, "measurements": card.measurements}

    @cached_property
    def _spec(self) -> BaseSpec:
        head = self._head_files
        return self.format.base_spec(self.config, None if head is None else _read_json(self.path / head.config))

    # ── its files ───────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def files(self) -> dict[str, int]:
        """The bytes of every file in the folder, by name."""
        return {file.name: file.stat().st_size for file in sorted(self.path.iterdir()) if file.is_file()}

    @property
    def size(self) -> int:
        """The bytes that the folder's files take on disk."""
        return sum(self.files.values())

    @property
    def sizes(self) -> list[int]:
        """The bytes of each of its tensors in memory, in fp32. Raises DamagedFolderError for a damaged file."""
        if self.weights.suffix != ".safetensors":  # a pickle that is allowed, which says nothing without being read
            return [4 * tensor.numel() for tensor in tensors.read_tensors(self.weights).values()]
        return [4 * math.prod(shape) for shape, _ in tensors.shapes(self.weights).values()]

    @property
    def memory(self) -> int:
        """The bytes of all of them. Raises DamagedFolderError for a damaged file."""
        return sum(self.sizes)

    def read(self) -> Contents:
        """Its configuration and tensors, by the format's names. Raises DamagedFolderError as `read_tensors` does."""
        head, files = None, self._head_files
        if files is not None:
            weights = _weights_file(self.path, files, allow_pickle=self.allow_pickle)
            head = Contents(_read_json(self.path / files.config), tensors.read_tensors(weights))
        config = _read_json(self.path / self.format.FILES.config)
        return Contents(config, tensors.read_tensors(self.weights), head)

    @property
    def own_files(self) -> list[str]:
        """The names of its format's files: configuration, weights, and those of a head beside them."""
        head = self.format.FILES.head
        pickled = (head.pickle,) if head is not None and self.allow_pickle else ()
        names = dict.fromkeys((*self.format.FILES.names(), self.weights.name, *pickled))
        return [name for name in names if (self.path / name).is_file()]

    @property
    def digests(self) -> dict[str, str]:
        """The SHA-256 of these files, by name; once all are removed, of those that were hashed before.

        A file is hashed again where its inode, size or time changed.
        """
        names = self.own_files
        for name in names:
            file = (self.path / name).stat()
            state = file.st_ino, file.st_size, file.st_mtime_ns
            if name not in self._hashed or self._hashed[name][0] != state:
                self._hashed[name] = state, _sha256(self.path / name)
        return {name: self._hashed[name][1] for name in names or [*self._hashed]}

    @cached_property
    def id(self) -> str:
        """The hash of weights, configuration and the base's fingerprint in the Card: equal content has an equal id.

        The Card's other fields and other files do not count. After `load`, which hashes the files to compare them with
        the Card, the id costs nothing. Raises DamagedFolderError where the files do not match the Card.
        """
        self.check()
        head = () if (files := self._head_files) is None else (*files.names(), files.pickle)
        digests = self.digests
        content = {
            "config": digests[self.format.FILES.config],
            "weights": digests[self.weights.name],
            "head": [digests[name] for name in head if name in digests],
            "base": None if self.card is None else [self.card.base.get("fingerprint"), self.card.base.get("head")],
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def check(self) -> None:
        """Raises DamagedFolderError if the files that are there now do not match the hashes in the Card."""
        if self.card is None:
            return
        digests = self.digests
        if different := [name for name, digest in self.card.files.items() if digests.get(name) != digest]:
            if read_card(self.path) != self.card:
                raise DamagedFolderError(f"{self} was replaced since it was opened: open it again")
            raise DamagedFolderError(
                f"{self}: {' and '.join(different)} changed since {CARD} was written: the copy is damaged, or another "
                f"tool wrote there. Copy it again; if the change is meant, remove {CARD}"
            )

    def verify(self) -> None:
        """Read every file. Raises DamagedFolderError for one that is damaged, or does not match the Card."""
        self.check()
        self.read()

    @contextmanager
    def checking(self) -> Generator[Callable[[], None]]:
        """Run `check` in a thread beside the block, which receives a function that waits for the check's end.

        If the files changed, the check's error is raised instead of an error within the block.
        """
        with ThreadPoolExecutor(1) as worker:
            checked = None if self.card is None else worker.submit(self.check)

            def wait() -> None:
                if checked is not None:
                    checked.result()

            try:
                yield wait
            finally:
                wait()

    @property
    def _head_files(self) -> FileNames | None:
        """The names of the files of a head beside the adapter; None if there is none, or it is left out."""
        files = self.format.FILES.head
        return files if self.with_head and files is not None and (self.path / files.config).is_file() else None


def _has_config(path: Path) -> bool:
    return (path / format_of(path).FILES.config).is_file()


def _name_of(path: Path) -> str:
    """The folder's name, but for a run's `adapter` the name of the run's folder."""
    path = path.resolve()
    return (path.parent.name if path.name == ADAPTER else "") or path.name


def _weights_file(path: Path, files: FileNames, *, allow_pickle: bool) -> Path:
    """The file of the weights; a pickle only with `allow_pickle`."""
    if (path / files.weights).is_file():
        return path / files.weights
    if allow_pickle and (path / files.pickle).is_file():
        return path / files.pickle
    if pickles := ", ".join(file.name for file in path.glob("*.bin")):
        raise DamagedFolderError(
            f"{path} holds its weights as a pickle ({pickles}), which can run code: if you trust it, pass "
            "allow_pickle (--allow-pickle; torch.load reads it with weights_only), or convert it once by "
            "`halka adapters convert --allow-pickle`"
        )
    raise DamagedFolderError(f"{path} holds no {files.weights}: the adapter is incomplete")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DamagedFolderError(f"{path} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise DamagedFolderError(f"{path} is not an adapter's configuration: it holds no JSON object")
    return cast(dict[str, Any], config)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size:  # an empty file cannot be mapped
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as content:
                for start in range(0, len(content), LARGE):
                    digest.update(content[start : start + LARGE])
    return digest.hexdigest()

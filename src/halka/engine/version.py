"""`Version`: one content that an adapter's name means, or meant, and what the engine needs to know of it."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from halka.core import AdaptedModel, Adapter, VirtualPart
from halka.models import context, memory_of, shares_lines, taken_positions
from halka.models.attention.virtual_tokens import BOTH
from halka.storage.adapter_folder import AdapterFolder
from halka.storage.save_load import Allowed
from halka.util.cached import Changes
from halka.util.errors import HalkaError, UnknownAdapterError

TRIES = 3  # to read a folder's configuration while its files are replaced


@dataclass(eq=False)
class Version:
    """One content under a name.

    name      as requests name it; None: the bare base
    folder    where it is loaded from; None: somebody added it to the model
    state     what tells that the folder's files, or the model's values, are still the same, at a glance
    key       as the model calls it, once it is there; None: the bare base
    id        the content id; None: the bare base, or not loaded yet
    here      the model has it, or it is the bare base: requests can run with it
    bytes     what it takes in memory
    users     requests that wait for it or run with it
    begun     those of them that have had a row: it stays until they are finished
    waited    steps that it has waited for room
    pinned    it is not evicted
    leaving   no more requests begin with it: another has waited for its room too long
    error     why it cannot be loaded
    room      positions that it leaves for text; None: without end
    shift     the position of a text's first token
    virtual   its keys and values (P, 2·L, H, W), which every text sees
    company   what can share a step with it: the same, or by itself if it does not act token by token
    adapter   itself, while it is in the model; parameters: its own, if somebody else may change them
    written   the part of `state` that tells what was written into these by hand
    reading   the read of its files in the background, done once they were read; None: not begun
    """

    name: str | None
    folder: AdapterFolder | None = None
    state: object = None
    key: str | None = None
    id: str | None = None
    here: bool = False
    bytes: int = 0
    users: int = 0
    begun: int = 0
    waited: int = 0
    pinned: bool = False
    leaving: bool = False
    error: Exception | None = None
    room: int | None = None
    shift: int = 0
    virtual: Tensor | None = None
    company: str = ""
    adapter: Adapter | None = field(default=None, repr=False)
    parameters: list[nn.Parameter] = field(default_factory=list[nn.Parameter], repr=False)
    written: list[int] = field(default_factory=list[int], repr=False)
    reading: Future[None] | None = field(default=None, repr=False)
    _itself: object = field(default_factory=object, repr=False)

    @property
    def content(self) -> Hashable:
        """What acted on tokens, as the cache knows it; None: nothing.

        Files have the content that their id says. Values in the model may be written by hand, which is seen some steps
        later: what they made until then is this version's alone, and nobody's once it is given up.
        """
        return self.id if self.folder is not None or self.id is None else self._itself


def opened(name: str, source: str | Path | AdapterFolder, allowed: Allowed) -> Version:
    """The version that a folder holds now.

    Raises DamagedFolderError as `AdapterFolder.open` does, UnknownAdapterError for a folder that is removed meanwhile,
    HalkaError for one whose files are replaced each time that its configuration is read.
    """
    allow_pickle = allowed.get("allow_pickle", False)
    try:
        folder = AdapterFolder.open(source, allow_pickle=allow_pickle)
        for _ in range(TRIES):
            state = state_of_files(folder)
            folder = AdapterFolder.open(source, allow_pickle=allow_pickle)
            if state_of_files(folder) == state:  # so the configuration is that of these files
                return Version(name, folder, state)
    except FileNotFoundError:
        raise removed(name) from None
    raise HalkaError(f"{folder} is replaced again and again: ask again once it stays as it is")


def describe(version: Version, model: AdaptedModel, adapter: Adapter) -> None:
    """Write down what the engine needs to know of an adapter in the model.

    Raises HalkaError as `context` does, before its virtual tokens are computed.
    """
    if version.folder is None:
        version.id = content_id(adapter)
        see_values(version, adapter)
    version.room, version.shift = context(model, version.key), taken_positions(adapter)
    if not shares_lines(model, adapter):
        version.company = version.key or ""
    version.adapter = adapter
    with torch.inference_mode():
        version.virtual = _virtual(model, adapter)


def see_values(version: Version, adapter: Adapter) -> None:
    """Write down what tells that the adapter's values are still the same."""
    version.parameters = adapter.parameters()
    version.state, version.written = Changes.state(version.parameters), Changes.written(version.parameters)


def state_of_files(folder: AdapterFolder | None) -> object:
    """Files are replaced by a rename, so that another one has another number.

    Raises UnknownAdapterError where they are not there.
    """
    assert folder is not None
    try:
        files = [(folder.path / folder.format.FILES.config).stat(), folder.weights.stat()]
    except FileNotFoundError:
        raise removed(folder.name) from None
    return [(file.st_ino, file.st_mtime_ns, file.st_size) for file in files]


def removed(name: str | None) -> UnknownAdapterError:
    """The error of requests for an adapter whose folder is removed before it is loaded."""
    return UnknownAdapterError(f"adapter {name!r} was removed before it was loaded: add it again")


def content_id(adapter: Adapter) -> str:
    """The hash of an adapter's method and values: equal content has an equal id."""
    digest = hashlib.blake2b(repr(adapter.method).encode(), digest_size=32)
    for key, tensor in sorted(adapter.state_dict().items()):
        digest.update(f"{key} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _virtual(model: AdaptedModel, adapter: Adapter) -> Tensor | None:
    """Keys and values (P, 2·L, H, W) of a prefix, or of a prompt, which the bare base reads."""
    base: Any = model.base
    parts = [
        (role, part)
        for path, part in adapter.parts.items()
        if isinstance(part, VirtualPart) and (role := adapter.targets[path].role) in ("memory", "embed")
    ]
    if not parts:
        return None
    if len(parts) > 1:
        raise HalkaError(BOTH)
    ((role, part),) = parts
    virtual = part.virtual()
    if role == "embed":
        with model.use(None):
            virtual = memory_of(model).read(virtual[None])[0]
    return virtual.detach().to(base.dtype)

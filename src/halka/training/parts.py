"""A checkpoint's tensors that are divided among processes: each writes its parts, by `torch.distributed.checkpoint`.

The files are safetensors, whose headers say which part of a tensor they have (torch's `HuggingFaceStorageWriter`); the
library's own format would need a pickle beside them. As many processes as there are read them, into parts or whole.
"""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Size, Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load  # pyright: ignore[reportUnknownVariableType]
from torch.distributed.checkpoint.state_dict_saver import save  # pyright: ignore[reportUnknownVariableType]

from halka.util.divided import checked_by_first, first_process, lost_rank_error
from halka.util.errors import DamagedFolderError, HalkaError

FILE = 2**30  # bytes that a process puts into one file, and has in memory once more while it does
SEEN = 60.0  # seconds in which a network file system shows one machine what another has written


def write_parts(folder: Path, tensors: Mapping[str, Tensor], file: int = FILE, seen: float = SEEN) -> None:
    """Write divided tensors to a folder that all processes see, instead of one of that name; all call this together.

    `file` is how many bytes a process puts into one file, `seen` how many seconds the first one waits until it sees all
    files. Raises HalkaError in all of them where one cannot write, when no folder is left, and where the first does not
    see what another wrote.
    """
    checked_by_first(lambda: shutil.rmtree(folder) if folder.exists() else None)
    numbers = _files(tensors, file * dist.get_world_size())
    writer = HuggingFaceStorageWriter(str(folder), numbers, save_distributed=True)
    try:
        with _raised_in_all(f"write to {folder}"):
            save(dict(tensors), storage_writer=writer)
    except HalkaError:
        if first_process():
            shutil.rmtree(folder, ignore_errors=True)
        raise
    checked_by_first(lambda: _check_seen(folder, {name: one.shape for name, one in tensors.items()}, seen))


def read_parts(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill tensors, divided or whole, with what such a folder has of them; all processes call this together.

    Raises HalkaError in all of them where one cannot read, or not all, as where a machine does not see the folder.
    """
    with _raised_in_all(f"read {folder}"), warnings.catch_warnings(action="ignore", category=UserWarning):
        load(dict(tensors), storage_reader=_Reader(folder, {name: one.shape for name, one in tensors.items()}))


def check_parts(folder: Path, shapes: Mapping[str, Sequence[int]]) -> None:
    """Raises DamagedFolderError where the folder lacks a part of one of these tensors, by their names."""
    reader = _Reader(folder, shapes)
    try:
        metadata = reader.read_metadata()
    except Exception as error:  # whatever torch's reader makes of a damaged file
        raise _damaged(folder, error) from None
    reader.check(metadata)


def _check_seen(folder: Path, shapes: Mapping[str, Sequence[int]], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            return check_parts(folder, shapes)
        except DamagedFolderError as error:
            if time.monotonic() >= deadline:
                raise HalkaError(
                    f"the first process does not see in {folder} what the others wrote there ({error}): let the run's "
                    "folder be on a file system that all machines see, under the same path"
                ) from None
            time.sleep(1)


class _Reader(HuggingFaceStorageReader):
    """Raises DamagedFolderError for a part that is not there, which torch leaves as the memory happened to be."""

    def __init__(self, folder: Path, shapes: Mapping[str, Sequence[int]]):
        super().__init__(str(folder))
        self._folder, self._shapes = folder, shapes

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        self.check(metadata)
        super().set_up_storage_reader(metadata, is_coordinator, *args, **kwargs)

    def check(self, metadata: Metadata) -> None:
        """Raises DamagedFolderError where the files that `metadata` describes lack a part of a tensor."""
        for name, shape in self._shapes.items():
            stored = metadata.state_dict_metadata.get(name)
            parts = stored.chunks if isinstance(stored, TensorStorageMetadata) else []
            if sum(part.sizes.numel() for part in parts) != Size(shape).numel():
                raise _damaged(self._folder, f"of {name} {tuple(shape)} it has {[tuple(part.sizes) for part in parts]}")


def _damaged(folder: Path, reason: object) -> DamagedFolderError:
    return DamagedFolderError(f"{folder} is damaged ({reason}): remove {folder.parent} to begin afresh")


def _files(tensors: Mapping[str, Tensor], size: int) -> dict[str, int]:
    """The number of the file, from 1, that each tensor's parts go to; of so many bytes, of all processes together."""
    numbers: dict[str, int] = {}
    before = 0
    for name, tensor in tensors.items():
        numbers[name] = 1 + before // size
        before += tensor.numel() * tensor.element_size()
    return numbers


@contextmanager
def _raised_in_all(act: str) -> Generator[None]:
    """Raises, in all processes, the error that torch's checkpoints met in one; `act` says what cannot be done."""
    try:
        with lost_rank_error():
            yield
    except CheckpointException as failed:
        rank, (error, _) = min(failed.failures.items(), key=lambda failure: failure[0])
        if isinstance(error, HalkaError) or not isinstance(error, Exception):  # the latter where it was interrupted
            raise error from None
        reason = error if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        raise HalkaError(f"process {rank} cannot {act}: {reason}") from None

"""A checkpoint's tensors that are divided among processes: each writes its shards, by `torch.distributed.checkpoint`.

The files are safetensors, whose headers say which part of a tensor they have (torch's `HuggingFaceStorageWriter`); the
library's own format would need a pickle beside them. As many processes as there are read them, into shards or whole.
"""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist
from torch import Size, Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.state_dict_loader import load  # pyright: ignore[reportUnknownVariableType]
from torch.distributed.checkpoint.state_dict_saver import save  # pyright: ignore[reportUnknownVariableType]
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from halka.training.ranks import Ranks
from halka.util.divided import checked_by_first, first_process, lost_rank_error
from halka.util.errors import DamagedFolderError, HalkaError
from halka.util.files import flush

FILE_BYTES = 2**28  # of a process's tensors in one file: writing takes up to three times as much memory
WAIT = 180.0  # seconds in which a network file system shows one machine what another has written


def write_shards(
    folder: Path, tensors: Mapping[str, Tensor], *, file_bytes: int = FILE_BYTES, wait: float = WAIT
) -> None:
    """Write divided tensors to a folder that all processes see, instead of one of that name; all call this together.

    A process begins another file after `file_bytes`. Where one cannot write, or the first does not see after `wait`
    seconds what another wrote, HalkaError is raised in all, and the folder is removed.
    """
    checked_by_first(lambda: shutil.rmtree(folder) if folder.exists() else None)
    writer = _Writer(str(folder), _files(tensors, file_bytes * dist.get_world_size()), save_distributed=True)
    try:
        with Ranks.here().raised_in_all(), _unwrapped():
            save(dict(tensors), storage_writer=writer)
            if writer.failure is not None:
                raise HalkaError(f"process {dist.get_rank()} cannot write to {folder}: {writer.failure}")
            flush(folder)
        checked_by_first(lambda: _check_seen(folder, _shapes(tensors), wait))
    except HalkaError:
        if first_process():
            shutil.rmtree(folder, ignore_errors=True)
        raise


def read_shards(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill tensors, divided or whole, with what such a folder has of them; all processes call this together.

    Raises DamagedFolderError, or HalkaError with its message, in all of them where one does not see all shards.
    """
    with Ranks.here().raised_in_all():
        check_shards(folder, _shapes(tensors))
    with _unwrapped(), warnings.catch_warnings(action="ignore", category=UserWarning):  # of a process alone
        load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(folder)))


def check_shards(folder: Path, shapes: Mapping[str, Sequence[int]]) -> None:
    """Raises DamagedFolderError where the folder lacks a shard of one of these tensors, by their names.

    torch would leave it as the memory happened to be.
    """
    try:
        metadata = HuggingFaceStorageReader(str(folder)).read_metadata()
    except Exception as error:  # whatever torch's reader makes of a damaged file
        raise _damaged(folder, error) from None
    for name, shape in shapes.items():
        stored = metadata.state_dict_metadata.get(name)
        parts = stored.chunks if isinstance(stored, TensorStorageMetadata) else []
        if sum(part.sizes.numel() for part in parts) != Size(shape).numel():
            raise _damaged(folder, f"of {name} {tuple(shape)} it has {[tuple(part.sizes) for part in parts]}")


def _damaged(folder: Path, reason: object) -> DamagedFolderError:
    return DamagedFolderError(f"{folder} is damaged ({reason}): remove {folder.parent} to begin afresh")


def _check_seen(folder: Path, shapes: Mapping[str, Sequence[int]], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            return check_shards(folder, shapes)
        except DamagedFolderError as error:
            if time.monotonic() >= deadline:
                raise HalkaError(
                    f"the first process does not see in {folder} what the others wrote there ({error}): let the run's "
                    "folder be on a file system that all machines see, under the same path"
                ) from None
            time.sleep(1)


class _Writer(HuggingFaceStorageWriter):
    """Keeps this process's error, which torch would pickle for the others, and before torch 2.13 not on Python 3.13."""

    failure: Exception | None = None

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        try:
            return super().write_data(plan, planner)
        except Exception as error:
            self.failure = error
        nothing: Future[list[WriteResult]] = Future()
        nothing.set_result([])
        return nothing


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _files(tensors: Mapping[str, Tensor], size: int) -> dict[str, int]:
    """The number of the file, from 1, that each tensor's parts go to; of so many bytes, of all processes together."""
    numbers: dict[str, int] = {}
    before = 0
    for name, tensor in tensors.items():
        numbers[name] = 1 + before // size
        before += tensor.numel() * tensor.element_size()
    return numbers


@contextmanager
def _unwrapped() -> Generator[None]:
    """Raises LostRankError for a lost process, and else the error that torch raises in all within an exception of its
    own."""
    try:
        with lost_rank_error():
            yield
    except CheckpointException as failed:
        error, _ = min(failed.failures.items(), key=lambda failure: failure[0])[1]
        raise error from None

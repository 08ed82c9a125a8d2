"""A safetensors file written and read tensor by tensor, so that no more than one of them is whole in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from halka.util.divided import gathered
from halka.util.errors import DamagedFolderError
from halka.util.files import write_file

ALIGNED = 64  # bytes
NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_tensors(path: Path | None, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, whole or not at all.

    Where tensors are divided among processes (`util.divided`) all of them call this together, and the first one alone
    has a path. If it cannot write, it raises that once all tensors are gathered: none waits for it in vain.
    """
    tensors = _in_order(tensors)
    header, pieces = _header(tensors, metadata), gathered(tensors.items())
    failure: OSError | None = None
    if path is not None:
        try:
            write_file(path, lambda beside: _fill(beside, header, pieces))
        except OSError as error:
            failure = error
    for _ in pieces:
        pass
    if failure is not None:
        raise failure


def fill_file(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, of tensors that this process has whole, into a folder that replaces another."""
    tensors = _in_order(tensors)
    _fill(path, _header(tensors, metadata), gathered(tensors.items()))


def _in_order(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The largest values first, so that all are aligned; else by name."""
    return dict(sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])))


def _header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None) -> bytes:
    """What stands before the tensors' values, which begin at a multiple of `ALIGNED` bytes thanks to spaces at its end.

    So the tensors of a file that is mapped into memory are aligned like torch's own: some matrix products round
    differently at other addresses.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": [*tensor.shape], "data_offsets": [start, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNED)
    return len(text).to_bytes(8, "little") + text


def _fill(path: Path, header: bytes, tensors: Iterator[tuple[str, Tensor]]) -> None:
    with path.open("wb") as file:
        file.write(header)
        for _, tensor in tensors:
            file.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)


def iter_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """The file's tensors, one after another. Raises DamagedFolderError for a file that cannot be read."""
    for key, file in _names(path):
        yield key, file.get_tensor(key)


def iter_shapes(path: Path) -> Iterator[tuple[str, Sequence[int]]]:
    """The shapes of the file's tensors, of which none is read. Raises as `iter_tensors`."""
    for key, file in _names(path):
        yield key, file.get_slice(key).get_shape()


def _names(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        with cast(Any, safe_open)(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (a safetensors file is no mapping)
                yield key, file
    except (SafetensorError, FileNotFoundError) as error:
        raise DamagedFolderError(f"{path} is damaged ({error}): remove {path.parent} to begin afresh") from None

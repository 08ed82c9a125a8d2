"""A file that is written tensor by tensor is what safetensors reads, with values that are aligned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from halka.util.errors import DamagedFolderError
from halka.util.tensor_file import ALIGNED, fill_file, iter_shapes, iter_tensors, write_tensors

TENSORS = {
    "b": torch.arange(3, dtype=torch.bfloat16),
    "a.weight": torch.arange(12.0).view(3, 4).T,
    "step": torch.tensor(7.0),
    "none": torch.empty(0, 4),
    "codes": torch.arange(5, dtype=torch.uint8),
}


def test_safetensors_reads_it(tmp_path: Path):
    write_tensors(tmp_path / "t", TENSORS, {"run": "é"})
    torch.testing.assert_close(load_file(tmp_path / "t"), TENSORS, rtol=0, atol=0)
    torch.testing.assert_close(dict(iter_tensors(tmp_path / "t")), TENSORS, rtol=0, atol=0)
    with safe_open(tmp_path / "t", framework="pt") as file:
        assert file.metadata() == {"run": "é"}
    content = (tmp_path / "t").read_bytes()
    size = int.from_bytes(content[:8], "little")
    starts = {
        key: entry["data_offsets"][0] for key, entry in json.loads(content[8 : 8 + size]).items() if key in TENSORS
    }
    assert (8 + size) % ALIGNED == 0
    assert all(start % TENSORS[key].element_size() == 0 for key, start in starts.items())


def test_tensors_of_one_precision_are_the_bytes_of_safetensors_behind_its_header_and_spaces(tmp_path: Path):
    tensors = {"b.é": torch.arange(12.0).view(3, 4), "a": torch.arange(3.0)}
    fill_file(tmp_path / "own", tensors, {"format": "pt"})
    save_file(tensors, tmp_path / "theirs", {"format": "pt"})
    (own, values), (header, expected) = (_cut(tmp_path / name) for name in ("own", "theirs"))
    assert (own.rstrip(b" "), values) == (header.rstrip(b" "), expected)


def _cut(path: Path) -> tuple[bytes, bytes]:
    """The header of a safetensors file, and its values."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    return content[8:start], content[start:]


def test_a_file_that_was_cut_is_damaged(tmp_path: Path):
    write_tensors(tmp_path / "t", TENSORS)
    assert {key: tuple(shape) for key, shape in iter_shapes(tmp_path / "t")} == {k: v.shape for k, v in TENSORS.items()}
    (tmp_path / "t").write_bytes((tmp_path / "t").read_bytes()[:-1])
    for read in (iter_tensors, iter_shapes):
        with pytest.raises(DamagedFolderError, match=r"t is damaged .* remove .* to begin afresh"):
            [*read(tmp_path / "t")]

"""Pages of mapped files that are released are held no more, and read anew where they are used."""

from __future__ import annotations

import mmap
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from halka.util.mapped_pages import release_pages, release_pages_except


def test_memory_that_is_let_go_is_read_anew_where_it_is_a_files(tmp_path):
    own = torch.arange(1 << 16, dtype=torch.float32)
    save_file({"a": own, "b": own + 1}, tmp_path / "a.safetensors")
    for tensors in (load_file(tmp_path / "a.safetensors"), {"a": own.clone(), "b": own + 1}):
        for tensor in tensors.values():
            release_pages(tensor.data_ptr(), tensor.numel() * 4)
        assert torch.equal(tensors["a"], own)
        assert torch.equal(tensors["b"], own + 1)


def held(path: Path) -> int:
    """Kilobytes of a file that this process holds."""
    regions = Path("/proc/self/smaps").read_text().split(str(path))[1:]
    return sum(int(re.search(r"Rss: +(\d+)", region)[1]) for region in regions)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the system does not tell")
def test_memory_that_is_let_go_is_held_no_more(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(1 << 20)}, path)
    tensor = load_file(path)["a"]
    tensor.sum()
    assert held(path) >= 4096
    release_pages(tensor.data_ptr(), tensor.numel() * 4)
    assert held(path) < 100


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system does not tell")
def test_mapped_files_may_have_names_that_are_no_unicode(tmp_path):
    path, other = tmp_path / "a.safetensors", tmp_path / os.fsdecode(b"\xff")
    save_file({"a": torch.ones(1 << 20)}, path)
    tensor = load_file(path)["a"]
    other.write_bytes(bytes(4096))
    with other.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ):
        release_pages(tensor.data_ptr(), tensor.nbytes)
        release_pages_except([path, other], [])
    assert tensor.sum().item() == 1 << 20


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the system does not tell")
def test_of_a_file_no_more_is_held_than_what_is_kept(tmp_path):
    some, other = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    for path in (some, other):
        save_file({name: torch.full((1 << 20,), 1.0) for name in "abc"}, path)
    tensors, others = load_file(some), load_file(other)
    assert sum(each.sum().item() for each in (*tensors.values(), *others.values())) == 6 << 20
    assert min(held(some), held(other)) >= 3 * 4096
    (tmp_path / "link.safetensors").symlink_to(some)
    release_pages_except([tmp_path / "link.safetensors"], [(tensors["b"].data_ptr(), tensors["b"].nbytes)])
    assert 4096 <= held(some) < 4200
    assert held(other) >= 3 * 4096
    assert sum(each.sum().item() for each in tensors.values()) == 3 << 20  # what is used is read anew

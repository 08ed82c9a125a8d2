"""Memory in huge pages is memory as any other: as large as asked for, aligned, and free once nothing refers to it."""

import gc
import mmap
import re
from pathlib import Path

import pytest
import torch

from halka.util import huge_pages
from halka.util.huge_pages import ALIGNED, PAGE, Arena

HOLDS, THP = Path("/proc/self/smaps"), Path("/sys/kernel/mm/transparent_hugepage")


def mapped() -> int:
    """Bytes of this process's address space."""
    return sum(int(size) for size in re.findall(r"^Size: +(\d+) kB", HOLDS.read_text(), re.MULTILINE)) * 1024


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, torch.uint8])
@pytest.mark.parametrize("shape", [(3, 5), (PAGE,), (3, PAGE // 2 + 1)])
def test_a_tensor_is_as_torch_makes_it(shape, dtype):
    tensor = huge_pages.empty(*shape, dtype=dtype)
    twin = torch.empty(shape, dtype=dtype)
    assert (tensor.shape, tensor.dtype, tensor.stride()) == (twin.shape, twin.dtype, twin.stride())
    tensor.fill_(1)
    assert tensor[0].eq(1).all()
    assert tensor[-1].eq(1).all()
    assert tensor.data_ptr() % (PAGE if tensor.nbytes >= PAGE else ALIGNED) == 0
    assert tensor.untyped_storage().nbytes() == twin.untyped_storage().nbytes()


def test_on_another_device_it_is_torchs():
    assert huge_pages.empty(PAGE, dtype=torch.uint8, device="meta").device.type == "meta"


def test_where_there_are_no_huge_pages_memory_is_as_usual(monkeypatch):
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", 12345, raising=False)  # no advice that a kernel knows
    assert huge_pages.empty(PAGE, dtype=torch.uint8).fill_(1).eq(1).all()
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE")
    assert huge_pages.empty(PAGE, dtype=torch.uint8).fill_(1).eq(1).all()


@pytest.mark.skipif(not THP.exists(), reason="this system has no huge pages")
@pytest.mark.skipif(not HOLDS.exists(), reason="the system does not list what a process has mapped")
def test_whole_pages_are_advised_to_be_huge():
    tensor = huge_pages.empty(5 * PAGE // 2, dtype=torch.uint8)
    flags = dict[int, str]()
    for line in HOLDS.read_text().splitlines():
        if begin := re.match(r"([0-9a-f]+)-[0-9a-f]+ ", line):
            start = int(begin[1], 16)
        elif line.startswith("VmFlags:"):
            flags[start] = line
    assert " hg" in flags[tensor.data_ptr()]
    assert " hg" not in flags.get(tensor.data_ptr() + 2 * PAGE, "")


@pytest.mark.skipif(not HOLDS.exists(), reason="the system does not list what a process has mapped")
def test_memory_is_free_once_no_tensor_refers_to_it():
    gc.collect()
    before = mapped()
    tensor = huge_pages.empty(64 * PAGE, dtype=torch.uint8)
    part = tensor[:1]
    del tensor
    gc.collect()
    assert mapped() >= before + 64 * PAGE
    part.fill_(1)
    del part
    gc.collect()
    assert mapped() < before + 64 * PAGE


def test_a_room_has_copies_one_behind_the_other():
    tensors = [torch.arange(7.0), torch.arange(4, dtype=torch.int8), torch.rand(3, 5, dtype=torch.bfloat16)]
    tensors.append(torch.rand(2, 5, dtype=torch.bfloat16))
    arena = Arena(tensors)
    copies = [arena.cat(tensors[:1]), arena.cat(tensors[1:2]), arena.cat(tensors[2:])]
    assert all(torch.equal(copy, tensor) for copy, tensor in zip(copies[:2], tensors[:2], strict=True))
    assert torch.equal(copies[2], torch.cat(tensors[2:]))
    assert all(copy.data_ptr() % ALIGNED == 0 for copy in copies)
    copies[0].zero_()
    assert torch.equal(copies[1], tensors[1])
    assert tensors[0][-1] == 6


def test_a_room_has_no_more_than_was_asked_for():
    arena = Arena([torch.ones(ALIGNED // 4)])
    arena.cat([torch.ones(ALIGNED // 4)])
    with pytest.raises(RuntimeError):
        arena.cat([torch.ones(1)])

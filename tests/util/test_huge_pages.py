"""Memory in huge pages is memory as any other: as large as asked for, aligned, and free once nothing refers to it."""

import gc
import re
from pathlib import Path

import pytest
import torch

from halka.util import huge_pages
from halka.util.huge_pages import ALIGNED, PAGE, Room

HOLDS = Path("/proc/self/smaps")


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
    assert tensor.data_ptr() % ALIGNED == 0


def test_on_another_device_it_is_torchs():
    assert huge_pages.empty(PAGE, dtype=torch.uint8, device="meta").device.type == "meta"


@pytest.mark.skipif(not HOLDS.exists(), reason="the system does not list what a process has mapped")
def test_memory_is_free_once_no_tensor_refers_to_it():
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
    room = Room(tensors)
    copies = [room.cat(tensors[:1]), room.cat(tensors[1:2]), room.cat(tensors[2:])]
    assert all(torch.equal(copy, tensor) for copy, tensor in zip(copies[:2], tensors[:2], strict=True))
    assert torch.equal(copies[2], torch.cat(tensors[2:]))
    assert all(copy.data_ptr() % ALIGNED == 0 for copy in copies)
    copies[0].zero_()
    assert torch.equal(copies[1], tensors[1])
    assert tensors[0][-1] == 6


def test_a_room_has_no_more_than_was_asked_for():
    room = Room([torch.ones(ALIGNED // 4)])
    room.cat([torch.ones(ALIGNED // 4)])
    with pytest.raises(RuntimeError):
        room.cat([torch.ones(1)])

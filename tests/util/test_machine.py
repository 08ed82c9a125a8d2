"""What a process may hold: no more than the machine has left, nor than its control groups leave; and what goes back."""

from __future__ import annotations

import ctypes
import sys
from types import SimpleNamespace

import psutil
import pytest
import torch

import halka.util.machine
from halka.util.machine import LARGE, RETURNED, TRIMMED, returning_memory

SET_BY_THE_ENVIRONMENT = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """A folder of control groups, and the file that says which of them a process is in."""
    monkeypatch.setattr(halka.util.machine, "_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(halka.util.machine, "_GROUPS_TREE", tmp_path / "tree")
    return tmp_path


def test_what_the_machine_has_left_and_what_is_held(groups):
    held, left = psutil.Process().memory_info().rss, psutil.virtual_memory().available
    assert halka.util.machine.available() == pytest.approx(held + left, rel=0.2)
    assert halka.util.machine.available() > held


def test_a_gpu_has_what_is_held_there_and_what_is_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5, 10))
    assert halka.util.machine.available(torch.device("cuda")) == 8
    assert halka.util.machine.available(torch.device("cpu")) > 10**6


def test_a_group_above_may_leave_less(groups):
    inner = groups / "tree" / "outer" / "inner"
    inner.mkdir(parents=True)
    (groups / "cgroup").write_text("0::/outer/inner\n")
    (inner / "memory.max").write_text("max\n")
    (inner.parent / "memory.max").write_text("5000\n")
    (inner.parent / "memory.current").write_text("4000\n")
    (inner.parent / "memory.stat").write_text("anon 1000\ninactive_file 2500\n")
    assert halka.util.machine.available() == pytest.approx(psutil.Process().memory_info().rss + 3500, rel=0.01)


def test_groups_of_the_first_version(groups):
    """The group's path is the machine's; the folder is what a container sees of it."""
    memory = groups / "tree" / "memory"
    memory.mkdir(parents=True)
    (groups / "cgroup").write_text("5:cpu:/docker/1\n4:memory:/docker/1\n")
    (memory / "memory.limit_in_bytes").write_text("900\n")
    (memory / "memory.usage_in_bytes").write_text("1000\n")
    (memory / "memory.stat").write_text("total_inactive_file 0\n")
    assert list(halka.util.machine._left_in_groups()) == [0]


# ── memory that goes back ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def anew():
    """Whether there is glibc's malloc is looked for again, then and afterwards."""
    halka.util.machine._thresholds.cache_clear()
    yield
    halka.util.machine._thresholds.cache_clear()


def some_are_mapped() -> bool:
    """Whether, of many tensors, some are mapped for themselves: the heap's holes, if it has any, are filled first."""

    class Told(ctypes.Structure):
        _fields_ = [(name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks")]
        _fields_ += [(name, ctypes.c_size_t) for name in ("fsmblks", "uordblks", "fordblks", "keepcost")]

    told = ctypes.CDLL(None).mallinfo2
    told.restype = Told
    before = told().hblks
    kept = [torch.empty(2 * RETURNED, dtype=torch.uint8) for _ in range(256)]
    return told().hblks > before and len(kept) == 256


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="there is no malloc of glibc 2.33"
)
def test_tensors_are_mapped_for_themselves_within_the_block_alone(anew, monkeypatch):
    for name in SET_BY_THE_ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    for _ in range(2):
        with returning_memory():
            assert some_are_mapped()
            with returning_memory():
                assert some_are_mapped()
            assert some_are_mapped()
        assert not some_are_mapped()


def test_thresholds_are_set_once_and_put_back(anew, monkeypatch):
    found = []
    libc = SimpleNamespace(mallopt=lambda which, value: found.append((which, value)))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: libc)
    for name in SET_BY_THE_ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(KeyError), returning_memory(), returning_memory():
        raise KeyError
    assert found == [(-3, RETURNED), (-1, TRIMMED), (-3, LARGE), (-1, 2 * LARGE)]


def test_without_such_a_malloc_or_where_the_environment_sets_it_nothing_is_done(anew, monkeypatch):
    def no_library(name):
        raise TypeError("there is no library of the process")

    monkeypatch.setattr(ctypes, "CDLL", no_library)
    for platform in ("darwin", "win32"):
        monkeypatch.setattr(sys, "platform", platform)
        halka.util.machine._thresholds.cache_clear()
        with returning_memory():
            pass
    monkeypatch.setattr(sys, "platform", "linux")
    for name in SET_BY_THE_ENVIRONMENT:
        monkeypatch.setenv(name, "65536")
        halka.util.machine._thresholds.cache_clear()
        with returning_memory():
            pass
        monkeypatch.delenv(name)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())  # musl has none
    halka.util.machine._thresholds.cache_clear()
    with returning_memory():
        pass

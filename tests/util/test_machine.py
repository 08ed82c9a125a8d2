"""What a process may hold and use: no more than the machine and its control groups have; and what goes back."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import weakref
from pathlib import Path

import psutil
import pytest
import torch

from halka.util import machine
from halka.util.errors import OutOfMemoryError
from halka.util.machine import available, cores

SET_BY_THE_ENVIRONMENT = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


@pytest.fixture
def groups(tmp_path):
    """A root without control groups yet: a folder of them, and one for the file that says which a process is in."""
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "sys" / "fs" / "cgroup").mkdir(parents=True)
    return tmp_path


def own() -> int:
    """What this process holds, without pages of files."""
    held = psutil.Process().memory_info()
    return held.rss - getattr(held, "shared", 0)


def leaves(root: Path, left: int) -> bool:
    """Whether this process can hold so many bytes more."""
    return available(root=root) == pytest.approx(own() + left, rel=0.01)


def test_what_the_machine_has_left_and_what_is_held(tmp_path):
    held, left = own(), psutil.virtual_memory().available
    assert available(root=tmp_path) == pytest.approx(held + left, rel=0.2)
    assert available(root=tmp_path) > held


def test_a_gpu_has_what_is_held_there_and_what_is_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5, 10))
    assert available(torch.device("cuda")) == 8
    assert available(torch.device("cpu")) > 10**6


def test_an_apple_gpu_has_what_the_machine_and_its_driver_leave(monkeypatch):
    sizes = {"current_allocated_memory": 3, "driver_allocated_memory": 5, "recommended_max_memory": 10**15}
    for name, size in sizes.items():
        monkeypatch.setattr(torch.mps, name, lambda size=size: size)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 20}))
    gpu = torch.device("mps")
    assert (machine.held(gpu), machine.available(gpu), machine.can_reset_peak(gpu)) == (3, 25, False)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 12)
    assert machine.available(gpu) == 12


def test_a_second_gpu_is_measured_by_its_own_numbers(monkeypatch):
    asked = []
    for name in ("reset_peak_memory_stats", "max_memory_allocated", "memory_allocated", "get_device_name"):
        monkeypatch.setattr(torch.cuda, name, lambda device=None, name=name: asked.append((name, device)))
    second = torch.device("cuda:1")
    for measure in (machine.reset_peak, machine.peak, machine.held, machine.describe):
        measure(second)
    assert {device for _, device in asked} == {second}
    assert len(asked) == 4


def test_processors_of_one_name_with_amx_and_without_differ(monkeypatch):
    names = []
    for amx in (False, True):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        names.append(machine.describe(torch.device("cpu"))["cpu"])
    assert names[1] == f"{names[0]} with AMX"


@pytest.mark.parametrize(
    "message",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "CUDA error: out of memory",
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory",
    ],
)
def test_memory_that_ran_out_is_known_by_its_many_words(message):
    assert machine.ran_out(RuntimeError(message))
    assert not machine.ran_out(RuntimeError("CUDA error: device-side assert triggered"))


def test_what_was_computed_when_memory_ran_out_is_not_kept_by_the_error():
    kept = []

    def step() -> None:
        activations = torch.zeros(3)
        kept.append(weakref.ref(activations))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with pytest.raises(OutOfMemoryError) as caught, machine.memory_named("take less"):
        step()
    assert caught.value.__cause__ is not None
    assert kept[0]() is None


def test_a_group_above_may_leave_less(groups):
    inner = groups / "sys" / "fs" / "cgroup" / "outer" / "inner"
    inner.mkdir(parents=True)
    (groups / "proc" / "self" / "cgroup").write_text("0::/outer/inner\n")
    (inner / "memory.max").write_text("max\n")
    (inner.parent / "memory.max").write_text("125000000\n")
    (inner.parent / "memory.current").write_text("100000000\n")
    (inner.parent / "memory.stat").write_text("anon 25000000\ninactive_file 40000000\nactive_file 20000000\n")
    assert leaves(groups, 85_000_000)
    (inner / "cpu.max").write_text("200000 100000\n")
    about = machine.describe(machine.CPU, groups)
    assert (about["cores"], about["memory"]) == (min(2, os.cpu_count() or 1), 125_000_000)


def test_pages_of_mapped_files_count_as_free_once(monkeypatch, tmp_path):
    """As of a base's weights: they are the process's, and what the machine can give back."""
    held = type("Held", (), {"rss": 900, "shared": 700})
    monkeypatch.setattr(psutil.Process, "memory_info", lambda _: held)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 5000}))
    assert available(root=tmp_path) == 5200


def test_groups_of_the_first_version(groups):
    """The group's path is the machine's; the folder is what a container sees of it."""
    memory = groups / "sys" / "fs" / "cgroup" / "memory"
    memory.mkdir()
    (groups / "proc" / "self" / "cgroup").write_text("5:cpu:/docker/1\n4:memory:/docker/1\n")
    (memory / "memory.limit_in_bytes").write_text("900\n")
    (memory / "memory.usage_in_bytes").write_text("1000\n")
    (memory / "memory.stat").write_text("total_inactive_file 0\n")
    assert leaves(groups, 0)


# ── cores ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def sixty_four(monkeypatch) -> int:
    """How many cores this process is bound to; the machine may have more."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)), raising=False)
    return 64


def test_cores_are_those_that_the_process_is_bound_to(groups, sixty_four, monkeypatch):
    assert cores(groups) == sixty_four
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(os, "cpu_count", lambda: 10)
    assert cores(groups) == 10


@pytest.mark.parametrize(
    ("inner", "outer", "count"),
    [("max", "max", 64), ("400000", "max", 4), ("max", "250000", 2), ("9000000", "9900000", 64), ("50000", "max", 1)],
)
def test_no_more_cores_than_the_groups_of_a_container_allow(groups, sixty_four, inner, outer, count):
    folder = groups / "sys" / "fs" / "cgroup" / "pod" / "container"
    folder.mkdir(parents=True)
    (groups / "proc" / "self" / "cgroup").write_text("0::/pod/container\n")
    (folder / "cpu.max").write_text(f"{inner} 100000\n")
    (folder.parent / "cpu.max").write_text(f"{outer} 100000\n")
    assert cores(groups) == count


@pytest.mark.parametrize(("quota", "count"), [("-1", 64), ("600000", 6)])
def test_cores_of_groups_of_the_first_version(groups, sixty_four, quota, count):
    folder = groups / "sys" / "fs" / "cgroup" / "cpu"
    folder.mkdir()
    (groups / "proc" / "self" / "cgroup").write_text("5:cpu,cpuacct:/docker/1\n4:cpuset:/docker/1\n")
    (folder / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (folder / "cpu.cfs_period_us").write_text("100000\n")
    assert cores(groups) == count


# ── memory that goes back ───────────────────────────────────────────────────────────────────────────────────────────


MAPPED = """
import ctypes, os, sys
from halka.util.machine import RETURNED, returning_memory

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks")]
    _fields_ += [(name, ctypes.c_size_t) for name in ("fsmblks", "uordblks", "fordblks", "keepcost")]

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
mallinfo = libc.mallinfo2
mallinfo.restype = Info
libc.mallopt(-3, 2**30)  # from here on nothing is mapped for itself, until somebody says otherwise

def some_are_mapped():  # of many pieces: the heap's holes, if it has any, are filled first
    before = mallinfo().hblks
    kept = [libc.malloc(ctypes.c_size_t(2 * RETURNED)) for _ in range(256)]
    print(int(mallinfo().hblks > before), end="")
    for piece in kept:
        libc.free(ctypes.c_void_p(piece))

def looks():
    for _ in range(2):
        with returning_memory():
            some_are_mapped()
            with returning_memory():
                some_are_mapped()
            some_are_mapped()
        some_are_mapped()
    try:
        with returning_memory():
            some_are_mapped()
            raise KeyError
    except KeyError:
        some_are_mapped()

for situation in sys.argv[1:]:
    child = os.fork()
    if not child:
        exec(situation)
        looks()
        print(flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""
NOTHING_IS_DONE = [
    "sys.platform = 'darwin'",
    "ctypes.CDLL = lambda name: object()",  # a C library without mallopt
    *(f"os.environ[{name!r}] = '65536'" for name in SET_BY_THE_ENVIRONMENT),
]


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="there is no malloc of glibc 2.33"
)
def test_large_pieces_are_mapped_for_themselves_within_the_block_alone():
    """And where there is no such malloc, or the environment sets it, nothing is done."""
    inherited = {name: value for name, value in os.environ.items() if name not in SET_BY_THE_ENVIRONMENT}
    run = subprocess.run(
        [sys.executable, "-c", MAPPED, "pass", *NOTHING_IS_DONE],
        env={**inherited, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    usual, *others = run.stdout.split()
    assert usual == "1110" + "1110" + "10"
    assert dict(zip(NOTHING_IS_DONE, others, strict=True)) == dict.fromkeys(NOTHING_IS_DONE, "0" * 10)

"""This process's memory, now and at its peak, its cores, and the machine and commit that it runs on."""

from __future__ import annotations

import functools
import gc
import os
import platform
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch

from halka.util.errors import OutOfMemoryError
from halka.util.malloc import mallopt_unless

CPU = torch.device("cpu")
_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
RETURNED, TRIMMED = 1024 * 1024, 1024 * 1024  # bytes that are returned when freed, and at the heap's end
LARGE = 32 * 1024 * 1024  # bytes that glibc returns at most by itself


def resident(device: torch.device) -> int:
    """Bytes that this process holds now: in memory, or on a GPU what torch has allocated; collects garbage first."""
    gc.collect()
    return held(device)


def held(device: torch.device) -> int:
    """`resident` without collecting garbage first."""
    if device.type == "mps":
        return torch.mps.current_allocated_memory()
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else psutil.Process().memory_info().rss


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU, also in its libraries such as cuBLAS, or in the machine."""
    messages = ("out of memory", "alloc_failed", "not enough memory", "can't allocate memory")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        message in str(error).lower() for message in messages
    )


@contextmanager
def memory_named(message: str) -> Iterator[None]:
    """Turns errors of memory that ran out within the block into OutOfMemoryError of that message.

    What was being computed is given up: else the error's traceback would keep it for as long as the error is kept.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        traceback.clear_frames(error.__traceback__)
        raise OutOfMemoryError(message) from error


def can_reset_peak(device: torch.device) -> bool:
    """Whether `peak` can count from a moment on: on NVIDIA's and AMD's GPUs, and on a CPU on Linux."""
    return device.type == "cuda" or (device.type == "cpu" and _CLEAR.exists())


def reset_peak(device: torch.device) -> None:
    """Count `peak` from now on, where that can be (`can_reset_peak`)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _CLEAR.exists():
        _CLEAR.write_text("5")


def peak(device: torch.device) -> int:
    """The most bytes held since `reset_peak`; where it cannot reset, in this process's memory since that began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if _STATUS.exists():
        (line,) = [line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) * 1024
    import resource

    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held if sys.platform == "darwin" else held * 1024


def available(device: torch.device | None = None, root: Path = Path("/")) -> int:
    """Bytes of memory that this process can hold in all: what it holds, and what the machine has left.

    On Linux, no more than what the limits of its control groups leave, which are read in `proc` and `sys` below `root`.
    Of a GPU, what tensors can take there.
    """
    if device is not None and device.type == "cuda":
        return torch.cuda.memory_reserved(device) + torch.cuda.mem_get_info(device)[0]
    if device is not None and device.type == "mps":  # a part of the machine's memory
        free = torch.mps.driver_allocated_memory() + psutil.virtual_memory().available
        return min(free, torch.mps.recommended_max_memory())
    return held_alone() + min([psutil.virtual_memory().available, *_left_in_groups(root)])


def held_alone() -> int:
    """Bytes of the machine's memory that this process holds, without pages of files, such as a mapped base's."""
    own = psutil.Process().memory_info()
    return own.rss - getattr(own, "shared", 0)


@contextmanager
def returning_memory() -> Iterator[None]:
    """Within the block glibc's malloc returns pieces of RETURNED bytes and more to the system when they are freed.

    It costs some time. Otherwise freed pieces of up to 32 MB stay in the heap, which shrinks at its end only. malloc
    adapts its thresholds to what is freed until one is set (mallopt(3)); after the block they are what they reach
    once large tensors have been freed, LARGE and twice of it. Thresholds that the environment sets are left alone.
    Blocks may be nested, and run in several threads: the thresholds are the process's.
    """
    thresholds = _thresholds()
    if thresholds is None:
        yield
        return
    with _lock:
        _inside.append(None)
        if len(_inside) == 1:
            thresholds(RETURNED, TRIMMED)
    try:
        yield
    finally:
        with _lock:
            _inside.pop()
            if not _inside:
                thresholds(LARGE, 2 * LARGE)


_lock = threading.Lock()
_inside: list[None] = []  # one entry for each running block


@functools.cache
def _thresholds() -> Callable[[int, int], None] | None:
    """A function that sets malloc's mmap and trim thresholds; None without glibc, or where the environment does."""
    mallopt = mallopt_unless("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
    if mallopt is None:
        return None

    def set_both(mapped: int, trimmed: int) -> None:
        mallopt(_MMAP_THRESHOLD, mapped)
        mallopt(_TRIM_THRESHOLD, trimmed)

    return set_both


def cores(root: Path = Path("/")) -> int:
    """Processor cores that this process may use, at least one: those it is bound to, where Linux says so.

    No more than the processor time that its control groups allow, as of a container, rounded down; they are read in
    `proc` and `sys` below `root`. What this process starts may use the same.
    """
    bound = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, min([bound, *_cores_of_groups(root)]))


def _cores_of_groups(root: Path) -> Iterator[int]:
    """Processor time a time that each control group with a limit allows, in whole cores."""
    for folder, unified in _groups(root, "cpu"):
        files = ("cpu.max",) if unified else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        if all((folder / file).exists() for file in files):
            quota, period = " ".join((folder / file).read_text() for file in files).split()
            if quota not in ("max", "-1"):
                yield int(quota) // int(period)


def _left_in_groups(root: Path) -> Iterator[int]:
    """Bytes that each control group with a limit has left; cached files count as free."""
    for folder, unified, limit in _memory_of_groups(root):
        used = "memory.current" if unified else "memory.usage_in_bytes"
        files = ("inactive_file", "active_file") if unified else ("total_inactive_file", "total_active_file")
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        cached = sum(int(statistics.get(name, 0)) for name in files)
        yield max(0, limit - int((folder / used).read_text()) + cached)


def _memory_of_groups(root: Path) -> Iterator[tuple[Path, bool, int]]:
    """Of each control group with a limit of memory: its folder, whether it is one of cgroup v2, and the bytes."""
    for folder, unified in _groups(root, "memory"):
        limit = folder / ("memory.max" if unified else "memory.limit_in_bytes")
        if limit.exists() and (most := limit.read_text().strip()) != "max":
            yield folder, unified, int(most)


def _groups(root: Path, controller: str) -> Iterator[tuple[Path, bool]]:
    """The folder of each control group that this process is in, and whether it is one of cgroup v2."""
    groups, tree = root / "proc" / "self" / "cgroup", root / "sys" / "fs" / "cgroup"
    for line in groups.read_text().splitlines() if groups.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers == "" or controller in controllers.split(","):
            top = tree / controller if controllers else tree
            group = top / path.lstrip("/")
            for folder in (group, *group.parents):
                if folder.is_relative_to(top):
                    yield folder, not controllers


def describe(device: torch.device, root: Path = Path("/")) -> dict[str, Any]:
    """What this process has of the machine as plain data, for a measurement; `root` as in `available`."""
    return {
        "cpu": _cpu(),
        "cores": cores(root),
        "threads": torch.get_num_threads(),
        "memory": min([psutil.virtual_memory().total, *(limit for _, _, limit in _memory_of_groups(root))]),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }


def commit(folder: Path = Path(__file__).parents[1]) -> str | None:
    """The commit of a folder, by default this package, with "-dirty" where files differ from it; None outside of git.

    A folder that git does not track, such as an environment in somebody's repository, has none either.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", ".")
        return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _cpu() -> str:
    """The processor's name, and whether it has AMX: virtual machines give those with and without it one name."""
    name, info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if info.exists():
        names = (line for line in info.read_text().splitlines() if line.startswith("model name"))
        name = next((line.partition(":")[2].strip() for line in names), name)
    return name + (" with AMX" if torch.cpu._is_amx_tile_supported() else "")

"""What a process may hold: no more than the machine has left, nor than its control groups leave."""

from __future__ import annotations

import psutil
import pytest

import halka.machine


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """A folder of control groups, and the file that says which of them a process is in."""
    monkeypatch.setattr(halka.machine, "_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(halka.machine, "_GROUPS_TREE", tmp_path / "tree")
    return tmp_path


def test_what_the_machine_has_left_and_what_is_held(groups):
    held, left = psutil.Process().memory_info().rss, psutil.virtual_memory().available
    assert halka.machine.available() == pytest.approx(held + left, rel=0.2)
    assert halka.machine.available() > held


def test_a_group_above_may_leave_less(groups):
    inner = groups / "tree" / "outer" / "inner"
    inner.mkdir(parents=True)
    (groups / "cgroup").write_text("0::/outer/inner\n")
    (inner / "memory.max").write_text("max\n")
    (inner.parent / "memory.max").write_text("5000\n")
    (inner.parent / "memory.current").write_text("4000\n")
    (inner.parent / "memory.stat").write_text("anon 1000\ninactive_file 2500\n")
    assert halka.machine.available() == pytest.approx(psutil.Process().memory_info().rss + 3500, rel=0.01)


def test_groups_of_the_first_version(groups):
    """The group's path is the machine's; the folder is what a container sees of it."""
    memory = groups / "tree" / "memory"
    memory.mkdir(parents=True)
    (groups / "cgroup").write_text("5:cpu:/docker/1\n4:memory:/docker/1\n")
    (memory / "memory.limit_in_bytes").write_text("900\n")
    (memory / "memory.usage_in_bytes").write_text("1000\n")
    (memory / "memory.stat").write_text("total_inactive_file 0\n")
    assert list(halka.machine._left_in_groups()) == [0]

"""Processes share out the machine's cores while they compute."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from halka.util.core_share import LEAST, OFTEN, OLD, CoreShare
from halka.util.machine import cores
from halka.util.openmp import BRIEFLY, SHARED, THREADS


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def threads_of(share: CoreShare) -> int:
    """The threads that it lets this thread compute in, once it looks at the others again."""
    time.sleep(OFTEN)
    share.take()
    return torch.get_num_threads()


def test_who_computes_alone_has_all_cores_and_two_have_half_each(tmp_path):
    one, two = CoreShare(tmp_path, 4), CoreShare(tmp_path, 4)
    assert threads_of(one) == 4
    assert threads_of(two) == 2
    assert threads_of(one) == 2
    two.give_back()
    assert threads_of(one) == 4
    assert threads_of(two) == 2, "it may compute again"


def test_more_processes_than_cores_have_one_each(tmp_path):
    shares = [CoreShare(tmp_path, 2) for _ in range(3)]
    assert [threads_of(share) for share in shares] == [2, 1, 1]


def test_who_keeps_its_threads_counts_for_the_others(tmp_path):
    torch.set_num_threads(3)
    assert threads_of(CoreShare(tmp_path, 4, fixed=True)) == 3
    assert threads_of(CoreShare(tmp_path, 4)) == 2


def test_a_process_that_died_counts_until_its_time_is_over(tmp_path):
    dead, now = tmp_path / "1-1", time.time()
    dead.touch()
    share = CoreShare(tmp_path, 4)
    for ended, threads, there in ((now + 60, 2, True), (now - 1, 4, True), (now - OLD - 1, 4, False)):
        os.utime(dead, (ended, ended))
        assert threads_of(share) == threads
        assert dead.exists() == there


def test_a_process_counts_for_some_seconds_after_each_step(tmp_path):
    share = CoreShare(tmp_path, 4)
    share.take()
    threads_of(share)
    (own,) = tmp_path.iterdir()
    assert 0 < own.stat().st_mtime - time.time() <= LEAST + 3 * OFTEN


def test_without_a_folder_to_write_it_has_all_cores(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    share = CoreShare(tmp_path / "file" / "cores", 4)
    assert threads_of(share) == 4
    share.give_back()


@pytest.mark.parametrize(
    ("variables", "threads"),
    [({SHARED: "1"}, max(1, cores() // 2)), ({SHARED: "0"}, 7), ({}, 7), ({SHARED: "1", THREADS: "7"}, 7)],
)
def test_the_environment_says_whether_a_process_shares(tmp_path, variables, threads):
    user = os.getuid() if hasattr(os, "getuid") else "own"
    other = tmp_path / f"halka-cores-{user}" / "other"
    other.parent.mkdir()
    other.touch()
    os.utime(other, (time.time() + 60,) * 2)
    program = (
        "import torch; from halka.util.core_share import give_cores_back, take_cores; torch.set_num_threads(7);"
        "take_cores(torch.device('cpu')); print(torch.get_num_threads()); give_cores_back()"
    )
    own = {name: value for name, value in os.environ.items() if name not in {*BRIEFLY, THREADS}}
    environment = own | {"TMPDIR": str(tmp_path), "PYTHONPATH": str(Path("src").absolute())} | variables
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(threads)
    assert [*other.parent.iterdir()] == [other], "it gives its cores back"

"""Processes share out the machine's cores while they compute."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from halka.util.core_share import LEAST, MOST, OFTEN, OLD, CoreShare
from halka.util.deterministic import deterministic
from halka.util.machine import cores
from halka.util.openmp import BRIEFLY, SHARED, THREADS

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


eager = partial(CoreShare, often=0)
"""A share that looks at the others before each step."""


def threads_of(share: CoreShare) -> int:
    """The threads that it lets this thread compute in."""
    share.take()
    return torch.get_num_threads()


def test_who_computes_alone_has_all_cores_and_two_have_half_each(tmp_path):
    one, two = eager(tmp_path, 4), eager(tmp_path, 4)
    assert threads_of(one) == 4
    assert threads_of(two) == 2
    assert threads_of(one) == 2
    two.give_back()
    assert torch.get_num_threads() == 4, "what follows its steps has all cores"
    assert threads_of(one) == 4
    assert threads_of(two) == 2, "it may compute again"


def test_more_processes_than_cores_have_one_each(tmp_path):
    shares = [eager(tmp_path, 2) for _ in range(3)]
    assert [threads_of(share) for share in shares] == [2, 1, 1]


def test_the_others_leave_a_process_the_threads_that_it_keeps(tmp_path):
    torch.set_num_threads(3)
    assert threads_of(eager(tmp_path, 8, fixed=3)) == 3
    one, two = eager(tmp_path, 8), eager(tmp_path, 8)
    assert threads_of(one) == 5
    assert threads_of(two) == 2
    assert threads_of(eager(tmp_path, 2)) == 1, "one at least"


def test_processes_without_a_common_core_share_none(tmp_path):
    first, second, both = (eager(tmp_path, 4, bound=bound) for bound in (0x0F, 0xF0, 0x3C))
    assert threads_of(first) == 4
    assert threads_of(second) == 4
    assert threads_of(both) == 1
    assert threads_of(first) == 2


def test_threads_stay_where_bits_shall_be_the_same_each_time(tmp_path):
    threads_of(eager(tmp_path, 4))
    torch.set_num_threads(3)
    with deterministic():
        assert threads_of(eager(tmp_path, 4)) == 3


def test_a_process_that_died_counts_until_its_time_is_over(tmp_path):
    dead, now = tmp_path / "1-1-0-1", time.time()
    dead.touch()
    share = eager(tmp_path, 4)
    for ended, threads, there in (
        (now + 60, 2, True),
        (now - 1, 4, True),
        (now + 9 * MOST, 4, True),  # the clock was set back
        (now - OLD - 1, 4, False),
    ):
        os.utime(dead, (ended, ended))
        assert threads_of(share) == threads
        assert dead.exists() == there


def test_a_process_counts_for_some_seconds_after_each_step(tmp_path):
    now = 1e9  # on a clock of its own: a step takes as long as is written here
    share = CoreShare(tmp_path, 4, clock=SimpleNamespace(time=lambda: now, monotonic=lambda: now))
    share.take()
    (own,) = tmp_path.iterdir()
    assert own.stat().st_mtime - now > LEAST, "its first step may be long"
    now += 1
    for _ in range(2):  # a long step, then a short one: the next may be long again
        now += OFTEN
        share.take()
        assert own.stat().st_mtime - now > 3 * OFTEN
    for _ in range(4):
        now += OFTEN
        share.take()
    assert 0 < own.stat().st_mtime - now <= LEAST + 3 * OFTEN


def test_without_a_folder_to_write_it_has_all_cores(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    share = eager(tmp_path / "file" / "cores", 4)
    assert threads_of(share) == 4
    share.give_back()


@pytest.mark.parametrize(
    ("variables", "threads"),
    [({SHARED: "1"}, max(1, min(cores(), 7) // 2)), ({SHARED: "0"}, 7), ({}, 7), ({SHARED: "1", THREADS: "7"}, 7)],
)
def test_the_environment_says_whether_a_process_shares(tmp_path, variables, threads):
    user = os.getuid() if hasattr(os, "getuid") else "own"
    other = tmp_path / f"halka-cores-{socket.gethostname()}-{user}" / f"1-1-0-{2**64 - 1:x}"
    other.parent.mkdir()
    other.touch()
    os.utime(other, (time.time() + 60,) * 2)
    program = (
        "import torch; from halka.util.core_share import give_cores_back, take_cores; torch.set_num_threads(7);"
        "take_cores(torch.device('cpu')); print(torch.get_num_threads()); give_cores_back()"
    )
    own = {name: value for name, value in os.environ.items() if name not in {*BRIEFLY, SHARED, THREADS}}
    environment = own | {"TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT / "src")} | variables
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(threads)
    assert [*other.parent.iterdir()] == [other], "it gives its cores back"


def test_a_variable_that_is_neither_0_nor_1_is_refused():
    program = "import torch; from halka.util.core_share import take_cores; take_cores(torch.device('cpu'))"
    environment = {**os.environ, SHARED: "yes", "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert f"{SHARED} is 1 for a process that shares the cores, or 0, not 'yes'" in done.stderr


def test_training_and_the_engine_share_while_they_compute_and_give_back(tmp_path):
    program = """
import os, tempfile, torch, halka
from pathlib import Path
from tiny import tiny
from tokenizers_for_tests import chatml_tokenizer
from halka.data.tokens import Tokens

def files():
    return [file.name for folder in Path(tempfile.gettempdir()).glob("halka-cores-*") for file in folder.iterdir()]

model = halka.adapt(tiny("llama"), chatml_tokenizer())
model.add("a", halka.LoRA(rank=2))
items = [Tokens([5, 6, 7, 8], [False, True, True, True])] * 4
seen = [files() for _ in halka.train(model, "a", items, halka.TrainConfig(steps=2))]
print([len(names) for names in seen], len(files()))
with halka.Engine(model, rows=1) as engine:
    engine.submit(halka.Request([5, 6, 7], stopping=halka.Stopping(4)))
    engine.step()
    during = len(files())
    while engine.step():
        pass
    print(during, len(files()))
"""
    own = {name: value for name, value in os.environ.items() if name != THREADS}
    here = os.pathsep.join(str(ROOT / name) for name in ("src", "tests"))
    environment = own | {"TMPDIR": str(tmp_path), "PYTHONPATH": here, SHARED: "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[1, 1] 0", "1 0"]

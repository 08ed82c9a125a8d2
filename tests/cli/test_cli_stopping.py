"""Runs that are stopped by Ctrl-C, terminated or killed, and go on."""

from __future__ import annotations

import io
import json
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from commands import TRAIN, halka, process, stopped
from halka.cli import app
from halka.cli.training_run import stop_signals


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_stops_after_the_step_and_the_run_goes_on(here, times):
    command = f"train {TRAIN} --steps 12 --validation 0.2"
    messages = stopped(f"{command} -o new", "step 5/12", times)
    assert "Stopped. Go on with: halka train --config new/run.yaml" in messages
    assert not Path("new/adapter").exists()
    assert "step 6/12" in halka("train --config new/run.yaml").stderr
    halka(f"{command} -o straight")
    steps = [json.loads(line)["step"] for line in Path("new/metrics.jsonl").read_text().splitlines()]
    assert steps == [*range(1, 13)]
    one, other = (load_file(f"{each}/adapter/adapter_model.safetensors") for each in ("new", "straight"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_ctrl_c_without_checkpoints_says_so(here):
    messages = stopped(f"train {TRAIN} --steps 5 --save-every none -o new", "step 2/5")
    assert "Stopped before the first checkpoint: the same command begins anew" in messages


INTERRUPTED = """
import runpy, sys

class Interrupted:
    def find_spec(self, name, path, target=None):
        if name == "halka.cli.app":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupted())
runpy.run_module("halka", run_name="__main__")
"""


def test_ctrl_c_while_the_command_line_is_imported_ends_as_quietly():
    ended = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")


def test_who_ends_all_processes_of_a_job_may_signal_each_twice():
    with stop_signals() as alone:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
    with stop_signals(together=True) as together:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)  # torchrun's, of a second Ctrl-C
    assert (alone, together) == ([signal.SIGTERM], [signal.SIGINT])


class Copying(io.StringIO):
    """Messages; when one has this text, a folder is copied, as a process leaves it that is killed then."""

    def __init__(self, at: str, folder: Path, copy: Path):
        super().__init__()
        self.at, self.folder, self.copy = at, folder, copy

    def write(self, text: str) -> int:
        if self.at in text:
            shutil.copytree(self.folder, self.copy)
        return super().write(text)


def test_a_killed_run_goes_on_to_the_same_weights(here):
    """By the same command. A process that is killed at any moment: training/test_training.py."""
    command = f"train {TRAIN} --steps 20 --save-every 6 -o new --json"
    copying = Copying("step 13/20", Path("new"), Path("killed"))
    with redirect_stderr(copying), redirect_stdout(io.StringIO()) as output, pytest.raises(SystemExit, match="0"):
        app(command.split())
    straight = json.loads(output.getvalue())
    Path("new").rename("straight")
    Path("killed").rename("new")
    assert not Path("new/adapter").exists()
    messages = halka(command)
    assert "step 12/20" not in messages.stderr
    assert json.loads(messages.stdout)["loss"] == straight["loss"]
    steps = [json.loads(line)["step"] for line in Path("new/metrics.jsonl").read_text().splitlines()]
    assert steps == [*range(1, 21)]
    one, other = (Path(name, "adapter", "adapter_model.safetensors") for name in ("new", "straight"))
    assert one.read_bytes() == other.read_bytes()


def test_the_adapter_of_a_run_that_is_overwritten_passes_for_no_other_s(here):
    command = f"train {TRAIN} --save-every none -o new"
    halka(f"{command} --steps 2")
    before = Path("new/adapter/adapter_model.safetensors").read_bytes()
    missing = halka(f"{command} --steps 5 --data nope.jsonl --overwrite", code=2)
    assert "no file nope.jsonl" in missing.stderr
    assert Path("new/adapter/adapter_model.safetensors").read_bytes() == before
    stopped(f"{command} --steps 5 --overwrite", "step 2/5")
    assert not Path("new/adapter").exists()
    assert Path("new/adapter-before/adapter_model.safetensors").read_bytes() == before
    assert "step 1/5" in halka(f"{command} --steps 5").stderr
    assert {path.name for path in Path("new").iterdir()} == {"adapter", "metrics.jsonl", "run.yaml"}


@pytest.mark.slow
def test_processes_end_with_the_right_codes(here):
    wrong = process("trian", here)
    interrupted = process(f"train {TRAIN} --steps 100000 -o interrupted", here)
    assert wrong.communicate()[1].startswith("Error: No such command 'trian'")
    assert wrong.returncode == 2
    while not Path("interrupted/metrics.jsonl").exists():
        assert interrupted.poll() is None, interrupted.communicate()
        time.sleep(0.01)
    interrupted.send_signal(signal.SIGTERM)
    _, messages = interrupted.communicate(timeout=60)
    assert "Go on with: halka train --config interrupted/run.yaml" in messages
    assert interrupted.returncode == 143
    ours = ("data.jsonl: ", "loading base", "step ", "stopping after ", "Stopped. ")
    assert all(line.startswith(ours) for line in messages.splitlines()), messages  # no library's bars or advice

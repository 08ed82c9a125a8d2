"""Runs that are stopped by Ctrl-C, terminated or killed, and go on."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from commands import TRAIN, halka, parsed, process, stopped
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


@pytest.mark.slow
def test_a_killed_process_goes_on_to_the_same_weights(here):
    command = f"train {TRAIN} --steps 120 --save-every 20"
    killed = process(f"{command} -o killed", here, OMP_NUM_THREADS=str(torch.get_num_threads()))
    metrics = Path("killed/metrics.jsonl")
    while not metrics.exists() or metrics.read_text().count("\n") < 50:
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.001)
    killed.kill()
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert not Path("killed/adapter").exists()
    resumed, straight = parsed(f"{command} -o killed"), parsed(f"{command} -o straight")
    assert resumed["loss"] == straight["loss"]
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == [*range(1, 121)]
    one, other = (Path(name, "adapter", "adapter_model.safetensors") for name in ("killed", "straight"))
    assert one.read_bytes() == other.read_bytes()


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

"""`halka train --devices`: processes that train together, and what becomes of them when one dies."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

import halka
from commands import TRAIN, failure, parsed, process
from halka.cli.devices import shares
from halka.training import TrainConfig
from halka.training.checkpoint import step_of

MANY = """
base: base
data: data.jsonl
dtype: float32
quantize: nf4
train: {batch_size: 4, steps: 40}
runs:
  - {out: parts/lora, rank: 4}
  - {out: parts/dora, method: dora, rank: 4}
  - {out: parts/prefix, method: prefix, length: 3}
  - {out: parts/prompt, method: prompt, length: 3}
"""


def begun(command: str, folder: Path, metrics: Path, steps: int) -> subprocess.Popen[str]:
    """The command in a process of its own, once so many steps are recorded."""
    launcher = process(command, folder)
    while not metrics.exists() or metrics.read_text().count("\n") < steps:
        assert launcher.poll() is None, launcher.communicate()
        time.sleep(0.01)
    return launcher


@pytest.mark.slow
def test_a_process_that_dies_leaves_the_others_checkpoint_from_which_one_process_goes_on(here: Path):
    command = f"train {TRAIN} --steps 100 --save-every 1000"
    metrics = Path("two/metrics.jsonl")
    launcher = begun(f"{command} -o two --devices 2", here, metrics, steps=5)
    (second,) = [child for child in psutil.Process(launcher.pid).children() if child.environ().get("RANK") == "1"]
    second.kill()
    output, messages = launcher.communicate()
    assert (launcher.returncode, output) == (1, "")
    last = messages.splitlines()[-1]
    assert last.startswith("Error: rank 1 was ended by SIGKILL, often because memory ran out")
    assert "goes on from the last checkpoint" in last
    assert messages.count("step 1/100") == messages.count("data.jsonl: ") == 1  # the first process speaks for both
    assert not Path("two/adapter").exists()
    done = len(metrics.read_text().splitlines())
    assert 5 <= done < 100
    assert step_of(Path("two/checkpoint.safetensors")) == done
    resumed, straight = parsed(f"{command} -o two"), parsed(f"{command} -o straight")
    assert resumed["loss"] == pytest.approx(straight["loss"], rel=1e-5)
    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()] == [*range(1, 101)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in:FutureWarning")  # peft's, of transformers
def test_of_a_base_in_parts_a_run_that_is_terminated_goes_on_to_whole_adapters(here: Path):
    """As Slurm and systemd end it: launcher and processes get SIGTERM, and torchrun passes its own on."""
    Path("runs.yaml").write_text(MANY)
    command = "train --many runs.yaml --devices 2 --shard"
    names = ("lora", "dora", "prefix", "prompt")
    launcher = begun(command, here, Path("parts/lora/metrics.jsonl"), steps=5)
    for running in (*psutil.Process(launcher.pid).children(), launcher):
        running.terminate()
    output, messages = launcher.communicate()
    assert (launcher.returncode, output) == (143, "")
    assert "Stopped. Go on with the same command" in messages
    done = {len(Path("parts", name, "metrics.jsonl").read_text().splitlines()) for name in names}
    assert len(done) == 1
    assert 5 <= min(done) < 40
    launcher = process(command, here)
    output, messages = launcher.communicate()
    assert launcher.returncode == 0, messages
    assert "step 1/40" not in messages
    assert "2 processes share a step's batch: it is split, of up to 4 examples some 2 for each" in messages
    base, tokenizer = halka.load_base("base", dtype="float32", device="cpu")
    ids = torch.tensor([tokenizer("What is 2 plus 3?").input_ids])
    model = halka.adapt(base, tokenizer)
    for name in names:
        adapter = Path("parts", name, "adapter")
        written = load_file(adapter / "adapter_model.safetensors")
        assert all(tensor.numel() and tensor.any() for tensor in written.values())
        with pytest.warns(UserWarning, match="nf4"):
            halka.load(model, adapter, name=name)
        theirs = PeftModel.from_pretrained(halka.load_base("base", dtype="float32", device="cpu")[0], adapter).eval()
        with torch.no_grad(), model.use(name):
            torch.testing.assert_close(theirs(ids).logits[:, -ids.shape[1] :], base(ids).logits, rtol=1e-3, atol=1e-4)


def test_what_devices_cannot_do_is_said(here: Path, monkeypatch: pytest.MonkeyPatch):
    assert "--devices must be at least 1, not 0" in failure(f"train {TRAIN} -o new --devices 0")
    assert "--shard is for several processes" in failure(f"train {TRAIN} -o new --shard")
    assert "device mps: processes train together on" in failure(f"train {TRAIN} -o new --devices 2 --device mps")
    in_parts = f"train {TRAIN} -o new --devices 2 --shard --validation 0.2 --best-by score"
    assert "a base in parts (--shard) gives none" in failure(in_parts)
    for size, options, reason in (
        ("1", "--devices 4", "--devices 4, and the environment has WORLD_SIZE=1: under torchrun leave --devices out"),
        ("2", "--devices 4", "--devices 4, and the environment has WORLD_SIZE=2"),
        ("1", "--shard", "--shard is for several processes"),
        ("2", "", "the environment has WORLD_SIZE=2 and no RANK and no MASTER_ADDR and no MASTER_PORT"),
        ("two", "", "WORLD_SIZE='two', which is no number of processes"),
    ):
        monkeypatch.setenv("WORLD_SIZE", size)
        assert reason in failure(f"train {TRAIN} -o new {options}")
    assert not Path("new").exists()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "batch: it is split, of up to 1,024 tokens some 512 for each (with --accumulate 2 each has whole ones)"),
        ({"accumulate": 4, "batch_size": 8}, "4 batches: 2 for each"),
        (
            {"accumulate": 3, "batch_size": 5, "batch_tokens": 99},
            "3 batches: 1 for each, 1 is split, of up to 99 tokens and 5 examples some 50 and 3 for each "
            "(with --accumulate 4 each has whole ones)",
        ),
    ],
)
def test_how_processes_share_a_step_is_said(config: dict[str, int], words: str):
    assert shares(TrainConfig(**config), 2) == f"2 processes share a step's {words}"

"""`halka train --devices`: processes that train together, and what becomes of them when one dies."""

from __future__ import annotations

import json
import time
from pathlib import Path

import psutil
import pytest

from commands import TRAIN, failure, parsed, process


@pytest.mark.slow
def test_a_process_that_dies_ends_the_run_which_goes_on_in_one_process(here: Path):
    command = f"train {TRAIN.removesuffix(' --rank 4')} --method full --steps 100 --save-every 10"
    launcher = process(f"{command} -o two --devices 2 --shard", here)
    metrics = Path("two/metrics.jsonl")
    while not metrics.exists() or metrics.read_text().count("\n") < 25:
        assert launcher.poll() is None, launcher.communicate()
        time.sleep(0.01)
    (second,) = [child for child in psutil.Process(launcher.pid).children() if child.environ().get("RANK") == "1"]
    second.kill()
    output, messages = launcher.communicate()
    assert (launcher.returncode, output) == (1, "")
    last = messages.splitlines()[-1]
    assert last.startswith("Error: rank 1 was ended by SIGKILL, often because memory ran out")
    assert "goes on from the last checkpoint" in last
    assert messages.count("step 1/100") == 1  # the first process speaks for both
    assert not Path("two/adapter").exists()
    resumed, straight = parsed(f"{command} -o two"), parsed(f"{command} -o straight")
    assert resumed["loss"] == pytest.approx(straight["loss"], rel=1e-5)
    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()] == [*range(1, 101)]


def test_what_devices_cannot_do_is_said(here: Path):
    assert "--devices must be at least 1, not 0" in failure(f"train {TRAIN} -o new --devices 0")
    assert "--shard is for several processes" in failure(f"train {TRAIN} -o new --shard")
    assert not Path("new").exists()

"""What the benchmarks share: runs in processes of their own, adapters with random values, and what it ran on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any


def in_a_process(script: str, given: dict[str, Any]) -> dict[str, Any]:
    """What `script --worker GIVEN` prints as its last line, as JSON."""
    command = [sys.executable, "-W", "ignore", script, "--worker", json.dumps(given)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def in_processes(script: str, names: Sequence[str], jobs: int) -> None:
    """Run `script NAME` for every name, at most `jobs` at once."""
    left, running = [*names], list[subprocess.Popen[bytes]]()
    while left or running:
        while left and len(running) < jobs:
            running.append(subprocess.Popen([sys.executable, script, left.pop(0)]))
        running = [process for process in running if process.poll() is None]
        time.sleep(1)


def vllm_environment(**more: str) -> dict[str, str]:
    """The environment of a process with vLLM, on a CPU and offline."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    return environment | {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"} | more


def filled(model: Any, name: str, method: Any, seed: int) -> None:
    """Add an adapter whose every value counts."""
    import torch

    adapter = model.add(name, method, seed=seed)
    with torch.no_grad():
        for parameter in adapter.parameters():
            if not parameter.any():
                parameter.normal_(std=0.01)


def setup(*packages: str) -> dict[str, Any]:
    """The machine, the packages' versions and the commit."""
    import torch

    from halka.util import machine

    return {
        "machine": machine.describe(torch.device("cpu")),
        "versions": {name: version(name) for name in packages},
        "commit": machine.commit(),
    }

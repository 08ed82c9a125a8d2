"""What the benchmarks share: a run in a process of its own, and what it ran on."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from typing import Any


def in_a_process(script: str, given: dict[str, Any]) -> dict[str, Any]:
    """What `script --worker GIVEN` prints as its last line, as JSON."""
    command = [sys.executable, "-W", "ignore", script, "--worker", json.dumps(given)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def setup(*packages: str) -> dict[str, Any]:
    """The machine, the packages' versions and the commit."""
    import torch

    from halka.util import machine

    return {
        "machine": machine.describe(torch.device("cpu")),
        "versions": {name: version(name) for name in packages},
        "commit": machine.commit(),
    }

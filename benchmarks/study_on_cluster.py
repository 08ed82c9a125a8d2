"""A comparison of six runs on this machine, and on a Ray cluster of two workers of which one is killed in the middle.

    python benchmarks/study_on_cluster.py        # some minutes on two cores; needs 'halka[ray]'

Head and workers are processes of this machine, a worker has one core. The base is SmolLM2-135M-Instruct's tokenizer and
two layers with random weights. What differs between the two studies is listed by its place in their files, and must be
times, memory and where a run was. The result goes to benchmarks/results/study_on_cluster.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from ray.cluster_utils import Cluster
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from halka.models.fetching import pull
from halka.studies.runner import origin

HERE = Path(__file__).parent
EXPERIMENT = {
    "name": "cluster",
    "base": "base",
    "task": "support",
    "examples": {"train": 48, "validation": 8, "test": 8},
    "methods": [
        {"method": "lora", "label": "LoRA", "lrs": [1e-3, 4e-3]},
        {"method": "prefix", "label": "prefix", "length": 8},
    ],
    "train": {"steps": 24, "batch_size": 4, "evaluate_every": 12},
    "search_beyond": 0,
    "seeds": [0, 1],
    "jobs": 2,
}
CLIENT = 23456  # the port of the head's server for clients
STEP = re.compile(r"\[(\d)/6\] step \d+/\d+ of (.*) on \S+ \((\w{6})\)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "study_on_cluster.json")
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        subprocess.run(command(folder, "here"), check=True)
        lines, killed = on_cluster(folder)
        result = {place: compared(folder / "here", folder / place) for place in ("ray", "outside")}
    result["ray"] |= {
        "killed in": killed,
        "lost": [line for line in lines if "] lost " in line],
        "done": sum("] done " in line for line in lines),
        "failed": sum("] failed " in line for line in lines),
    }
    out.write_text(json.dumps({**result, "experiment": EXPERIMENT, **origin(torch.device("cpu"))}, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def prepare(folder: Path) -> None:
    """Write the base and the experiment."""
    source, base = pull("smollm2-135m"), folder / "base"
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source, num_hidden_layers=2)).save_pretrained(base)
    AutoTokenizer.from_pretrained(source).save_pretrained(base)
    (folder / "experiment.yaml").write_text(yaml.safe_dump(EXPERIMENT))


def command(folder: Path, place: str, *flags: str) -> list[str]:
    study = [str(folder / "experiment.yaml"), "-o", str(folder / place), "--json", *flags]
    return [sys.executable, "-m", "halka", "compare", *study]


def on_cluster(folder: Path) -> tuple[list[str], str]:
    """Run the study on a cluster, of which a worker is killed when it computes a run and another is done.

    Then once more, on the worker that is left, by Ray's client. Returns the first study's messages, and that run.
    """
    small = {"include_dashboard": False, "object_store_memory": 80 * 2**20}
    head = {"num_cpus": 0, "ray_client_server_port": CLIENT, **small}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        cluster.add_node(num_cpus=1, **small)
    environment = {**os.environ, "RAY_ADDRESS": cluster.address}
    first = command(folder, "ray", "--on", "ray")
    study = subprocess.Popen(first, stderr=subprocess.PIPE, env=environment, text=True)
    lines, killed = [], ""
    assert study.stderr is not None
    for line in study.stderr:
        lines.append(line.strip())
        print(lines[-1], flush=True)
        if not killed and (step := STEP.match(line)) and int(step[1]) >= 1:
            (worker,) = [node for node in cluster.worker_nodes if node.node_id.startswith(step[3])]
            cluster.remove_node(worker, allow_graceful=False)
            killed = step[2]
    assert study.wait() == 0
    subprocess.run(command(folder, "outside", "--on", f"ray://127.0.0.1:{CLIENT}"), check=True)
    cluster.shutdown()
    return lines, killed


def compared(here: Path, there: Path) -> dict[str, Any]:
    """How many runs, and other files, both studies have, and where they differ."""
    runs = [sorted(path.name for path in (study / "runs").iterdir()) for study in (here, there)]
    files = [sorted(path.relative_to(study).as_posix() for path in study.rglob("*")) for study in (here, there)]
    differing = {*differences(*(json.loads((study / "summary.json").read_text()) for study in (here, there)))}
    for name in runs[0]:
        differing |= {*differences(*(json.loads((study / "runs" / name).read_text()) for study in (here, there)))}
    answers = [path for path in files[0] if path.endswith("predictions.jsonl")]
    return {
        "runs": len(runs[0]),
        "the same runs": runs[0] == runs[1],
        "files of one alone": sorted({*files[0]} ^ {*files[1]}),
        "differing fields": sorted(differing),
        "the same answers": all((here / path).read_bytes() == (there / path).read_bytes() for path in answers),
    }


def differences(one: Any, other: Any, place: str = "") -> Iterator[str]:
    """The places, without numbers of lists, where two values of JSON differ."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        for key in one:
            yield from differences(one[key], other[key], f"{place}.{key}".lstrip("."))
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for mine, theirs in zip(one, other, strict=True):
            yield from differences(mine, theirs, place)
    elif one != other:
        yield place


if __name__ == "__main__":
    main()

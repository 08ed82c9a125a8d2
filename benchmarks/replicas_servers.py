"""What the measurements of replicas share: adapters with random values, a Ray cluster here, `halka serve`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch
from ray.cluster_utils import Cluster

import halka
from halka.methods import Method

BASE = "smollm2-135m"
PATIENCE = 600  # seconds until a server is ready
STORE = 2 * 2**30  # bytes of Ray's object store


def write_adapters(store: Path, methods: Mapping[str, Method]) -> None:
    """Adapters with random values, by name: what matters here is that no two say the same."""
    model = halka.adapt(*halka.load_base(BASE, dtype="float32", device="cpu"))
    for seed, (name, method) in enumerate(methods.items()):
        torch.manual_seed(seed)
        model.add(name, method)
        scale = 0.05 if method.name in ("lora", "bottleneck") else 0.5
        with torch.no_grad():
            for parameter in model.parameters(name):
                parameter.add_(scale * torch.randn_like(parameter))
        halka.AdapterStore(store).save(model, name)
        model.remove(name)


@contextmanager
def own_cluster() -> Iterator[None]:
    """A node with two cores of this machine, as the cluster that `--on ray` means."""
    own = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 2, "include_dashboard": False, "object_store_memory": STORE},
    )
    os.environ["RAY_ADDRESS"] = own.address
    try:
        yield
    finally:
        own.shutdown()


@contextmanager
def serving(work: Path, name: str, *flags: str, store: Path | None = None) -> Iterator[str]:
    """The address of a `halka serve`, whose process's id is in NAME.pid; its adapters are in work/store by default."""
    command = [sys.executable, "-m", "halka", "serve", "--base", BASE, "--device", "cpu", "--port", "0"]
    command += ["--store", str(store or work / "store"), "--data", str(work / name), *flags]
    log, begun = work / f"{name}.log", time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    (work / f"{name}.pid").write_text(str(process.pid))
    try:
        while (ready := re.search(r"answers at (http://\S+)/v1", log.read_text())) is None:
            if process.poll() is not None or time.monotonic() > begun + PATIENCE:
                raise SystemExit(f"{' '.join(command)} is not ready:\n{log.read_text()[-4000:]}")
            time.sleep(0.5)
        print(name, f"ready after {time.monotonic() - begun:.0f} s", flush=True)
        yield ready[1]
    finally:
        process.terminate()
        process.wait()


def process_of(work: Path, name: str) -> psutil.Process:
    """The process of the server of that name."""
    return psutil.Process(int((work / f"{name}.pid").read_text()))

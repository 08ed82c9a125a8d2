"""`RayConnection`: a Ray cluster that this process is connected to, and what its nodes have.

`pip install 'halka[ray]'` brings Ray, which this machine and every node need, beside Halka (docs/distributed.md).
"""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout
from typing import Any

from halka.util.errors import HalkaError
from halka.util.ray_gpus import GPUs
from halka.util.text import one_line, plural

NODE = "ray.io/node-id"  # Ray's label of every node
Resources = Mapping[str, float]
"""What a node has, or a process needs, by Ray's names; "gpu_memory" is the bytes of each GPU."""


class RayConnection:
    """Ray, connected to a cluster; what it prints to stdout while it connects and leaves goes nowhere.

    address   "ray", the cluster that this machine is part of (or $RAY_ADDRESS), or "ray://HOST:10001"
    ray       the library

    Raises HalkaError where Ray is not installed, or the cluster cannot be reached.
    """

    def __init__(self, address: str):
        if address != "ray" and not address.startswith("ray://"):
            raise HalkaError(f"--on: {address!r} is no cluster: write ray, or ray://HOST:10001")
        self.address = address
        self._open = ExitStack()
        with _silent():
            self.ray, owned = _connected(address)
        if owned:
            self._open.callback(self._leave)
        self._gpus = GPUs(self.ray)

    @property
    def remote(self) -> bool:
        """Whether it is Ray's client, whose calls another process makes on the cluster's head node."""
        from ray.util.client import ray as client

        return client.is_connected()

    def nodes(self) -> list[Resources]:
        """What each node that takes tasks has; the memory of its smallest GPU, where the node reports it."""
        return [*self._nodes().values()]

    def away_from_small_gpus(self, memory: float) -> dict[str, Any]:
        """Options for a task or an actor that keep it from nodes whose GPUs are known to have fewer bytes."""
        small = [id for id, node in self._nodes().items() if node.get("gpu_memory", math.inf) < memory]
        return {"label_selector": {NODE: f"!in({', '.join(small)})"}} if small else {}

    def share(self, jobs: int) -> tuple[float, int]:
        """The GPUs and the threads of one of `jobs` processes that run side by side on the smallest node.

        Each takes a GPU, or a share of one, where the cluster has some. Raises HalkaError where no node takes tasks.
        """
        nodes = self.nodes()
        if not nodes:
            raise HalkaError(
                "no node of the Ray cluster has a processor for tasks: start one there by "
                "`ray start --address=HEAD:6379`"
            )
        if with_gpus := [node for node in nodes if node.get("GPU")]:
            least = min(node["CPU"] / node["GPU"] for node in with_gpus)
        else:
            least = min(node["CPU"] for node in nodes)
        return 1 / jobs if with_gpus else 0, max(1, int(least) // jobs)

    def close(self) -> None:
        """Leave the cluster, if this process was not connected to it before."""
        self._open.close()

    def _nodes(self) -> dict[str, Resources]:
        alive = {node["NodeID"]: node["Resources"] for node in self.ray.nodes() if node["Alive"]}
        nodes = {id: resources for id, resources in alive.items() if resources.get("CPU")}
        memory = self._gpus.memory_of([id for id, resources in nodes.items() if resources.get("GPU")])
        return {id: {**node, **({"gpu_memory": memory[id]} if id in memory else {})} for id, node in nodes.items()}

    def _leave(self) -> None:
        with _silent():
            self.ray.shutdown()


@contextmanager
def _silent() -> Iterator[None]:
    """Within the block nothing that this process prints to stdout goes anywhere."""
    with open(os.devnull, "w", encoding="utf-8") as sink, redirect_stdout(sink):
        yield


def _connected(address: str) -> tuple[Any, bool]:
    """Ray, connected to the cluster, and whether it was not before."""
    os.environ.setdefault(
        "RAY_NUM_REDIS_GET_RETRIES", "1"
    )  # of 40 s each, to an address where nothing answers; else 20
    try:
        import ray
    except ImportError:
        raise HalkaError("--on needs Ray, which is not installed: pip install 'halka[ray]'") from None
    if ray.is_initialized():
        return ray, False
    named = os.environ.get("RAY_ADDRESS") or "auto" if address == "ray" else address
    ends = signal.getsignal(signal.SIGTERM)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else Ray warns of what it will do one day
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.init(named, log_to_driver=False, logging_level=logging.CRITICAL)
    except (OSError, RuntimeError, ValueError) as error:
        way = "does its head node run, with the client port (10001) open, and the same versions of Python and Ray?"
        if not named.startswith("ray://"):
            way = "start one by `ray start --head`, or name another machine's: --on ray://HOST:10001"
        reason = one_line(str(error)).rstrip(". ")
        where = address if named in (address, "auto") else f"{address} (RAY_ADDRESS={named})"
        raise HalkaError(f"--on {where}: no Ray cluster was reached ({reason}): {way}") from None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, ends)  # Ray has set its own
    return ray, True


def suffices(node: Resources, needs: Resources) -> bool:
    """Whether a node has what a process needs. A GPU whose memory is unknown counts as large enough."""
    unknown = {"gpu_memory": math.inf}
    return all(node.get(name, unknown.get(name, 0)) >= need for name, need in needs.items())


def described(resources: Resources) -> str:
    """What a node has, or a process needs, in words."""
    cores, gpus, memory, card = (resources.get(name, 0) for name in ("CPU", "GPU", "memory", "gpu_memory"))
    of = f" of {card / 1e9:.1f} GB" if card else ""
    named = [
        plural(int(cores), "core"),
        f"{gpus:g} GPU{of}" if gpus else "",
        f"{memory / 1e9:.1f} GB" if memory else "",
    ]
    return ", ".join(filter(None, named))


def last_line(error: Exception) -> str:
    """What an error of Ray's says in the end, behind the traces of other processes."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return one_line(lines[-1]).rstrip(".") if lines else type(error).__name__

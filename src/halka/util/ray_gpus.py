"""`GPUs`: how much memory the GPUs of a Ray cluster's nodes have. Ray counts them only, so each node is asked once."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from halka.util.ray_node import smallest_gpu

TIMEOUT = 60.0  # seconds for the nodes to answer


class GPUs:
    """The memory of GPUs, by node. ray: the library, connected."""

    def __init__(self, ray: Any):
        self._ray, self._memory = ray, dict[str, int | None]()

    def memory_of(self, nodes: Collection[str]) -> Mapping[str, int]:
        """Bytes of the smallest GPU of each of these nodes, by the nodes' ids; those that do not say are left out."""
        if tasks := {self._ask(node): node for node in nodes if node not in self._memory}:
            ready, _ = self._ray.wait([*tasks], num_returns=len(tasks), timeout=TIMEOUT)
            self._memory |= {node: self._answer(task) if task in ready else None for task, node in tasks.items()}
        return {node: memory for node in nodes if (memory := self._memory[node]) is not None}

    def _ask(self, node: str) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        there = NodeAffinitySchedulingStrategy(node, soft=False)
        task = self._ray.remote(smallest_gpu).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
        return task.remote()

    def _answer(self, task: Any) -> int | None:
        try:
            return self._ray.get(task)
        except self._ray.exceptions.RayError:  # the node is gone
            return None

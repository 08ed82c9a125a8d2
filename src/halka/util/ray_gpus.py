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
        self._asked = dict[str, Any]()  # tasks that have not answered, by node

    def memory_of(self, nodes: Collection[str]) -> Mapping[str, int]:
        """Bytes of the smallest GPU of each of these nodes, by the nodes' ids; those that do not say are left out.

        New nodes are waited for; who answers later is heard then.
        """
        new = {node: self._ask(node) for node in nodes if node not in self._memory and node not in self._asked}
        self._asked |= new
        if new:
            self._ray.wait([*new.values()], num_returns=len(new), timeout=TIMEOUT)
        if tasks := [*self._asked.values()]:
            ready, _ = self._ray.wait(tasks, num_returns=len(tasks), timeout=0)
            for node in [node for node, task in self._asked.items() if task in ready]:
                self._memory[node] = self._answer(self._asked.pop(node))
        return {node: memory for node in nodes if (memory := self._memory.get(node)) is not None}

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

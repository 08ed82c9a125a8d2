"""`Share`: what every replica gets of a node: a GPU or cores, and memory. Ray places a replica where that is free."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from halka.core import AdaptedModel
from halka.estimating.hardware import CONTEXT, PROCESS
from halka.models.quantised import bytes_of
from halka.server.settings import GB, ServerSettings
from halka.util.errors import HalkaError
from halka.util.ray_connection import RayConnection, Resources, described, suffices


@dataclass(frozen=True)
class Share:
    """What a replica gets.

    threads     that it computes in, where it has no GPU
    memory      bytes of the node's, and gpu_memory of the GPU's: for the base and the adapters, and for keys and values
                as far as the settings bound these
    beside      the most replicas that share a node's memory
    """

    gpus: float
    threads: int
    memory: int
    gpu_memory: int
    beside: int

    @property
    def needs(self) -> Resources:
        """What a replica needs, by Ray's names for it."""
        return {"CPU": self.threads, "GPU": self.gpus, "memory": self.memory, "gpu_memory": self.gpu_memory}


def share_of(connection: RayConnection, settings: ServerSettings, model: AdaptedModel) -> Share:
    """A replica's share of a cluster. Raises HalkaError where the nodes have no room for the least number of them."""
    least, most = settings.replica_range
    nodes, beside = connection.nodes(), 1
    gpus, threads = connection.share(1)
    if not gpus:
        beside = math.ceil(most / max(1, len(nodes)))
        gpus, threads = connection.share(beside)
    weights = _weights(model, settings, gpus > 0)
    kept = int(GB * (settings.adapter_memory + (settings.memory or 0)))
    share = Share(
        gpus,
        threads,
        memory=PROCESS + weights + (0 if gpus else kept),
        gpu_memory=CONTEXT + weights + kept if gpus else 0,
        beside=beside,
    )
    if sum(_room(node, share.needs) for node in nodes) < least:
        present = "; ".join(sorted(described(node) for node in nodes))
        raise HalkaError(
            f"--replicas: {least} replicas of {described(share.needs)} each have no room on the cluster (its nodes: "
            f"{present}): start fewer, let each take less (--adapter-memory, --memory, --quantize), or add a node by "
            "`ray start --address=HEAD:6379`"
        )
    return share


def _room(node: Resources, needs: Resources) -> int:
    """How many replicas a node has room for."""
    if not suffices(node, needs):
        return 0
    return int(min(node[name] / needs[name] for name in ("CPU", "GPU", "memory") if needs[name]))


def _weights(model: AdaptedModel, settings: ServerSettings, gpu: bool) -> int:
    """Bytes of the base's weights: a GPU has those in two bytes each that the gateway's processor may have in four."""
    size, wanted = bytes_of(model.base), settings.dtype
    if gpu and settings.quantize is None and wanted in ("bfloat16", "float16") and model.base.dtype == torch.float32:
        return size // 2
    return size

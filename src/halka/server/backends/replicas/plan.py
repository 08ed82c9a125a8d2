"""`ReplicaPlan`: what every replica is started with, which the gateway sends as JSON."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from halka.core import AdaptedModel
from halka.engine import Engine
from halka.engine.adapters import Source
from halka.engine.cache import most_memory
from halka.models import adapt
from halka.models.fingerprint import own_fingerprint
from halka.models.loading import load_base
from halka.server.settings import GB, ServerSettings
from halka.util.errors import HalkaError
from halka.util.own_version import own_version


@dataclass(frozen=True)
class ReplicaPlan:
    """The base, and the engine on it.

    fingerprint  of the gateway's base; halka: the gateway's `own_version`
    threads      that it computes in, where it has no GPU
    beside       the most replicas that share a node's memory
    others       settings of `ServerSettings` by their names
    """

    fingerprint: Mapping[str, Any]
    halka: str
    threads: int
    beside: int
    others: Mapping[str, Any]

    @classmethod
    def of(cls, settings: ServerSettings, model: AdaptedModel, threads: int, beside: int = 1) -> ReplicaPlan:
        names = (
            "base",
            "dtype",
            "device",
            "quantize",
            "rows",
            "memory",
            "adapter_memory",
            "adapters_in_memory",
            "timeout",
        )
        others = {name: getattr(settings, name) for name in names}
        return cls(own_fingerprint(model), own_version(), threads, beside, others)

    @property
    def json(self) -> str:
        return json.dumps(asdict(self))

    def engine(self, store: Source) -> Engine:
        """The engine of a replica. Raises HalkaError, with this node's name, for another base or version."""
        torch.set_num_threads(self.threads)
        node, settings = socket.gethostname(), self.others
        if (own := own_version()) != self.halka:
            raise HalkaError(
                f"node {node} has Halka {own}, and the gateway {self.halka}: install one wheel on all of them, as "
                "docs/replicas.md says, or check the same commit out"
            )
        try:
            model = adapt(
                *load_base(
                    settings["base"],
                    dtype=settings["dtype"],
                    device=settings["device"],
                    quantize=settings["quantize"],
                    kind="causal-lm",
                )
            )
        except HalkaError as error:
            raise HalkaError(f"node {node} cannot load the base, which every node needs: {error}") from None
        if (own := json.loads(json.dumps(own_fingerprint(model)))) != self.fingerprint:
            raise HalkaError(
                f"node {node} has another base as {settings['base']} than the gateway (weights "
                f"{own['weights']}, not {self.fingerprint['weights']}): copy the gateway's there"
            )
        base: Any = model.base
        memory = settings["memory"] and int(settings["memory"] * GB)
        return Engine(
            model,
            store,
            rows=settings["rows"],
            memory=most_memory(base.device, self.beside) if memory is None else memory,
            adapter_memory=int(settings["adapter_memory"] * GB),
            most_adapters=settings["adapters_in_memory"],
        )

"""Requests in, tokens out: continuous batches with an adapter a row."""

from halka.engine.background import AsyncEngine
from halka.engine.constraint import Constraint
from halka.engine.engine import Engine
from halka.engine.request import Answer, Request
from halka.engine.sampling import Sampling
from halka.engine.stopping import Stopping

__all__ = ["Answer", "AsyncEngine", "Constraint", "Engine", "Request", "Sampling", "Stopping"]

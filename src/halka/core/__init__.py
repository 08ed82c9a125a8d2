"""The idea in six files: parts (what acts), routing (on which row), stacking, weights, turns (of threads), model."""

from halka.core.model import AdaptedModel
from halka.core.parts import (
    LINEAR_ROLES,
    ROLE_GROUPS,
    VIRTUAL_ROLES,
    WEIGHT_ROLES,
    Adapter,
    Method,
    Part,
    Reader,
    Target,
    linear,
)
from halka.core.routing import Memory, repeats

__all__ = [
    "LINEAR_ROLES",
    "ROLE_GROUPS",
    "VIRTUAL_ROLES",
    "WEIGHT_ROLES",
    "AdaptedModel",
    "Adapter",
    "Memory",
    "Method",
    "Part",
    "Reader",
    "Target",
    "linear",
    "repeats",
]

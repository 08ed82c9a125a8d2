"""The idea in seven files: parts (what acts), routing (on which row), stacking, weights, blank, turns, model."""

from halka.core.blank import begun
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
    state_of,
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
    "begun",
    "linear",
    "repeats",
    "state_of",
]

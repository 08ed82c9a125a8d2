"""The idea in nine files: parts (what acts), joint, routing, stacking, merged, weights, blank, turns, model."""

from halka.core.blank import begun
from halka.core.joint import Joint
from halka.core.model import AdaptedModel
from halka.core.parts import (
    LINEAR_ROLES,
    ROLE_GROUPS,
    VIRTUAL_ROLES,
    WEIGHT_ROLES,
    WHOLE,
    Adapter,
    Method,
    Part,
    Reader,
    Target,
    described,
    linear,
    state_of,
    wants,
)
from halka.core.routing import Memory, repeats

__all__ = [
    "LINEAR_ROLES",
    "ROLE_GROUPS",
    "VIRTUAL_ROLES",
    "WEIGHT_ROLES",
    "WHOLE",
    "AdaptedModel",
    "Adapter",
    "Joint",
    "Memory",
    "Method",
    "Part",
    "Reader",
    "Target",
    "begun",
    "described",
    "linear",
    "repeats",
    "state_of",
    "wants",
]

"""The idea: parts (what acts), joint, routing, stacking, merged, weights, packed, turns, model, and small helpers."""

from halka.core.blank import begun
from halka.core.joint import Joint
from halka.core.mode import in_mode
from halka.core.model import AdaptedModel
from halka.core.packed import Packed, bytes_of, count_of, form_of
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
    "Packed",
    "Part",
    "Reader",
    "Target",
    "begun",
    "bytes_of",
    "count_of",
    "described",
    "form_of",
    "in_mode",
    "linear",
    "repeats",
    "state_of",
    "wants",
]

"""What acts where, on which rows of a batch, in torch alone: targets, methods, parts, adapters, `AdaptedModel`."""

from halka.core.blank import begun
from halka.core.experts import Choices, ExpertEdit
from halka.core.fields import explained_roles, method
from halka.core.forest import Forest
from halka.core.joint import Joint, beside, chosen
from halka.core.mode import in_mode
from halka.core.model import AdaptedModel
from halka.core.modules import Modules
from halka.core.packed import Packed, bytes_of, count_of, form_of
from halka.core.parts import (
    EXPERT_ROLES,
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
    state_of,
    wants,
)
from halka.core.products import Grouped, linear
from halka.core.routing import Memory, repeats

__all__ = [
    "EXPERT_ROLES",
    "LINEAR_ROLES",
    "ROLE_GROUPS",
    "VIRTUAL_ROLES",
    "WEIGHT_ROLES",
    "WHOLE",
    "AdaptedModel",
    "Adapter",
    "Choices",
    "ExpertEdit",
    "Forest",
    "Grouped",
    "Joint",
    "Memory",
    "Method",
    "Modules",
    "Packed",
    "Part",
    "Reader",
    "Target",
    "begun",
    "beside",
    "bytes_of",
    "chosen",
    "count_of",
    "described",
    "explained_roles",
    "form_of",
    "in_mode",
    "linear",
    "method",
    "repeats",
    "state_of",
    "wants",
]

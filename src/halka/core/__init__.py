"""What acts where, on which tokens, in torch alone: targets, methods, parts, adapters, `AdaptedModel`."""

from halka.core.cached import Cached
from halka.core.experts import Choices, ExpertEdit
from halka.core.forest import Forest
from halka.core.model import AdaptedModel
from halka.core.parts import (
    Adapter,
    Method,
    ModulePart,
    Part,
    VirtualPart,
    WeightPart,
    described,
    init_parameter,
    skip_init,
)
from halka.core.passes import VirtualAttention
from halka.core.routing import repeats
from halka.core.stacking import Grouped, linear
from halka.core.targets import (
    EXPERT_ROLES,
    LINEAR_ROLES,
    ROLE_GROUPS,
    VIRTUAL_ROLES,
    WEIGHT_ROLES,
    WHOLE,
    Quantized,
    Reader,
    Target,
    parameter_count,
    quantization_of,
    wants,
)

__all__ = [
    "EXPERT_ROLES",
    "LINEAR_ROLES",
    "ROLE_GROUPS",
    "VIRTUAL_ROLES",
    "WEIGHT_ROLES",
    "WHOLE",
    "AdaptedModel",
    "Adapter",
    "Cached",
    "Choices",
    "ExpertEdit",
    "Forest",
    "Grouped",
    "Method",
    "ModulePart",
    "Part",
    "Quantized",
    "Reader",
    "Target",
    "VirtualAttention",
    "VirtualPart",
    "WeightPart",
    "described",
    "init_parameter",
    "linear",
    "parameter_count",
    "quantization_of",
    "repeats",
    "skip_init",
    "wants",
]

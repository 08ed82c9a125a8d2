"""What acts where, on which tokens, in torch alone: targets, methods, parts, adapters, `AdaptedModel`."""

from halka.core.casting import casting, pack
from halka.core.forest import Forest
from halka.core.model import AdaptedModel
from halka.core.parts import Adapter, Method, ModulePart, Part, VirtualPart, WeightPart
from halka.core.passes import VirtualAttention
from halka.core.routing import Edits, ExpertEdits, repeats
from halka.core.stacking import StackedParts
from halka.core.targets import (
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
from halka.util.initial import init_parameter, skip_init
from halka.util.products import Grouped, linear

__all__ = [
    "LINEAR_ROLES",
    "ROLE_GROUPS",
    "VIRTUAL_ROLES",
    "WEIGHT_ROLES",
    "WHOLE",
    "AdaptedModel",
    "Adapter",
    "Edits",
    "ExpertEdits",
    "Forest",
    "Grouped",
    "Method",
    "ModulePart",
    "Part",
    "Quantized",
    "Reader",
    "StackedParts",
    "Target",
    "VirtualAttention",
    "VirtualPart",
    "WeightPart",
    "casting",
    "init_parameter",
    "linear",
    "pack",
    "parameter_count",
    "quantization_of",
    "repeats",
    "skip_init",
    "wants",
]

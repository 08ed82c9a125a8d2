"""What acts where, on which tokens, in torch alone: targets, methods, parts, adapters, `AdaptedModel`."""

from halka.core.adapter import Adapter
from halka.core.interfaces import VirtualAttention
from halka.core.model import AdaptedModel
from halka.core.parts import Method, ModulePart, Part, VirtualPart, WeightPart
from halka.core.routing import Edits, ExpertEdits
from halka.core.stacking import StackedParts
from halka.core.targets import LINEAR_ROLES, ROLE_GROUPS, VIRTUAL_ROLES, WEIGHT_ROLES, WHOLE, Reader, Target, wants
from halka.util.initial import init_parameter
from halka.util.products import linear
from halka.util.quantised import parameter_count, quantization_of

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
    "Method",
    "ModulePart",
    "Part",
    "Reader",
    "StackedParts",
    "Target",
    "VirtualAttention",
    "VirtualPart",
    "WeightPart",
    "init_parameter",
    "linear",
    "parameter_count",
    "quantization_of",
    "wants",
]

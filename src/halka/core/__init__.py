"""What acts where, on which tokens, in torch alone: targets, methods, parts, adapters, `AdaptedModel`.

Read `targets.py` (places in a base), `parts.py` (what a method puts there), `adapter.py` (the parts of one method),
`routing.py` (whose parts act on which row), `passes.py` (hooks, and the blocks of `use`) and `model.py` (all together);
then `stacking.py` (many rows in one go), `weights.py` (merging) and `interfaces.py` (what others implement).

Of `halka.util` the first sentences will do at first: `turns` (of threads), `cached` (until a parameter changes),
`parameter_swap`, `products` and `runs` (a weight for each row, or run), `rows` (beam search), `divided`, `initial`.
"""

from halka.core.adapter import Adapter
from halka.core.interfaces import VirtualAttention
from halka.core.model import AdaptedModel
from halka.core.parts import Method, ModulePart, Part, VirtualPart, WeightPart
from halka.core.routing import Edits, ExpertEdits
from halka.core.stacking import StackedParts
from halka.core.targets import LINEAR_ROLES, MODULE, ROLE_GROUPS, VIRTUAL_ROLES, WEIGHT_ROLES, Reader, Target, wants
from halka.util.initial import init_parameter
from halka.util.products import add_low_rank, linear
from halka.util.quantised import parameter_count, quantization_of

__all__ = ["LINEAR_ROLES", "MODULE", "ROLE_GROUPS", "VIRTUAL_ROLES", "WEIGHT_ROLES", "Reader", "Target", "wants"]
__all__ += ["Adapter", "Method", "ModulePart", "Part", "VirtualPart", "WeightPart"]
__all__ += ["AdaptedModel", "Edits", "ExpertEdits", "StackedParts", "VirtualAttention"]
__all__ += ["add_low_rank", "init_parameter", "linear", "parameter_count", "quantization_of"]

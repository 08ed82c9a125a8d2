"""Parse AdapterHub's tensor names, and map its module names to each architecture's modules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from halka.core import Target
from halka.storage.formats.format import base_of
from halka.util.errors import HalkaError

# The library's names for linear layers -> our roles. In its code for Llama, "intermediate" is the down projection and
# "output" the up projection.
_APART = {"q": "attn.q", "k": "attn.k", "v": "attn.v"}
_LLAMA = {**_APART, "intermediate": "mlp.down", "output": "mlp.up"}
_BERT = {**_APART, "intermediate": "mlp.up", "output": "mlp.down"}
_FUSED = {"q": "attn.qkv", "k": "attn.qkv", "v": "attn.qkv", "intermediate": "mlp.up", "output": "mlp.down"}
LINEARS = {"llama": _LLAMA, "mistral": _LLAMA, "gpt2": _FUSED, "bert": _BERT, "roberta": _BERT}
INSIDE = ("bert", "roberta")  # bottlenecks are submodules of the output module, not of the layer
MARKS = {"bottleneck": "adapters", "lora": "loras", "prefix": "prefix_tunings"}
LEGACY = tuple(f"{place}_{kind}_adapters" for place in ("attention_text", "layer_text") for kind in ("task", "lang"))


def architecture_of(targets: tuple[Target, ...]) -> str:
    """Return the base's model type. Raises HalkaError for one that the library does not support natively."""
    name = base_of(targets).config.model_type
    if name not in LINEARS:
        raise HalkaError(f"AdapterHub folders are read and written for {', '.join(LINEARS)}, not for {name}")
    return name


@dataclass
class Keys:
    """A folder's tensors by kind of adapter, by module path, by name in the module; `take` removes them."""

    by_kind: dict[str, dict[str, dict[str, Tensor]]] = field(default_factory=dict[str, dict[str, dict[str, Tensor]]])

    def take(self, kind: str, *places: str) -> dict[str, dict[str, Tensor]]:
        """Remove and return the tensors of `kind` at these places, by place; at all places if none are named."""
        by_place = self.by_kind.get(kind, {})
        return {place: by_place.pop(place) for place in (places or tuple(by_place)) if place in by_place}

    def left(self) -> list[str]:
        """Return the places of all tensors that nobody took."""
        return [place for places in self.by_kind.values() for place in places]


def sorted_by_kind(tensors: Mapping[str, Tensor], name: str, targets: tuple[Target, ...]) -> Keys:
    """Sort a folder's tensors by kind and place; `name` is the adapter's, which their names contain."""
    keys, decoder = Keys(), decoder_of(targets)
    marks = {f".{mark}.{name}.": kind for kind, mark in MARKS.items()}
    marks |= {f".{mark}.{name}.": "bottleneck" for mark in LEGACY}
    for key, tensor in tensors.items():
        mark = next((mark for mark in marks if mark in key), None)
        if mark is None:
            keys.by_kind.setdefault("other", {})[key] = {}
            continue
        place, _, inner = key.partition(mark)
        if not f"{place}.".startswith(f"{decoder}."):  # saved from a model without a head
            place = f"{decoder}.{place}"
        keys.by_kind.setdefault(marks[mark], {}).setdefault(place, {})[inner] = tensor
    return keys


def decoder_of(targets: tuple[Target, ...]) -> str:
    """Return the path of the base's decoder."""
    return base_of(targets).base_model_prefix


def bottleneck_place(target: Target, architecture: str) -> str:
    """Return the path where the library keeps the bottleneck of a sublayer's output."""
    if architecture in INSIDE:
        return target.name.rpartition(".")[0]
    layers = target.name.partition(f".{target.layer}.")[0]
    return f"{layers}.{target.layer}.{'attention' if target.role.startswith('attn') else 'output'}_adapters"


def linears(targets: tuple[Target, ...], roles: Iterable[str], left_out: Iterable[int] = ()) -> list[Target]:
    """Return the linear layers of these roles, in all layers but those left out."""
    roles, left_out = set(roles), set(left_out)
    return [target for target in targets if target.role in roles and target.layer not in left_out]

"""Where AdapterHub's tensors stand: their names taken apart, and each architecture's modules that they belong to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from halka.core import Target
from halka.storage.formats.adapterhub.config import base_of
from halka.util.errors import HalkaError

# How the library's words for places map to our roles. Llama's "intermediate" is its down projection, and its "output"
# the one up: so it stands in the library.
_APART = {"q": "attn.q", "k": "attn.k", "v": "attn.v"}
_LLAMA = {**_APART, "intermediate": "mlp.down", "output": "mlp.up"}
_BERT = {**_APART, "intermediate": "mlp.up", "output": "mlp.down"}
_FUSED = {"q": "attn.qkv", "k": "attn.qkv", "v": "attn.qkv", "intermediate": "mlp.up", "output": "mlp.down"}
LINEARS = {"llama": _LLAMA, "mistral": _LLAMA, "gpt2": _FUSED, "bert": _BERT, "roberta": _BERT}
INSIDE = ("bert", "roberta")  # where bottlenecks stand in the output's module, and not in the layer
MARKS = {"bottleneck": "adapters", "lora": "loras", "prefix": "prefix_tunings"}
LEGACY = tuple(f"{place}_{kind}_adapters" for place in ("attention_text", "layer_text") for kind in ("task", "lang"))


def architecture_of(targets: tuple[Target, ...]) -> str:
    """The base's model type. Raises HalkaError for one that the library has no form of its own for."""
    name = base_of(targets).config.model_type
    if name not in LINEARS:
        raise HalkaError(f"AdapterHub folders are read and written for {', '.join(LINEARS)}, not for {name}")
    return name


@dataclass
class Keys:
    """A folder's tensors: by kind, by the module that they stand at, by their name there. What is taken is gone."""

    by_kind: dict[str, dict[str, dict[str, Tensor]]] = field(default_factory=dict[str, dict[str, dict[str, Tensor]]])

    def take(self, kind: str, *places: str) -> dict[str, dict[str, Tensor]]:
        """What stands there of that kind, by place; of all places if none are named."""
        there = self.by_kind.get(kind, {})
        return {place: there.pop(place) for place in (places or tuple(there)) if place in there}

    def left(self) -> list[str]:
        """The places that nothing was taken from."""
        return [place for places in self.by_kind.values() for place in places]


def sorted_by_kind(tensors: Mapping[str, Tensor], name: str, targets: tuple[Target, ...]) -> Keys:
    """A folder's tensors, of whose names the adapter's is a part."""
    keys, decoder = Keys(), decoder_of(targets)
    marks = {f".{mark}.{name}.": kind for kind, mark in MARKS.items()}
    marks |= {f".{mark}.{name}.": "bottleneck" for mark in LEGACY}
    for key, tensor in tensors.items():
        mark = next((each for each in marks if each in key), None)
        if mark is None:
            keys.by_kind.setdefault("other", {})[key] = {}
            continue
        place, _, inner = key.partition(mark)
        if not f"{place}.".startswith(f"{decoder}."):  # saved from a model without a head
            place = f"{decoder}.{place}"
        keys.by_kind.setdefault(marks[mark], {}).setdefault(place, {})[inner] = tensor
    return keys


def decoder_of(targets: tuple[Target, ...]) -> str:
    """The path of the base's decoder."""
    return base_of(targets).base_model_prefix


def bottleneck_place(target: Target, architecture: str) -> str:
    """Where the library keeps the bottleneck of a sublayer's output."""
    if architecture in INSIDE:
        return target.name.rpartition(".")[0]
    layers = target.name.partition(f".{target.layer}.")[0]
    return f"{layers}.{target.layer}.{'attention' if target.role.startswith('attn') else 'output'}_adapters"


def linears(targets: tuple[Target, ...], roles: Iterable[str], left_out: Iterable[int] = ()) -> list[Target]:
    """The linear layers of these roles, in all layers but those left out."""
    roles, left_out = set(roles), set(left_out)
    return [target for target in targets if target.role in roles and target.layer not in left_out]


def layers_of(targets: tuple[Target, ...]) -> int:
    """How many layers the base has."""
    return 1 + max(target.layer for target in targets if target.layer is not None)

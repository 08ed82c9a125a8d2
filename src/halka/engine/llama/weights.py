"""A decoder of Llama's kind as a step of the engine computes it: what it is made of, read from the base and checked.

    x += o(attention(rotary(q(norm(x))), rotary(k(norm(x))), v(norm(x))));  x += down(silu(gate(norm(x))) * up(norm(x)))

Root mean square norms, no other module in a layer; linear layers may have biases, heads norms of their own, attention a
window. Other architectures with such modules may compute something else with them (positions in pairs, or none).
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple
from weakref import WeakSet

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halka.engine.llama.fused import FusedLinears, tensors_of
from halka.engine.llama.watched import Watched
from halka.models.kinds import kind_of
from halka.models.layouts import Layout, layout_of
from halka.models.quantised.int8 import Int8Linear
from halka.models.rotary import changing_rotary
from halka.util.huge_pages import Arena

LLAMAS = ("llama", "mistral", "qwen2", "qwen3")
QKV, GATE_UP = ("attn.q", "attn.k", "attn.v"), ("mlp.gate", "mlp.up")
OUTPUTS = {"attn": "attn.o", "mlp": "mlp.down"}  # where a sublayer ends
PRODUCTS = {"qkv": QKV, "o": ("attn.o",), "gate_up": GATE_UP, "down": ("mlp.down",)}
"""The linear layers that each product of a layer computes."""
ROLES = tuple(role for roles in PRODUCTS.values() for role in roles)
PLACES: tuple[tuple[str, Literal["input", "output"]], ...] = (
    *((role, "output") for role in ROLES),
    *((role, "input") for role in OUTPUTS.values()),
    *((f"{sublayer}{which}", "output") for sublayer in OUTPUTS for which in ("", ".residual")),
)
"""Where in a layer parts may act, by role, in the order of the kernels' tables."""


class Dims(NamedTuple):
    """Widths, as the kernels name them."""

    D: int
    Q: int
    H: int
    W: int
    F: int
    L: int


class LlamaLayer:
    """One layer: its norms, fused products, window, and the paths of its linear layers by role."""

    def __init__(self, base: Any, layout: Layout, number: int):
        prefix = f"{layout.layers}.{number}"
        self.paths = {role: f"{prefix}.{layout.linears[role]}" for role in ROLES}
        linears: dict[str, Any] = {role: base.get_submodule(path) for role, path in self.paths.items()}
        attention: Any = base.get_submodule(f"{prefix}.{layout.attention}")
        own = dict(attention.named_children())
        self.norm: Any = base.get_submodule(f"{prefix}.{layout.residuals['attn']}")
        self.mlp_norm: Any = base.get_submodule(f"{prefix}.{layout.residuals['mlp']}")
        self.head_norms: list[Any] = [own[name] for name in ("q_norm", "k_norm") if name in own]
        self.scale: float = attention.scaling
        self.window = window_of(attention, base.config)
        self.linears = linears
        self.products: dict[str, FusedLinears] = {}
        self.keys = {role: f"{path}:{role}" for role, path in self.paths.items()}  # of targets
        for sublayer, role in OUTPUTS.items():
            for place in (sublayer, f"{sublayer}.residual"):
                self.keys[place] = f"{self.paths[role]}:{place}"

    def norms(self) -> list[Tensor]:
        """Of the layer's input, of queries and keys (without any element if it has none), of the MLP's input."""
        first, last = self.norm.weight.data, self.mlp_norm.weight.data
        return [first, *([norm.weight.data for norm in self.head_norms] or [first[:0], first[:0]]), last]

    def places(self) -> list[tuple[nn.Module, str]]:
        """The modules that have the tensors which the layer computes with, and their names there."""
        norms = [(norm, "weight") for norm in (self.norm, self.mlp_norm, *self.head_norms)]
        return norms + [place for product in self.products.values() for place in product.places]

    def fuse(self) -> None:
        arena = Arena(tensor for linear in self.linears.values() for tensor in tensors_of(linear))
        for name, roles in PRODUCTS.items():
            self.products[name] = FusedLinears([self.linears[role] for role in roles], arena)


def window_of(attention: Any, config: Any) -> int | None:
    """The window of a layer's attention: Qwen's layers hold their own, Mistral's read the configuration's."""
    if "sliding_window" in vars(attention):
        return attention.sliding_window
    return config.sliding_window if config.model_type == "mistral" else None


def obstacle(base: Any) -> str | None:
    """What keeps the engine from computing this base by a step of its own, in words; None if nothing does."""
    layout = layout_of(base)
    if kind_of(base) != "causal-lm":
        return "it does not generate"
    if base.config.model_type not in LLAMAS:
        return f"{base.config.model_type} is not of Llama's kind"
    parameters = [*base.named_parameters()]
    dtype = parameters[0][1].dtype
    if any(parameter.device.type != "cpu" for _, parameter in parameters):
        return "it is not on the CPU"
    if dtype not in (torch.float32, torch.bfloat16) or any(parameter.dtype != dtype for _, parameter in parameters):
        return "its weights are neither all fp32 nor all bf16"
    if (rotary := changing_rotary(base)) is not None:
        return f"its rotary positions are {rotary}, which change with the text's length"
    return _odd_module(base, layout)


def _odd_module(base: Any, layout: Layout) -> str | None:
    """The first module that does not compute what the step would."""
    layers = base.get_submodule(layout.layers)
    decoder = base.get_submodule(layout.decoder)
    head, embed = base.get_submodule(layout.head), base.get_submodule(layout.embed)
    outside = {name for name, _ in decoder.named_children()}
    if outside != {"embed_tokens", "layers", "norm", "rotary_emb"}:
        return f"its decoder has {', '.join(sorted(outside))}"
    if type(head) is not nn.Linear or head.bias is not None:
        return f"its head is a {type(head).__name__}, or has a bias"
    tokens = torch.arange(2)
    with torch.no_grad():
        if not torch.equal(embed(tokens), embed.weight[tokens]):
            return "its embeddings are not its embedding's rows alone"
        if not _is_norm(decoder.norm, base.config.rms_norm_eps):
            return "its last norm is no root mean square norm"
        for number in range(len(layers)):
            if odd := _odd_in_layer(base, layout, number):
                return f"layer {number}: {odd}"
    return None


def _odd_in_layer(base: Any, layout: Layout, number: int) -> str | None:
    whole = base.get_submodule(f"{layout.layers}.{number}")
    try:
        layer = LlamaLayer(base, layout, number)
    except AttributeError as error:
        return str(error)
    for role, linear in layer.linears.items():
        if type(linear) not in (nn.Linear, Int8Linear):
            return f"{role} is a {type(linear).__name__}"
        if type(linear) is nn.Linear and not linear.weight.is_contiguous():
            return f"{role} has a weight that is not contiguous"
    for roles in (QKV, GATE_UP):
        if len({type(layer.linears[role]) for role in roles}) > 1:
            return f"of {', '.join(roles)} some are quantised"
        if len({layer.linears[role].bias is None for role in roles}) > 1:
            return f"of {', '.join(roles)} some have a bias"
    norms = [layer.norm, layer.mlp_norm, *layer.head_norms]
    if len(layer.head_norms) == 1 or not all(_is_norm(norm, base.config.rms_norm_eps) for norm in norms):
        return "a norm is no root mean square norm"
    leaves = [module for module in whole.modules() if not any(True for _ in module.children())]
    act = [module for module in leaves if module not in (*layer.linears.values(), *norms)]
    x = torch.linspace(-4, 4, 16)
    if len(act) != 1 or not torch.allclose(act[0](x), F.silu(x)):
        return f"it has {', '.join(type(module).__name__ for module in act)} where SiLU is expected"
    return None


def _is_norm(norm: Any, eps: float) -> bool:
    weight = norm.weight
    x = torch.linspace(-1, 2, len(weight)) * 0.01  # small, so that another epsilon shows
    expected = F.rms_norm(x, weight.shape, weight.float(), eps)
    return torch.allclose(
        norm(x[None])[0].float(), expected, rtol=1e-2 if weight.dtype == torch.bfloat16 else 1e-4, atol=1e-6
    )


class LlamaWeights:
    """A base's weights, its products fused until `undo`.

    users  who has them open (`open_weights`)
    """

    def __init__(self, base: Any):
        """Raises no error: `obstacle` says before whether the base is of this kind."""
        self.users = WeakSet[object]()
        layout = layout_of(base)
        decoder: Any = base.get_submodule(layout.decoder)
        config = base.config
        self.layers = [LlamaLayer(base, layout, number) for number in range(len(decoder.layers))]
        for layer in self.layers:
            layer.fuse()
        attention = base.get_submodule(f"{layout.layers}.0.{layout.attention}")
        first = self.layers[0].linears
        head = base.get_submodule(layout.head)
        self._to_logits = FusedLinears([head], Arena(tensors_of(head)))
        self.head: Tensor = self._to_logits.weight
        self.embed: Tensor = decoder.embed_tokens.weight.data
        self.norm: Tensor = decoder.norm.weight.data
        self.rotary = decoder.rotary_emb
        self.eps: float = config.rms_norm_eps
        self.scale: float = self.layers[0].scale
        W = attention.head_dim
        heads = [first[role].out_features // W for role in ("attn.q", "attn.k")]
        D, F, L = self.embed.shape[1], first["mlp.up"].out_features, len(self.layers)
        self.dims = Dims(D, heads[0], heads[1], W, F, L)
        places = [place for layer in self.layers for place in layer.places()]
        outside = (decoder.norm, decoder.embed_tokens, base.get_submodule(layout.head))
        self._places = [*places, *((module, "weight") for module in outside)]
        self._watched = self.watch()

    def watch(self) -> Watched:
        """By this whoever computes with them looks at times whether the base's own weights are still these."""
        return Watched(self._places)

    def intact(self) -> bool:
        """Whether the base's own weights are these: not once it was moved."""
        return self._watched.all_intact()

    def addresses(self) -> list[list[int]]:
        """For each layer the addresses of its weights, in the order of `kernels/one_row.py`'s WEIGHTS; 0 for none."""
        return [
            [
                layer.norm.weight.data_ptr(),
                *_addresses(layer.products["qkv"]),
                *([norm.weight.data_ptr() for norm in layer.head_norms] or [0, 0]),
                *_addresses(layer.products["o"]),
                layer.mlp_norm.weight.data_ptr(),
                *_addresses(layer.products["gate_up"]),
                *_addresses(layer.products["down"]),
            ]
            for layer in self.layers
        ]

    def undo(self) -> None:
        """Let the base have its own weights again, layer by layer: each layer's matrices are free before the next."""
        while self.layers:
            products = self.layers.pop().products
            while products:
                products.popitem()[1].undo()
        self._to_logits.undo()


def _addresses(product: FusedLinears) -> list[int]:
    own = (product.weight, product.scale, product.bias)
    return [0 if tensor is None else tensor.data_ptr() for tensor in own]

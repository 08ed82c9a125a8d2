"""Layouts: the paths of each transformers architecture's modules that methods act on.

To support another architecture, add its layout to `LAYOUTS`, and a tiny configuration to `tests/tiny.py`: the tests of
the architectures then cover it (docs/architectures.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from halka.models.kinds import kind_of
from halka.util.errors import HalkaError


@dataclass(frozen=True)
class Layout:
    """Paths inside the base; linear roles are relative to a layer of the stack.

    decoder     the stack: the module that turns tokens into hidden states
    layers      its list of layers
    attention   the module, in a layer, that calls the attention function
    linears     role -> path; the output projections stand for their sublayers too
    residuals   for `attn` and `mlp`: the module that receives the residual which the sublayer's output is added to;
                empty where more than the sum stands between the two, as in gemma2
    norms       the norms of these sums, where the base has them there; elsewhere its norms stand before the sublayers
    cross       as linears, of a layer's second attention, over an encoder's tokens; its residual is that of `cross`
    experts     the module, in a layer, that holds all experts' weights; the module around it is the whole sublayer
    shared      a mixture's linear layers that every token goes through: role -> path
    states      as linears, of layers that carry a state from token to token in place of attention
    embed       the module that turns token ids into the stack's input
    head        the output layer; a classifier has its own instead, of the name that transformers gives it
    encoder     the other stack, of a base that reads one text and writes another
    alike       all layers have keys and values of their own, of one shape, and the stack reads embeddings alone
    causal      a token sees only those before it
    positions   what the stack counts if it is given no position ids: all tokens (index), the attention mask's ones
                (mask), tokens that are no padding, from behind the padding's number on (words); or none: relative
    """

    decoder: str
    layers: str
    attention: str
    linears: dict[str, str]
    embed: str
    head: str = ""
    residuals: dict[str, str] = field(default_factory=dict)
    norms: dict[str, str] = field(default_factory=dict)
    cross: dict[str, str] = field(default_factory=dict)
    encoder: Layout | None = None
    experts: str = ""
    shared: Mapping[str, str] = field(default_factory=dict)
    states: Mapping[str, str] = field(default_factory=dict)
    alike: bool = True
    causal: bool = True
    positions: str = "index"

    @property
    def generates(self) -> bool:
        """Whether the stack makes texts token by token, from what it read itself."""
        return self.causal and self.encoder is None

    @property
    def attends(self) -> bool:
        """Whether attention alone decides what a token sees: so texts share a line."""
        return not self.states

    @property
    def obstacle(self) -> str | None:
        """Which layers virtual tokens cannot join, nor an engine keep, in words; None if there are none."""
        if self.states:
            return "layers that carry a state in place of attention"
        return None if self.alike else "layers whose keys and values have several shapes"

    def has_attention(self, layer: nn.Module) -> bool:
        """Whether one layer of the stack has attention."""
        return hasattr(layer, self.attention.partition(".")[0])

    def linears_of(self, layer: nn.Module) -> Mapping[str, str]:
        """The linear layers of one layer of the stack."""
        if self.has_attention(layer):
            modules = dict(layer.named_modules())
            return {role: path for role, path in self.linears.items() if self.alike or path in modules}
        return {**self.states, **{role: path for role, path in self.linears.items() if role.startswith("mlp.")}}


CLASSIFIERS = ("classifier", "score")  # transformers' names for the head of a classifier


def _of_attention(output: str = "o_proj") -> dict[str, str]:
    names = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": output}
    return {f"attn.{letter}": f"self_attn.{name}" for letter, name in names.items()}


def _gated(mlp: str) -> dict[str, str]:
    return {f"mlp.{name}": f"{mlp}.{name}_proj" for name in ("gate", "up", "down")}


_UNGATED = {"mlp.up": "mlp.up_proj", "mlp.down": "mlp.down_proj"}
_GATE_UP = {"mlp.gate_up": "mlp.gate_up_proj", "mlp.down": "mlp.down_proj"}
_PARALLEL = dict.fromkeys(("attn", "mlp"), "input_layernorm")  # both sublayers' outputs are added to one residual
_LLAMA = Layout(
    decoder="model",
    layers="model.layers",
    attention="self_attn",
    linears={**_of_attention(), **_gated("mlp")},
    embed="model.embed_tokens",
    head="lm_head",
    residuals={"attn": "input_layernorm", "mlp": "post_attention_layernorm"},
)
_BESIDE_IMAGES = replace(
    _LLAMA,
    decoder="model.language_model",
    layers="model.language_model.layers",
    embed="model.language_model.embed_tokens",
)
_MIXTURE = replace(_LLAMA, experts="mlp.experts")  # layers without experts are Llama's
_BERT = Layout(
    decoder="bert",
    layers="bert.encoder.layer",
    attention="attention.self",
    linears={
        "attn.q": "attention.self.query",
        "attn.k": "attention.self.key",
        "attn.v": "attention.self.value",
        "attn.o": "attention.output.dense",
        "mlp.up": "intermediate.dense",
        "mlp.down": "output.dense",
    },
    embed="bert.embeddings.word_embeddings",
    head="cls.predictions.decoder",
    residuals={"attn": "attention.self.query", "mlp": "intermediate.dense"},
    norms={"attn": "attention.output.LayerNorm", "mlp": "output.LayerNorm"},
    causal=False,
)


def _t5_attention(path: str) -> dict[str, str]:
    return {f"attn.{letter}": f"{path}.{letter}" for letter in "qkvo"}


def _t5(mlp: dict[str, str]) -> Layout:
    def of(sublayer: int) -> dict[str, str]:
        return {role: f"layer.{sublayer}.DenseReluDense.{path}" for role, path in mlp.items()}

    encoder = Layout(
        decoder="encoder",
        layers="encoder.block",
        attention="layer.0.SelfAttention",
        linears={**_t5_attention("layer.0.SelfAttention"), **of(1)},
        embed="encoder.embed_tokens",
        residuals={"attn": "layer.0.layer_norm", "mlp": "layer.1.layer_norm"},
        causal=False,
        positions="relative",
    )
    return Layout(
        decoder="decoder",
        layers="decoder.block",
        attention="layer.0.SelfAttention",
        linears={**_t5_attention("layer.0.SelfAttention"), **of(2)},
        embed="encoder.embed_tokens",
        head="lm_head",
        residuals={"attn": "layer.0.layer_norm", "cross": "layer.1.layer_norm", "mlp": "layer.2.layer_norm"},
        cross=_t5_attention("layer.1.EncDecAttention"),
        encoder=encoder,
        positions="relative",
    )


LAYOUTS: dict[str, Layout] = {
    **dict.fromkeys(("llama", "qwen2", "qwen3", "mistral", "gemma", "smollm3", "ernie4_5"), _LLAMA),
    **dict.fromkeys(("olmo", "seed_oss", "ministral", "ministral3", "hunyuan_v1_dense"), _LLAMA),
    **dict.fromkeys(("gemma2", "gemma3_text", "olmo2", "olmo3", "granite", "exaone4"), replace(_LLAMA, residuals={})),
    "cohere2": replace(_LLAMA, residuals=_PARALLEL),
    "gemma3": replace(_BESIDE_IMAGES, residuals={}),
    "gemma4_text": replace(_LLAMA, residuals={}, alike=False),
    "gemma4": replace(_BESIDE_IMAGES, residuals={}, alike=False),
    **dict.fromkeys(("mixtral", "qwen3_moe", "olmoe", "minimax_m2"), _MIXTURE),
    "qwen2_moe": replace(_MIXTURE, shared=_gated("mlp.shared_expert")),
    **dict.fromkeys(("glm4_moe", "exaone_moe"), replace(_MIXTURE, shared=_gated("mlp.shared_experts"))),
    "granitemoe": replace(_MIXTURE, experts="block_sparse_moe.experts", residuals={}),
    "phi3": replace(_LLAMA, linears={"attn.qkv": "self_attn.qkv_proj", "attn.o": "self_attn.o_proj", **_GATE_UP}),
    "glm": replace(_LLAMA, linears={**_of_attention(), **_GATE_UP}),
    "glm4": replace(_LLAMA, linears={**_of_attention(), **_GATE_UP}, residuals={}),
    "starcoder2": replace(_LLAMA, linears={**_of_attention(), "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj"}),
    "arcee": replace(_LLAMA, linears={**_of_attention(), **_UNGATED}),
    "apertus": replace(
        _LLAMA,
        linears={**_of_attention(), **_UNGATED},
        residuals={"attn": "attention_layernorm", "mlp": "feedforward_layernorm"},
    ),
    "phi": replace(
        _LLAMA,
        linears={**_of_attention("dense"), "mlp.up": "mlp.fc1", "mlp.down": "mlp.fc2"},
        residuals=_PARALLEL,
    ),
    "qwen3_5_text": replace(_LLAMA, states={"attn.qkv": "linear_attn.in_proj_qkv", "attn.o": "linear_attn.out_proj"}),
    "qwen3_5_moe_text": replace(
        _MIXTURE,
        shared=_gated("mlp.shared_expert"),
        states={"attn.qkv": "linear_attn.in_proj_qkv", "attn.o": "linear_attn.out_proj"},
    ),
    "qwen3_next": replace(
        _MIXTURE,
        shared=_gated("mlp.shared_expert"),
        states={"attn.qkv": "linear_attn.in_proj_qkvz", "attn.o": "linear_attn.out_proj"},
    ),
    "lfm2": replace(
        _LLAMA,
        linears={
            **_of_attention("out_proj"),
            "mlp.gate": "feed_forward.w1",
            "mlp.up": "feed_forward.w3",
            "mlp.down": "feed_forward.w2",
        },
        residuals={"attn": "operator_norm", "mlp": "ffn_norm"},
        states={"attn.qkv": "conv.in_proj", "attn.o": "conv.out_proj"},
    ),
    "gpt2": Layout(
        decoder="transformer",
        layers="transformer.h",
        attention="attn",
        linears={
            "attn.qkv": "attn.c_attn",
            "attn.o": "attn.c_proj",
            "mlp.up": "mlp.c_fc",
            "mlp.down": "mlp.c_proj",
        },
        embed="transformer.wte",
        head="lm_head",
        residuals={"attn": "ln_1", "mlp": "ln_2"},
    ),
    "gpt_neox": Layout(
        decoder="gpt_neox",
        layers="gpt_neox.layers",
        attention="attention",
        linears={
            "attn.qkv": "attention.query_key_value",
            "attn.o": "attention.dense",
            "mlp.up": "mlp.dense_h_to_4h",
            "mlp.down": "mlp.dense_4h_to_h",
        },
        embed="gpt_neox.embed_in",
        head="lm_head",
        residuals=_LLAMA.residuals,
    ),
    "opt": Layout(
        decoder="model.decoder",
        layers="model.decoder.layers",
        attention="self_attn",
        linears={**_of_attention("out_proj"), "mlp.up": "fc1", "mlp.down": "fc2"},
        embed="model.decoder.embed_tokens",
        head="lm_head",
        positions="mask",
    ),
    "bert": _BERT,
    **dict.fromkeys(
        ("roberta", "xlm-roberta"),
        replace(
            _BERT,
            decoder="roberta",
            layers="roberta.encoder.layer",
            embed="roberta.embeddings.word_embeddings",
            head="lm_head.decoder",
            positions="words",
        ),
    ),
    "modernbert": Layout(
        decoder="model",
        layers="model.layers",
        attention="attn",
        linears={
            "attn.qkv": "attn.Wqkv",
            "attn.o": "attn.Wo",
            "mlp.gate_up": "mlp.Wi",
            "mlp.down": "mlp.Wo",
        },
        embed="model.embeddings.tok_embeddings",
        head="decoder",
        residuals={"attn": "attn_norm", "mlp": "mlp_norm"},
        causal=False,
    ),
    "t5": _t5({"mlp.up": "wi", "mlp.down": "wo"}),
    "t5, gated": _t5({"mlp.gate": "wi_0", "mlp.up": "wi_1", "mlp.down": "wo"}),
}


def layout_of(base: nn.Module) -> Layout:
    """The layout of a transformers model. Raises HalkaError, with the file to extend, for an unknown architecture."""
    config: Any = getattr(base, "config", None)
    model_type = getattr(config, "model_type", None)
    if model_type == "t5" and config.is_gated_act:
        model_type = "t5, gated"
    if model_type not in LAYOUTS:
        raise HalkaError(
            f"the architecture {model_type!r} ({type(base).__name__}) is not known: add its layout to "
            f"src/halka/models/layouts.py, which knows {', '.join(LAYOUTS)}"
        )
    layout = LAYOUTS[model_type]
    head = next((name for name, _ in base.named_children() if name in CLASSIFIERS), layout.head)
    return replace(layout, head=head)


def check_layout(base: Any, layout: Layout) -> None:
    """Raises HalkaError for modules that are not where the layout says, and for next tokens that are seen already."""
    kind = kind_of(base)
    config = base.config.get_text_config()
    looks_ahead = {"is_causal": (False,), "use_bidirectional_attention": (True, "all")}
    for name, values in looks_ahead.items() if kind == "causal-lm" else ():
        if (value := getattr(config, name, None)) in values:
            raise HalkaError(
                f"tokens of this {type(base).__name__} see those after them ({name}: {value} in its configuration), so "
                "that it cannot learn to predict them: set that to its default, or load it as a classifier"
            )
    modules = dict(base.named_modules())
    missing = [path for path in (layout.layers, layout.embed, layout.head) if path not in modules]
    if kind == "causal-lm" and not layout.causal:
        missing = ["causal decoder"]
    if missing:
        raise HalkaError(
            f"{type(base).__name__} has no {missing[0]}: of {base.config.model_type} models for {kind} this class is "
            "not known; src/halka/models/layouts.py says which are"
        )

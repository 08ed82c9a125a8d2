"""Where each transformers architecture keeps the places that methods act on: one `Layout` an architecture.

To support another architecture, add its layout to `LAYOUTS`; with a tiny configuration in
`tests/tiny.py` every test of the architectures then tries it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import nn

from halka.core import Target


@dataclass(frozen=True)
class Layout:
    """Paths inside the causal (or masked) language model; linear roles are relative to a decoder layer.

    decoder     the module that turns tokens into hidden states
    layers      its list of layers
    attention   the module, in a layer, that calls the attention function; empty where prefixes are not supported
    linears     role -> path; the output projections stand for their sublayers too
    residuals   for `attn` and `mlp`: the module that receives the residual which the sublayer's output is added to;
                empty where more than the sum stands between the two, as in gemma2
    norms       the norms of these sums, where the base has them there; elsewhere its norms stand before the sublayers
    causal      a token sees only those before it; an encoder can be counted, not trained as a language model
    positions_from_mask   without position ids the decoder counts the attention mask's ones, instead of all tokens
    """

    decoder: str
    layers: str
    attention: str
    linears: dict[str, str]
    embed: str
    head: str
    residuals: dict[str, str] = field(default_factory=dict)
    norms: dict[str, str] = field(default_factory=dict)
    positions_from_mask: bool = False
    causal: bool = True


_LLAMA = Layout(
    decoder="model",
    layers="model.layers",
    attention="self_attn",
    linears={
        "attn.q": "self_attn.q_proj",
        "attn.k": "self_attn.k_proj",
        "attn.v": "self_attn.v_proj",
        "attn.o": "self_attn.o_proj",
        "mlp.gate": "mlp.gate_proj",
        "mlp.up": "mlp.up_proj",
        "mlp.down": "mlp.down_proj",
    },
    embed="model.embed_tokens",
    head="lm_head",
    residuals={"attn": "input_layernorm", "mlp": "post_attention_layernorm"},
)
_BERT = Layout(
    decoder="bert",
    layers="bert.encoder.layer",
    attention="",
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

LAYOUTS: dict[str, Layout] = {
    **dict.fromkeys(("llama", "qwen2", "qwen3", "mistral", "gemma"), _LLAMA),
    **dict.fromkeys(("gemma2", "gemma3_text"), replace(_LLAMA, residuals={})),
    "phi3": Layout(
        decoder="model",
        layers="model.layers",
        attention="self_attn",
        linears={
            "attn.qkv": "self_attn.qkv_proj",
            "attn.o": "self_attn.o_proj",
            "mlp.gate_up": "mlp.gate_up_proj",
            "mlp.down": "mlp.down_proj",
        },
        embed="model.embed_tokens",
        head="lm_head",
        residuals=_LLAMA.residuals,
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
        linears={
            "attn.q": "self_attn.q_proj",
            "attn.k": "self_attn.k_proj",
            "attn.v": "self_attn.v_proj",
            "attn.o": "self_attn.out_proj",
            "mlp.up": "fc1",
            "mlp.down": "fc2",
        },
        embed="model.decoder.embed_tokens",
        head="lm_head",
        positions_from_mask=True,
    ),
    # Encoders: adapters are built and counted for them.
    "bert": _BERT,
    "roberta": Layout(
        decoder="roberta",
        layers="roberta.encoder.layer",
        attention="",
        linears=_BERT.linears,
        embed="roberta.embeddings.word_embeddings",
        head="lm_head.decoder",
        residuals=_BERT.residuals,
        norms=_BERT.norms,
        causal=False,
    ),
}

_SOURCES = {"attn": ("attn.q", "attn.qkv"), "mlp": ("mlp.up", "mlp.gate_up")}
_OUTPUTS = {"attn": "attn.o", "mlp": "mlp.down"}


def layout_of(base: nn.Module) -> Layout:
    """The layout of a transformers model. Raises ValueError that names the file to extend."""
    model_type = getattr(getattr(base, "config", None), "model_type", None)
    if model_type not in LAYOUTS:
        raise ValueError(
            f"the architecture {model_type!r} ({type(base).__name__}) is not known: add its layout to "
            f"src/halka/models/layouts.py, which knows {', '.join(LAYOUTS)}"
        )
    return LAYOUTS[model_type]


def linear_targets(base: nn.Module, layout: Layout) -> list[Target]:
    """Every linear layer, both sublayers' outputs and the head of `base`, in the order of its layers."""
    targets = []
    for layer in range(len(list(base.get_submodule(layout.layers).children()))):
        prefix = f"{layout.layers}.{layer}"
        for role, path in layout.linears.items():
            targets.append(_linear(base, f"{prefix}.{path}", role, layer))
        for role, output in _OUTPUTS.items():
            reader = next(layout.linears[each] for each in _SOURCES[role] if each in layout.linears)
            source = f"{prefix}.{reader}"
            d_in = _widths(base.get_submodule(source))[0]
            name = f"{prefix}.{layout.linears[output]}"
            module = base.get_submodule(name)
            d_out = _widths(module)[1]
            targets.append(Target(name, role, module, d_in, d_out, layer, source))
            if role in layout.residuals:
                residual = f"{prefix}.{layout.residuals[role]}"
                norm = base.get_submodule(f"{prefix}.{layout.norms[role]}") if layout.norms else None
                targets.append(Target(name, f"{role}.residual", module, d_out, d_out, layer, residual, norm))
    targets.append(_linear(base, layout.head, "head", None))
    return targets


def _linear(base: nn.Module, path: str, role: str, layer: int | None) -> Target:
    module = base.get_submodule(path)
    return Target(path, role, module, *_widths(module), layer=layer, transposed=_transposed(module))


def _transposed(module: nn.Module) -> bool:
    return not isinstance(module, nn.Linear)  # transformers' Conv1D, the only other linear layer of these models


def _widths(module: nn.Module) -> tuple[int, int]:
    weight = module.weight
    return tuple(weight.shape) if _transposed(module) else tuple(weight.shape)[::-1]  # type: ignore[return-value]

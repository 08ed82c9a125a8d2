"""The table of bases and the table of methods that the contract is tried on, and what tests of adapters share.

A new method is tried by being in `halka.methods`, a new kind of base by a line in `BASES`.
"""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass
from typing import get_args

import torch
from transformers import PreTrainedModel

import halka
from halka.core import AdaptedModel, Method
from halka.methods import all_methods
from halka.methods.prefix import AttentionRole
from halka.models.quantised import quantise
from tiny import ENCODERS, SEQ2SEQ, tiny

# ── bases ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Base:
    """A kind of base: how a tiny one is built, and what its batches look like."""

    architecture: str = "llama"
    kind: str | None = None
    quantize: str | None = None

    def build(self, **changes) -> PreTrainedModel:
        base = tiny(self.architecture, kind=self.kind, **changes)
        if self.quantize:
            quantise(base, self.quantize)
        return base

    def adapted(self, method: Method, *, trained: bool = True, **changes) -> AdaptedModel:
        """This base with `method` as adapter "a"; moved off its start if `trained`."""
        model = halka.adapt(self.build(**changes))
        model.head = None  # a classifier's own head serves: what is tried is the method
        model.add("a", method)
        if trained:
            disturb(model, "a")
        return model

    @property
    def is_decoder(self) -> bool:
        return self.architecture not in {**ENCODERS, **SEQ2SEQ}

    @property
    def generates(self) -> bool:
        return self.architecture not in ENCODERS

    def labels(self, rows: int = 3) -> torch.Tensor:
        if self.kind == "sequence-classification":
            return torch.arange(rows) % 2
        if self.kind == "token-classification":
            return ids(rows) % 2
        return ids(rows, length=7, seed=5) if self.architecture in SEQ2SEQ else ids(rows)

    def inputs(self, rows: int = 3) -> dict[str, torch.Tensor]:
        return {"input_ids": ids(rows), "labels": self.labels(rows)}

    def padded(self, texts: list[torch.Tensor], side: str | None = None) -> dict[str, torch.Tensor]:
        """Texts of unlike length as one batch, on the left for a decoder, as `generate` makes it."""
        batch, mask, positions = padded(texts, side or ("left" if self.is_decoder else "right"))
        batch[mask == 0] = {"roberta": 1}.get(self.architecture, 0)
        inputs = {"input_ids": batch, "attention_mask": mask}
        if self.architecture in SEQ2SEQ:
            inputs["labels"] = self.labels(1).repeat(len(texts), 1)
        return {**inputs, "position_ids": positions} if self.is_decoder else inputs

    def alone(self, text: torch.Tensor) -> dict[str, torch.Tensor]:
        """One of these texts as a batch of its own."""
        inputs = {"input_ids": text[None]}
        return {**inputs, "labels": self.labels(1)} if self.architecture in SEQ2SEQ else inputs

    def of_text(self, logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """A row's logits without those of padding."""
        whole = self.kind == "sequence-classification" or self.architecture in SEQ2SEQ
        return logits if whole else logits[mask == 1]


# Every method is tried on these.
BASES = {
    "llama": Base(),
    "nf4": Base(quantize="nf4"),
    "mixtral": Base("mixtral"),
    "bert": Base("bert", "masked-lm"),
    "roberta": Base("roberta", "sequence-classification"),
    "modernbert": Base("modernbert", "token-classification"),
    "t5": Base("t5"),
}
# These differ from one of the former in a single thing (how a layer is packed, which layers have experts, whether one
# is shared, a gated feed-forward, the task's head) and take only the forms that meet it, `OWN_FORMS`. Where other
# decoders have their layers and how they attend `test_every_architecture` tries.
RELATED = {
    "int8": Base(quantize="int8"),
    "qwen2_moe": Base("qwen2_moe"),
    "qwen3_moe": Base("qwen3_moe"),
    "flan-t5": Base("flan-t5"),
    "bert-classifier": Base("bert", "sequence-classification"),
    "bert-tagger": Base("bert", "token-classification"),
    "roberta-words": Base("roberta", "masked-lm"),
    "roberta-tagger": Base("roberta", "token-classification"),
    "modernbert-words": Base("modernbert", "masked-lm"),
    "modernbert-classifier": Base("modernbert", "sequence-classification"),
}
MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe")

# ── methods ─────────────────────────────────────────────────────────────────────────────────────────────────────────

# Methods whose fields must be set for the contract to bite, or that are tried in several forms on a decoder. The first
# is tried on every kind of base.
VARIANTS: dict[str, list[Method]] = {
    "lora": [
        halka.LoRA(rank=4),
        halka.LoRA(rank=20, targets=("attn.linear", "head"), scaling="root"),
        halka.LoRA(rank=4, targets=("embedding", "attn.qv")),
    ],
    "ia3": [halka.IA3(), halka.IA3(("attn.qv", "mlp.linear"), feedforward=("attn.qv",))],
    "bottleneck": [
        halka.Bottleneck(width=6),
        halka.Bottleneck(targets=("mlp",), activation="gelu"),
        halka.Bottleneck(reads="input", scale=2.0),
        halka.Bottleneck(reads="residual", scale=2.0, scaling="learned", widths=(5, 3), activation="gelu_tanh"),
        halka.Bottleneck(reads="sum", scaling="channel", targets=("mlp",)),
    ],
    "normed_bottleneck": [
        halka.NormedBottleneck(width=6),
        halka.NormedBottleneck(width=6, reads="residual", norms=("before", "after"), scaling="learned"),
    ],
    "positionless_prefix": [halka.PositionlessPrefix(length=5)],
    "prefix": [halka.Prefix(length=5), halka.Prefix(length=5, start="random"), halka.Prefix(length=5, hidden=8)],
    "lora_bias": [halka.LoRABias(rank=4, targets=("attn.qv", "mlp.linear"))],
    "tokens": [halka.Tokens((5, 6, 7)), halka.Tokens((8,), ("embedding",)), halka.Tokens((8, 5), ("head",))],
    "llama_adapter": [halka.LlamaAdapter(length=4)],
    "modules": [halka.Modules(), halka.Modules(("embedding", "model.norm"))],
    "prompt": [halka.Prompt(length=5), halka.Prompt(length=5, tokens=(7, 8, 9))],
}
METHODS: dict[str, list[Method]] = {name: VARIANTS.get(name, [kind()]) for name, kind in all_methods().items()}
JOINT = [
    halka.Joint((halka.LoRA(rank=4), halka.Modules())),
    halka.Joint((halka.Bottleneck(width=6, reads="input"), halka.LoRA(rank=3, targets=("mlp.down", "attn.q")))),
    halka.Joint((halka.Prefix(length=5), halka.Bottleneck(targets=("mlp",), reads="input"))),
]
# Forms that only some bases have a place for, or where they compute something else.
OF_EXPERTS = [
    halka.LoRA(rank=3, targets=("experts",)),
    halka.LoRA(rank=20, targets=("linear", "experts"), scaling="root"),
    halka.IA3(targets=("attn.kv", "experts.down")),
    halka.IA3(targets=("experts.gate_up",)),
    halka.BitFit(targets=("experts",)),
    halka.Joint((halka.LoRA(rank=4, targets=("experts.down",)), halka.Bottleneck(width=6, reads="input"))),
]
_OF_ENCODERS = [
    halka.Modules(("embedding",)),
    halka.Prompt(length=5, tokens=(7, 8, 9)),
    halka.Tokens((8, 14), ("embedding",)),
    halka.Joint((halka.Prompt(length=5), halka.Modules())),
    halka.Joint((halka.Prefix(length=5), halka.Prompt(length=5))),
]
_OF_T5 = [
    halka.LoRA(rank=20, targets=("attn.linear", "head"), scaling="root"),
    halka.Prefix(length=5, targets=get_args(AttentionRole)),
    halka.Prefix(length=5, targets=("memory.cross",), hidden=8),
    halka.Joint((halka.Prompt(length=5), halka.Prefix(length=5, targets=get_args(AttentionRole), start="random"))),
    halka.Tokens((8, 5), ("head",)),
    halka.Modules(("embedding", "decoder.embed_tokens")),
]
_OF_HEADS = [
    halka.Modules(),
    halka.LoRA(rank=20, targets=("attn.linear", "head"), scaling="root"),
    halka.Prefix(length=5),
    halka.Joint((halka.Prompt(length=5), halka.Modules())),
]
OWN_FORMS: dict[str, list[Method]] = {
    "llama": [form for forms in METHODS.values() for form in forms[1:]] + JOINT,
    **dict.fromkeys(("nf4", "int8"), JOINT),
    **dict.fromkeys(MIXTURES, OF_EXPERTS),
    **dict.fromkeys(ENCODERS, _OF_ENCODERS),
    **dict.fromkeys(SEQ2SEQ, _OF_T5),
    **{name: _OF_HEADS for name in RELATED if name.endswith(("-words", "-classifier", "-tagger"))},
}

# ── what a pair cannot do ───────────────────────────────────────────────────────────────────────────────────────────

# (base, method) -> how the method is refused there.
REFUSED: dict[tuple[str, str], str] = {
    ("nf4", "full"): "full: the base is quantised to nf4 and cannot be trained",
    ("mixtral", "ia3"): r"ia3 wants 'mlp\.down', which this base does not have",
    ("mixtral", "lora_bias"): r"lora_bias wants 'mlp\.linear', which this base does not have",
    ("roberta", "tokens"): "tokens: classifier has no row for each token: leave head out",
    ("t5", "tokens"): "tokens: encoder.embed_tokens is what the encoder reads, .* leave embedding out",
    ("modernbert", "tokens"): "tokens: ids run from 0 to 1 in this base, not 7",
}
# method -> how merging it into the weights is refused; the others are merged.
UNMERGEABLE: dict[str, str] = {
    "bottleneck": "has no form as a weight|is no weight: not mergeable",
    "full": "full",
    "llama_adapter": "is no weight: not mergeable",
    "normed_bottleneck": "has no form as a weight|is no weight: not mergeable",
    "positionless_prefix": "is no weight: not mergeable",
    "prefix": "is no weight: not mergeable",
    "prompt": "is no weight: not mergeable",
}
BIASES = ("bitfit", "lora_bias")  # merged where the layers have biases
WITH_BIASES = ("bert", "roberta")
LEAVES_PACKED_LAYERS = ("tokens", "modules")  # embedding and head are not packed


def why_not_merged(base: Base, method: Method) -> str | None:
    """How merging is refused, or None where it is not."""
    reasons = [UNMERGEABLE[each.name] for each in of(method) if each.name in UNMERGEABLE]
    if base.quantize and not all(each.name in LEAVES_PACKED_LAYERS for each in of(method)):
        reasons.append(f"is quantised to {base.quantize}: .*not mergeable. Use the adapter beside the base")
    elif method.name in BIASES and base.architecture not in WITH_BIASES:
        reasons.append("adds a bias to .*, which has none: not mergeable|mixture of experts returns: not mergeable")
    return "|".join(reasons) or None


def pairs(*names: str) -> list[tuple[str, Base, Method]]:
    """A base, by name, with a method that it can have: of the bases named, or of all."""
    found = []
    for name, base in {**BASES, **RELATED}.items():
        usual = [forms[0] for forms in METHODS.values() if name in BASES and (name, forms[0].name) not in REFUSED]
        if not names or name in names:
            found += [(name, base, method) for method in usual + OWN_FORMS[name]]
    return found


def named(found: list[tuple[str, Base, Method]]) -> list[tuple[str, Base, Method]]:
    """Pairs with a name of their own, such as `t5-prefix`, or `t5-prefix-2` for the method's second form there."""
    seen, named = Counter[tuple[str, str]](), []
    for name, base, method in found:
        seen[name, method.name] += 1
        number = seen[name, method.name]
        methods = "+".join(one.name for one in of(method))
        named.append((f"{name}-{methods}" + (f"-{number}" if number > 1 else ""), base, method))
    return named


# ── how an adapter starts ───────────────────────────────────────────────────────────────────────────────────────────

STARTS_ELSEWHERE = {
    "prefix",
    "positionless_prefix",
    "prompt",
}  # virtual tokens change the output from the first step on
STARTS_ROUNDED = {"llama_adapter"}  # in the base's own attention the last bits are others


def starts_elsewhere(method: Method) -> bool:
    return any(each.name in STARTS_ELSEWHERE for each in of(method))


def of(method: Method) -> tuple[Method, ...]:
    """A joint method's own, or the method itself."""
    return method.methods if isinstance(method, halka.Joint) else (method,)


# ── adapters, batches and weights for every test ────────────────────────────────────────────────────────────────────


def adapted(method: Method, dtype=torch.float32, architecture="llama", trained: bool = True) -> AdaptedModel:
    """A tiny base with `method` as adapter "a"; moved off its start if `trained`."""
    return Base(architecture).adapted(method, trained=trained, dtype=dtype)


def logits_and_gradients(base: Base, method: Method, device: str) -> list[torch.Tensor]:
    """Of a batch on a device, with `method` as the adapter; they come back on the CPU."""
    model = base.adapted(method).to(device)
    inputs = {name: tensor.to(device) for name, tensor in base.inputs().items()}
    with model.use("a"):
        output = model.base(**inputs, **({"use_cache": False} if base.generates else {}))
        output.loss.backward()
    gradients = [parameter.grad for parameter in model.parameters("a")]
    return [tensor.detach().cpu() for tensor in (output.logits, *gradients)]


def disturb(model: AdaptedModel, name: str, seed: int = 3, by: float = 0.05) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters(name):
            parameter.add_(torch.randn(parameter.shape, generator=generator) * by)


def ids(rows: int = 3, length: int = 9, seed: int = 1) -> torch.Tensor:
    return torch.randint(3, 97, (rows, length), generator=torch.Generator().manual_seed(seed))


def padded(prompts: list[torch.Tensor], side: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows of unlike length as one batch: ids, attention mask, and position ids as `generate` makes them."""
    longest = max(len(prompt) for prompt in prompts)
    batch, mask = torch.zeros(len(prompts), longest, dtype=torch.int64), torch.zeros(len(prompts), longest).long()
    for row, prompt in enumerate(prompts):
        place = slice(0, len(prompt)) if side == "right" else slice(longest - len(prompt), longest)
        batch[row, place], mask[row, place] = prompt, 1
    return batch, mask, (mask.cumsum(1) - 1).clamp_min(0)


def weights_of(base: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the base's parameters and buffers: of packed layers these are the weights."""
    return copy.deepcopy({**dict(base.named_parameters()), **dict(base.named_buffers())})


def has_weights(base: torch.nn.Module, before: dict[str, torch.Tensor]) -> bool:
    """Whether the base's parameters and buffers are these to the bit."""
    now = {**dict(base.named_parameters()), **dict(base.named_buffers())}
    return now.keys() == before.keys() and all(torch.equal(now[key], before[key]) for key in before)

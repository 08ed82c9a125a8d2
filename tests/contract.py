"""What every method must pass. A new method gets all of it by being in `src/halka/methods`."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch

import halka
from halka.core import AdaptedModel, Method
from tiny import tiny

# Methods whose fields must be set for the contract to bite, or that are tried in several forms.
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
JOINT = [
    halka.Joint((halka.LoRA(rank=4), halka.Modules())),
    halka.Joint((halka.Bottleneck(width=6, reads="input"), halka.LoRA(rank=3, targets=("mlp.down", "attn.q")))),
    halka.Joint((halka.Prefix(length=5), halka.Bottleneck(targets=("mlp",), reads="input"))),
]
STARTS_ELSEWHERE = {
    "prefix",
    "positionless_prefix",
    "prompt",
}  # virtual tokens change the output from the first step on
STARTS_ROUNDED = {"llama_adapter"}  # in the base's own attention the last bits are others
# Where a method's defaults name a role that an architecture lacks: what is tried there instead.
INSTEAD: dict[tuple[str, str], Method] = {
    ("ia3", architecture): halka.IA3(targets=("attn.kv", "experts.down")) for architecture in ("mixtral", "olmoe")
}


def adapted(method: Method, dtype=torch.float32, architecture="llama", trained: bool = True) -> AdaptedModel:
    """A tiny base with `method` as adapter "a"; moved off its start if `trained`."""
    model = halka.adapt(tiny(architecture, dtype))
    model.add("a", method)
    if trained:
        disturb(model, "a")
    return model


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
    return copy.deepcopy(dict(base.named_parameters()))


def of(method: Method) -> tuple[Method, ...]:
    """A joint method's own, or the method itself."""
    return method.methods if isinstance(method, halka.Joint) else (method,)


def starts_elsewhere(method: Method) -> bool:
    return any(each.name in STARTS_ELSEWHERE for each in of(method))


def starts_right(method: Method, used: torch.Tensor, bare: torch.Tensor) -> bool:
    """Whether an adapter that was not trained lets the base compute what it shall at first."""
    if starts_elsewhere(method):
        return not torch.equal(used, bare)
    if method.name in STARTS_ROUNDED:
        return torch.allclose(used, bare, rtol=0, atol=1e-5 if used.dtype == torch.float32 else 2e-2)
    return torch.equal(used, bare)


def without_dropout(method: Method) -> Method:
    return replace(method, dropout=0.0) if hasattr(method, "dropout") else method  # type: ignore[type-var]

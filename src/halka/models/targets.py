"""The targets of a base, by its layout: linear layers, sublayers' outputs, experts' weights and the head."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from halka.core import Target
from halka.models.layouts import Layout
from halka.util.errors import HalkaError
from halka.util.quantised import Quantized

_SOURCES = {"attn": ("attn.q", "attn.qkv"), "mlp": ("mlp.up", "mlp.gate_up")}
_OUTPUTS = {"attn": "attn.o", "mlp": "mlp.down"}
_EXPERTS = {"experts.gate_up": "gate_up_proj", "experts.down": "down_proj"}  # (E, 2·I, D) and (E, D, I)
STORED_QUANTISED = (
    "since it is stored quantised: give the one in full precision, as base=… or --base; load_base(quantize=…) or "
    "--quantize quantises it as it is loaded"
)


def linear_targets(base: nn.Module, layout: Layout) -> list[Target]:
    """Every linear layer, all sublayers' outputs and the head of `base`, in the order of its layers."""
    targets = []
    for stack in (layout.encoder, layout):
        if stack is not None:
            for layer in range(len(list(base.get_submodule(stack.layers).children()))):
                targets += _of_layer(base, stack, layer)
    return [*targets, _head(base, layout)]


def _of_layer(base: nn.Module, stack: Layout, layer: int) -> Iterator[Target]:
    prefix = f"{stack.layers}.{layer}"
    module = base.get_submodule(prefix)
    mixture = bool(stack.experts) and stack.experts in dict(module.named_modules())
    linears = stack.linears_of(module)
    dense = {role: path for role, path in linears.items() if not (mixture and role.startswith("mlp."))}
    for linears in (dense, stack.cross):
        for role, path in linears.items():
            yield _linear(base, f"{prefix}.{path}", role, layer)
        for role, output in _OUTPUTS.items():
            if output in linears:
                name = f"{prefix}.{linears[output]}"
                module = base.get_submodule(name)
                source = f"{prefix}.{next(linears[first] for first in _SOURCES[role] if first in linears)}"
                d_in, d_out = _widths(base.get_submodule(source))[0], _widths(module)[1]
                yield Target(name, role, module, d_in, d_out, layer, source)
                place = "cross" if linears is stack.cross else role
                if place in stack.residuals:
                    residual = f"{prefix}.{stack.residuals[place]}"
                    norm = base.get_submodule(f"{prefix}.{stack.norms[place]}") if stack.norms else None
                    yield Target(name, f"{role}.residual", module, d_out, d_out, layer, residual, norm)
    if mixture:
        yield from _mixture(base, stack, prefix, layer)


def _mixture(base: nn.Module, layout: Layout, prefix: str, layer: int) -> list[Target]:
    """The targets of a mixture of experts: shared linear layers, experts' weights, the block's output; no router."""
    targets = [_linear(base, f"{prefix}.{path}", role, layer) for role, path in layout.shared.items()]
    path = f"{prefix}.{layout.experts}"
    module = base.get_submodule(path)
    for role, key in _EXPERTS.items():
        count, d_out, d_in = module.get_parameter(key).shape
        targets.append(Target(f"{path}.{key}", role, module, d_in, d_out, layer, experts=(count,)))
    whole = path.rpartition(".")[0]
    block, width = base.get_submodule(whole), base.get_submodule(layout.embed).get_parameter("weight").shape[1]
    targets.append(Target(whole, "mlp", block, width, width, layer))
    if "mlp" in layout.residuals:
        residual = f"{prefix}.{layout.residuals['mlp']}"
        targets.append(Target(whole, "mlp.residual", block, width, width, layer, residual))
    return targets


def _linear(base: nn.Module, path: str, role: str, layer: int | None) -> Target:
    module = base.get_submodule(path)
    return Target(path, role, module, *_widths(module), layer=layer, transposed=_transposed(module))


def _head(base: Any, layout: Layout) -> Target:
    module = base.get_submodule(layout.head)
    if any(True for _ in module.children()):  # RoBERTa's classifier is two layers
        return Target(layout.head, "head", module, 0, 0)
    return _linear(base, layout.head, "head", None)


def _transposed(module: nn.Module) -> bool:
    if isinstance(module, Quantized):
        return module.transposed
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


def _widths(module: nn.Module) -> tuple[int, int]:
    if isinstance(module, Quantized):
        return module.in_features, module.out_features
    weight: Any = getattr(module, "weight", None)  # of a merged adapter, a tensor instead of the parameter
    theirs = type(module).__module__.startswith("bitsandbytes.")  # with a weight that nobody has packed, too
    if theirs or weight is None or weight.dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise HalkaError(f"the base holds a {type(module).__name__} of another library, {STORED_QUANTISED}")
    if not isinstance(module, nn.Linear) and not _transposed(module):
        raise HalkaError(
            f"the base holds a {type(module).__module__}.{type(module).__name__} in place of a linear layer: give the "
            "plain one; peft's `merge_and_unload()` or `unload()` makes one of what peft has changed"
        )
    return tuple(weight.shape) if _transposed(module) else tuple(weight.shape)[::-1]  # type: ignore[return-value]

"""Norms and gates of a base's layers by kernels, while it trains in bf16 on a CPU.

transformers computes an RMSNorm by seven operations, some of them in fp32, and autograd keeps most of their results;
of a gate it keeps what is twice as wide as needed. A kernel (`kernels/layers.py`) reads and writes each number once and
keeps what its gradient needs. A class is known by its forward, which is Llama's word for word; all others compute as
transformers wrote them, and so does everything without numba, on GPUs and in other precisions.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from halka.kernels import unusable
from halka.util.forwards import computed_by, with_own_forward

DTYPE = torch.bfloat16
OPERATIONS = torch.library.Library("halka", "FRAGMENT")  # torch's own way, so that a dry run on fake tensors knows them


def layer_kernels(base: nn.Module) -> AbstractContextManager[None]:
    """Within the block the base's norms and gates compute by kernels where they can."""
    return computed_by(_by_kernels(base))


def _by_kernels(base: nn.Module) -> dict[nn.Module, Callable[[Tensor], Tensor]]:
    """The modules whose forward a kernel can compute, with that forward."""
    taken: dict[nn.Module, Callable[[Tensor], Tensor]] = {}
    if not _fit(next(base.parameters())) or unusable() is not None:
        return taken
    from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

    for module in with_own_forward(base):
        if _computes_as(type(module), LlamaRMSNorm):
            taken[module] = partial(_norm, module)
        elif _computes_as(type(module), LlamaMLP) and _is_silu(module.act_fn):
            taken[module] = partial(_mlp, module)
    return taken


def _is_silu(activation: Any) -> bool:
    """Whether the activation is SiLU, and nobody waits for it to be called."""
    from transformers.activations import SiLUActivation

    hooked = activation._forward_hooks or activation._forward_pre_hooks
    return type(activation) in (SiLUActivation, nn.SiLU) and not hooked


@cache
def _computes_as(kind: type[nn.Module], other: type[nn.Module]) -> bool:
    """Whether the forward of both is the same code."""
    return _code(kind) == _code(other)


def _code(kind: type[nn.Module]) -> Any:
    code: Any = getattr(kind.forward, "__code__", None)
    return None if code is None else (code.co_code, code.co_names, code.co_varnames, code.co_consts[1:])


def _norm(module: Any, hidden_states: Tensor) -> Tensor:
    if _fit(hidden_states, module.weight) and hidden_states.shape[-1] == len(module.weight):
        return _RMSNorm.apply(hidden_states, module.weight, module.variance_epsilon)  # type: ignore[return-value]
    return type(module).forward(module, hidden_states)


def _mlp(module: Any, x: Tensor) -> Tensor:
    gate, up = module.gate_proj(x), module.up_proj(x)
    if _fit(gate, up):
        return module.down_proj(_SiLUGate.apply(gate, up))
    return module.down_proj(module.act_fn(gate) * up)


def _fit(*tensors: Tensor) -> bool:
    return all(tensor.dtype == DTYPE and tensor.device.type == "cpu" for tensor in tensors)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x, weight = x.contiguous(), weight.clone()  # FSDP frees its own after the layer, but not what numpy has seen
        y, scale = torch.ops.halka.rms_norm(x, weight, eps)
        ctx.save_for_backward(x, weight, scale)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight, scale = ctx.saved_tensors
        trains = ctx.needs_input_grad[1]
        dx, dweight = torch.ops.halka.rms_norm_gradient(dy.contiguous(), x, weight, scale, trains)
        return dx, dweight if trains else None, None


class _SiLUGate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(gate, up)
        return torch.ops.halka.silu_gate(gate, up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ops.halka.silu_gate_gradient(dz.contiguous(), *ctx.saved_tensors)


# ── as operations of torch's ────────────────────────────────────────────────────────────────────────────────────────


def _operation(schema: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a function an operation of torch's: it gets a function that runs a kernel on tensors, or runs none."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        OPERATIONS.define(f"{function.__name__[1:]}{schema}")
        OPERATIONS.impl(function.__name__[1:], partial(function, _run), "CPU")
        OPERATIONS.impl(function.__name__[1:], partial(function, lambda name, threads, *arguments: None), "Meta")
        return function

    return register


def _run(name: str, threads: int, *arguments: Tensor | float) -> None:
    """The kernel of that name on contiguous tensors, each as its rows."""
    from halka.kernels import layers
    from halka.kernels.shared import array_of

    arrays = [array_of(_rows(it)) if isinstance(it, Tensor) else np.float32(it) for it in arguments]
    getattr(layers, name)(threads, *arrays)


def _rows(tensor: Tensor) -> Tensor:
    return tensor.detach() if tensor.dim() == 1 else tensor.detach().view(-1, tensor.shape[-1])


@_operation("(Tensor x, Tensor weight, float eps) -> (Tensor, Tensor)")
def _rms_norm(run: Callable[..., None], x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    y, scale = torch.empty_like(x), x.new_empty(x.shape[:-1].numel(), dtype=torch.float32)
    run("rms_norm", torch.get_num_threads(), x, weight, eps, scale, y)
    return y, scale


@_operation("(Tensor dy, Tensor x, Tensor weight, Tensor scale, bool trains) -> (Tensor, Tensor)")
def _rms_norm_gradient(
    run: Callable[..., None], dy: Tensor, x: Tensor, weight: Tensor, scale: Tensor, trains: bool
) -> tuple[Tensor, Tensor]:
    threads = torch.get_num_threads()
    dx, dweight = torch.empty_like(x), x.new_zeros(threads if trains else 0, x.shape[-1], dtype=torch.float32)
    run("rms_norm_gradient", threads, dy, x, weight, scale, dx, dweight)
    return dx, dweight.sum(0).to(weight.dtype)


@_operation("(Tensor gate, Tensor up) -> Tensor")
def _silu_gate(run: Callable[..., None], gate: Tensor, up: Tensor) -> Tensor:
    z = torch.empty_like(gate)
    run("silu_gate", torch.get_num_threads(), gate, up, z)
    return z


@_operation("(Tensor dz, Tensor gate, Tensor up) -> (Tensor, Tensor)")
def _silu_gate_gradient(run: Callable[..., None], dz: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    dgate, dup = torch.empty_like(gate), torch.empty_like(up)
    run("silu_gate_gradient", torch.get_num_threads(), dz, gate, up, dgate, dup)
    return dgate, dup

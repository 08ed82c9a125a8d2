"""A base in parts, one on each of the processes that train together: torch's `fully_shard` (FSDP2).

A layer's weights are gathered from all processes when a pass comes to the layer and dropped behind it, forward and
backward. Embeddings, the last norm and the head are whole on each: a batch's loss calls the head as often as its labels
need, which is not as often on every process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from halka.models.fingerprint import keep_samples
from halka.models.layouts import LAYOUTS, layout_of
from halka.models.loading import base_config, load_base, place_of, precision_on, resolve
from halka.models.quantised import QuantizedLinear, check_quantize, quantisable, quantise_layer
from halka.util.divided import lost_rank_error
from halka.util.dtypes import Dtype, Quantize, dtype_name
from halka.util.errors import HalkaError
from halka.util.kinds import Kind

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

IN_FP32 = MixedPrecisionPolicy(reduce_dtype=torch.float32)  # gradients are added up


def load_sharded_base(
    name_or_path: str | Path,
    *,
    kind: Kind | None = None,
    labels: Sequence[str] | None = None,
    dtype: Dtype | Literal["auto"] | torch.dtype = "bfloat16",
    device: str | torch.device | None = None,
    quantize: Quantize | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """As `load_base`, with this process's part of every layer in memory; all processes of the group call it together.

    The weights are mapped from their safetensors files, and layer by layer this process's part is copied out. Of a
    mixture transformers merges the experts into new tensors first: the processes of a machine take turns, so that one
    at a time has the base whole in main memory. Raises as `load_base` does, and HalkaError in a process alone.
    """
    if quantize is not None:
        check_quantize(quantize)
    named, place = dtype_name(dtype, "auto"), place_of(device)
    mesh = _mesh(place)
    layout = LAYOUTS.get(base_config(resolve(name_or_path, fetch=True)).model_type)
    with in_turn() if layout is not None and layout.experts else nullcontext():
        base, tokenizer = load_base(name_or_path, kind=kind, labels=labels, dtype="auto", device="cpu")
        precision = precision_on(place, named, base.config)
        shard(base, place, None if precision == "auto" else precision, quantize, mesh)
    return base, tokenizer


@contextmanager
def in_turn() -> Iterator[None]:
    """Within the block no other process of this machine is in its own; all processes of the group enter it."""
    own = int(os.environ.get("LOCAL_RANK", dist.get_rank()))
    turns = torch.tensor(own + 1, device="cpu")
    with lost_rank_error():
        dist.all_reduce(turns, dist.ReduceOp.MAX)  # pyright: ignore[reportUnknownMemberType]
        _wait(own)
    try:
        yield
    finally:
        with lost_rank_error():
            _wait(int(turns) - own)


def _wait(turns: int) -> None:
    """Until that many turns are over: on the CPU, where gloo waits for half an hour, and NCCL for ten minutes."""
    for _ in range(turns):
        dist.all_reduce(torch.zeros(1, device="cpu"))  # pyright: ignore[reportUnknownMemberType]


def _mesh(device: torch.device) -> DeviceMesh:
    """All processes of the group. Raises HalkaError where there is none."""
    if not dist.is_initialized():
        raise HalkaError(
            "a base in parts is for several processes: start them by torchrun, and load it within joined_ranks()"
        )
    return init_device_mesh(device.type, (dist.get_world_size(),))


def shard(
    base: Any,
    device: torch.device,
    dtype: torch.dtype | None = None,
    quantize: Quantize | None = None,
    mesh: DeviceMesh | None = None,
) -> None:
    """Leave of every layer's weights this process's part, in that precision or the base's own, on the device.

    `mesh` has all processes of the group, which call this together where it is not set.
    """
    mesh = mesh or _mesh(device)
    keep_samples(base)
    base.requires_grad_(False)
    layout, places = layout_of(base), quantisable(base) if quantize is not None else []
    stacks = [stack for stack in (layout.encoder, layout) if stack is not None]
    for stack in stacks:
        for number, layer in enumerate(base.get_submodule(stack.layers).children()):
            wide = _in_float32(base, layer, dtype)
            layer.to(dtype)
            for module, name, values in wide:
                if name in module._buffers:
                    setattr(module, name, values)
                else:
                    module.get_parameter(name).data = values
            for path, transposed in places:
                if quantize is not None and path.startswith(f"{stack.layers}.{number}."):
                    quantise_layer(base, path, transposed, quantize)
            _shard_layer(layer.to(device), mesh, number)
    whole = {parameter for parameter in base.parameters() if not isinstance(parameter, DTensor)}
    with torch.no_grad():
        for parameter in whole:
            parameter.data = parameter.data.to(device, dtype, copy=True)
        for module in base.modules():
            for key, buffer in [*module.named_buffers(recurse=False)]:
                setattr(module, key, buffer.to(device))
    for stack in stacks:
        decoder = base.get_submodule(stack.decoder)
        fully_shard(decoder, mesh=mesh, ignored_params=whole)
        _settle_precisions(decoder)


def _in_float32(base: Any, layer: nn.Module, dtype: torch.dtype | None) -> list[tuple[nn.Module, str, Tensor]]:
    """What transformers leaves in float32 beside others in `dtype`, by module and name: T5's `wo`, routers' biases."""
    half = dtype in (torch.float16, torch.bfloat16)
    kept = set((half and base._keep_in_fp32_modules_strict) or ())
    kept |= set((dtype == torch.float16 and base._keep_in_fp32_modules) or ())
    return [
        (layer.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2], tensor.detach().float())
        for path, tensor in (*layer.named_parameters(), *layer.named_buffers())
        if any(f".{name}." in f".{path}." for name in kept)
    ]


def _settle_precisions(decoder: nn.Module) -> None:
    """Have FSDP add up gradients as IN_FP32 says once weights train: what does at first decides on that."""
    weights = [one for one in decoder.parameters() if isinstance(one, DTensor) and one.is_floating_point()]
    one_precision = len({weight.dtype for weight in weights}) == 1  # of several FSDP trains none
    for weight in weights:
        weight.requires_grad_(one_precision)
    fully_shard.state(decoder)._lazy_init()
    for weight in weights:
        weight.requires_grad_(False)


def _shard_layer(layer: nn.Module, mesh: DeviceMesh, number: int) -> None:
    """Shard the parameters of a stack's layer, and what its quantised layers keep."""
    for module in layer.modules():
        if isinstance(module, QuantizedLinear):
            for key, buffer in [*module.named_buffers(recurse=False)]:
                if buffer.dtype in (torch.uint8, torch.int8):
                    delattr(module, key)
                    module.register_parameter(key, nn.Parameter(buffer, requires_grad=False))
    sharded = fully_shard(layer, mesh=mesh, reshard_after_forward=True, mp_policy=IN_FP32)
    sharded.set_gradient_divide_factor(1.0)  # gradients are those of a mean over all processes' labels: added up
    sharded.set_force_sum_reduction_for_comms(True)  # gloo knows no other

    def gather(gradient: Tensor) -> None:
        sharded.unshard()

    def follow_recorded(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        """In backward FSDP gathers a layer at its output's gradient. A prompt's pass has none: its keys and values are
        what is used.
        """
        if (recorded := kwargs.get("record")) is not None:
            for tensor in recorded[number]:
                if tensor.requires_grad:
                    tensor.register_hook(gather)

    layer.register_forward_hook(follow_recorded, with_kwargs=True)

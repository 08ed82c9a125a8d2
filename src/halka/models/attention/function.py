"""Attention to virtual tokens beside the layer's own, and along a forest, registered with transformers under `NAME`.

It takes what `virtual_tokens.py` adds to the decoder's call as the keyword `memory`, joins it in front of the layer's
own keys and values, and computes in the way that `way_of` picks: two grouped matrix products where the score matrix is
small (on a CPU, with few tokens, several times faster than torch's fused attention), torch's fused attention elsewhere.

    B rows   Q query heads   H key/value heads   G = Q/H   T query tokens   S key tokens   P virtual ones   W head width

In a decoder that also attends to an encoder's tokens, those virtual ones are given as `cross_memory`. A batch in one
line comes with the keyword `forest` (`forest.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function

from halka.models.attention.forest import ForestPlan
from halka.models.attention.forest_fused import attend_by_fused
from halka.models.attention.forest_products import attend_by_products
from halka.models.attention.layer_stack import LayerMemory, Recorded
from halka.models.attention.paged import PagedPlan
from halka.models.attention.paged_groups import NUMBERS, Products, groups_of
from halka.models.attention.scoring import Scoring
from halka.util.precision import lacks_bfloat16

if TYPE_CHECKING:
    from halka.models.attention.flex_kernels import FlexKernels

NAME = "halka"
COMPILED = ("cuda", "xpu")  # devices for which torch compiles FlexAttention
SMALL_SCORES = 2**16  # T·S up to which the two products win on a CPU


@contextmanager
def use_attention(base: Any) -> Iterator[None]:
    """Within the block the base computes attention here; its own choice returns afterwards. Blocks nest."""
    from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    models = [module for module in base.modules() if isinstance(module, PreTrainedModel)]
    configs = {id(model.config): model.config for model in models}.values()
    own = [config._attn_implementation for config in configs]
    for config in configs:
        config._attn_implementation = NAME
    try:
        yield
    finally:
        for config, implementation in zip(configs, own, strict=True):
            config._attn_implementation = implementation


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    softcap: float | None = None,
    position_bias: Tensor | None = None,
    memory: Sequence[LayerMemory] | None = None,
    record: Recorded | None = None,
    cross_memory: Sequence[LayerMemory] | None = None,
    record_cross: Recorded | None = None,
    gated: Sequence[LayerMemory | None] | None = None,
    forest: ForestPlan | PagedPlan | None = None,
    sliding_window: int | Literal["own"] | None = "own",
    way: str | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """Attention of query (B, Q, T, W) over memory and key, value (B, H, S, W); returns (B, T, Q, W).

    attention_mask is what transformers' `sdpa_mask` makes: (B, 1, T, S), true where attended, or None for plain causal
    attention, and in an encoder for all. position_bias (1 or B, Q, T, S) is added to the scores.
    memory holds every layer's, and so does gated, whose own attention is added; `record`, if given, receives this
    layer's own keys and values under its number.

    forest: the one row is a line of segments, and a token sees what the forest says, in place of attention_mask; memory
    and gated then hold their tokens for each run, or one for all. With a `PagedPlan` it sees its text's blocks, too.
    sliding_window: the layer's, of which without a forest the mask knows; "own" is what the module holds

    way: "products" or "fused", or one of `attend_to_forest`'s with a forest; the fastest if None.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if getattr(module, "is_decoder", False) and not getattr(module, "is_causal", True):  # to the encoder's tokens
        memory, record, gated = cross_memory, record_cross, None
    if record is not None:
        record[module.layer_idx] = (key, value)  # type: ignore[index]
    if isinstance(forest, ForestPlan):
        forest = forest.on_device(query.device)
    virtual, behind_gate = (
        None if layers is None else _layer_memory(layers[module.layer_idx], query.device, forest)  # type: ignore[index]
        for layers in (memory, gated)
    )
    scoring = Scoring(scale, dropout, softcap)
    if forest is None:
        causal = attention_mask is None and (getattr(module, "is_causal", True) if is_causal is None else is_causal)
        causal = causal and query.shape[2] > 1
        output = attend_to_rows(query, key, value, attention_mask, causal, scoring, position_bias, virtual, way)
    else:
        assert len(query) == 1, "a line is one row"
        assert position_bias is None, "a line has positions of its tokens"
        if sliding_window == "own":  # Qwen2-MoE's layers pass none on, EXAONE's hold one that only some pass on
            sliding_window = getattr(module, "sliding_window", None)
        scoring, layer = scoring._replace(window=sliding_window), cast(int, module.layer_idx)
        output = attend_to_line(query, key, value, forest, layer, scoring, virtual, way)
    if behind_gate is not None:
        output = output + _through_gate(query, behind_gate, scale, softcap, () if forest is None else forest.runs)
    return output.transpose(1, 2).contiguous(), None


def attend_to_line(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: ForestPlan | PagedPlan,
    layer: int,
    scoring: Scoring,
    memory: LayerMemory | None,
    way: str | None,
) -> Tensor:
    """Attention (1, Q, N, W) of a line's tokens: to their texts' blocks, or along its forest."""
    if isinstance(plan, PagedPlan):
        assert memory is None, "virtual tokens are in blocks, too"
        return attend_to_blocks(query, key, value, plan, layer, scoring)
    plain = way is None and scoring.softcap is None and memory is None and query.device.type != "cpu"
    if plain and plan.is_one_text(scoring.window):  # for which torch's fused kernels are the fastest
        return attend_to_rows(query, key, value, None, query.shape[2] > 1, scoring)
    return attend_to_forest(query, key, value, plan, scoring, memory, way)


def attend_to_rows(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    causal: bool,
    scoring: Scoring,
    bias: Tensor | None = None,
    memory: LayerMemory | None = None,
    way: str | None = None,
) -> Tensor:
    """Attention (B, Q, T, W) of a padded batch, as `attend` is given it; causal where there is no mask, or none."""
    batch, heads, tokens, _ = query.shape
    scale, dropout, softcap, _ = scoring
    if causal and key.shape[2] > tokens:  # a static cache, empty but for these tokens
        key, value = key[:, :, :tokens], value[:, :, :tokens]
        bias = None if bias is None else bias[..., :tokens]
    keys = key.shape[2] + (0 if memory is None else memory.keys.shape[2])
    way = way_of(query.device.type, tokens * keys, softcap) if way is None else way
    if causal and (way == "products" or bias is not None or memory is not None):
        mask, causal = torch.ones(tokens, tokens, dtype=torch.bool, device=query.device).tril()[None, None], False
    if memory is not None:
        mask = _widened(mask, memory, batch, tokens, key.shape[2])
        key = torch.cat([_for_batch(memory.keys, batch), key], dim=2)
        value = torch.cat([_for_batch(memory.values, batch), value], dim=2)
        if bias is not None:
            before = bias.new_zeros(1, *bias.shape[1:3], memory.keys.shape[2]) if memory.bias is None else memory.bias
            rows = max(before.shape[0], bias.shape[0])
            front, own = (_for_batch(part, batch if rows > 1 else 1) for part in (before, bias))
            bias = torch.cat([front.to(own.dtype), own], dim=-1)
    if bias is not None:
        mask = _biased(mask, bias)
    if way == "products":
        return grouped_products(query, key, value, mask, scale, dropout, softcap)
    assert softcap is None, "torch's fused attention has no softcap"
    grouped = key.shape[1] != heads
    if grouped and not takes_groups(query, mask):  # torch would fall back to a kernel that stores the scores
        key, value = (tensor.repeat_interleave(heads // key.shape[1], dim=1) for tensor in (key, value))
        grouped = False
    return F.scaled_dot_product_attention(query, key, value, mask, dropout, causal, scale=scale, enable_gqa=grouped)


def takes_groups(query: Tensor, mask: Tensor | None) -> bool:
    """Whether torch's fused attention takes grouped heads: on GPUs only flash attention does.

    That has no mask, no fp32, heads of up to 256, and needs a GPU that has bf16 (torch/nn/attention, sdp_utils).
    """
    if query.device.type == "cpu":
        return True
    half = query.dtype in (torch.bfloat16, torch.float16)
    return mask is None and half and query.shape[-1] <= 256 and has_flash(query)


def has_flash(query: Tensor) -> bool:
    """Whether a GPU has flash attention. A torch function mode sees this call: a dry run has no GPU to ask."""
    if has_torch_function((query,)):
        return handle_torch_function(has_flash, (query,), query)
    return not lacks_bfloat16(query.device)


def way_of(device: str, scores: int, softcap: float | None = None) -> str:
    """How a kind of device computes so many scores of a head, T·S; torch's fused attention has no softcap."""
    small = device == "cpu" and scores <= SMALL_SCORES
    return "products" if small or softcap is not None else "fused"


def attend_to_forest(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: ForestPlan,
    scoring: Scoring,
    memory: LayerMemory | None = None,
    way: str | None = None,
    kernels: FlexKernels | None = None,
) -> Tensor:
    """Attention (1, Q, N, W) of a forest's tokens: query (1, Q, N, W), key and value (1, H, N, W).

    way: "products", "flex", "fused" or "dense", which computes the same with a mask of N × K; the device's own if None.
    Where torch cannot compile FlexAttention, "fused" takes its place, and with a softcap "products".
    """
    scale, dropout, softcap, window = scoring
    way = way_of_forest(query.device.type, dropout, softcap) if way is None else way
    in_one = way in ("flex", "dense")  # where a value that is no number would spread over the line
    if in_one and len(plan.forest.runs) > 1:
        lines = (tensor.split(plan.forest.runs, dim=2) for tensor in (query, key, value))
        outputs = [
            attend_to_forest(q, k, v, plan_of_run, scoring, virtual_of_run, way, kernels)
            for q, k, v, plan_of_run, virtual_of_run in zip(*lines, plan.by_run, _of_runs(memory, plan), strict=True)
            if plan_of_run is not None
        ]
        return torch.cat(outputs, dim=2)
    if way == "products":
        q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        return attend_by_products(q, k, v, plan, scoring, memory).transpose(0, 1)[None]
    if way == "fused":
        return attend_by_fused(query, key, value, plan, scoring, memory)
    visibility, keys, values = plan.visibility(window, memory), key, value
    if memory is not None:
        keys = torch.cat([_in_one_row(memory.keys), key], dim=2)
        values = torch.cat([_in_one_row(memory.values), value], dim=2)
    if way == "dense":
        return grouped_products(query, keys, values, visibility.dense[None, None], scale, dropout, softcap)
    from halka.models.attention.forest_flex import attend_by_flex, block_mask  # imports sympy: for GPUs alone

    mask = plan.cached(("blocks", visibility), lambda: block_mask(visibility))
    output = attend_by_flex(query, keys, values, mask, scoring, kernels)
    if output is None:
        return attend_to_forest(query, key, value, plan, scoring, memory, _without_flex(softcap))
    return output


def attend_to_blocks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: PagedPlan,
    layer: int,
    scoring: Scoring,
    way: str | None = None,
    most: int = NUMBERS,
) -> Tensor:
    """Attention (1, Q, N, W) of a line's tokens to their texts' blocks, to which this layer's key and value are added.

    query (1, Q, N, W), key and value (1, H, N, W). Each group of `paged_groups.py` is computed in one go.

    way: "products", or "fused" for texts with several tokens; the device's own if None
    most: numbers that a group computes with at once
    """
    scale, _, softcap, window = scoring
    there, query, key, value = query.device, *(tensor.to(plan.device) for tensor in (query, key, value))
    plan.kv.write(layer, *plan.blocks_and_places, key[0].transpose(0, 1), value[0].transpose(0, 1))
    output = torch.empty_like(query[0].transpose(0, 1))  # N Q W
    fused = (plan.device.type != "cpu" and softcap is None) if way is None else way == "fused"
    products = Products(query.shape[1], fused, window, most)
    for group in plan.cached(products, lambda: groups_of(plan, products)):
        own, parts = query[0][:, group.places].transpose(0, 1), list[Tensor]()  # G Q T W
        mask = group.mask
        for part, strips in zip(own.split(group.heads, dim=1), group.strips, strict=True):
            keys, values = plan.kv.read(layer, strips)
            if group.fused:
                parts.append(F.scaled_dot_product_attention(part, keys, values, mask, scale=scale))
            else:
                parts.append(grouped_products(part, keys, values, mask, scale, softcap=softcap))
            del keys, values  # before the next ones are read
        output[group.places] = (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)).transpose(1, 2)
        del mask  # before the next group's is made
    return output.transpose(0, 1)[None].to(there)


def way_of_forest(device: str, dropout: float = 0.0, softcap: float | None = None) -> str:
    """How a kind of device computes a forest's attention; "dense", with scores of N × N, is the slow twin.

    FlexAttention has no dropout, and torch's fused attention no softcap.
    """
    if device == "cpu":
        return "products"
    return "flex" if device in COMPILED and not dropout else _without_flex(softcap)


def _without_flex(softcap: float | None) -> str:
    return "fused" if softcap is None else "products"


def _layer_memory(
    layer: LayerMemory | None, device: torch.device, forest: ForestPlan | PagedPlan | None
) -> LayerMemory | None:
    """A layer's virtual tokens on its device."""
    if layer is None:
        return None
    return forest.memory_on_device(layer) if isinstance(forest, ForestPlan) else layer.on_device(device)


def _of_runs(memory: LayerMemory | None, plan: ForestPlan) -> list[LayerMemory | None]:
    """Each run's own virtual tokens; its `valid` is one tensor for all layers, as its plan looks masks up by that."""
    count = len(plan.forest.runs)
    if memory is None or len(memory.keys) == 1:
        return [memory] * count
    own, whole = [memory.of_run(run) for run in range(count)], memory.valid
    valid = [None] * count if whole is None else plan.cached(("valid", whole), lambda: whole.split(1))
    return [replace(of_run, valid=valid_of_run) for of_run, valid_of_run in zip(own, valid, strict=True)]


def _in_one_row(virtual: Tensor) -> Tensor:
    """(1, H, R·P, W) of (R, H, P, W)."""
    return virtual.transpose(0, 1).flatten(1, 2)[None]


def _through_gate(
    query: Tensor, gate: LayerMemory, scale: float, softcap: float | None, runs: tuple[int, ...] = ()
) -> Tensor:
    """What the layer's gated tokens add (B, Q, T, W); in a line, each run's to its own tokens."""
    if runs and len(gate.keys) > 1:
        lines = [(run, line) for run, line in enumerate(query.split(runs, dim=2)) if runs[run]]
        return torch.cat([_through_gate(line, gate.of_run(run), scale, softcap) for run, line in lines], dim=2)
    batch = query.shape[0]
    keys, values, gates = (_for_batch(rows, batch) for rows in (gate.keys, gate.values, cast(Tensor, gate.gates)))
    mask = None if gate.valid is None else _for_batch(gate.valid, batch)[:, None, None]
    return gates[:, None, None, None] * grouped_products(query, keys, values, mask, scale, softcap=softcap)


def grouped_products(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    softcap: float | None = None,
) -> Tensor:
    """softmax(query @ keyᵀ · scaling) @ value with each key/value head serving its G query heads without a copy."""
    batch, heads, tokens, width = query.shape
    groups = heads // key.shape[1]
    grouped = (query * scaling).reshape(batch, key.shape[1], groups * tokens, width)  # B H G·T W
    scores = grouped @ key.transpose(-1, -2)  # B H G·T S
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        by_group, lowest = scores.view(batch, key.shape[1], groups, tokens, -1), torch.finfo(scores.dtype).min
        if mask.dtype == torch.bool:
            by_group.masked_fill_(~mask[:, :, None], lowest)
        else:
            by_group.add_(mask[:, :, None]).clamp_(min=lowest)  # a sum below is -inf: NaN in a row of nothing else
    probabilities = scores.softmax(-1)
    if dropout:
        probabilities = F.dropout(probabilities, dropout)
    return (probabilities @ value).view(batch, heads, tokens, value.shape[-1])


def _biased(mask: Tensor | None, bias: Tensor) -> Tensor:
    """The additive mask of scores with this bias, of a mask of any kind."""
    if mask is None:
        return bias
    return bias + mask if mask.dtype != torch.bool else bias.masked_fill(~mask, torch.finfo(bias.dtype).min)


def _for_batch(rows: Tensor, batch: int) -> Tensor:
    """Rows of a memory for a batch that beam search may have repeated in place."""
    if rows.shape[0] == 1:
        return rows.expand(batch, *rows.shape[1:])
    return rows.repeat_interleave(batch // rows.shape[0], dim=0)


def _widened(mask: Tensor | None, memory: LayerMemory, batch: int, tokens: int, own_keys: int) -> Tensor | None:
    """The attention mask with P columns in front: every token sees its row's valid virtual tokens."""
    if mask is None and memory.valid is None:
        return None
    if mask is None:
        mask = torch.ones(1, 1, tokens, own_keys, dtype=torch.bool, device=memory.keys.device)
    added = mask.dtype != torch.bool
    widened = F.pad(mask, (memory.shape[1], 0), value=0 if added else True)
    if memory.valid is None:
        return widened
    valid = F.pad(_for_batch(memory.valid, batch)[:, None, None], (0, mask.shape[-1]), value=True)
    return torch.where(valid, widened, torch.finfo(mask.dtype).min) if added else widened & valid

"""Convert LoRA: `lora_A.weight` (R, I), `lora_B.weight` (O, R), with a magnitude (DoRA) or a bias (`lora_bias`).

If ranks or scales differ by module, the adapter is a joint method of several LoRAs. Biases of the base that were
trained with it (`bias: lora_only`, `all`) become their differences from the base's.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from halka.core import Method, Part, Target
from halka.methods import BitFit, DoRA, LoRA, LoRABias, Modules
from halka.models.quantised.linear import QuantizedLinear
from halka.storage.formats.format import base_of, json_list, number
from halka.storage.formats.peft import experts
from halka.storage.formats.peft.modules import PREFIX as PREFIX
from halka.storage.formats.peft.modules import check_places, names_of, roles_of, split, transposed
from halka.storage.formats.peft.options import refuse_unknown
from halka.storage.formats.peft.saved_modules import other_rows
from halka.storage.formats.peft.selection import by_pattern, endings
from halka.util.errors import HalkaError

PEFT_TYPE = "LORA"
METHODS = ("lora", "dora", "lora_bias")
BARE = ()
READ = {
    *("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "lora_bias", "bias"),
    *("rank_pattern", "alpha_pattern", "target_parameters"),
}
NAMES = {
    "lora_A": "lora_A.weight",
    "lora_B": "lora_B.weight",
    "magnitude": "lora_magnitude_vector",
    "bias": "lora_B.bias",
    "lora_embedding_A": "lora_embedding_A",
    "lora_embedding_B": "lora_embedding_B",
}
OURS = {theirs: ours for ours, theirs in NAMES.items()}
BIASES = ("none", "lora_only", "all")
T = TypeVar("T")
WHOLE_LAYER = ("base_layer.weight", "base_layer.bias")


# ── writing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def write(
    methods: Sequence[Method], parts: Mapping[Method, Mapping[str, Part]], targets: tuple[Target, ...]
) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Return options and tensors of methods that differ only in rank, scale and modules; None for others together."""
    loras: dict[Method, LoRA] = {}
    for method in methods:
        assert isinstance(method, LoRA | DoRA | LoRABias)
        loras[method] = method if isinstance(method, LoRA) else method.as_lora()
    kinds = {type(method) for method in methods if set(parts[method]) != {_embedding(targets)}}
    if len(kinds) > 1 or len({(lora.scaling, lora.dropout) for lora in loras.values()}) > 1:
        return None
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for method, lora in loras.items():
        for path, part in parts[method].items():
            tensors.update({f"{path}.{NAMES[key]}": tensor for key, tensor in part.state_dict().items()})
            ranks[path] = lora.rank
            alphas[path] = 2 * lora.rank if lora.alpha is None else lora.alpha
    rank, alpha = _commonest(ranks.values()), _commonest(alphas.values())
    kind = next(iter(kinds), LoRA)
    if kind is not LoRA and _embedding(targets) in ranks:
        return None  # peft has only plain LoRA on embeddings
    at_experts = experts.parameters(ranks, targets)
    if at_experts and (kind is not LoRA or next(iter(loras.values())).dropout):
        return None  # peft has only plain LoRA without dropout on experts
    lora = next(iter(loras.values()))
    config: dict[str, Any] = {
        "peft_type": PEFT_TYPE,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": _pattern(ranks, rank),
        "alpha_pattern": _pattern(alphas, alpha),
        "lora_dropout": lora.dropout,
        "use_rslora": lora.scaling == "root",
        "use_dora": kind is DoRA,
        "lora_bias": kind is LoRABias,
        "bias": "none",
        "target_modules": endings(ranks.keys() - experts.weights_of(targets), names_of(base_of(targets))),
        **({"target_parameters": at_experts} if at_experts else {}),
        "fan_in_fan_out": transposed(ranks, targets),
    }
    return config, experts.stacked(tensors, targets)


def _embedding(targets: tuple[Target, ...]) -> str:
    return next(target.name for target in targets if target.role == "embedding")


def _commonest(values: Iterable[T]) -> T:
    return Counter(values).most_common(1)[0][0]


def _pattern(values: Mapping[str, Any], usual: Any) -> dict[str, Any]:
    """Return values that differ from `usual`, by the shortest endings of their modules' paths."""
    pattern: dict[str, Any] = {}
    for value in dict.fromkeys(values.values()):
        if value != usual:
            paths = {path for path, other in values.items() if other == value}
            pattern.update(dict.fromkeys(endings(paths, values), value))
    return pattern


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def read(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], targets: tuple[Target, ...]
) -> tuple[list[Method], dict[str, Tensor], dict[str, Tensor]]:
    """Return the methods, their state, and the tensors that are not the methods'."""
    refuse_unknown(config, READ)
    if (biases := config.get("bias")) not in (None, *BIASES):
        raise HalkaError(f"adapter_config.json: bias is {biases!r}, where one of {', '.join(BIASES)} is expected")
    _refuse_init(config.get("init_lora_weights"))
    tensors = experts.unstacked(config, tensors, targets)
    by_path, others = split(tensors, (*OURS, *WHOLE_LAYER))
    layers = {path: _take(named, WHOLE_LAYER) for path, named in by_path.items()}
    if config.get("bias") in ("lora_only", "all"):  # by peft 0.6 and before a layer's is not its base layer's
        early = [path for path in by_path if f"{path}.bias" in others and "base_layer.bias" not in layers[path]]
        layers |= {path: {**layers[path], "base_layer.bias": others.pop(f"{path}.bias")} for path in early}
    state = {f"{path}.{OURS[name]}": tensor for path, named in by_path.items() for name, tensor in named.items()}
    paths = sorted(by_path)
    stacks = experts.weights_of(targets)
    check_places(config, [path for path in paths if path not in stacks], targets)
    base = base_of(targets)
    ranks = by_pattern(config, "rank_pattern", paths, config.get("r"))
    alphas = by_pattern(config, "alpha_pattern", paths, config.get("lora_alpha"))
    groups: dict[Method, list[str]] = {}
    method_of: dict[str, LoRA | DoRA | LoRABias] = {}  # a layer's, by its rank and alpha
    for path in paths:
        key = repr((ranks[path], alphas[path]))
        if key not in method_of:
            method_of[key] = _method(config, ranks[path], alphas[path])
        method: Method = method_of[key]
        _check_rank(path, method.rank, by_path[path])
        module = stacks[path].module if path in stacks else base.get_submodule(path)
        _check_base_weight(layers[path], module, path)
        change = _bias_change(layers[path], module) if biases not in (None, "none") else None  # a whole layer's own
        if change is not None:
            method = _with_bias(method, path, change, state)
        elif isinstance(module, nn.Embedding):
            method = _as_lora(method, path)
        groups.setdefault(method, []).append(path)
    methods = [
        type(method)(**{**vars(method), "targets": roles_of(group, targets)}) for method, group in groups.items()
    ]
    if config.get("bias") == "all":
        more, values, others = _all_biases(config, others, targets)
        methods, state = [*methods, *more], {**state, **values}
    return methods, state, others


def _same_bias(key: str, own: Mapping[str, Tensor]) -> str:
    """The bias of a layer that a module without one has as its own, too, as BERT's head has its decoder's.

    Raises HalkaError for another, which no method trains.
    """
    for other, tensor in own.items():
        if other != key and tensor is own[key] and other.removesuffix(".bias") + ".weight" in own:
            return other
    raise HalkaError(f"the adapter trains {key}, which is of no linear layer and no norm: leave it out in peft")


def _refuse_init(init: Any) -> None:
    """Raise HalkaError for an initialisation that changes the base's weights."""
    init = init.lower() if isinstance(init, str) else init
    if init not in (None, True, False, "gaussian", "eva", "orthogonal", "mica"):
        way_out = (
            "merge it with peft into that base (merge_and_unload), and load the result as a base"
            if init == "loftq"
            else "convert it with peft's path_initial_model_for_weight_conversion first"
        )
        raise HalkaError(
            f"adapter_config.json: init_lora_weights = {init!r} subtracted the initial LoRA from the base's weights, "
            f"which are not in this folder: {way_out}"
        )


def _take(tensors: dict[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    return {name: tensors.pop(name) for name in names if name in tensors}


def _method(config: Mapping[str, Any], rank: Any, alpha: Any) -> LoRA | DoRA | LoRABias:
    rank = number("r", rank)
    alpha = number("lora_alpha", alpha)
    if rank != int(rank):
        raise HalkaError(f"adapter_config.json: r is {rank!r}, where a whole number is expected")
    dropout = number("lora_dropout", config.get("lora_dropout") or 0.0)
    root = bool(config.get("use_rslora"))
    if config.get("use_dora"):
        if config.get("lora_bias"):
            raise HalkaError("adapter_config.json: use_dora cannot be combined with lora_bias: remove one of them")
        return DoRA(int(rank), alpha * math.sqrt(rank) if root and rank > 0 else alpha, dropout)
    kind = LoRABias if config.get("lora_bias") else LoRA
    return kind(int(rank), alpha, dropout, scaling="root" if root else "rank")


def _check_rank(path: str, rank: int, tensors: Mapping[str, Tensor]) -> None:
    """Raise HalkaError if the factors have another rank: a part of the configuration's might not fit in memory."""
    for name in ("lora_A.weight", "lora_embedding_A"):
        if name in tensors and (tensors[name].dim() < 2 or tensors[name].shape[-2] != rank):
            raise HalkaError(
                f"{path}.{name} is {tuple(tensors[name].shape)}, and adapter_config.json gives it the rank {rank}: "
                "they do not fit"
            )


def _as_lora(method: Method, path: str) -> LoRA:
    """Return the method if it is plain LoRA, the only one on embeddings. Raises HalkaError for others."""
    if not isinstance(method, LoRA):
        raise HalkaError(
            f"the adapter has {method.name} on the embedding {path}, which Halka does not have: leave it out"
        )
    return method


def _bias_change(layer: Mapping[str, Tensor], module: nn.Module) -> Tensor | None:
    """Return the trained bias of the base's layer minus the base's own; None if it was not trained."""
    if "base_layer.bias" not in layer:
        return None
    own = getattr(module, "bias", None)
    if own is None or own.shape != layer["base_layer.bias"].shape:
        raise HalkaError("the adapter holds biases that this base does not have: it was made for another base")
    return layer["base_layer.bias"] - own.detach().float().cpu()


def _with_bias(method: LoRA | DoRA | LoRABias, path: str, change: Tensor, state: dict[str, Tensor]) -> LoRABias:
    """Return a `LoRABias` whose bias in `state` adds `change` to the layer's bias, divided by the method's scale."""
    if isinstance(method, DoRA):
        raise HalkaError(
            "adapter_config.json: Halka does not have a DoRA with trained biases (bias): train it with bias none"
        )
    plain = method if isinstance(method, LoRA) else method.as_lora()
    key = f"{path}.bias"
    state[key] = change / plain.scale + state.get(key, 0)
    return LoRABias(plain.rank, plain.alpha, plain.dropout, scaling=plain.scaling)


def _check_base_weight(layer: Mapping[str, Tensor], module: nn.Module, path: str) -> None:
    """Raise HalkaError if the weight that peft saves of an embedding or head with a LoRA differs from the base's."""
    saved, own = layer.get("base_layer.weight"), getattr(module, "weight", None)
    if saved is None:
        return
    if own is None:
        raise HalkaError(
            f"the adapter holds all of {path}, which cannot be compared with this base's: it is quantised, or no "
            "linear layer. Load the base in full precision, or save the adapter with save_embedding_layers=False"
        )
    if saved.shape != own.shape:
        raise HalkaError(
            f"the adapter's {path} is {tuple(saved.shape)}, this base's {tuple(own.shape)}: its vocabulary was "
            "resized, so call base.resize_token_embeddings and then halka.adapt again"
        )
    if others := other_rows(saved, own):
        raise HalkaError(
            f"the adapter holds another {path} than this base, such as row {others[0]}: it was made for another base, "
            "or for one whose new tokens began as others; copy their rows into the base before halka.adapt"
        )


def _all_biases(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], targets: tuple[Target, ...]
) -> tuple[list[Method], dict[str, Tensor], dict[str, Tensor]]:
    """Read the other biases of `bias: all`: as `BitFit` offsets at linear layers, as whole modules elsewhere.

    Returns the methods, their state, and the tensors that are neither.
    """
    base = base_of(targets)
    whole = json_list(config.get("modules_to_save"), str) or []
    own = dict(base.named_parameters(remove_duplicate=False))
    biases = {
        key: tensor
        for key, tensor in tensors.items()
        if key.endswith(".bias") and key in own and not any(f".{name}." in f".{key}" for name in whole)
    }
    others = {key: tensor for key, tensor in tensors.items() if key not in biases}
    offsets: list[str] = []
    modules: list[str] = []
    state: dict[str, Tensor] = {}
    for key, tensor in biases.items():
        path = key.removesuffix(".bias")
        if tensor.shape != own[key].shape:
            raise HalkaError(f"the adapter's {key} is {tuple(tensor.shape)}, this base's {tuple(own[key].shape)}")
        weight = own.get(path + ".weight")
        if weight is None and not isinstance(base.get_submodule(path), QuantizedLinear):
            twin = _same_bias(key, own)
            if not torch.equal(biases.get(twin, tensor), tensor):
                raise HalkaError(f"the adapter's {key} and {twin} differ, and this base has one bias for both")
            if twin in biases:
                continue
            path, key = twin.removesuffix(".bias"), twin
        if weight is None or weight.dim() == 2:
            offsets.append(path)
            state[key] = tensor - own[key].detach().float().cpu()
        else:
            modules.append(path)
            state |= {f"{path}.{k}": p.detach().float() for k, p in base.get_submodule(path).named_parameters()}
            state[key] = tensor
    methods: list[Method] = [BitFit(roles_of(offsets, targets))] if offsets else []
    methods += [Modules(tuple(modules))] if modules else []
    return methods, state, others

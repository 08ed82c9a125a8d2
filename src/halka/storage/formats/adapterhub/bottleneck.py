"""Bottleneck adapters: `adapter_down.0`, `adapter_up`, norms and scales; options to our two methods and back.

With y a sublayer's output, r the residual and N the base's norm of their sum, where it stands there, the library's
serial adapter gives out + r to N, and its options say of what:

    original_ln_before   it reads N(y + r), else y
    residual_before_ln   out = y + added, else what it read + added; "post_add": y + r + added
    is_parallel          it reads r, and out = y + added
    original_ln_after    false: out is what goes on, without r and N
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from halka.core import Adapter, Method, Target
from halka.methods import Bottleneck, NormedBottleneck
from halka.storage.formats.adapterhub.config import GATES, NAME, has_rows, left_out, number, refuse
from halka.storage.formats.adapterhub.tensor_names import Keys, architecture_of, bottleneck_place, layers_of
from halka.storage.formats.format import json_object
from halka.util.errors import HalkaError

ARCHITECTURE = "bottleneck"
METHODS = ("bottleneck", "normed_bottleneck")
DEFAULTS: dict[str, Any] = {
    "original_ln_before": False,
    "original_ln_after": True,
    "residual_before_ln": True,
    "adapter_residual_before_ln": False,
    "ln_before": False,
    "ln_after": False,
    "is_parallel": False,
    "scaling": 1.0,
    "leave_out": [],
    "dropout": 0.0,
}
READ = {
    *DEFAULTS,
    *("mh_adapter", "output_adapter", "reduction_factor", "non_linearity"),
    *("inv_adapter_reduction_factor", "stochastic_depth"),  # of no adapter; in training alone
    *("phm_dim", "phm_rank", "phm_bias", "phm_c_init", "phm_init_range", "learn_phm", "hypercomplex_nonlinearity"),
    *("shared_phm_rule", "factorized_phm_rule", "shared_W_phm", "factorized_phm_W"),  # of no layer
}
REASONS = {
    "use_gating": GATES,
    "phm_layer": "a Compacter's matrices are sums of Kronecker products, which Halka does not have",
    "cross_adapter": "Halka has no adapters after cross attention",
    "inv_adapter": "Halka has no invertible adapters at the embeddings",
    "invertible_adapter": "Halka has no invertible adapters at the embeddings",
}
ACTIVATIONS = {
    **{name: name for name in ("relu", "gelu", "silu", "tanh", "sigmoid", "leaky_relu", "relu6", "mish", "quick_gelu")},
    **dict.fromkeys(("gelu_new", "gelu_fast", "gelu_accurate", "gelu_pytorch_tanh", "gelu_python_tanh"), "gelu_tanh"),
    **{"gelu_python": "gelu", "swish": "silu", "leakyrelu": "leaky_relu", "linear": "none"},
}
WRITTEN = {"gelu_tanh": "gelu_new", "silu": "swish", "leaky_relu": "leakyrelu", "none": "linear"}
NORMS = {"before": "adapter_norm_before", "after": "adapter_norm_after", "outer": "adapter_norm_after"}


def read(config: Mapping[str, Any], keys: Keys, targets: tuple[Target, ...]) -> tuple[Method, dict[str, Tensor]]:
    architecture = architecture_of(targets)
    refuse(config, READ, {}, REASONS)
    said = {**DEFAULTS, **config}
    places = tuple(role for role, key in (("attn", "mh_adapter"), ("mlp", "output_adapter")) if said.get(key))
    if not places:
        raise HalkaError("adapter_config.json names no place: neither mh_adapter nor output_adapter is true")
    fields = {**_sums(said, post_norm=_post_norm(targets)), **_scale(said["scaling"])}
    hidden = next(target.d_out for target in targets if target.role == "mlp")
    widths = _widths(said, hidden, layers_of(targets))
    one = {"width": widths[0]} if len(set(widths)) == 1 else {"widths": widths}
    common = {"activation": activation_of(said), "targets": places, "dropout": number(said, "dropout"), **one}
    normed = "norms" in fields
    method = (NormedBottleneck if normed else Bottleneck)(**common, **fields)
    state: dict[str, Tensor] = {}
    for target in targets:
        if target.role in places and target.layer is not None and widths[target.layer]:
            place = bottleneck_place(target, architecture)
            there = keys.take("bottleneck", place).get(place, {})
            has_rows(there, f"adapter_down.{int(bool(said['ln_before']))}.weight", widths[target.layer], place)
            state |= {f"{target.name}.{key}": tensor for key, tensor in _ours(there, method).items()}
    return method, state


def _sums(said: Mapping[str, Any], *, post_norm: bool) -> dict[str, Any]:
    """What the adapter reads, keeps and norms, as our fields."""
    keeps, norms = "output", ["before"] if said["ln_before"] else []
    if said["is_parallel"]:
        reads = "residual"
    else:
        reads = "sum" if said["original_ln_before"] else "output"
        if said["residual_before_ln"] not in (True, False, "post_add"):
            raise HalkaError(f"adapter_config.json: residual_before_ln = {said['residual_before_ln']!r} is not known")
        if said["original_ln_before"] and said["residual_before_ln"] is not True:
            keeps = "sum" if said["residual_before_ln"] == "post_add" else "read"
    if not said["original_ln_after"]:
        if post_norm or keeps != "read":
            raise HalkaError(
                "adapter_config.json: original_ln_after = False lets the adapter's output go on without the residual "
                "or its norm, which Halka cannot: the base's own sum stays"
            )
        keeps = "output"  # what it read holds the residual once already
    if said["ln_after"]:
        around = said["adapter_residual_before_ln"] and not said["is_parallel"]
        norms.append("outer" if around else "after")
    return {"reads": reads, **({"norms": tuple(norms), "keeps": keeps} if norms or keeps != "output" else {})}


def _scale(scaling: Any) -> dict[str, Any]:
    if scaling in ("learned", "channel"):
        return {"scaling": scaling}
    return {"scale": number({"scaling": scaling}, "scaling")}


def activation_of(said: Mapping[str, Any]) -> str:
    """Our name of the non-linearity. Raises HalkaError for one that is not known."""
    name = str(said.get("non_linearity")).lower()
    if name not in ACTIVATIONS:
        raise HalkaError(f"adapter_config.json: non_linearity {name!r} is not one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def _widths(said: Mapping[str, Any], hidden: int, layers: int) -> tuple[int, ...]:
    factors = json_object(said.get("reduction_factor")) or {"default": said.get("reduction_factor")}
    if other := [each for each in factors if each not in ("default", *map(str, range(layers)))]:
        raise HalkaError(
            f"adapter_config.json: reduction_factor names layer {other[0]}, and this base has {layers}: the adapter "
            "was made for another base"
        )
    widths: list[int] = []
    absent = left_out(said, layers)
    for layer in range(layers):
        factor = factors.get(str(layer), factors.get("default"))
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not factor > hidden / sys.float_info.max:
            raise HalkaError(f"adapter_config.json: reduction_factor names no number above 0 for layer {layer}")
        widths.append(0 if layer in absent else max(1, int(hidden // factor)))
    if not any(widths):
        raise HalkaError("adapter_config.json: leave_out names every layer")
    return tuple(widths)


def _ours(there: Mapping[str, Tensor], method: Bottleneck) -> dict[str, Tensor]:
    """One place's tensors under our names; what is not known keeps its name, and will be refused by it."""
    norms = method.norms if isinstance(method, NormedBottleneck) else ()
    down = "adapter_down.1" if "before" in norms else "adapter_down.0"
    names = {f"{down}.{key}": f"down.{key}" for key in ("weight", "bias")}
    names |= {f"adapter_up.{key}": f"up.{key}" for key in ("weight", "bias")}
    names |= {f"{NORMS[each]}.{key}": f"norm_{each}.{key}" for each in norms for key in ("weight", "bias")}
    if method.scaling != "fixed":
        names["scaling"] = "factor"
    copies = {f"adapter_down.0.{key}": f"adapter_norm_before.{key}" for key in ("weight", "bias")}
    copies = {copy: own for copy, own in copies.items() if "before" in norms and own in there and copy in there}
    if wrong := [copy for copy, own in copies.items() if not torch.equal(there[copy], there[own])]:
        raise HalkaError(f"{wrong[0]} and {copies[wrong[0]]} are one, and differ: the folder is damaged")
    return {names.get(key, key): tensor for key, tensor in there.items() if key not in copies}


def write(adapter: Adapter, targets: tuple[Target, ...]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    method = adapter.method
    assert isinstance(method, Bottleneck)
    architecture, post_norm = architecture_of(targets), _post_norm(targets)
    hidden = next(target.d_out for target in targets if target.role == "mlp")
    tensors: dict[str, Tensor] = {}
    for path, part in adapter.parts.items():
        place = f"{bottleneck_place(adapter.targets[path], architecture)}.adapters.{NAME}"
        tensors |= {f"{place}.{key}": tensor for key, tensor in _theirs(part.state_dict(), method).items()}
    widths = {
        target.layer: adapter.parts[path].get_parameter("down.weight").shape[0]
        for path, target in adapter.targets.items()
    }
    factors = {str(layer): _factor(hidden, width) for layer, width in sorted(widths.items())}
    same = len(set(factors.values())) == 1
    config = {
        **DEFAULTS,
        **_options(method, post_norm=post_norm),
        "mh_adapter": "attn" in method.targets,
        "output_adapter": "mlp" in method.targets,
        "reduction_factor": next(iter(factors.values())) if same else {**factors, "default": hidden},
        "non_linearity": WRITTEN.get(method.activation, method.activation),
        "scaling": method.scale if method.scaling == "fixed" else method.scaling,
        "leave_out": [layer for layer in range(layers_of(targets)) if layer not in widths],
        "dropout": method.dropout,
        "init_weights": "bert",
        "use_gating": False,
    }
    return config, tensors


def _options(method: Bottleneck, *, post_norm: bool) -> dict[str, Any]:
    """The options by which the library reads, keeps and norms what this method does."""
    reads, norms, keeps = method.reads, (), "output"
    if isinstance(method, NormedBottleneck):
        norms, keeps = method.norms, method.keeps
    parallel = reads == "residual" or (
        reads == "input" and post_norm
    )  # where the norm stands behind, they are the same
    if reads == "input" and not post_norm:
        raise HalkaError(
            "a bottleneck that reads the sublayer's input cannot be written for AdapterHub on this base: its parallel "
            "adapters read the residual before the norm (reads='residual')"
        )
    if reads == "output" and keeps == "read":
        keeps = "output"
    if reads == "sum" and keeps == "sum" and not post_norm:
        keeps = "read"
    if parallel and (keeps != "output" or "outer" in norms):
        raise HalkaError("a parallel bottleneck of AdapterHub keeps the output, and norms what is added alone")
    if {"after", "outer"} <= set(norms):
        raise HalkaError("AdapterHub has one norm after the bottleneck, of what is added or of the sum, not both")
    return {
        "is_parallel": parallel,
        "original_ln_before": reads == "sum",
        "residual_before_ln": {"output": True, "read": False, "sum": "post_add"}[keeps],
        "ln_before": "before" in norms,
        "ln_after": "after" in norms or "outer" in norms,
        "adapter_residual_before_ln": "outer" in norms,
    }


def _theirs(state: Mapping[str, Tensor], method: Bottleneck) -> dict[str, Tensor]:
    """One part's tensors under the library's names; a norm before stands there twice."""
    norms = method.norms if isinstance(method, NormedBottleneck) else ()
    down = "adapter_down.1" if "before" in norms else "adapter_down.0"
    found: dict[str, Tensor] = {}
    for key, tensor in state.items():
        place, _, ending = key.partition(".")
        if place == "norm_before":
            found[f"adapter_down.0.{ending}"] = tensor.clone()
        named = {"down": down, "up": "adapter_up", **{f"norm_{each}": NORMS[each] for each in norms}}
        found["scaling" if key == "factor" else f"{named[place]}.{ending}"] = tensor
    return found


def _factor(hidden: int, width: int) -> float:
    """The reduction factor that the library makes this width of: ⌊hidden / factor⌋."""
    return hidden / width if int(hidden // (hidden / width)) == width else hidden / (width + 0.5)


def _post_norm(targets: tuple[Target, ...]) -> bool:
    return any(target.norm is not None for target in targets)

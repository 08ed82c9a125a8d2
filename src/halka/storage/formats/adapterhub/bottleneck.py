"""Convert bottleneck adapters (`adapter_down.0`, `adapter_up`, norms, scales) to our two methods and back.

y is a sublayer's output, r the residual, N the norm that a post-norm base applies to their sum (else the identity), and
`added` the output of the bottleneck itself. The library passes N(out + r) on; its options choose the adapter's input x
and out:

    original_ln_before   true: x = N(y + r); false: x = y
    residual_before_ln   true: out = y + added; false: out = x + added; "post_add": out = y + r + added
    is_parallel          true: x = r, and out = y + added
    original_ln_after    false: out itself is passed on, without r and N
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from halka.core import Adapter, Method, Target
from halka.methods import Bottleneck, NormedBottleneck
from halka.storage.formats.adapterhub.config import GATES, NAME, has_rows, left_out, refuse
from halka.storage.formats.adapterhub.tensor_names import Keys, architecture_of, bottleneck_place
from halka.storage.formats.format import json_object, layers_of, number
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
    *("inv_adapter_reduction_factor", "stochastic_depth"),  # of adapters that REASONS refuses; of training only
    *("phm_dim", "phm_rank", "phm_bias", "phm_c_init", "phm_init_range", "learn_phm", "hypercomplex_nonlinearity"),
    *(
        "shared_phm_rule",
        "factorized_phm_rule",
        "shared_W_phm",
        "factorized_phm_W",
    ),  # of PHM layers, which REASONS refuses
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
    options = {**DEFAULTS, **config}
    places = tuple(role for role, key in (("attn", "mh_adapter"), ("mlp", "output_adapter")) if options.get(key))
    if not places:
        raise HalkaError("adapter_config.json places no adapter: neither mh_adapter nor output_adapter is true")
    fields = {**_sums(options, post_norm=_post_norm(targets)), **_scale(options["scaling"])}
    hidden = next(target.d_out for target in targets if target.role == "mlp")
    widths = _widths(options, hidden, layers_of(targets))
    fields |= {"width": widths[0]} if len(set(widths)) == 1 else {"widths": widths}
    fields |= {
        "activation": activation_of(options),
        "targets": places,
        "dropout": number("dropout", options.get("dropout")),
    }
    method = (NormedBottleneck if "norms" in fields else Bottleneck)(**fields)
    state: dict[str, Tensor] = {}
    for target in targets:
        if target.role in places and target.layer is not None and widths[target.layer]:
            place = bottleneck_place(target, architecture)
            tensors = keys.take("bottleneck", place).get(place, {})
            has_rows(tensors, f"adapter_down.{int(bool(options['ln_before']))}.weight", widths[target.layer], place)
            state |= {f"{target.name}.{key}": tensor for key, tensor in _to_halka(tensors, method).items()}
    return method, state


def _sums(options: Mapping[str, Any], *, post_norm: bool) -> dict[str, Any]:
    """Return our fields `reads`, `norms` and `keeps`. Raises HalkaError for sums that Halka does not compute."""
    keeps, norms = "output", ["before"] if options["ln_before"] else []
    if options["is_parallel"]:
        reads = "residual"
    else:
        reads = "sum" if options["original_ln_before"] else "output"
        residual = options["residual_before_ln"]
        if residual not in (True, False, "post_add"):
            raise HalkaError(f"adapter_config.json: residual_before_ln is {residual!r}, not true, false or 'post_add'")
        if options["original_ln_before"] and residual is not True:
            keeps = "sum" if residual == "post_add" else "read"
    if not options["original_ln_after"]:
        if post_norm or keeps != "read":
            raise HalkaError(
                "adapter_config.json: original_ln_after = False passes the adapter's output on without the residual "
                "and its norm; Halka always keeps the base's own sum"
            )
        keeps = "output"  # the adapter's input already holds the residual
    if options["ln_after"]:
        around = options["adapter_residual_before_ln"] and not options["is_parallel"]
        norms.append("outer" if around else "after")
    return {"reads": reads, **({"norms": tuple(norms), "keeps": keeps} if norms or keeps != "output" else {})}


def _scale(scaling: Any) -> dict[str, Any]:
    if scaling in ("learned", "channel"):
        return {"scaling": scaling}
    return {"scale": number("scaling", scaling)}


def activation_of(options: Mapping[str, Any]) -> str:
    """Return Halka's name of the non-linearity. Raises HalkaError for one that it lacks."""
    name = str(options.get("non_linearity")).lower()
    if name not in ACTIVATIONS:
        raise HalkaError(f"adapter_config.json: non_linearity {name!r} is not one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def _widths(options: Mapping[str, Any], hidden: int, layers: int) -> tuple[int, ...]:
    """Return the bottleneck's width in every layer, 0 where `leave_out` names the layer."""
    factors = json_object(options.get("reduction_factor")) or {"default": options.get("reduction_factor")}
    if other := [key for key in factors if key not in ("default", *map(str, range(layers)))]:
        raise HalkaError(
            f"adapter_config.json: reduction_factor names layer {other[0]}, and this base has {layers}: the adapter "
            "was made for another base"
        )
    widths: list[int] = []
    absent = left_out(options, layers)
    for layer in range(layers):
        factor = factors.get(str(layer), factors.get("default"))
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not factor > hidden / sys.float_info.max:
            raise HalkaError(f"adapter_config.json: reduction_factor names no number above 0 for layer {layer}")
        widths.append(0 if layer in absent else max(1, int(hidden // factor)))
    if not any(widths):
        raise HalkaError("adapter_config.json: leave_out names every layer")
    return tuple(widths)


def _to_halka(tensors: Mapping[str, Tensor], method: Bottleneck) -> dict[str, Tensor]:
    """Return one module's tensors under our names; unknown ones keep theirs, so that loading the state refuses them."""
    norms = method.norms if isinstance(method, NormedBottleneck) else ()
    down = "adapter_down.1" if "before" in norms else "adapter_down.0"
    names = {f"{down}.{key}": f"down.{key}" for key in ("weight", "bias")}
    names |= {f"adapter_up.{key}": f"up.{key}" for key in ("weight", "bias")}
    names |= {f"{NORMS[norm]}.{key}": f"norm_{norm}.{key}" for norm in norms for key in ("weight", "bias")}
    if method.scaling != "fixed":
        names["scaling"] = "factor"
    copies = {f"adapter_down.0.{key}": f"adapter_norm_before.{key}" for key in ("weight", "bias")}
    copies = {copy: own for copy, own in copies.items() if "before" in norms and own in tensors and copy in tensors}
    if wrong := [copy for copy, own in copies.items() if not torch.equal(tensors[copy], tensors[own])]:
        raise HalkaError(f"{wrong[0]} and {copies[wrong[0]]} are one norm, and differ: the folder is damaged")
    return {names.get(key, key): tensor for key, tensor in tensors.items() if key not in copies}


def write(adapter: Adapter, targets: tuple[Target, ...]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    method = adapter.method
    assert isinstance(method, Bottleneck)
    architecture, post_norm = architecture_of(targets), _post_norm(targets)
    hidden = next(target.d_out for target in targets if target.role == "mlp")
    tensors: dict[str, Tensor] = {}
    for path, part in adapter.parts.items():
        place = f"{bottleneck_place(adapter.targets[path], architecture)}.adapters.{NAME}"
        tensors |= {f"{place}.{key}": tensor for key, tensor in _to_adapterhub(part.state_dict(), method).items()}
    widths = {
        target.layer: adapter.parts[path].get_parameter("down.weight").shape[0]
        for path, target in adapter.targets.items()
    }
    factors = {str(layer): reduction_factor(hidden, width) for layer, width in sorted(widths.items())}
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
    """Return the library's options for the method's `reads`, `norms` and `keeps`; the inverse of `_sums`."""
    reads, norms, keeps = method.reads, (), "output"
    if isinstance(method, NormedBottleneck):
        norms, keeps = method.norms, method.keeps
    # In post-norm bases the sublayer's input is the residual.
    parallel = reads == "residual" or (reads == "input" and post_norm)
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
        raise HalkaError("a parallel bottleneck of AdapterHub keeps the output, and norms only what it adds")
    if {"after", "outer"} <= set(norms):
        raise HalkaError("AdapterHub has one norm after the bottleneck, of its output or of the sum, not both")
    return {
        "is_parallel": parallel,
        "original_ln_before": reads == "sum",
        "residual_before_ln": {"output": True, "read": False, "sum": "post_add"}[keeps],
        "ln_before": "before" in norms,
        "ln_after": "after" in norms or "outer" in norms,
        "adapter_residual_before_ln": "outer" in norms,
    }


def _to_adapterhub(state: Mapping[str, Tensor], method: Bottleneck) -> dict[str, Tensor]:
    """Return one part's tensors under the library's names, which has the norm before the bottleneck twice."""
    norms = method.norms if isinstance(method, NormedBottleneck) else ()
    down = "adapter_down.1" if "before" in norms else "adapter_down.0"
    tensors: dict[str, Tensor] = {}
    for key, tensor in state.items():
        place, _, ending = key.partition(".")
        if place == "norm_before":
            tensors[f"adapter_down.0.{ending}"] = tensor.clone()
        named = {"down": down, "up": "adapter_up", **{f"norm_{norm}": NORMS[norm] for norm in norms}}
        tensors["scaling" if key == "factor" else f"{named[place]}.{ending}"] = tensor
    return tensors


def reduction_factor(hidden: int, width: int) -> float:
    """Return a reduction factor of which the library computes this width, ⌊hidden / factor⌋."""
    return hidden / width if int(hidden // (hidden / width)) == width else hidden / (width + 0.5)


def _post_norm(targets: tuple[Target, ...]) -> bool:
    return any(target.norm is not None for target in targets)

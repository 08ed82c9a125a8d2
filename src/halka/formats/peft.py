"""Hugging Face peft's adapter folders: its configuration and tensor names for our methods and parts.

peft has LoRA, DoRA, IA3, prefix and prompt tuning; these are written so that `PeftModel.from_pretrained` and others
load them. Methods that peft lacks use the same two files, with `peft_type` in its manner and the fields under `fields`.
Layouts as peft 0.21 writes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from halka.core import WEIGHT_ROLES, Adapter, Method, Target, described
from halka.methods import IA3, DoRA, LoRA, Prefix, Prompt, made

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."

# Keys that say how an adapter came to be or where it is from, and do not change its numbers.
_HARMLESS = {
    *(
        "peft_type",
        "peft_version",
        "task_type",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "auto_mapping",
    ),
    *("init_lora_weights", "init_ia3_weights", "loftq_config", "eva_config", "corda_config", "lora_ga_config"),
    *("megatron_config", "megatron_core", "qalora_group_size", "runtime_config", "lora_dropout", "bdlora_config"),
    *("prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs"),
    *("encoder_hidden_size", "num_transformer_submodules", "num_attention_heads", "num_layers", "token_dim"),
    *("exclude_modules", "fan_in_fan_out", "arrow_config", "ensure_weight_tying", "velora_config"),
}
_NEUTRAL = (None, False, "none", {}, [])


@dataclass(frozen=True)
class Folder:
    """An adapter as peft keeps it: its configuration and its tensors by peft's names."""

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


# ── writing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def to_peft(adapter: Adapter, targets: tuple[Target, ...], base_name: str) -> Folder:
    """An adapter in peft's names; `targets` are all of its base's."""
    method = adapter.method
    write = _WRITERS.get(method.name, _write_native)
    config, tensors = write(adapter, targets)
    common = {"task_type": "CAUSAL_LM", "base_model_name_or_path": base_name, "inference_mode": True, "revision": None}
    return Folder({**common, **config}, {key: tensor.detach().contiguous() for key, tensor in tensors.items()})


def _write_lora(adapter: Adapter, targets: tuple[Target, ...]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    method = adapter.method
    assert isinstance(method, LoRA | DoRA)
    lora = method if isinstance(method, LoRA) else method.as_lora()
    names = {"lora_A": "lora_A.weight", "lora_B": "lora_B.weight", "magnitude": "lora_magnitude_vector"}
    tensors = {
        f"{_PREFIX}{path}.{names[key]}": tensor
        for path, part in adapter.parts.items()
        for key, tensor in part.state_dict().items()
    }
    config = {
        "peft_type": "LORA",
        "r": lora.rank,
        "lora_alpha": 2 * lora.rank if lora.alpha is None else lora.alpha,
        "lora_dropout": lora.dropout,
        "use_rslora": lora.scaling == "root",
        "use_dora": isinstance(method, DoRA),
        "bias": "none",
        "target_modules": _patterns(set(adapter.parts), targets),
        "fan_in_fan_out": _transposed(adapter),
    }
    return config, tensors


def _write_ia3(adapter: Adapter, targets: tuple[Target, ...]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    inner = {path for path in adapter.parts if adapter.targets[path].role == "mlp.down"}
    tensors = {
        f"{_PREFIX}{path}.ia3_l": part.get_parameter("ia3_l").reshape((1, -1) if path in inner else (-1, 1))
        for path, part in adapter.parts.items()
    }
    config = {
        "peft_type": "IA3",
        "target_modules": _patterns(set(adapter.parts), targets),
        "feedforward_modules": _patterns(inner, targets),
        "fan_in_fan_out": _transposed(adapter),
    }
    return config, tensors


def _write_prefix(adapter: Adapter, targets: tuple[Target, ...]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    part = adapter.parts["memory"]
    slots, heads, width = adapter.targets["memory"].shape
    flat = part.virtual().flatten(1)
    config = {
        "peft_type": "PREFIX_TUNING",
        "num_virtual_tokens": flat.shape[0],
        "token_dim": heads * width,
        "num_layers": slots // 2,
        "num_attention_heads": heads,
        "num_transformer_submodules": 1,
        "encoder_hidden_size": heads * width,
        "prefix_projection": False,
    }
    return config, {"prompt_embeddings": flat}


def _write_prompt(adapter: Adapter, targets: tuple[Target, ...]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    (part,) = adapter.parts.values()
    embeddings = part.virtual()
    config = {
        "peft_type": "PROMPT_TUNING",
        "num_virtual_tokens": embeddings.shape[0],
        "token_dim": embeddings.shape[1],
        "num_layers": 1 + max(target.layer for target in targets if target.layer is not None),
        "num_attention_heads": 1,
        "num_transformer_submodules": 1,
        "prompt_tuning_init": "RANDOM",
    }
    return config, {"prompt_embeddings": embeddings}


def _write_native(adapter: Adapter, targets: tuple[Target, ...]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    config = {"peft_type": adapter.method.name.upper(), "fields": described(adapter.method)["fields"]}
    if "base" in adapter.parts:  # full: what computes, not the fp32 masters
        return config, dict(adapter.parts["base"].weights())
    return config, adapter.state_dict()


_Writer = Callable[[Adapter, tuple[Target, ...]], tuple[dict[str, Any], dict[str, Tensor]]]
_WRITERS: dict[str, _Writer] = {
    "lora": _write_lora,
    "dora": _write_lora,
    "ia3": _write_ia3,
    "prefix": _write_prefix,
    "prompt": _write_prompt,
}


def _transposed(adapter: Adapter) -> bool:
    return any(target.transposed for target in adapter.targets.values())


def _patterns(paths: set[str], targets: tuple[Target, ...]) -> list[str]:
    """The shortest endings that select exactly `paths` among the base's linear layers, as peft matches them."""
    linears = {target.name for target in targets if target.role in WEIGHT_ROLES}

    def selected(endings: set[str]) -> set[str]:
        return {name for name in linears for ending in endings if name == ending or name.endswith(f".{ending}")}

    for steps in (1, 2):
        endings = {".".join(path.split(".")[-steps:]) for path in paths}
        if selected(endings) == paths:
            return sorted(endings)
    return sorted(paths)


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def from_peft(folder: Folder, targets: tuple[Target, ...]) -> tuple[Method, dict[str, Tensor]]:
    """The method that a folder holds and its state under our names, for a base with `targets`.

    Raises ValueError for options that Halka does not have, tensors of unknown names, modules that the base lacks, and
    roles that are there in some layers only.
    """
    kind = folder.config.get("peft_type")
    if not isinstance(kind, str):
        raise ValueError(f"{CONFIG} names no peft_type: it is not an adapter's configuration")
    return _READERS.get(kind, _read_native)(folder, targets)


def _read_lora(folder: Folder, targets: tuple[Target, ...]) -> tuple[Method, dict[str, Tensor]]:
    config = folder.config
    _refuse_unknown(config, {"r", "lora_alpha", "use_rslora", "use_dora", "target_modules"})
    names = {"lora_A.weight": "lora_A", "lora_B.weight": "lora_B", "lora_magnitude_vector": "magnitude"}
    state, modules = _renamed(folder.tensors, names)
    roles = _roles(modules, targets)
    for key in ("r", "lora_alpha"):
        if not isinstance(config.get(key), int | float):
            raise ValueError(f"{CONFIG}: {key} is {config.get(key)!r}, where a LoRA needs a number")
    if (start := config.get("init_lora_weights")) not in (None, True, False, "gaussian", "eva", "orthogonal"):
        raise ValueError(
            f"{CONFIG}: init_lora_weights = {start!r} took its start out of the base's weights, which are not in this "
            "folder: convert it with peft's path_initial_model_for_weight_conversion first"
        )
    rank, alpha, dropout = int(config["r"]), float(config["lora_alpha"]), float(config.get("lora_dropout") or 0.0)
    if config.get("use_dora"):
        if config.get("use_rslora"):
            raise ValueError("the adapter is a DoRA with use_rslora, which Halka does not have")
        return DoRA(rank, alpha, dropout, roles), state
    return LoRA(rank, alpha, dropout, roles, "root" if config.get("use_rslora") else "rank"), state


def _read_ia3(folder: Folder, targets: tuple[Target, ...]) -> tuple[Method, dict[str, Tensor]]:
    _refuse_unknown(folder.config, {"target_modules", "feedforward_modules"})
    state, modules = _renamed(folder.tensors, {"ia3_l": "ia3_l"})
    by_name = {target.name: target for target in targets if target.role in WEIGHT_ROLES}
    roles = _roles(modules, targets)
    for key, tensor in state.items():
        target = by_name[key.removesuffix(".ia3_l")]
        if tensor.dim() != 2 or 1 not in tensor.shape:
            raise ValueError(f"{key} is {tuple(tensor.shape)}, where a row or a column of factors is expected")
        if (tensor.shape[0] == 1) != (target.role == "mlp.down"):
            raise ValueError(f"{key}: Halka scales the input at mlp.down and the output elsewhere; this one differs")
    return IA3(roles), {key: tensor.flatten() for key, tensor in state.items()}


def _read_prefix(folder: Folder, targets: tuple[Target, ...]) -> tuple[Method, dict[str, Tensor]]:
    _refuse_unknown(folder.config, {"num_virtual_tokens", "prefix_projection"})
    flat = _virtual_tokens(folder.tensors)
    memory = _target(targets, "memory")
    slots, heads, width = memory.shape
    if flat.shape[1] != slots * heads * width:
        raise ValueError(
            f"the prefix holds {flat.shape[1]} values a token, this base takes {slots * heads * width} "
            f"({slots // 2} layers of {heads} key/value heads of {width}): it was made for another base"
        )
    method = Prefix(length=flat.shape[0], start="random")
    return method, {"memory.keys_values": flat.view(-1, *memory.shape)}


def _read_prompt(folder: Folder, targets: tuple[Target, ...]) -> tuple[Method, dict[str, Tensor]]:
    _refuse_unknown(folder.config, {"num_virtual_tokens"})
    embeddings = _virtual_tokens(folder.tensors)
    layers = 1 + max(target.layer for target in targets if target.layer is not None)
    if folder.config.get("num_layers") not in (None, layers):
        raise ValueError(f"the prompt was made for another base: of {folder.config['num_layers']} layers, not {layers}")
    method = Prompt(length=embeddings.shape[0], start="random")
    return method, {f"{_target(targets, 'embed').name}.embeddings": embeddings}


def _read_native(folder: Folder, targets: tuple[Target, ...]) -> tuple[Method, dict[str, Tensor]]:
    kind = folder.config["peft_type"]
    known = ", ".join([*_READERS, "and Halka's own methods in capitals"])
    if "fields" not in folder.config:
        raise ValueError(f"adapters of the type {kind!r} cannot be read: Halka knows {known}")
    try:
        method = made(kind.lower(), folder.config["fields"])
    except ValueError as error:
        raise ValueError(f"{CONFIG}: {error}") from None
    state = dict(folder.tensors)
    if kind == "FULL":
        state = {f"base.{key}": tensor.float() for key, tensor in state.items()}
    return method, state


_Reader = Callable[[Folder, tuple[Target, ...]], tuple[Method, dict[str, Tensor]]]
_READERS: dict[str, _Reader] = {
    "LORA": _read_lora,
    "IA3": _read_ia3,
    "PREFIX_TUNING": _read_prefix,
    "PROMPT_TUNING": _read_prompt,
}


def _refuse_unknown(config: Mapping[str, Any], read: set[str]) -> None:
    """Raises ValueError for a key that is not understood and holds something that would change the numbers."""
    for key, value in config.items():
        if key not in read and key not in _HARMLESS and not any(value == neutral for neutral in _NEUTRAL):
            raise ValueError(
                f"{CONFIG}: {key} = {value!r} changes what the adapter computes, and Halka does not have it"
            )


def _renamed(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> tuple[dict[str, Tensor], set[str]]:
    """Tensors under our names, and the modules they belong to."""
    state, modules = {}, set()
    for key, tensor in tensors.items():
        ending = next((each for each in names if key.endswith(f".{each}")), None)
        if ending is None or not key.startswith(_PREFIX):
            raise ValueError(f"{WEIGHTS}: the tensor {key} is not of this method (expected {', '.join(names)})")
        module = key.removeprefix(_PREFIX).removesuffix(f".{ending}")
        modules.add(module)
        state[f"{module}.{names[ending]}"] = tensor
    return state, modules


def _roles(modules: set[str], targets: tuple[Target, ...]) -> tuple[str, ...]:
    """The roles that `modules` fill. Raises ValueError if the base lacks one, or a role is filled in part."""
    linears = [target for target in targets if target.role in WEIGHT_ROLES]
    if unknown := sorted(modules - {target.name for target in linears}):
        shown = ", ".join(unknown[:3])
        raise ValueError(f"the adapter acts on {len(unknown)} modules that this base does not have: {shown} …")
    roles = tuple(dict.fromkeys(target.role for target in linears if target.name in modules))
    if missing := [target.name for target in linears if target.role in roles and target.name not in modules]:
        shown = ", ".join(missing[:3])
        raise ValueError(
            f"the adapter leaves out {len(missing)} modules whose like it acts on in other layers: {shown} …. "
            "It was made for a smaller base, or for some layers only, which Halka does not have"
        )
    return roles


def _virtual_tokens(tensors: Mapping[str, Tensor]) -> Tensor:
    name = "prompt_embeddings"
    if set(tensors) != {name}:
        raise ValueError(f"{WEIGHTS} should hold {name} alone; it holds {', '.join(sorted(tensors)[:5])}")
    if tensors[name].dim() != 2 or not tensors[name].numel():
        shape = tuple(tensors[name].shape)
        raise ValueError(f"{WEIGHTS}: {name} is {shape}, where a row a virtual token is expected")
    return tensors[name]


def _target(targets: tuple[Target, ...], role: str) -> Target:
    return next(target for target in targets if target.role == role)

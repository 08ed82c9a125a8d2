"""A configuration of peft's, before anything is trained, as a method of Halka's: `method_from_peft`.

The reading code needs tensors, of which only the shapes count here: it gets empty ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from halka.core import AdaptedModel, Method, Target
from halka.core.targets import module_target
from halka.methods import Joint, Modules, Prefix, Prompt
from halka.storage.formats.format import base_of, target_of
from halka.storage.formats.peft import experts, ia3, lora, prefix, prompt
from halka.storage.formats.peft.modules import names_of
from halka.storage.formats.peft.options import refuse_unknown
from halka.storage.formats.peft.saved_modules import by_path
from halka.storage.formats.peft.selection import by_pattern, selected, tails
from halka.util.errors import HalkaError

OTHERWISE = {
    "target_parameters": 'targets=("experts",)',
    "trainable_token_indices": "halka.Joint with halka.Tokens",
    "ensure_weight_tying": "halka.Modules at both modules",
}
OF_MLPS = {"gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"}  # which peft takes for those of experts
OF_EXPERTS = (
    'experts\' modules, which peft would train, too: use a halka.LoRA whose targets name "experts" for those, or leave '
    "them out"
)


def method_from_peft(config: Any, model: AdaptedModel) -> Method:
    """The method that a configuration of peft's describes on the model's base, for `model.add(name, method)`.

    `config` is peft's object (`LoraConfig`, `IA3Config`, `PrefixTuningConfig`, `PromptTuningConfig`) or its fields.
    Raises HalkaError for another kind, for an option that changes what is computed and that Halka does not have, and
    for modules that the base does not have.
    """
    options: dict[str, Any] = asdict(config) if is_dataclass(config) else dict(config)  # type: ignore[arg-type]
    readers: dict[str, Callable[[dict[str, Any], AdaptedModel], list[Method]]] = {
        lora.PEFT_TYPE: _lora,
        ia3.PEFT_TYPE: _ia3,
        prefix.PEFT_TYPE: _prefix,
        prompt.PEFT_TYPE: _prompt,
    }
    kind = options.get("peft_type")
    if kind not in readers:
        raise HalkaError(f"configurations of {str(kind)!r} cannot be translated: Halka knows {', '.join(readers)}")
    for key, ours in OTHERWISE.items():
        if options.get(key):
            raise HalkaError(f"{key} cannot be translated: use {ours}")
    methods = readers[kind](options, model)
    whole: list[str] = options.get("modules_to_save") or []
    if whole:
        paths = tuple(path for path in names_of(model.base) if path.endswith(tuple(whole)))
        if not paths:
            raise HalkaError(f"modules_to_save={whole} names no module of this base: name others, or leave it out")
        methods.append(Modules(tuple(map(by_path, paths))))
    return methods[0] if len(methods) == 1 else Joint(tuple(methods))


def _lora(options: dict[str, Any], model: AdaptedModel) -> list[Method]:
    if options.get("bias") not in (None, "none"):
        raise HalkaError(f"bias={options['bias']!r} cannot be translated: use halka.Joint with halka.BitFit")
    if (start := options.get("init_lora_weights")) not in (None, True):
        raise HalkaError(f"init_lora_weights={start!r} cannot be translated: halka.LoRA starts as peft's default does")
    wanted, has_experts = options.get("target_modules"), bool(experts.weights_of(model.targets))
    if has_experts and not isinstance(wanted, str):  # in a mixture peft takes the names of a dense MLP for experts
        unknown = {*(wanted or ())} - {tail for path in names_of(model.base) for tail in tails(path)}
        if unknown & OF_MLPS:
            raise HalkaError(f"target_modules names {', '.join(sorted(unknown & OF_MLPS))}, {OF_EXPERTS}")
    layers = _layers(options, model)
    if experts.confused(layers, model.targets) or (has_experts and wanted == "all-linear"):
        raise HalkaError(f"target_modules names {OF_EXPERTS}")
    options = {"r": 8, "lora_alpha": 8, **options}  # peft's own, where they are left out
    ranks = by_pattern(options, "rank_pattern", [*layers], options["r"])
    tensors: dict[str, Tensor] = {}
    for path, (d_in, d_out, module) in layers.items():
        if not isinstance(rank := ranks[path], int):
            raise HalkaError(f"r is {rank!r}, where a whole number is expected")
        if isinstance(module, nn.Embedding):
            tensors |= {f"{path}.lora_embedding_A": _empty(rank, d_in), f"{path}.lora_embedding_B": _empty(d_out, rank)}
        else:
            tensors |= {f"{path}.lora_A.weight": _empty(rank, d_in), f"{path}.lora_B.weight": _empty(d_out, rank)}
    return lora.read(options, tensors, model.targets)[0]


def _ia3(options: dict[str, Any], model: AdaptedModel) -> list[Method]:
    if options.get("feedforward_modules") is None:
        raise HalkaError(
            "feedforward_modules is left out, and peft then chooses some by the architecture: name them, or [] for none"
        )
    inner = selected({"target_modules": options["feedforward_modules"]}, model.base, ()) or set[str]()
    layers = _layers(options, model)
    tensors = {
        f"{path}.ia3_l": _empty(1, d_in) if path in inner else _empty(d_out, 1)
        for path, (d_in, d_out, _) in layers.items()
    }
    return ia3.read(options, tensors, model.targets)[0]


def _prefix(options: dict[str, Any], model: AdaptedModel) -> list[Method]:
    width = math.prod(target_of(model.targets, "memory").reader.shape[1:])  # peft's own, where neither is given
    projected = options.get("encoder_hidden_size") or options.get("token_dim") or width
    hidden = projected if options.get("prefix_projection") else None
    refuse_unknown(options, {"num_virtual_tokens", "num_transformer_submodules", "prefix_projection"})
    return [Prefix(_named(options, "num_virtual_tokens"), start="random", hidden=hidden)]


def _prompt(options: dict[str, Any], model: AdaptedModel) -> list[Method]:
    refuse_unknown(options, {"num_virtual_tokens", "num_transformer_submodules"})
    length, start = _named(options, "num_virtual_tokens"), options.get("prompt_tuning_init")
    if start == "TEXT":
        text = _named(options, "prompt_tuning_init_text")
        start_text = Prompt.from_text(text, model.tokenizer, length)
        return [replace(start_text, tokens=tuple(model.tokenizer(text)["input_ids"]))]  # with a BOS, as peft has it
    return [Prompt(length, start="vocabulary" if start == "SAMPLE_VOCAB" else "random")]


def _named(options: Mapping[str, Any], key: str) -> Any:
    """An option that peft has no default for. Raises HalkaError where it is left out."""
    if options.get(key) is None:
        raise HalkaError(f"the configuration has no {key}: name it")
    return options[key]


def _layers(options: Mapping[str, Any], model: AdaptedModel) -> dict[str, tuple[int, int, nn.Module]]:
    """The widths, in and out, and the module of each layer that the configuration selects, by its path."""
    heads = [target.name for target in model.targets if target.role == "head"]
    paths = selected(options, base_of(model.targets), heads)
    if paths is None:
        raise HalkaError(
            'target_modules is left out, and peft then chooses by the architecture: name some, or "all-linear"'
        )
    if not paths:
        limits = [key for key in ("layers_to_transform", "exclude_modules", "modules_to_save") if options.get(key)]
        left = f", within {' and '.join(limits)}," if limits else ""
        raise HalkaError(f'target_modules{left} names no module of this base: name others, or "all-linear"')
    by_name: dict[str, Target] = {target.name: target for target in model.targets if target.d_in}
    layers: dict[str, tuple[int, int, nn.Module]] = {}
    base = base_of(model.targets)
    for path in sorted(paths):
        target = by_name.get(path) or module_target(path, base.get_submodule(path))  # where it has no role
        layers[path] = target.d_in, target.d_out, target.module
    return layers


def _empty(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")

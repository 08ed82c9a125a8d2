"""Read and write Hugging Face peft's adapter folders, with the configuration and tensor names of peft 0.21.

Each kind of adapter in peft has one file here. `saved_modules.py` adds `modules_to_save` and `trainable_token_indices`
to any of them. `halka_methods.py` keeps methods that peft lacks in the same two files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

from halka.core import VIRTUAL_ROLES, Adapter, Method, Target, wants
from halka.methods import Joint, Modules, Prompt, methods_of
from halka.methods.modules import WholePart
from halka.models.base_names import at_revision, hub_parts
from halka.models.kinds import TASK_TYPES, kind_of, kind_of_task
from halka.models.layouts import CLASSIFIERS
from halka.storage.formats.format import BaseSpec, Contents, FileNames, base_of
from halka.storage.formats.peft import (
    adalora,
    experts,
    halka_methods,
    ia3,
    llama_adapter,
    lora,
    prefix,
    prompt,
    ptuning,
    saved_modules,
    tokens,
    vera,
)
from halka.util.errors import HalkaError
from halka.util.kinds import LABELLED

NAME = "peft"
FILES = FileNames("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
CONFIG = FILES.config
# Every module has PEFT_TYPE, PREFIX (of its tensors' keys, before the base's names), BARE (keys without it) and `read`;
# those with METHODS also have `write`.
KINDS: tuple[ModuleType, ...] = (lora, ia3, prefix, prompt, tokens, llama_adapter, adalora, vera, ptuning)

IN_A_LAYER = re.compile(r".*\.\d+\..*").fullmatch


def recognises(folder: Path) -> bool:
    """Return whether the folder holds a weights file that has peft's name."""
    return any((folder / name).exists() for name in (FILES.weights, FILES.pickle))


def base_spec(config: Mapping[str, Any], head_config: Mapping[str, Any] | None) -> BaseSpec:
    """Return the base's name or path, and its kind if the configuration has a `task_type` for it."""
    name, revision = config.get("base_model_name_or_path"), config.get("revision")
    if isinstance(name, str) and isinstance(revision, str):
        name = at_revision(name, revision)
    return BaseSpec(name if isinstance(name, str) and name else None, kind_of_task(config.get("task_type")))


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def read(contents: Contents, targets: tuple[Target, ...]) -> tuple[Method, dict[str, Tensor]]:
    """Return the method that a folder holds and its state under Halka's names, for a base with `targets`.

    Raises HalkaError for options that Halka does not have, tensors of unknown names, modules that the base lacks, and
    modules that the configuration selects but the weights lack.
    """
    peft_type = contents.config.get("peft_type")
    if not isinstance(peft_type, str):
        raise HalkaError(f"{CONFIG} names no peft_type: it is not an adapter's configuration")
    kinds = {kind.PEFT_TYPE: kind for kind in KINDS}
    if peft_type not in kinds:
        if "fields" in contents.config:
            return halka_methods.read(contents, targets)
        choices = ", ".join(kinds)
        raise HalkaError(
            f"adapters of the type {peft_type!r} cannot be read: Halka reads {choices}, and its own methods' names in "
            "capitals. Where peft can merge it into its base (merge_and_unload), that is a base to load"
        )
    kind: Any = kinds[peft_type]
    tensors = {_base_name(kind, key): tensor for key, tensor in contents.tensors.items()}
    tensors = saved_modules.without_copies(contents.config, tensors, targets, layers=kind is not lora)
    methods, state, others = kind.read(contents.config, tensors, targets)
    more, values = saved_modules.read(contents.config, others, targets)
    methods = [*methods, *more]
    if (reason := _differs_beside_prompt(methods, targets)) is not None:
        raise HalkaError(f"{reason}. Train only modules after the layers")
    if not methods:
        raise HalkaError("the weights file is empty: it is incomplete")
    return methods[0] if len(methods) == 1 else Joint(tuple(methods)), {**state, **values}


def _differs_beside_prompt(methods: Sequence[Method], targets: tuple[Target, ...]) -> str | None:
    """Return why peft computes something else where modules are trained whole beside a prompt; None if it does not."""
    if not any(isinstance(method, Prompt) for method in methods):
        return None
    modules = [method for method in methods if isinstance(method, Modules)]
    if inner := next((path for method in modules for path in method.targets if IN_A_LAYER(path)), None):
        return (
            f"the adapter trains {inner} whole beside a prompt, and peft runs the prompt through it: Halka runs the "
            "prompt through the bare base"
        )
    if any(wants(method.roles(), target) for method in modules for target in targets if target.role == "embedding"):
        return (
            "the adapter trains the embedding whole beside a prompt, and peft reads texts by the base's own there: "
            "Halka reads them by the trained one"
        )
    return None


def _base_name(kind: Any, key: str) -> str:
    """Return the key without peft's prefix. Raises HalkaError for a key of another kind of adapter."""
    if key in kind.BARE:
        return key
    if not key.startswith(kind.PREFIX):
        raise HalkaError(f"the tensor {key} is not of this method: peft's begin with {kind.PREFIX}")
    return key.removeprefix(kind.PREFIX)


# ── writing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def write(adapter: Adapter, targets: tuple[Target, ...], base_name: str) -> Contents:
    """Return an adapter as peft has it, else as `halka_methods` does; `targets` are all targets of its base."""
    name, revision = hub_parts(base_name)
    written = _as_peft(adapter, targets) or halka_methods.write(adapter, targets)
    common = {
        "task_type": _task_type(adapter, targets),
        "base_model_name_or_path": name,
        "inference_mode": True,
        "revision": revision,
    }
    tensors = {key: tensor.detach().contiguous() for key, tensor in written.tensors.items()}
    return Contents({**common, **written.config}, tensors)


def holds(adapter: Adapter, targets: tuple[Target, ...]) -> bool:
    """Return whether peft has a form for the adapter: others are written as `halka_methods` does."""
    return _as_peft(adapter, targets) is not None


def _as_peft(adapter: Adapter, targets: tuple[Target, ...]) -> Contents | None:
    """Return the adapter as peft has it, or None if peft cannot compute it."""
    methods = methods_of(adapter.method)
    parts = {
        method: {path: adapter.parts[path] for path, target in adapter.targets.items() if wants(method.roles(), target)}
        for method in methods
    }
    saved = [method for method in methods if method.name in saved_modules.METHODS]
    main = [method for method in methods if method not in saved] or saved
    names = {method.name for method in main}
    kind: Any = next((kind for kind in KINDS if names <= {*getattr(kind, "METHODS", ())}), None)
    on_experts = any(target.experts for target in adapter.targets.values())
    if kind is None or (on_experts and kind is not lora) or _differs_beside_prompt(methods, targets):
        return None
    if experts.confused((target.name for target in adapter.targets.values()), targets):
        return None
    written = kind.write(main, parts, targets)
    if written is None:
        return None
    config, tensors = written
    tensors = {key if key in kind.BARE else f"{kind.PREFIX}{key}": tensor for key, tensor in tensors.items()}
    if main is not saved:
        more = saved_modules.write(saved, adapter.parts, targets, tokens=kind is lora)
        if more is None:
            return None
        config = {**config, **more[0]}
        tensors |= {f"{kind.PREFIX}{key}": tensor for key, tensor in more[1].items()}
    return Contents(config, tensors)


def _task_type(adapter: Adapter, targets: tuple[Target, ...]) -> str | None:
    """Return peft's task type of the base; None for a classifier with an untrained head, which peft would look for."""
    kind = kind_of(base_of(targets))
    if kind == "masked-lm" and any(target.role in VIRTUAL_ROLES for target in adapter.targets.values()):
        return "FEATURE_EXTRACTION"  # the task type with virtual tokens that leaves the base unchanged
    whole = {path.rpartition(".")[2] for path, part in adapter.parts.items() if isinstance(part, WholePart)}
    if kind in LABELLED and not whole & {*CLASSIFIERS}:
        return None
    return TASK_TYPES[kind]

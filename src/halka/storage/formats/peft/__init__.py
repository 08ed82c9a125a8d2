"""Hugging Face peft's adapter folders: its configuration and tensor names for our methods and parts, as of peft 0.21.

One file here a kind of adapter that peft has. `saved_modules.py` has what `modules_to_save` and
`trainable_token_indices` add to any of them. `halka_methods.py` writes methods that peft lacks into the same two files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

from halka.core import VIRTUAL_ROLES, Adapter, Joint, Method, Target, wants
from halka.methods import Modules, Prompt
from halka.models.kinds import LABELLED, TASK_TYPES, kind_of, kind_of_task
from halka.models.layouts import CLASSIFIERS
from halka.storage.formats.format import BaseSpec, Contents, FileNames
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
from halka.storage.formats.peft.modules import base_of
from halka.util.errors import HalkaError

NAME = "peft"
FILES = FileNames("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
CONFIG, WEIGHTS = FILES.config, FILES.weights
# Each has PEFT_TYPE, PREFIX (what stands before the base's names in its keys), BARE (keys without), and `read`; those
# with METHODS also `write`.
KINDS: tuple[ModuleType, ...] = (lora, ia3, prefix, prompt, tokens, llama_adapter, adalora, vera, ptuning)

IN_A_LAYER = re.compile(r".*\.\d+\..*").fullmatch


def recognises(folder: Path) -> bool:
    """Whether the folder holds weights under peft's name for them."""
    return any((folder / name).exists() for name in (FILES.weights, FILES.pickle))


def base_spec(config: Mapping[str, Any], head_config: Mapping[str, Any] | None) -> BaseSpec:
    """The base's name or path, and its kind where peft has a word for it."""
    name = config.get("base_model_name_or_path")
    return BaseSpec(name if isinstance(name, str) and name else None, kind_of_task(config.get("task_type")))


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def read(contents: Contents, targets: tuple[Target, ...]) -> tuple[Method, dict[str, Tensor]]:
    """The method that a folder holds and its state under our names, for a base with `targets`.

    Raises HalkaError for options that Halka does not have, tensors of unknown names, modules that the base lacks, and
    modules that the configuration selects and the weights lack.
    """
    peft_type = contents.config.get("peft_type")
    if not isinstance(peft_type, str):
        raise HalkaError(f"{CONFIG} names no peft_type: it is not an adapter's configuration")
    kinds = {each.PEFT_TYPE: each for each in KINDS}
    if peft_type not in kinds:
        if "fields" in contents.config:
            return halka_methods.read(contents, targets)
        known = ", ".join([*kinds, "and Halka's own methods in capitals"])
        raise HalkaError(f"adapters of the type {peft_type!r} cannot be read: Halka knows {known}")
    kind: Any = kinds[peft_type]
    tensors = {_named(kind, key): tensor for key, tensor in contents.tensors.items()}
    methods, state, others = kind.read(contents.config, tensors, targets)
    more, values = saved_modules.read(contents.config, others, targets)
    methods = [*methods, *more]
    if (inner := _inside(methods)) is not None:
        raise HalkaError(
            f"the adapter trains {inner} whole beside a prompt, and peft lets the prompt pass through it: here the "
            "bare base reads a prompt. Train modules behind the layers alone"
        )
    if not methods:
        raise HalkaError("the weights hold nothing: the file is not whole")
    return methods[0] if len(methods) == 1 else Joint(tuple(methods)), {**state, **values}


def _inside(methods: Sequence[Method]) -> str | None:
    """A module in a layer that is trained whole beside a prompt."""
    if not any(isinstance(each, Prompt) for each in methods):
        return None
    paths = [path for each in methods if isinstance(each, Modules) for path in each.targets]
    return next((path for path in paths if IN_A_LAYER(path)), None)


def _named(kind: Any, key: str) -> str:
    if key in kind.BARE:
        return key
    if not key.startswith(kind.PREFIX):
        raise HalkaError(f"the tensor {key} is not of this method: peft's begin with {kind.PREFIX}")
    return key.removeprefix(kind.PREFIX)


# ── writing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def write(adapter: Adapter, targets: tuple[Target, ...], base_name: str) -> Contents:
    """An adapter in peft's names, in our own where peft has none; `targets` are all of its base's."""
    written = _theirs(adapter, targets) or halka_methods.write(adapter, targets)
    common = {
        "task_type": _task_type(adapter, targets),
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "revision": None,
    }
    tensors = {key: tensor.detach().contiguous() for key, tensor in written.tensors.items()}
    return Contents({**common, **written.config}, tensors)


def _theirs(adapter: Adapter, targets: tuple[Target, ...]) -> Contents | None:
    """The adapter as peft has it, or None."""
    methods = adapter.method.methods if isinstance(adapter.method, Joint) else (adapter.method,)
    parts = {
        method: {path: adapter.parts[path] for path, each in adapter.targets.items() if wants(method.roles(), each)}
        for method in methods
    }
    aside = [each for each in methods if each.name in saved_modules.METHODS]
    main = [each for each in methods if each not in aside] or aside
    kind: Any = next((each for each in KINDS if {one.name for one in main} <= {*getattr(each, "METHODS", ())}), None)
    on_experts = any(target.stack for target in adapter.targets.values())
    if kind is None or (on_experts and kind is not lora) or _inside(methods):
        return None
    if experts.confused((target.name for target in adapter.targets.values()), targets):
        return None
    written = kind.write(main, parts, targets)
    if written is None:
        return None
    config, tensors = written
    named = {key if key in kind.BARE else f"{kind.PREFIX}{key}": tensor for key, tensor in tensors.items()}
    if main is not aside:
        more = saved_modules.write(aside, adapter.parts, targets, tokens=kind is lora)
        if more is None:
            return None
        config = {**config, **more[0]}
        named |= {f"{kind.PREFIX}{key}": tensor for key, tensor in more[1].items()}
    return Contents(config, named)


def _task_type(adapter: Adapter, targets: tuple[Target, ...]) -> str | None:
    """What peft wraps such a base in; none for a classifier whose head was not trained: peft would look for it."""
    kind = kind_of(base_of(targets))
    if kind == "masked-lm" and any(each.role in VIRTUAL_ROLES for each in adapter.targets.values()):
        return "FEATURE_EXTRACTION"  # of those that leave the base as it is, the one that knows virtual tokens
    if kind in LABELLED and not {path.rpartition(".")[2] for path in adapter.parts} & {*CLASSIFIERS}:
        return None
    return TASK_TYPES[kind]

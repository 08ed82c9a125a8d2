"""Read and write AdapterHub's folders (its library is `adapters`): bottleneck adapters, LoRA, (IA)³ and prefixes.

Each kind of adapter has one file here; a union of several becomes a joint method. Tensor layouts and forward passes
follow adapters 1.3.0, for the architectures that it supports natively (`tensor_names.py`). The adapter's name is part
of its tensors' names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from halka.core import Adapter, Method, Target, wants
from halka.methods import Joint, methods_of
from halka.storage.formats.adapterhub import bottleneck, heads, ia3, lora, prefix
from halka.storage.formats.adapterhub.config import architecture_of, checked, identity, parts_of
from halka.storage.formats.adapterhub.tensor_names import Keys, sorted_by_kind
from halka.storage.formats.format import BaseSpec, Contents, FileNames, base_of
from halka.util.errors import HalkaError

NAME = "adapterhub"
FILES = FileNames("adapter_config.json", "adapter.safetensors", "pytorch_adapter.bin", heads.FILES)
KINDS = (bottleneck, lora, ia3, prefix)  # every module has METHODS, ARCHITECTURE, `read` and `write`


def recognises(folder: Path) -> bool:
    """Return whether the folder holds a weights file that has AdapterHub's name."""
    return any((folder / name).exists() for name in (FILES.weights, FILES.pickle))


def base_spec(config: Mapping[str, Any], head_config: Mapping[str, Any] | None) -> BaseSpec:
    """Return the base's name or path, and its kind and labels if the folder has a head."""
    name = config.get("model_name")
    spec = BaseSpec(None) if head_config is None else heads.base_spec(head_config)
    return spec._replace(name=name if isinstance(name, str) and name else None)


def read(contents: Contents, targets: tuple[Target, ...]) -> tuple[Method, dict[str, Tensor]]:
    """Return the method that a folder holds and its state under Halka's names, for a base with `targets`.

    Raises HalkaError that names the option for what `adapters` computes and Halka cannot, and for another base.
    """
    config = checked(contents.config, base_of(targets))
    keys = sorted_by_kind(contents.tensors, contents.config["name"], targets)
    parts = [_read_one(part, keys, targets) for part in parts_of(config)]
    if left := keys.left():
        raise HalkaError(f"the weights hold {len(left)} tensors that the configuration does not mention: {left[0]} …")
    if contents.head is not None and (head := heads.read(contents.head, targets)) is not None:
        parts.append(head)
    methods = tuple(inner for method, _ in parts for inner in methods_of(method))
    state = {key: tensor for _, tensors in parts for key, tensor in tensors.items()}
    return methods[0] if len(methods) == 1 else Joint(methods), state


def write(adapter: Adapter, targets: tuple[Target, ...], base_name: str) -> Contents:
    """Return an adapter's configuration and tensors as AdapterHub has them; `targets` are all targets of its base.

    Raises HalkaError for a method, or fields of one, that `adapters` does not have.
    """
    singles = _by_method(adapter)
    modules = [single for single in singles if single.method.name == "modules"]
    written = [_write_one(single, targets) for single in singles if single not in modules]
    if not written:
        raise HalkaError("modules alone cannot be written as an AdapterHub folder: it has heads only beside an adapter")
    configs = [config for config, _ in written]
    config = configs[0] if len(configs) == 1 else {"architecture": "union", "configs": configs}
    about = identity(base_of(targets), base_name)
    tensors = {key: tensor.detach().contiguous() for _, part in written for key, tensor in part.items()}
    head = None
    if modules:
        trained = {key: tensor for single in modules for key, tensor in single.state_dict().items()}
        head = heads.write(trained, targets, adapter.labels)
        head = Contents({**about, **head.config}, head.tensors)
    return Contents({"config": config, **about}, tensors, head)


def _read_one(config: Mapping[str, Any], keys: Keys, targets: tuple[Target, ...]) -> tuple[Method, dict[str, Tensor]]:
    architecture = architecture_of(config)
    kind = next((kind for kind in KINDS if architecture == kind.ARCHITECTURE), None)
    if kind is None:
        raise HalkaError(REFUSED.get(architecture, f"Halka does not have AdapterHub's {architecture!r}"))
    return kind.read(config, keys, targets)


REFUSED = {
    "prompt_tuning": (
        "the folder holds AdapterHub's prompt tuning, whose virtual tokens enter after the embeddings' norm and attend "
        "to the text: Halka's prompts do not. Train one here"
    ),
    "reft": "the folder holds a ReFT, which edits single tokens' states: Halka does not have it",
    "mtl_lora": "the folder holds an MTL-LoRA, whose factors depend on the task of each row: Halka does not have it",
}


def _by_method(adapter: Adapter) -> list[Adapter]:
    """Split an adapter of a joint method into one adapter per method."""
    methods = methods_of(adapter.method)
    if len(methods) == 1:
        return [adapter]
    singles: list[Adapter] = []
    for method in methods:
        own = {path: target for path, target in adapter.targets.items() if wants(method.roles(), target)}
        singles.append(Adapter(method, {path: adapter.parts[path] for path in own}, own))
    if sum(len(single.parts) for single in singles) != len(adapter.parts):
        raise HalkaError(
            "two of the adapter's methods act on the same kind of module: AdapterHub's library cannot hold both there"
        )
    return singles


def _write_one(adapter: Adapter, targets: tuple[Target, ...]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    name = adapter.method.name
    kind = next((kind for kind in KINDS if name in kind.METHODS), None)
    if kind is None:
        reason = UNWRITTEN.get(name, "AdapterHub's library has no such method")
        raise HalkaError(f"{name} cannot be written as an AdapterHub folder: {reason}")
    return kind.write(adapter, targets)


UNWRITTEN = {
    "prefix": "its prefixes take no positions, Halka's `prefix` does: train a `positionless_prefix`",
    "prompt": "its prompts attend to the text, and it has none for decoders",
    "full": "it cannot hold whole weights: write a transformers model instead",
}

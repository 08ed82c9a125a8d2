"""AdapterHub's folders, as its library `adapters` reads and writes them: bottleneck adapters, LoRA, (IA)³ and prefixes.

One file here a kind; a union of several is a joint method. Layouts and sums as adapters 1.3.0 has them, on the
architectures for which it has a form of its own (`tensor_names.py`). The adapter's name is part of its tensors' names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from halka.core import Adapter, Joint, Method, Target, wants
from halka.storage.formats.adapterhub import bottleneck, heads, ia3, lora, prefix
from halka.storage.formats.adapterhub.config import architecture_of, base_of, checked, identity, parts_of
from halka.storage.formats.adapterhub.tensor_names import Keys, sorted_by_kind
from halka.storage.formats.format import BaseSpec, Contents, FileNames
from halka.util.errors import HalkaError

NAME = "adapterhub"
FILES = FileNames("adapter_config.json", "adapter.safetensors", "pytorch_adapter.bin", heads.FILES)
KINDS = (bottleneck, lora, ia3, prefix)  # each has METHODS, ARCHITECTURE, `read` and `write`


def recognises(folder: Path) -> bool:
    """Whether the folder holds weights under AdapterHub's name for them."""
    return any((folder / name).exists() for name in (FILES.weights, FILES.pickle))


def base_spec(config: Mapping[str, Any], head_config: Mapping[str, Any] | None) -> BaseSpec:
    """The base's name or path; its kind and labels where a head stands beside the adapter."""
    name = config.get("model_name")
    spec = BaseSpec(None) if head_config is None else heads.base_spec(head_config)
    return spec._replace(name=name if isinstance(name, str) and name else None)


def read(contents: Contents, targets: tuple[Target, ...]) -> tuple[Method, dict[str, Tensor]]:
    """The method that a folder holds and its state under our names, for a base with `targets`.

    Raises HalkaError, by name, for what `adapters` computes and Halka cannot, and for another base.
    """
    config = checked(contents.config, base_of(targets))
    keys = sorted_by_kind(contents.tensors, contents.config["name"], targets)
    found = [_read_one(each, keys, targets) for each in parts_of(config)]
    if left := keys.left():
        raise HalkaError(f"the weights hold {len(left)} tensors that the configuration does not tell of: {left[0]} …")
    if contents.head is not None and (head := heads.read(contents.head, targets)) is not None:
        found.append(head)
    methods = tuple(inner for method, _ in found for inner in _methods(method))
    state = {key: tensor for _, part in found for key, tensor in part.items()}
    return methods[0] if len(methods) == 1 else Joint(methods), state


def write(adapter: Adapter, targets: tuple[Target, ...], base_name: str) -> Contents:
    """An adapter in AdapterHub's names; `targets` are all of its base's.

    Raises HalkaError for a method, or fields of one, that `adapters` has no form for.
    """
    alone = _alone(adapter)
    whole = [each for each in alone if each.method.name == "modules"]
    written = [_write_one(each, targets) for each in alone if each not in whole]
    if not written:
        raise HalkaError(
            "modules alone cannot be written as an AdapterHub folder: a head stands beside an adapter there"
        )
    configs = [config for config, _ in written]
    config = configs[0] if len(configs) == 1 else {"architecture": "union", "configs": configs}
    about = identity(base_of(targets), base_name)
    tensors = {key: tensor.detach().contiguous() for _, part in written for key, tensor in part.items()}
    head = None
    for each in whole:
        head = heads.write(each, targets, adapter.labels)
        head = Contents({**about, **head.config}, head.tensors)
    return Contents({"config": config, **about}, tensors, head)


def _read_one(config: Mapping[str, Any], keys: Keys, targets: tuple[Target, ...]) -> tuple[Method, dict[str, Tensor]]:
    architecture = architecture_of(config)
    kind = next((each for each in KINDS if architecture == each.ARCHITECTURE), None)
    if kind is None:
        raise HalkaError(REFUSED.get(architecture, f"AdapterHub's {architecture!r} is not known here"))
    return kind.read(config, keys, targets)


REFUSED = {
    "prompt_tuning": (
        "the folder holds AdapterHub's prompt tuning, whose virtual tokens enter behind the embeddings' norm and see "
        "the text in turn: Halka's prompts do not. Train one here"
    ),
    "reft": "the folder holds a ReFT, which edits single tokens' states: Halka does not have it",
    "mtl_lora": "the folder holds an MTL-LoRA, whose factors depend on the task of each row: Halka does not have it",
}


def _methods(method: Method) -> tuple[Method, ...]:
    return method.methods if isinstance(method, Joint) else (method,)


def _alone(adapter: Adapter) -> list[Adapter]:
    """The adapter of each of a joint method's methods; the adapter itself if it has one."""
    methods = _methods(adapter.method)
    if len(methods) == 1:
        return [adapter]
    found: list[Adapter] = []
    for method in methods:
        acts = {path: target for path, target in adapter.targets.items() if wants(method.roles(), target)}
        found.append(Adapter(method, {path: adapter.parts[path] for path in acts}, acts))
    if sum(len(each.parts) for each in found) != len(adapter.parts):
        raise HalkaError(
            "two of the adapter's methods act on like places: AdapterHub's library tells them by the place"
        )
    return found


def _write_one(adapter: Adapter, targets: tuple[Target, ...]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    name = adapter.method.name
    kind = next((each for each in KINDS if name in each.METHODS), None)
    if kind is None:
        reason = UNWRITTEN.get(name, "AdapterHub's library has no such method")
        raise HalkaError(f"{name} cannot be written as an AdapterHub folder: {reason}")
    return kind.write(adapter, targets)


UNWRITTEN = {
    "prefix": "its prefixes take no positions, and Halka's `prefix` does: train a `positionless_prefix`",
    "prompt": "its prompts see the text in turn, and have no form on decoders",
    "full": "it has no form for whole weights: write a transformers model instead",
}

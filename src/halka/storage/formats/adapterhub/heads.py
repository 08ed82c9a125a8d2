"""Read and write heads saved with an adapter, in files of their own, as fully trained modules.

Heads of transformers' classes have the base's tensor names; `write` writes only these. Heads of AdapterHub's classes
are `heads.<name>.<i>`, a sequence of dropouts, layers and activations; `read` maps them to the layers of a
transformers class that computes the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from halka.core import Target
from halka.methods import Modules
from halka.models.heads import label_rows
from halka.storage.formats.format import BaseSpec, Contents, FileNames, base_of, json_object
from halka.util.errors import HalkaError
from halka.util.kinds import Kind

FILES = FileNames("head_config.json", "model_head.safetensors", "pytorch_model_head.bin")
# The base's class -> the options of AdapterHub's equivalent head, and the base's modules for its numbered layers.
FLEXIBLE: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "BertForSequenceClassification": (
        {"head_type": "classification", "layers": 2, "activation_function": "tanh", "use_pooler": False},
        {"1": "bert.pooler.dense", "4": "classifier"},
    ),
    "RobertaForSequenceClassification": (
        {"head_type": "classification", "layers": 2, "activation_function": "tanh", "use_pooler": False},
        {"1": "classifier.dense", "4": "classifier.out_proj"},
    ),
    **dict.fromkeys(
        ("BertForTokenClassification", "RobertaForTokenClassification"),
        ({"head_type": "tagging", "layers": 1}, {"1": "classifier"}),
    ),
}
MOST = 100_000  # limit on unnamed labels, so that a damaged num_labels does not exhaust memory
WITHOUT = "load the adapter without its head (head=False, --no-head)"


def base_spec(config: Mapping[str, Any]) -> BaseSpec:
    """Return the kind and labels of a base with such a head; an empty spec for a language model's own head."""
    options = _options(config)
    head_type = None if options is None else options.get("head_type")
    model_class = str(config.get("model_class"))
    kind: Kind | None = None
    if head_type == "classification" or model_class.endswith("ForSequenceClassification"):
        kind = "sequence-classification"
    if head_type == "tagging" or model_class.endswith("ForTokenClassification"):
        kind = "token-classification"
    return BaseSpec(None) if kind is None else BaseSpec(None, kind, tuple(_labels(options or config)))


def _labels(options: Mapping[str, Any]) -> list[str]:
    """Return a head's labels by index; transformers' default names if it names none."""
    named, count = options.get("label2id"), options.get("num_labels")
    if named is None:
        if type(count) is not int or not 0 < count <= MOST:
            raise HalkaError(f"head_config.json: num_labels is {count!r}, where a number of labels is expected")
        return [f"LABEL_{index}" for index in range(count)]
    labels = json_object(named)
    if (
        labels is None
        or not all(type(number) is int for number in labels.values())
        or sorted(labels.values()) != [*range(len(labels))]
    ):
        raise HalkaError(f"head_config.json: label2id is {named!r}, where labels with their numbers are expected")
    return sorted(labels, key=labels.__getitem__)


def _options(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the options of a head of AdapterHub's classes; None for one of transformers'."""
    own = config.get("config")
    if own is not None and json_object(own) is None:
        raise HalkaError(f"head_config.json: config is {own!r}, where a head's options are expected")
    return json_object(own)


def read(head: Contents, targets: tuple[Target, ...]) -> tuple[Modules, dict[str, Tensor]] | None:
    """Return the head's modules and their state; None if all its weights equal the base's.

    Raises HalkaError for a head that this base does not have.
    """
    base = base_of(targets)
    name, config = type(base).__name__, _options(head.config)
    tensors = head.tensors if config is None else _as_modules(head, config, name)
    own = dict(base.named_parameters(remove_duplicate=False)) | dict(base.named_buffers())
    rows, named = label_rows(base), base_spec(head.config).named_labels

    def fits(key: str, tensor: Tensor) -> bool:
        if key not in own or tensor.shape == own[key].shape:
            return key in own
        narrower = bool(named) and key in rows and tensor.dim() > 0 and len(tensor) < len(own[key])
        return narrower and tensor.shape[1:] == own[key].shape[1:]

    if unknown := [key for key, tensor in tensors.items() if not fits(key, tensor)]:
        shape, made_for = tuple(tensors[unknown[0]].shape), head.config.get("model_class")
        raise HalkaError(
            f"the folder's head, of a {made_for}, has {unknown[0]} {shape}, which this {name} does not: load a base "
            f"with such a head, or {WITHOUT}"
        )
    if wrong := [key for key in tensors if named and key in rows and len(tensors[key]) != len(named)]:
        raise HalkaError(
            f"head_config.json names {len(named)} labels, and the head's {wrong[0]} has {len(tensors[wrong[0]])} rows: "
            f"the folder is damaged; {WITHOUT}"
        )
    paths = dict.fromkeys(key.rpartition(".")[0] for key, tensor in tensors.items() if not _same(tensor, own[key]))
    if not paths:
        return None
    roles = {target.name: target.role for target in targets if target.role in ("head", "embedding")}
    state = {
        f"{path}.{key}": tensors[f"{path}.{key}"] if f"{path}.{key}" in tensors else parameter.detach().float()
        for path in paths
        for key, parameter in base.get_submodule(path).named_parameters()
    }
    return Modules(tuple(roles.get(path, path) for path in paths)), state


def write(trained: Mapping[str, Tensor], targets: tuple[Target, ...], labels: Sequence[str]) -> Contents:
    """Return the base's head with these trained tensors in it; `labels` are its classes if not the base's.

    Raises HalkaError for modules that are not of the base's head.
    """
    base = base_of(targets)
    inside = f"{base.base_model_prefix}."
    own = dict(base.named_parameters(remove_duplicate=False))
    shared = {parameter for key, parameter in own.items() if key.startswith(inside)}
    if other := [key for key in trained if key.startswith(inside) or own[key] in shared]:
        raise HalkaError(
            f"AdapterHub's folders only hold modules of the head, and {other[0]} is of the base, or tied to it"
        )
    head = {key: tensor.detach().float() for key, tensor in own.items() if not key.startswith(inside)}
    label2id = {label: index for index, label in enumerate(labels)} or base.config.label2id
    config = {"config": None, "name": None, "num_labels": len(label2id), "label2id": label2id}
    return Contents(config, {key: tensor.clone() for key, tensor in {**head, **trained}.items()})


def _as_modules(head: Contents, config: Mapping[str, Any], base: str) -> dict[str, Tensor]:
    """Return the tensors of a head of AdapterHub's classes under the names of a base of class `base`."""
    same, modules = FLEXIBLE.get(base, ({}, {}))
    if not same or any(config.get(key) != value for key, value in same.items()) or not config.get("bias", True):
        kind = ", ".join(
            f"{key} {config.get(key)}" for key in ("head_type", "layers", "activation_function", "use_pooler")
        )
        raise HalkaError(f"the folder's head ({kind}) is not what a {base} has: {WITHOUT}")
    if not isinstance(name := head.config.get("name"), str):
        raise HalkaError(f"head_config.json: name is {name!r}, where the head's name is expected")
    prefix = f"heads.{name}."
    tensors: dict[str, Tensor] = {}
    for key, tensor in head.tensors.items():
        number, _, ending = key.removeprefix(prefix).partition(".")
        if not key.startswith(prefix) or number not in modules:
            raise HalkaError(f"the head's tensor {key} is not of a head with {same['layers']} layers: {WITHOUT}")
        tensors[f"{modules[number]}.{ending}"] = tensor
    return tensors


def _same(tensor: Tensor, own: Tensor | nn.Parameter) -> bool:
    return tensor.shape == own.shape and bool((tensor.to(own.device, own.dtype) == own).all())

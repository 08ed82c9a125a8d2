"""Read and check `adapter_config.json`: the adapter's options, and the base that it was made for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from torch import Tensor

from halka.models.base_names import hub_parts
from halka.storage.formats.format import json_list, json_object, number
from halka.util.errors import HalkaError

T = TypeVar("T")
NAME = "halka"  # the name, within tensors' names, of adapters that we write
VERSION = "adapters.1.3.0"
# Options of initialisation, storage or composition, which do not change what the adapter computes.
HARMLESS = ("architecture", "init_weights", "init_weights_seed", "dtype", "attention_type", "new_attention_norm")
AT_REST: tuple[Any, ...] = (None, False, {}, [])


def identity(base: Any, base_name: str) -> dict[str, Any]:
    """Return the configuration's fields about the adapter's base and the library that wrote it."""
    config = base.config
    return {
        "hidden_size": config.hidden_size,
        "model_class": type(base).__name__,
        "model_name": hub_parts(base_name)[0],
        "model_type": config.model_type,
        "name": NAME,
        "version": VERSION,
    }


def checked(config: Mapping[str, Any], base: Any) -> dict[str, Any]:
    """Return the adapter's own options, with those of older versions upgraded as the library does.

    Raises HalkaError if the folder names another base.
    """
    own = json_object(config.get("config"))
    if own is None or not isinstance(config.get("name"), str):
        raise HalkaError("adapter_config.json holds no `config` and `name`: it is not an AdapterHub adapter's")
    for key, expected in (("model_type", base.config.model_type), ("hidden_size", base.config.hidden_size)):
        if config.get(key) not in (None, expected):
            raise HalkaError(f"the adapter was made for another base: {key} {config[key]} instead of {expected}")
    version = config.get("version")
    own = _upgraded(dict(own), version)
    if config.get("type") == "text_task":  # adapter-transformers wrote these options without such adapters
        own = {key: value for key, value in own.items() if key not in ("inv_adapter", "invertible_adapter")}
    if architecture_of(own) == "union":
        refuse(own, ("configs",), {}, {})
        own["configs"] = [_upgraded(dict(part), version) for part in listed(own, "configs", dict)]
    return own


def architecture_of(config: Mapping[str, Any]) -> str:
    """Return the library's name of the adapter's kind: `ia3` for a LoRA that scales, `bottleneck` if it names none."""
    name = str(config.get("architecture") or "bottleneck")
    return "ia3" if name == "lora" and config.get("composition_mode") == "scale" else name


def parts_of(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the configurations of a union, or the only one."""
    return config["configs"] if architecture_of(config) == "union" else [config]


def _upgraded(config: dict[str, Any], version: Any) -> dict[str, Any]:
    """Upgrade older options: without a version "gelu" meant "gelu_new"; before 1.1.0 LoRA was not scaled by α/r."""
    if version is None and "non_linearity" in config:
        renamed = {"gelu": "gelu_new", "gelu_orig": "gelu"}
        config["non_linearity"] = renamed.get(str(config["non_linearity"]), config["non_linearity"])
    if architecture_of(config) == "lora" and _before_1_1(version):
        config["alpha"] = config.get("r")
    return config


def _before_1_1(version: Any) -> bool:
    if not isinstance(version, str) or not version.startswith("adapters."):  # adapter-transformers scaled by α/r
        return False
    numbers = version.removeprefix("adapters.").split(".")[:2]
    return all(part.isdigit() for part in numbers) and tuple(map(int, numbers)) < (1, 1)


def refuse(
    config: Mapping[str, Any], read: Iterable[str], neutral: Mapping[str, Any], reasons: Mapping[str, str]
) -> None:
    """Raise HalkaError for options that Halka does not read and that may change what the adapter computes.

    read: options that are read, or have no effect; neutral: values of other options that have no effect; reasons: for
    some options, the reason that the message gives.
    """
    passed = {*read, *HARMLESS}
    for key, value in config.items():
        if key in passed or any(value == neutral_value for neutral_value in AT_REST):
            continue
        if key in reasons:
            raise HalkaError(f"adapter_config.json: {key} = {value!r}: {reasons[key]}")
        if key not in neutral or value != neutral[key]:
            raise HalkaError(
                f"adapter_config.json: {key} = {value!r} changes what the adapter computes, and Halka does not have it"
            )


def count(config: Mapping[str, Any], key: str) -> int:
    """Return the option as a whole number above 0. Raises HalkaError for anything else."""
    value = number(key, config.get(key))
    if value < 1 or value != int(value):
        raise HalkaError(f"adapter_config.json: {key} is {value!r}, where a whole number above 0 is expected")
    return int(value)


def listed(config: Mapping[str, Any], key: str, kind: type[T], default: Iterable[T] = ()) -> tuple[T, ...]:
    """Return the option as a tuple of values of one type. Raises HalkaError for anything else."""
    value = config.get(key)
    items = list(default) if value is None else json_list(value, kind)
    if items is None or any(type(item) is not kind for item in items):
        raise HalkaError(f"adapter_config.json: {key} is {value!r}, where a list is expected")
    return tuple(items)


def left_out(config: Mapping[str, Any], layers: int) -> tuple[int, ...]:
    """Return the layers that `leave_out` names. Raises HalkaError for one beyond the base's `layers`."""
    named = listed(config, "leave_out", int)
    if other := [layer for layer in named if not 0 <= layer < layers]:
        raise HalkaError(
            f"adapter_config.json: leave_out names layer {other[0]}, and this base has {layers}: the adapter was made "
            "for another base"
        )
    return named


def has_rows(tensors: Mapping[str, Tensor], key: str, rows: int, place: str) -> None:
    """Raise HalkaError if the tensor `key` at `place` is missing, or has another number of rows than `rows`."""
    if key not in tensors:
        raise HalkaError(f"the weights lack {place}.{key}")
    if tensors[key].dim() != 2 or tensors[key].shape[0] != rows:
        shape = tuple(tensors[key].shape)
        raise HalkaError(f"{place}.{key} is {shape}, where the configuration says {rows} rows")


GATES = "its gates are means over the whole text, so a token would depend on later ones: Halka does not have them"

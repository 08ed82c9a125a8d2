"""What `adapter_config.json` says: the adapter, and the base that it was made for."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from torch import Tensor

from halka.core import Target
from halka.storage.formats.format import json_list, json_object
from halka.util.errors import HalkaError

T = TypeVar("T")
NAME = "halka"  # of the adapters that we write, within the tensors' names
VERSION = "adapters.1.3.0"
# Options that say how an adapter began or was stored, or act between adapters, and do not change its numbers.
HARMLESS = ("architecture", "init_weights", "init_weights_seed", "dtype", "attention_type", "new_attention_norm")
AT_REST: tuple[Any, ...] = (None, False, {}, [])


def base_of(targets: tuple[Target, ...]) -> Any:
    """The base that these are the targets of."""
    return next(target.module for target in targets if target.role == "base")


def identity(base: Any, base_name: str) -> dict[str, Any]:
    """What a folder says besides its method: the base it is for, and what wrote it."""
    config = base.config
    return {
        "hidden_size": config.hidden_size,
        "model_class": type(base).__name__,
        "model_name": base_name,
        "model_type": config.model_type,
        "name": NAME,
        "version": VERSION,
    }


def checked(config: Mapping[str, Any], base: Any) -> dict[str, Any]:
    """The adapter's own configuration, as the library mends those of its older versions.

    Raises HalkaError for another base than the folder names.
    """
    own, about = json_object(config.get("config")), base.config
    if own is None or not isinstance(config.get("name"), str):
        raise HalkaError("adapter_config.json holds no `config` and `name`: it is not an AdapterHub adapter's")
    for key, here in (("model_type", about.model_type), ("hidden_size", about.hidden_size)):
        if config.get(key) not in (None, here):
            raise HalkaError(f"the adapter was made for another base: {key} {config[key]} instead of {here}")
    version = config.get("version")
    own = _mended(dict(own), version)
    if config.get("type") == "text_task":  # of the forerunner: it named invertible adapters that it had none of
        own = {key: value for key, value in own.items() if key not in ("inv_adapter", "invertible_adapter")}
    if architecture_of(own) == "union":
        refuse(own, ("configs",), {}, {})
        own["configs"] = [_mended(dict(each), version) for each in listed(own, "configs", dict)]
    return own


def architecture_of(config: Mapping[str, Any]) -> str:
    """The kind of adapter: what the library calls it, `ia3` for the LoRA that scales, and `bottleneck` for none."""
    name = str(config.get("architecture") or "bottleneck")
    return "ia3" if name == "lora" and config.get("composition_mode") == "scale" else name


def parts_of(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The configurations of a union, or the one there is."""
    return config["configs"] if architecture_of(config) == "union" else [config]


def _mended(config: dict[str, Any], version: Any) -> dict[str, Any]:
    """Before there were versions, "gelu" was another one; before 1.1.0 the library left out a LoRA's α/r."""
    if version is None and "non_linearity" in config:
        renamed = {"gelu": "gelu_new", "gelu_orig": "gelu"}
        config["non_linearity"] = renamed.get(str(config["non_linearity"]), config["non_linearity"])
    if architecture_of(config) == "lora" and _before_1_1(version):
        config["alpha"] = config.get("r")
    return config


def _before_1_1(version: Any) -> bool:
    if not isinstance(version, str) or not version.startswith("adapters."):  # its forerunner had it right
        return False
    numbers = version.removeprefix("adapters.").split(".")[:2]
    return all(each.isdigit() for each in numbers) and tuple(map(int, numbers)) < (1, 1)


def refuse(
    config: Mapping[str, Any], read: Iterable[str], neutral: Mapping[str, Any], reasons: Mapping[str, str]
) -> None:
    """Raises HalkaError for options that are not read here, if they may change the numbers.

    read: those that are, or that change nothing; neutral: others' values that change nothing; reasons: why not, for
    those of which more can be said.
    """
    passed = {*read, *HARMLESS}
    for key, value in config.items():
        if key in passed or any(value == each for each in AT_REST):
            continue
        if key in reasons:
            raise HalkaError(f"adapter_config.json: {key} = {value!r}: {reasons[key]}")
        if key not in neutral or value != neutral[key]:
            raise HalkaError(
                f"adapter_config.json: {key} = {value!r} changes what the adapter computes, and Halka has none"
            )


def number(config: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """A finite number. Raises HalkaError for anything else."""
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise HalkaError(f"adapter_config.json: {key} is {value!r}, where a number is expected")
    return float(value)


def count(config: Mapping[str, Any], key: str) -> int:
    """A whole number above 0."""
    value = number(config, key)
    if value < 1 or value != int(value):
        raise HalkaError(f"adapter_config.json: {key} is {value!r}, where a whole number above 0 is expected")
    return int(value)


def listed(config: Mapping[str, Any], key: str, kind: type[T], default: Iterable[T] = ()) -> tuple[T, ...]:
    """A list of values of one type."""
    value = config.get(key)
    items = list(default) if value is None else json_list(value, kind)
    if items is None or any(type(item) is not kind for item in items):
        raise HalkaError(f"adapter_config.json: {key} is {value!r}, where a list is expected")
    return tuple(items)


def left_out(config: Mapping[str, Any], layers: int) -> tuple[int, ...]:
    """The layers that `leave_out` names. Raises HalkaError for one that a base with so many does not have."""
    named = listed(config, "leave_out", int)
    if other := [each for each in named if not 0 <= each < layers]:
        raise HalkaError(
            f"adapter_config.json: leave_out names layer {other[0]}, and this base has {layers}: the adapter was made "
            "for another base"
        )
    return named


def has_rows(there: Mapping[str, Tensor], key: str, rows: int, place: str) -> None:
    """Raises HalkaError where the tensor is not there, or has not the rows that the configuration says."""
    if key not in there:
        raise HalkaError(f"the weights lack {place}.{key}")
    if there[key].dim() != 2 or there[key].shape[0] != rows:
        shape = tuple(there[key].shape)
        raise HalkaError(f"{place}.{key} is {shape}, where the configuration says {rows} rows")


GATES = "its gates are means over the whole text, so that a token would depend on those behind it: Halka has none"

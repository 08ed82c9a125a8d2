"""Methods that peft lacks: its two files, with `peft_type` in its manner and the method's fields under `fields`.

A method that peft has, but not on experts, is told from peft's by `HALKA_` before its name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from halka.core import Adapter, Method, Target, described
from halka.methods import build_method
from halka.storage.formats.format import Contents
from halka.util.errors import HalkaError

MARK = "HALKA_"
PEFTS = ("LORA", "IA3")


def write(adapter: Adapter, targets: tuple[Target, ...]) -> Contents:
    name = adapter.method.name.upper()
    config = {"peft_type": f"{MARK}{name}" if name in PEFTS else name, "fields": described(adapter.method)["fields"]}
    if "base" in adapter.parts:  # full: what computes, not the fp32 masters
        return Contents(config, dict(adapter.parts["base"].weights()))
    return Contents(config, adapter.state_dict())


def _whole_numbers(fields: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Those in there, however deep, with the key that each stands under."""
    found: list[tuple[str, Any]] = [*fields.items()]
    while found:
        key, value = found.pop()
        if isinstance(value, Mapping):
            found.extend(value.items())
        elif isinstance(value, list):
            found.extend((key, each) for each in value)
        elif isinstance(value, int):
            yield key, value


def read(contents: Contents, targets: tuple[Target, ...]) -> tuple[Method, dict[str, Tensor]]:
    name, fields = contents.config["peft_type"].removeprefix(MARK), contents.config["fields"]
    if not isinstance(fields, Mapping):
        raise HalkaError(f"adapter_config.json: fields is {fields!r}, where a method's fields are expected")
    values = sum(tensor.numel() for tensor in contents.tensors.values())
    for key, value in _whole_numbers(fields):
        if value > values:  # before a part of that size is made
            raise HalkaError(f"adapter_config.json: {key} is {value}, and the file holds {values} values in all")
    try:
        method = build_method(name.lower(), fields)
    except ValueError as error:
        raise HalkaError(f"adapter_config.json: {error}") from None
    state = dict(contents.tensors)
    if name == "FULL":
        state = {f"base.{key}": tensor.float() for key, tensor in state.items()}
    return method, state

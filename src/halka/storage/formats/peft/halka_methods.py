"""Keep methods that peft lacks in its two files: `peft_type` is the method's name, `fields` holds its fields.

A method that peft has, but cannot compute as this adapter does, gets `HALKA_` before its name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

from torch import Tensor

from halka.core import Adapter, Method, Target, WeightPart
from halka.methods import build_method, described
from halka.storage.formats.format import Contents, json_list, json_object
from halka.util.errors import HalkaError

MARK = "HALKA_"
PEFTS = ("LORA", "IA3")


def write(adapter: Adapter, targets: tuple[Target, ...]) -> Contents:
    name = adapter.method.name.upper()
    config = {"peft_type": f"{MARK}{name}" if name in PEFTS else name, "fields": described(adapter.method)["fields"]}
    if "base" in adapter.parts:  # full: the weights in the base's precision, not the fp32 masters
        return Contents(config, dict(cast(WeightPart, adapter.parts["base"]).saved()))
    return Contents(config, adapter.state_dict())


def _whole_numbers(fields: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Yield every whole number in the fields, at any depth, with its key."""
    items_left: list[tuple[str, Any]] = [*fields.items()]
    while items_left:
        key, value = items_left.pop()
        if (inner := json_object(value)) is not None:
            items_left.extend(inner.items())
        elif (items := json_list(value, object)) is not None:
            items_left.extend((key, item) for item in items)
        elif isinstance(value, int):
            yield key, value


def read(contents: Contents, targets: tuple[Target, ...]) -> tuple[Method, dict[str, Tensor]]:
    name, fields = contents.config["peft_type"].removeprefix(MARK), json_object(contents.config["fields"])
    if fields is None:
        raise HalkaError(
            f"adapter_config.json: fields is {contents.config['fields']!r}, where a method's fields are expected"
        )
    values = sum(tensor.numel() for tensor in contents.tensors.values())
    for key, number in _whole_numbers(fields):
        if key != "tokens" and number > values:  # checked before a part of that size is allocated
            raise HalkaError(f"adapter_config.json: {key} is {number}, and the file holds {values} values in all")
    try:
        method = build_method(name.lower(), fields)
    except HalkaError as error:
        raise HalkaError(f"adapter_config.json: {error}") from None
    state = dict(contents.tensors)
    if name == "FULL":
        state = {f"base.{key}": tensor.float() for key, tensor in state.items()}
    return method, state

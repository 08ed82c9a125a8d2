"""The methods of fine-tuning, one file each; a file in this folder is listed, and imported here it is public."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from importlib import import_module
from inspect import getmembers, isclass
from pkgutil import iter_modules
from typing import Any, cast

from halka.core import Method
from halka.methods._catalogue import catalogued
from halka.methods._fields import method, option
from halka.methods.bitfit import BitFit
from halka.methods.bottleneck import Bottleneck
from halka.methods.dora import DoRA
from halka.methods.full import Full
from halka.methods.ia3 import IA3
from halka.methods.joint import Joint, joined_with, methods_of, primary
from halka.methods.llama_adapter import LlamaAdapter
from halka.methods.lora import LoRA
from halka.methods.lora_bias import LoRABias
from halka.methods.modules import Modules
from halka.methods.normed_bottleneck import NormedBottleneck
from halka.methods.positionless_prefix import PositionlessPrefix
from halka.methods.prefix import Prefix
from halka.methods.prompt import Prompt
from halka.methods.tokens import Tokens
from halka.util.errors import HalkaError

__all__ = [
    "IA3",
    "BitFit",
    "Bottleneck",
    "DoRA",
    "Full",
    "Joint",
    "LlamaAdapter",
    "LoRA",
    "LoRABias",
    "Modules",
    "NormedBottleneck",
    "PositionlessPrefix",
    "Prefix",
    "Prompt",
    "Tokens",
    "all_methods",
    "build_method",
    "catalogued",
    "described",
    "joined_with",
    "method",
    "method_named",
    "methods_of",
    "option",
    "primary",
]


def all_methods() -> dict[str, type[Method]]:
    """The methods of this folder by name, in alphabetical order, without `Joint`, which is made of others."""
    return dict(_all_methods())


@cache
def _all_methods() -> dict[str, type[Method]]:
    methods: dict[str, type[Method]] = {}
    for module in iter_modules(__path__, prefix=f"{__name__}."):
        for _, cls in getmembers(import_module(module.name), isclass):
            if is_dataclass(cls) and cls.__module__ == module.name and cls is not Joint:
                kind = cast(type[Method], cls)
                methods[kind.name] = kind
    return dict(sorted(methods.items()))


def method_named(name: str) -> type[Method]:
    """The method of that name. Raises HalkaError that lists the methods."""
    methods = _all_methods()
    if name not in methods:
        raise HalkaError(f"there is no method {name!r}: choose one of {', '.join(methods)}")
    return methods[name]


def described(method: Method) -> dict[str, Any]:
    """A method as plain data, `{"name": …, "fields": …}`; `build_method` reads it."""
    values = {field.name: _plain(getattr(method, field.name)) for field in fields(method)}
    return {"name": method.name, "fields": values}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in cast(Sequence[Any], value)]
    return described(value) if is_dataclass(value) else value  # type: ignore[arg-type]


def build_method(name: str, fields: Mapping[str, Any]) -> Method:
    """The method of plain data, as `described` writes it: `build_method(**described(method)) == method`.

    Raises HalkaError for an unknown name or field, and for a value of another type.
    """
    kind = Joint if name == Joint.name else method_named(name)
    return kind(**{key: _value(value) for key, value in fields.items()})


def _value(value: Any) -> Any:
    """A field's value out of JSON: an object is a method, a list a tuple."""
    if isinstance(value, Mapping):
        plain = cast(Mapping[str, Any], value)
        if {*plain} != {"name", "fields"}:
            raise HalkaError(f"a method has name and fields, not {', '.join(plain)}")
        return build_method(plain["name"], plain["fields"])
    return tuple(map(_value, cast(Sequence[Any], value))) if isinstance(value, list | tuple) else value

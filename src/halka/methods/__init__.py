"""The methods, one file each. A new one is found by being here: no registration. The core has two of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from importlib import import_module
from inspect import getmembers, isclass
from pkgutil import iter_modules
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from halka.core import Joint, Method, Modules
from halka.methods.bitfit import BitFit
from halka.methods.bottleneck import Bottleneck
from halka.methods.dora import DoRA
from halka.methods.full import Full
from halka.methods.ia3 import IA3
from halka.methods.llama_adapter import LlamaAdapter
from halka.methods.lora import LoRA
from halka.methods.lora_bias import LoRABias
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
    "made",
    "method_named",
]


def all_methods() -> dict[str, type[Method]]:
    """Every method in this folder, and `Modules`, by its name, in alphabetical order."""
    found: dict[str, type[Method]] = {Modules.name: Modules}
    for module in iter_modules(__path__, prefix=f"{__name__}."):
        for _, member in getmembers(import_module(module.name), isclass):
            if is_dataclass(member) and member.__module__ == module.name and hasattr(member, "build"):
                found[member.name] = member  # type: ignore[attr-defined]
    return dict(sorted(found.items()))


def method_named(name: str) -> type[Method]:
    """The method of that name. Raises ValueError that lists the names there are."""
    methods = all_methods()
    if name not in methods:
        raise HalkaError(f"there is no method {name!r}: choose one of {', '.join(methods)}")
    return methods[name]


def made(name: str, fields: Mapping[str, Any]) -> Method:
    """The method that `core.described` told of. Raises ValueError for an unknown name, field or value."""
    kind = Joint if name == Joint.name else method_named(name)
    hints = get_type_hints(kind)
    try:
        given = {key: _value(value) for key, value in fields.items()}
        for key, value in given.items():
            if not _fits(value, hints.get(key)):
                raise TypeError(f"{key} is {value!r}")
        return kind(**given)
    except TypeError as error:
        raise HalkaError(f"{name} with fields that it does not have, or of other types: {error}") from None


def _value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return made(**value)
    return tuple(_value(each) for each in value) if isinstance(value, list | tuple) else value


PLAIN: dict[Any, Any] = {int: int, float: int | float, str: str, bool: bool, NoneType: NoneType}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a field's type; whatever is none of the plain ones fits."""
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_fits(each, get_args(hint)[0]) for each in value)
    if get_args(hint):
        return any(_fits(value, each) for each in get_args(hint))
    if hint is Method:
        return is_dataclass(value)
    return hint not in PLAIN or (isinstance(value, PLAIN[hint]) and isinstance(value, bool) == (hint is bool))

"""`@method`: a class's annotated fields become hyper-parameters, with help, checks and errors that lead on."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from types import UnionType
from typing import Any, Literal, TypeVar, Union, dataclass_transform, get_args, get_origin, get_type_hints

from halka.util.errors import HalkaError
from halka.util.settings import WORDS, documented
from halka.util.suggest import suggest

T = TypeVar("T")

# Options of peft that are no field of ours.
INSTEAD = {
    "use_rslora": 'scaling="root"',
    "use_dora": "the method halka.DoRA",
    "lora_bias": "the method halka.LoRABias",
    "bias": "halka.Joint of this method and halka.BitFit",
    "modules_to_save": "halka.Joint of this method and halka.Modules",
    "trainable_token_indices": "halka.Joint of this method and halka.Tokens",
    "reduction_factor": "width, the hidden width divided by it",
    "task_type": "not needed: the base's class tells it",
    "inference_mode": "not needed",
}
ROLES = {  # of linear layers, by the names that transformers' architectures have for them
    **{"q_proj": "attn.q", "k_proj": "attn.k", "v_proj": "attn.v", "o_proj": "attn.o", "out_proj": "attn.o"},
    **{"query": "attn.q", "key": "attn.k", "value": "attn.v", "q": "attn.q", "k": "attn.k", "v": "attn.v"},
    **dict.fromkeys(("qkv_proj", "c_attn", "query_key_value", "Wqkv"), "attn.qkv"),
    **{"gate_proj": "mlp.gate", "up_proj": "mlp.up", "down_proj": "mlp.down", "gate_up_proj": "mlp.gate_up"},
    **{"fc1": "mlp.up", "fc2": "mlp.down", "c_fc": "mlp.up", "dense_h_to_4h": "mlp.up", "dense_4h_to_h": "mlp.down"},
    **{"lm_head": "head", "embed_tokens": "embedding", "all-linear": "linear"},
}


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def method(cls: type[T]) -> type[T]:
    """Make the class a frozen dataclass whose fields are hyper-parameters.

    Each field's metadata `help` goes into the class's docstring, whose first line is the file's if it has none of its
    own. A list is taken as a tuple. Instances raise HalkaError as those of `checked` do, naming our fields for peft's.
    """
    first_line = (sys.modules[cls.__module__].__doc__ or cls.__name__).splitlines()[0]
    cls.__doc__ = inspect.cleandoc(cls.__doc__ or first_line)
    built = dataclass(frozen=True)(cls)
    names = [each.name for each in fields(built)]  # type: ignore[arg-type]
    kind: Any = cls  # every method has a name
    built = checked(built, lambda unknown: _unknown_fields(cls.__name__, unknown, names), f"{kind.name}: ")
    return documented(built) if names else built


def checked(cls: type[T], unknown_fields: Callable[[dict[str, Any]], str], prefix: str = "") -> type[T]:
    """Let a dataclass check the arguments of new instances; a list is taken as a tuple.

    They raise HalkaError for unknown fields, with the message that `unknown_fields` makes of them and their values, for
    too many arguments or too few, and, after `prefix`, for a value that is not of its field's type.
    """
    init = cls.__init__
    signature = inspect.signature(init)
    names = [each.name for each in fields(cls)]  # type: ignore[arg-type]

    @functools.wraps(init)
    def checked_init(self: Any, *args: Any, **values: Any) -> None:
        if unknown := {name: value for name, value in values.items() if name not in names}:
            raise HalkaError(unknown_fields(unknown))
        try:
            bound = signature.bind(self, *args, **values)
        except TypeError as error:
            shown = ", ".join([*map(repr, args), *(f"{name}={value!r}" for name, value in values.items())])
            raise HalkaError(f"{cls.__name__}({shown}): {error}: its fields are {', '.join(names)}") from None
        for name, value in list(bound.arguments.items())[1:]:  # without self
            bound.arguments[name] = value = _plain_value(value)
            _check_choice(cls, prefix, name, value)
            _check_type(cls, prefix, name, value)
        init(*bound.args, **bound.kwargs)

    cls.__init__ = checked_init
    return cls


def explained_roles(names: Iterable[str]) -> str:
    """What Halka calls these linear layers, for messages: "q_proj is attn.q"; empty if it knows none of them."""
    return ", ".join(f"{name} is {ROLES[name]}" for name in names if name in ROLES)


@functools.cache
def _choices(cls: type) -> dict[str, tuple[bool, tuple[str, ...]]]:
    """The values that each field with a `Literal` type may have, and whether it is a tuple of them."""
    found = {}
    for name, hint in get_type_hints(cls).items():
        many = get_origin(hint) is tuple
        inner = get_args(hint)[0] if many else hint
        if get_origin(inner) is Literal:
            found[name] = many, get_args(inner)
    return found


@functools.cache
def _plain_types(cls: type) -> dict[str, tuple[type, bool]]:
    """The fields of one plain type, and whether None is allowed besides."""
    plain = {}
    for name, hint in get_type_hints(cls).items():
        options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        kinds = [option for option in options if option is not type(None)]
        if len(kinds) == 1 and kinds[0] in WORDS:
            plain[name] = kinds[0], len(options) > 1
    return plain


def _plain_value(value: Any) -> Any:
    """A list as a tuple, numpy's numbers as Python's, anything else as it is."""
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, Integral) and not isinstance(value, int):
        return int(value)
    return float(value) if isinstance(value, Real) and not isinstance(value, int | float) else value


def _check_type(cls: type, prefix: str, name: str, value: Any) -> None:
    kind, optional = _plain_types(cls).get(name, (object, True))
    if value is None and optional:
        return
    fits = isinstance(value, int | float if kind is float else kind)
    if not fits or (isinstance(value, bool) and kind in (int, float)):
        none = " or None" if optional else ""
        raise HalkaError(f"{prefix}{name} must be {WORDS[kind]}{none}, not {value!r}")


def _check_choice(cls: type, prefix: str, name: str, value: Any) -> None:
    if name not in _choices(cls):
        return
    many, choices = _choices(cls)[name]
    if many and isinstance(value, str):
        raise HalkaError(f'{prefix}{name} is a tuple: ("{value}",), not "{value}"')
    if wrong := [each for each in (value if many else [value]) if each not in choices]:
        raise HalkaError(f"{prefix}{name} {'takes' if many else 'is one of'} {', '.join(choices)}, not {wrong[0]!r}")


def _unknown_fields(kind: str, unknown: Mapping[str, Any], names: list[str]) -> str:
    translated = []
    for name, value in unknown.items():
        ours = suggest(name, names)
        if name in INSTEAD:
            translated.append(f"{name}: {INSTEAD[name]}")
        elif ours == "targets" and isinstance(value, str | list | tuple | set):
            paths = [value] if isinstance(value, str) else sorted(value) if isinstance(value, set) else value
            translated.append(f"{name}={value!r} is targets={tuple(ROLES.get(path, path) for path in paths)!r}")
        elif ours is not None:
            translated.append(f"{name}={value!r} is {ours}={value!r}")
    its_fields = f"its fields are {', '.join(names)}" if names else "it has no fields"
    shown = ", ".join(map(repr, unknown))
    return f"{kind} has no field {shown}: {'; '.join([*translated, its_fields])} (help({kind}) explains them)"

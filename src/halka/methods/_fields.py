"""`@method`: a class's annotated fields become hyper-parameters, with help, checks and errors that lead on."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar, cast, dataclass_transform

from halka.util.fields import checked
from halka.util.settings import documented
from halka.util.suggest import instead, suggest

T = TypeVar("T")

ROLES = {  # of linear layers, by the names that transformers' architectures have for them
    **{"q_proj": "attn.q", "k_proj": "attn.k", "v_proj": "attn.v", "o_proj": "attn.o", "out_proj": "attn.o"},
    **{"query": "attn.q", "key": "attn.k", "value": "attn.v", "q": "attn.q", "k": "attn.k", "v": "attn.v"},
    **dict.fromkeys(("qkv_proj", "c_attn", "query_key_value", "Wqkv"), "attn.qkv"),
    **{"gate_proj": "mlp.gate", "up_proj": "mlp.up", "down_proj": "mlp.down", "gate_up_proj": "mlp.gate_up"},
    **{"fc1": "mlp.up", "fc2": "mlp.down", "c_fc": "mlp.up", "dense_h_to_4h": "mlp.up", "dense_4h_to_h": "mlp.down"},
    **{"lm_head": "head", "embed_tokens": "embedding", "all-linear": "linear"},
}


def option(*, default: Any, help: str, check: Callable[[str, Any], None] | None = None) -> Any:
    """A method's field: its default, what it means, and a check of its values, such as those of `_checks`."""
    return field(default=default, metadata={"help": help, "check": check})


@dataclass_transform(frozen_default=True, field_specifiers=(field, option))
def method(cls: type[T]) -> type[T]:
    """Make the class a frozen dataclass whose fields are hyper-parameters.

    Each field's metadata `help` goes into the class's docstring, whose first line is the file's if it has none of its
    own. A list is taken as a tuple. Instances raise HalkaError as those of `checked` do, naming our fields for peft's.
    """
    first_line = (sys.modules[cls.__module__].__doc__ or cls.__name__).splitlines()[0]
    cls.__doc__ = inspect.cleandoc(cls.__doc__ or first_line)
    built = dataclass(frozen=True)(cls)
    names = [one.name for one in fields(built)]  # type: ignore[arg-type]
    kind: Any = cls  # every method has a name
    built = checked(built, lambda unknown: _unknown_fields(cls.__name__, unknown, names), f"{kind.name}: ")
    return documented(built) if names else built


def explained_roles(names: Iterable[str]) -> str:
    """What Halka calls these linear layers, for messages: "q_proj is attn.q"; empty if it knows none of them."""
    return ", ".join(f"{name} is {ROLES[name]}" for name in names if name in ROLES)


def _unknown_fields(kind: str, unknown: Mapping[str, object], names: list[str]) -> str:
    translated: list[str] = []
    for name, value in unknown.items():
        ours = suggest(name, names)
        if other := instead(name):
            translated.append(f"{name}: {other}")
        elif ours == "targets" and isinstance(value, str | list | tuple | set):
            paths = [value] if isinstance(value, str) else [str(path) for path in cast(Iterable[object], value)]
            paths = sorted(paths) if isinstance(value, set) else paths
            translated.append(f"{name}={value!r} is targets={tuple(ROLES.get(path, path) for path in paths)!r}")
        elif ours is not None:
            translated.append(f"{name}={value!r} is {ours}={value!r}")
    its_fields = f"its fields are {', '.join(names)}" if names else "it has no fields"
    shown = ", ".join(map(repr, unknown))
    return f"{kind} has no field {shown}: {'; '.join([*translated, its_fields])} (help({kind}) explains them)"

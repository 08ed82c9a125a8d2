"""Single tokens trained, and nothing else: `trainable_tokens_delta` (N, D), which holds the rows themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from halka.core import Method, Part, Target
from halka.methods import Tokens
from halka.storage.formats.peft.modules import PREFIX as PREFIX
from halka.storage.formats.peft.options import refuse_unknown
from halka.storage.formats.peft.saved_modules import ROWS, read_rows, write_rows

PEFT_TYPE = "TRAINABLE_TOKENS"
METHODS = ("tokens",)
BARE = ()
ALONE = ROWS.rpartition(".")[2]


def write(
    methods: Sequence[Method], parts: Mapping[Method, Mapping[str, Part]], targets: tuple[Target, ...]
) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Options and tensors; None where peft would act on more than the method does."""
    every = {path: part for each in parts.values() for path, part in each.items()}
    method = methods[0]
    assert isinstance(method, Tokens)
    rows = write_rows(method, every, targets)
    if len(methods) > 1 or rows is None or len(rows) != 1:
        return None
    ((path, tensor),) = rows.items()
    config: dict[str, Any] = {
        "peft_type": PEFT_TYPE,
        "token_indices": list(method.tokens),
        "target_modules": [path],
    }
    return config, {f"{path}.{ALONE}": tensor}


def read(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], targets: tuple[Target, ...]
) -> tuple[list[Method], dict[str, Tensor], dict[str, Tensor]]:
    """The methods, their state, and the tensors that are none of theirs."""
    refuse_unknown(config, {"token_indices"})
    rows = {key.removesuffix(f".{ALONE}"): each for key, each in tensors.items() if key.endswith(f".{ALONE}")}
    indices = dict.fromkeys(rows, config.get("token_indices"))
    methods, state = read_rows(indices, rows, targets)
    return methods, state, {key: each for key, each in tensors.items() if not key.endswith(f".{ALONE}")}

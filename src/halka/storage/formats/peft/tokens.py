"""Convert adapters of single tokens only: `trainable_tokens_delta` (N, D), which holds the rows, not differences."""

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
    """Return options and tensors; None if peft would train other rows than the method does."""
    every = {path: part for by_path in parts.values() for path, part in by_path.items()}
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
    """Return the methods, their state, and the tensors that are not the methods'."""
    refuse_unknown(config, {"token_indices"})
    rows = {key.removesuffix(f".{ALONE}"): tensor for key, tensor in tensors.items() if key.endswith(f".{ALONE}")}
    indices = dict.fromkeys(rows, config.get("token_indices"))
    methods, state = read_rows(indices, rows, targets)
    return methods, state, {key: tensor for key, tensor in tensors.items() if not key.endswith(f".{ALONE}")}

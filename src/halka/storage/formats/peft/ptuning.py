"""Read peft's P-tuning (Liu et al. 2021, arXiv:2103.10385): it saves its encoder's output, which is a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from halka.core import Method, Target
from halka.storage.formats.peft.modules import OUTER as PREFIX  # noqa: F401 (every kind has one)  # pyright: ignore[reportUnusedImport]
from halka.storage.formats.peft.options import refuse_unknown
from halka.storage.formats.peft.prompt import BARE as BARE
from halka.storage.formats.peft.prompt import read_embeddings

PEFT_TYPE = "P_TUNING"
ENCODER = {
    *("num_virtual_tokens", "num_transformer_submodules"),
    *("encoder_reparameterization_type", "encoder_hidden_size", "encoder_num_layers", "encoder_dropout"),
}


def read(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], targets: tuple[Target, ...]
) -> tuple[list[Method], dict[str, Tensor], dict[str, Tensor]]:
    """Return the method, its state, and the tensors that are not the method's."""
    refuse_unknown(config, ENCODER)
    return read_embeddings(config, tensors, targets)

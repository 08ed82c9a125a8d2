"""`halka.open`: load the base that an adapter's folder names, its tokenizer, and the adapter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, Unpack

from halka.core import AdaptedModel
from halka.models import adapt
from halka.models.loading import load_base
from halka.storage.adapter_folder import AdapterFolder
from halka.storage.save_load import Allowed, load
from halka.util.dtypes import Dtype, Quantize
from halka.util.errors import HalkaError, OutOfMemoryError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Opened(NamedTuple):
    """The result of `open`; `model` has the adapter, and `model.use(name)` applies it."""

    base: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    model: AdaptedModel


def open(
    adapter_folder: str | Path | AdapterFolder,
    *,
    base: str | Path | None = None,
    dtype: Dtype | torch.dtype | Literal["auto"] = "bfloat16",
    device: str | None = None,
    quantize: Quantize | None = None,
    name: str | None = None,
    **allowed: Unpack[Allowed],
) -> Opened:
    """Load the base that an adapter's folder names, with a head for its labels, and the adapter onto it.

    adapter_folder  a folder, a run's folder or a name on the hub, as `halka.load` takes it
    base            another name or path of the base, where the folder names none or one that does not exist here
    name            the adapter's name in the model; default: its folder's or run's name

    `dtype`, `device` and `quantize` are as in `halka.load_base`, the other options as in `halka.load`; raises as both
    do, and HalkaError where neither the folder nor `base` names a base.
    """
    folder = AdapterFolder.open(adapter_folder, allow_pickle=allowed.get("allow_pickle", False))
    source = folder.base_name if base is None else base
    if source is None:
        raise HalkaError(f"{folder} does not say which base it was trained on: pass base=…")
    try:
        loaded, tokenizer = load_base(
            source, kind=folder.kind, labels=folder.labels or None, dtype=dtype, device=device, quantize=quantize
        )
    except HalkaError as error:
        if base is not None or isinstance(error, OutOfMemoryError):
            raise
        raise type(error)(f"the base that {folder} names: {error}. Pass another name or path as base=…") from error
    model = adapt(loaded, tokenizer)
    load(model, folder, name=name, **allowed)
    return Opened(loaded, tokenizer, model)

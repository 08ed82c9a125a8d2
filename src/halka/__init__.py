"""Halka: a large model stays as it is, a small part of it is trained."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from halka.estimating import estimate
    from halka.interop.views import view
    from halka.merging.combining import combine
    from halka.merging.error import merge, merge_error
    from halka.merging.exporting import export
    from halka.methods import (
        IA3,
        BitFit,
        Bottleneck,
        DoRA,
        Full,
        Joint,
        LlamaAdapter,
        LoRA,
        LoRABias,
        Modules,
        NormedBottleneck,
        PositionlessPrefix,
        Prefix,
        Prompt,
        Tokens,
    )
    from halka.models import adapt
    from halka.models.loading import load_base
    from halka.storage.adapter_store import AdapterStore
    from halka.storage.pool import AdapterPool
    from halka.storage.save_load import load, save
    from halka.training.loop import Job, train, train_many
    from halka.training.run import TrainConfig
    from halka.util.errors import (
        DamagedFolderError,
        DataError,
        HalkaError,
        OutOfMemoryError,
        TrainingError,
        UnknownAdapterError,
        WrongBaseError,
    )

__version__ = "0.1.0"
__all__ = [
    "IA3",
    "AdapterPool",
    "AdapterStore",
    "BitFit",
    "Bottleneck",
    "DamagedFolderError",
    "DataError",
    "DoRA",
    "Full",
    "HalkaError",
    "Job",
    "Joint",
    "LlamaAdapter",
    "LoRA",
    "LoRABias",
    "Modules",
    "NormedBottleneck",
    "OutOfMemoryError",
    "PositionlessPrefix",
    "Prefix",
    "Prompt",
    "Tokens",
    "TrainConfig",
    "TrainingError",
    "UnknownAdapterError",
    "WrongBaseError",
    "adapt",
    "combine",
    "estimate",
    "export",
    "load",
    "load_base",
    "merge",
    "merge_error",
    "save",
    "train",
    "train_many",
    "view",
]
_HOMES = {
    **dict.fromkeys(
        (
            "DamagedFolderError",
            "DataError",
            "HalkaError",
            "OutOfMemoryError",
            "TrainingError",
            "UnknownAdapterError",
            "WrongBaseError",
        ),
        "halka.util.errors",
    ),
    "AdapterPool": "halka.storage.pool",
    "AdapterStore": "halka.storage.adapter_store",
    "adapt": "halka.models",
    "load_base": "halka.models.loading",
    "load": "halka.storage.save_load",
    "save": "halka.storage.save_load",
    "combine": "halka.merging.combining",
    "estimate": "halka.estimating",
    "export": "halka.merging.exporting",
    "merge": "halka.merging.error",
    "merge_error": "halka.merging.error",
    "Job": "halka.training.loop",
    "TrainConfig": "halka.training.run",
    "train": "halka.training.loop",
    "train_many": "halka.training.loop",
    "view": "halka.interop.views",
}


def __getattr__(name: str) -> Any:
    """A public name from where it lives, at its first use: `halka --help` need not wait for torch."""
    if name not in __all__:
        raise AttributeError(f"module 'halka' has no attribute {name!r}")
    return getattr(import_module(_HOMES.get(name, "halka.methods")), name)

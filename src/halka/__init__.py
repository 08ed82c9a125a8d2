"""Halka: parameter-efficient fine-tuning of language models. A frozen base, and small adapters that are trained.

A public name stands in two places: with its module in `_PUBLIC`, and in the imports for type checkers (a test holds
them equal). It is imported at its first use, so that `import halka` waits for no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from halka.core import AdaptedModel as AdaptedModel
    from halka.data.examples import Example as Example
    from halka.data.examples import Message as Message
    from halka.data.examples import read_examples as read_examples
    from halka.data.task import load_task as load_task
    from halka.engine import Answer as Answer
    from halka.engine import AsyncEngine as AsyncEngine
    from halka.engine import Constraint as Constraint
    from halka.engine import Engine as Engine
    from halka.engine import Request as Request
    from halka.engine import Sampling as Sampling
    from halka.engine import Stopping as Stopping
    from halka.estimating import estimate as estimate
    from halka.evaluation.evaluating import evaluate as evaluate
    from halka.evaluation.generation import generate as generate
    from halka.interop.views import view as view
    from halka.merging.combining import combine as combine
    from halka.merging.error import merge_error as merge_error
    from halka.merging.exporting import export as export
    from halka.methods import IA3 as IA3
    from halka.methods import BitFit as BitFit
    from halka.methods import Bottleneck as Bottleneck
    from halka.methods import DoRA as DoRA
    from halka.methods import Full as Full
    from halka.methods import Joint as Joint
    from halka.methods import LlamaAdapter as LlamaAdapter
    from halka.methods import LoRA as LoRA
    from halka.methods import LoRABias as LoRABias
    from halka.methods import Modules as Modules
    from halka.methods import NormedBottleneck as NormedBottleneck
    from halka.methods import PositionlessPrefix as PositionlessPrefix
    from halka.methods import Prefix as Prefix
    from halka.methods import Prompt as Prompt
    from halka.methods import Tokens as Tokens
    from halka.models import adapt as adapt
    from halka.models import load_base as load_base
    from halka.storage.adapter_folder import AdapterFolder as AdapterFolder
    from halka.storage.adapter_store import AdapterStore as AdapterStore
    from halka.storage.formats.peft.from_config import method_from_peft as method_from_peft
    from halka.storage.opening import open as open
    from halka.storage.pool import AdapterPool as AdapterPool
    from halka.storage.save_load import load as load
    from halka.storage.save_load import save as save
    from halka.training import Job as Job
    from halka.training import Observer as Observer
    from halka.training import RunFolder as RunFolder
    from halka.training import Step as Step
    from halka.training import TrainConfig as TrainConfig
    from halka.training import TrainResult as TrainResult
    from halka.training import fit as fit
    from halka.training import train as train
    from halka.training import train_many as train_many
    from halka.util.deterministic import deterministic as deterministic
    from halka.util.errors import DamagedFolderError as DamagedFolderError
    from halka.util.errors import DataError as DataError
    from halka.util.errors import HalkaError as HalkaError
    from halka.util.errors import OutOfMemoryError as OutOfMemoryError
    from halka.util.errors import TrainingError as TrainingError
    from halka.util.errors import UnknownAdapterError as UnknownAdapterError
    from halka.util.errors import WrongBaseError as WrongBaseError

_PUBLIC = {
    "data.examples": "Example Message read_examples",
    "data.task": "load_task",
    "engine": "Answer AsyncEngine Constraint Engine Request Sampling Stopping",
    "estimating": "estimate",
    "evaluation.evaluating": "evaluate",
    "core": "AdaptedModel",
    "evaluation.generation": "generate",
    "interop.views": "view",
    "merging.combining": "combine",
    "merging.error": "merge_error",
    "merging.exporting": "export",
    "methods": "BitFit Bottleneck DoRA Full IA3 Joint LlamaAdapter LoRA LoRABias Modules NormedBottleneck "
    "PositionlessPrefix Prefix Prompt Tokens",
    "models": "adapt load_base",
    "storage.adapter_folder": "AdapterFolder",
    "storage.formats.peft.from_config": "method_from_peft",
    "storage.opening": "open",
    "storage.save_load": "load save",
    "storage.adapter_store": "AdapterStore",
    "storage.pool": "AdapterPool",
    "training": "Job Observer RunFolder Step TrainConfig TrainResult fit train train_many",
    "util.deterministic": "deterministic",
    "util.errors": "DamagedFolderError DataError HalkaError OutOfMemoryError TrainingError UnknownAdapterError "
    "WrongBaseError",
}
_MODULES = {name: f"halka.{module}" for module, names in _PUBLIC.items() for name in names.split()}

__version__ = "0.1.0"
__all__ = sorted({*_MODULES} - {"open"})  # `from halka import *` leaves the builtin  # pyright: ignore[reportUnsupportedDunderAll]


if not TYPE_CHECKING:  # to type checkers a name that is not imported above is an error

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module 'halka' has no attribute {name!r}")
        return getattr(import_module(_MODULES[name]), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})

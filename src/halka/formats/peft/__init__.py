"""Hugging Face peft's adapter folders: its configuration and tensor names for our methods and parts.

What peft has is written so that `PeftModel.from_pretrained` and others load it, one file here a kind. Methods that peft
lacks use the same two files (`own.py`). Layouts as peft 0.21 writes them.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from halka.core import Adapter, Method, Target
from halka.formats.folder import Files, Folder
from halka.formats.peft import ia3, lora, own, prefix, prompt

NAME = "peft"
FILES = Files("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
CONFIG, WEIGHTS = FILES.config, FILES.weights
KINDS = (lora, ia3, prefix, prompt)  # each has METHODS, PEFT_TYPE, `read` and `write`


def found(folder: Path) -> bool:
    """Whether the folder holds weights under peft's name for them."""
    return any((folder / name).exists() for name in (FILES.weights, FILES.pickle))


def read(folder: Folder, targets: tuple[Target, ...]) -> tuple[Method, dict[str, Tensor]]:
    """The method that a folder holds and its state under our names, for a base with `targets`.

    Raises ValueError for options that Halka does not have, tensors of unknown names, modules that the base lacks, and
    roles that are there in some layers only.
    """
    peft_type = folder.config.get("peft_type")
    if not isinstance(peft_type, str):
        raise ValueError(f"{CONFIG} names no peft_type: it is not an adapter's configuration")
    kinds = {each.PEFT_TYPE: each for each in KINDS}
    if peft_type not in kinds and "fields" not in folder.config:
        known = ", ".join([*kinds, "and Halka's own methods in capitals"])
        raise ValueError(f"adapters of the type {peft_type!r} cannot be read: Halka knows {known}")
    return kinds.get(peft_type, own).read(folder, targets)


def write(adapter: Adapter, targets: tuple[Target, ...], base_name: str) -> Folder:
    """An adapter in peft's names; `targets` are all of its base's."""
    kind = next((each for each in KINDS if adapter.method.name in each.METHODS), own)
    written = kind.write(adapter, targets)
    common = {"task_type": "CAUSAL_LM", "base_model_name_or_path": base_name, "inference_mode": True, "revision": None}
    tensors = {key: tensor.detach().contiguous() for key, tensor in written.tensors.items()}
    return Folder({**common, **written.config}, tensors)

"""A LoRA as a GGUF file beside its base's: `llama-cli -m base.gguf --lora adapter.gguf`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from halka.core import Adapter
from halka.formats.gguf import _quiet, architecture_of, check, finish, name_in_gguf, rotated
from halka.methods import LoRA


def write_gguf_lora(base: Any, adapter: Adapter, path: Path, name: str) -> None:
    """Write the file `path`: factors in fp32, B's rows in llama.cpp's order; it scales by `adapter.lora.alpha` / rank.

    Raises ValueError for another method than LoRA, and where the base has no tensor of its own: a tied head.
    """
    from gguf import GGML_QUANT_VERSION, GGUFType, GGUFWriter, Keys

    method = adapter.method
    if not isinstance(method, LoRA):
        raise ValueError(
            f"llama.cpp has LoRA adapters alone, and this is {method.name}: merge it and write the whole model as gguf"
        )
    architecture = architecture_of(base)
    check(base)
    writer = GGUFWriter(path, architecture)
    writer.add_type(GGUFType.ADAPTER)
    writer.add_string(Keys.Adapter.TYPE, "lora")
    writer.add_name(name)
    writer.add_float32(Keys.Adapter.LORA_ALPHA, method.scale * method.rank)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    with _quiet(), torch.no_grad():
        for module, part in sorted(adapter.parts.items()):
            weight = f"{module}.weight"
            if weight in base.all_tied_weights_keys:
                raise ValueError(
                    f"{module} is tied to the embeddings, so that a base in GGUF has no tensor for it: train without "
                    "the head, or merge and write the whole model as gguf"
                )
            stored = name_in_gguf(base, weight)
            A, B = (part.get_parameter(key).detach().cpu() for key in ("lora_A", "lora_B"))
            writer.add_tensor(f"{stored}.lora_a", A.contiguous().numpy())
            writer.add_tensor(f"{stored}.lora_b", rotated(base, weight, B).contiguous().numpy())
        finish(writer)

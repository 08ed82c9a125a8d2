"""Write a LoRA as a GGUF file, to use with its base's: `llama-cli -m base.gguf --lora adapter.gguf`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from halka.core import Adapter
from halka.methods.lora import LoRAPart
from halka.storage.formats.gguf.model import architecture_of, check, finish, name_in_gguf, quiet, rotated
from halka.util.errors import HalkaError


def write_gguf_lora(base: Any, adapter: Adapter, path: Path, name: str) -> None:
    """Write the factors in fp32, B's rows in llama.cpp's order; llama.cpp scales by `adapter.lora.alpha` / rank.

    Raises HalkaError for parts other than LoRA's, and for a head that is tied to the embeddings.
    """
    from gguf import GGML_QUANT_VERSION, GGUFType, GGUFWriter, Keys

    parts: dict[str, LoRAPart] = {}
    for module, part in adapter.parts.items():
        if type(part) is not LoRAPart:
            raise HalkaError(
                f"llama.cpp only has LoRA adapters of linear layers, and this is {adapter.method.name} at {module}: "
                "merge it and write the whole model as gguf"
            )
        parts[module] = part
    architecture = architecture_of(base)
    check(base)
    alphas = {module: part.scale * len(part.lora_A) for module, part in parts.items()}
    alpha = max(alphas.values())  # the file holds one alpha: B of parts with another is rescaled
    writer = GGUFWriter(path, architecture)
    writer.add_type(GGUFType.ADAPTER)
    writer.add_string(Keys.Adapter.TYPE, "lora")
    writer.add_name(name)
    writer.add_float32(Keys.Adapter.LORA_ALPHA, alpha)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    with quiet(), torch.no_grad():
        for module, part in sorted(parts.items()):
            weight = f"{module}.weight"
            if weight in base.all_tied_weights_keys:
                raise HalkaError(
                    f"{module} is tied to the embeddings, so a base in GGUF has no tensor for it: train without the "
                    "head, or merge and write the whole model as gguf"
                )
            stored = name_in_gguf(base, weight)
            A, B = part.lora_A.detach().cpu(), part.lora_B.detach().cpu()
            scaled = B if alphas[module] == alpha else B * (alphas[module] / alpha)
            writer.add_tensor(f"{stored}.lora_a", A.contiguous().numpy())
            writer.add_tensor(f"{stored}.lora_b", rotated(base, weight, scaled).contiguous().numpy())
        finish(writer)

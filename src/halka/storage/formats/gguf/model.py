"""Write a whole model as a GGUF file, for llama.cpp and programs built on it (ollama, LM Studio).

Metadata and tensors equal those of llama.cpp's own converter, byte for byte for Llama, where both were compared. Names
come from the `gguf` library. Only `ARCHITECTURES` are written: for others llama.cpp might load the file and compute
something else.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from halka.storage.formats.gguf.tokenizer import write_tokenizer
from halka.storage.formats.model_folder import described, write_generation_config
from halka.util.errors import HalkaError

if TYPE_CHECKING:
    from gguf import GGUFWriter, TensorNameMap

ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
}  # transformers' -> llama.cpp's
PAIRED = ("llama",)  # llama.cpp rotates rows i and i + 1 together, transformers i and i + d/2
FILE_TYPES = {"float32": "ALL_F32", "float16": "MOSTLY_F16", "bfloat16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
WHY_NOT = (
    "write it as safetensors (--as safetensors) and try llama.cpp's own convert_hf_to_gguf.py on that folder; for an "
    "adapter, keep peft's folder"
)


def write_gguf(base: Any, tokenizer: Any, weights: Mapping[str, Tensor], path: Path, name: str, kind: str) -> None:
    """Write `base` with these `weights` (by its own tensor names) to `path`.

    name    the model's name in the file's metadata
    kind    the tensors' type, one of FILE_TYPES; vectors and norms stay in fp32

    Raises HalkaError for an architecture, a rotary scheme or a tokenizer that llama.cpp would compute differently.
    """
    from gguf import GGML_QUANT_VERSION, GGUFType, GGUFWriter, LlamaFileType, Metadata, size_label

    check_whole(base, tokenizer, kind)
    architecture = architecture_of(base)
    model = described(base, weights)
    writer = GGUFWriter(path, architecture)
    with quiet(), TemporaryDirectory() as temporary:
        folder = Path(temporary) / name
        folder.mkdir()
        model.config.save_pretrained(folder)
        write_generation_config(model, folder)
        tokenizer.save_pretrained(folder)
        for key, tensor in tensors_of(model, weights):
            _add(writer, key, tensor, kind)
        counts = writer.get_total_parameter_count()
        metadata = Metadata.load(model_path=folder, total_params=counts[0])
        metadata.name = metadata.name or name
        metadata.size_label = metadata.size_label or size_label(*counts)
        writer.add_type(GGUFType.MODEL)
        metadata.set_gguf_meta_model(writer)
        _write_sizes(writer, model.config, architecture, LlamaFileType[FILE_TYPES[kind]])
        writer.add_quantization_version(GGML_QUANT_VERSION)
        prefix = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("add_prefix_space")
        if prefix is not None and architecture == "llama":
            writer.add_add_space_prefix(prefix)
        write_tokenizer(writer, tokenizer, folder, model.config.vocab_size)
        if architecture == "llama" and model.config.vocab_size == 49152:  # as the converter does for SmolLM and Granite
            writer.add_add_bos_token(False)
        finish(writer)


def check_whole(base: Any, tokenizer: Any, kind: str) -> None:
    """Raise HalkaError for a base, a tokenizer or a tensor type that `write_gguf` cannot write."""
    architecture_of(base)
    check(base)
    if kind not in FILE_TYPES:
        raise HalkaError(f"GGUF files hold {', '.join(FILE_TYPES)}, not {kind}")
    if tokenizer is None:
        raise HalkaError("a GGUF file holds the tokenizer too: `halka.adapt(base, tokenizer)`")


def architecture_of(base: Any) -> str:
    """Return llama.cpp's name for the base's architecture. Raises HalkaError for one not in `ARCHITECTURES`."""
    kind = base.config.model_type
    if kind not in ARCHITECTURES:
        raise HalkaError(
            f"{type(base).__name__} ({kind}) cannot be written as GGUF here, which has {', '.join(ARCHITECTURES)}: "
            f"{WHY_NOT}"
        )
    return ARCHITECTURES[kind]


def check(base: Any) -> None:
    """Raise HalkaError for rotary embeddings, activations or windows that llama.cpp would compute differently."""
    config = base.config
    rotary = config.rope_parameters["rope_type"]
    if rotary not in ("default", "linear", "llama3"):
        raise HalkaError(f"rotary embeddings of the type {rotary!r} cannot be written as GGUF here: {WHY_NOT}")
    if config.hidden_act not in ("silu", "swish"):
        raise HalkaError(f"llama.cpp uses silu in this architecture, the base {config.hidden_act}: {WHY_NOT}")
    window = getattr(config, "sliding_window", None)
    if window is not None and window < config.max_position_embeddings:
        raise HalkaError(f"llama.cpp has no sliding window (of {window} tokens) for this architecture: {WHY_NOT}")


def tensors_of(base: Any, weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield tensors under llama.cpp's names, in fp32 and its row order, sorted by name as safetensors sorts them."""
    if base.config.rope_parameters["rope_type"] == "llama3":
        yield "rope_freqs.weight", _rotary_factors(base)
    tied = base.all_tied_weights_keys
    for name in sorted(weights):
        if name not in tied:
            yield name_in_gguf(base, name), rotated(base, name, weights[name].detach().cpu().float())


def name_in_gguf(base: Any, name: str) -> str:
    """Return llama.cpp's name for the base's tensor `name`. Raises HalkaError for a tensor that it lacks."""
    architecture = architecture_of(base)
    stored = _names_in(architecture, base.config.num_hidden_layers).get_name(name, (".weight", ".bias"))
    if stored is None:
        raise HalkaError(f"llama.cpp's {architecture} has no tensor for {name}: {WHY_NOT}")
    return stored


@functools.cache  # it has every layer's names, and is asked for each
def _names_in(architecture: str, layers: int) -> TensorNameMap:
    """llama.cpp's names for the tensors of an architecture with so many layers."""
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

    return get_tensor_name_map(next(arch for arch in MODEL_ARCH if MODEL_ARCH_NAMES[arch] == architecture), layers)


def rotated(base: Any, name: str, tensor: Tensor) -> Tensor:
    """Return the tensor in llama.cpp's row order: in `PAIRED`, rows i and i + d/2 of a q or k head are adjacent."""
    config = base.config
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    module = name.split(".")[-2]
    if architecture_of(base) not in PAIRED or module not in heads:
        return tensor
    rows = tensor.shape[0] // heads[module]
    return tensor.view(heads[module], 2, rows // 2, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def finish(writer: GGUFWriter) -> None:
    """Write header, metadata and tensors, and close the file."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_sizes(writer: GGUFWriter, config: Any, architecture: str, file_type: Any) -> None:
    from gguf import RopeScalingType

    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    rotary = config.rope_parameters
    if rotary["rope_type"] == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rotary["factor"])
    writer.add_rope_freq_base(rotary["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    head = getattr(config, "head_dim", None)
    if head is not None:
        writer.add_key_length(head)
        writer.add_value_length(head)
    writer.add_file_type(file_type)
    if architecture == "llama":
        writer.add_vocab_size(config.vocab_size)
        writer.add_rope_dimension_count(head or config.hidden_size // config.num_attention_heads)


def _rotary_factors(base: Any) -> Tensor:
    """Return the factors (d/2,) by which Llama 3's rotary scheme divides the frequencies."""
    config = base.config
    scaled = base.model.rotary_emb.inv_freq.float()
    width = 2 * len(scaled)
    plain = 1.0 / config.rope_parameters["rope_theta"] ** (
        torch.arange(0, width, 2, dtype=torch.float32, device="cpu") / width
    )
    return plain / scaled.cpu()


def _add(writer: GGUFWriter, name: str, tensor: Tensor, kind: str) -> None:
    packed, stored_as, _ = _stored(name, tensor, kind)
    writer.add_tensor(name, packed, raw_dtype=stored_as)


def as_stored(name: str, tensor: Tensor, kind: str) -> Tensor:
    """Return `tensor` in fp32 as a reader of a file of that `kind` gets it. Raises as `write_gguf` does."""
    return torch.as_tensor(np.array(_stored(name, tensor.detach().cpu().float(), kind)[2])).to(tensor.device)


def _stored(name: str, tensor: Tensor, kind: str) -> tuple[Any, Any, Any]:
    """Quantise `tensor`: vectors and norms to fp32, matrices to `kind`, or fp16 if its blocks do not divide their rows.

    Returns the data to write, its type, and the values that a reader gets. Raises HalkaError for values that overflow
    that type, as large ones do in fp16.
    """
    from gguf import GGMLQuantizationType, QuantError
    from gguf.quants import dequantize, quantize

    stored = "F32" if tensor.dim() == 1 else FILE_TYPES[kind].rpartition("_")[2] if kind != "q8_0" else "Q8_0"
    data, stored_as = tensor.contiguous().numpy(), GGMLQuantizationType[stored]
    with np.errstate(over="ignore", invalid="ignore"):
        try:
            packed = quantize(data, stored_as)
        except QuantError:
            stored_as = GGMLQuantizationType.F16
            packed = quantize(data, stored_as)
        read = dequantize(packed, stored_as)
    if not np.isfinite(read).all():
        raise HalkaError(f"{name} holds values that are too large for {stored_as.name}: choose float32 or bfloat16")
    return packed, stored_as, read


@contextmanager
def quiet() -> Generator[None]:
    """Silence the gguf library, which logs every key that it writes."""
    loggers = [logging.getLogger(name) for name in ("gguf", "gguf.vocab", "gguf.gguf_writer", "metadata")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

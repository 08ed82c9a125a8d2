"""A whole model as a GGUF file, which llama.cpp and what is built on it (ollama, LM Studio) run.

Metadata and tensors as llama.cpp's own converter writes them, byte for byte where it was compared (Llama). Names come
from the `gguf` library. An architecture that is not in `ARCHITECTURES` is refused by name: a file that loads and
computes something else is worse than none.
"""

from __future__ import annotations

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
from halka.storage.formats.model_folder import described
from halka.util.errors import HalkaError

if TYPE_CHECKING:
    from gguf import GGUFWriter

ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
}  # transformers' -> llama.cpp's
PAIRED = ("llama",)  # where llama.cpp rotates neighbours i, i + 1, and transformers i, i + d/2
FILE_TYPES = {"float32": "ALL_F32", "float16": "MOSTLY_F16", "bfloat16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
WHY_NOT = (
    "write it as safetensors (--as safetensors) and try llama.cpp's own convert_hf_to_gguf.py on that folder; for an "
    "adapter, keep peft's folder"
)


def write_gguf(base: Any, tokenizer: Any, weights: Mapping[str, Tensor], path: Path, name: str, kind: str) -> None:
    """Write the file `path`: `base` as it is with these weights, by its own names, their tensors as `kind` says.

    name    of the model, in the file's metadata
    kind    one of FILE_TYPES; vectors and norms stay in fp32

    Raises HalkaError for an architecture, a rotary scheme or a tokenizer that llama.cpp would not compute alike.
    """
    from gguf import GGML_QUANT_VERSION, GGUFType, GGUFWriter, LlamaFileType, Metadata, size_label

    check_whole(base, tokenizer, kind)
    architecture = architecture_of(base)
    told = described(base, weights)
    writer = GGUFWriter(path, architecture)
    with quiet(), TemporaryDirectory() as temporary:
        folder = Path(temporary) / name
        folder.mkdir()
        told.config.save_pretrained(folder)
        if told.generation_config is not None:
            told.generation_config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        for each, tensor in tensors_of(told, weights):
            _add(writer, each, tensor, kind)
        counts = writer.get_total_parameter_count()
        metadata = Metadata.load(model_path=folder, total_params=counts[0])
        metadata.name = metadata.name or name
        metadata.size_label = metadata.size_label or size_label(*counts)
        writer.add_type(GGUFType.MODEL)
        metadata.set_gguf_meta_model(writer)
        _write_sizes(writer, told.config, architecture, LlamaFileType[FILE_TYPES[kind]])
        writer.add_quantization_version(GGML_QUANT_VERSION)
        prefix = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("add_prefix_space")
        if prefix is not None and architecture == "llama":
            writer.add_add_space_prefix(prefix)
        write_tokenizer(writer, tokenizer, folder, told.config.vocab_size)
        if architecture == "llama" and told.config.vocab_size == 49152:  # the converter's, for SmolLM and Granite
            writer.add_add_bos_token(False)
        finish(writer)


def check_whole(base: Any, tokenizer: Any, kind: str) -> None:
    """Raises HalkaError for a base, a tokenizer or a kind of tensors of which there is no such file."""
    architecture_of(base)
    check(base)
    if kind not in FILE_TYPES:
        raise HalkaError(f"GGUF files hold {', '.join(FILE_TYPES)}, not {kind}")
    if tokenizer is None:
        raise HalkaError("a GGUF file holds the tokenizer too: `halka.adapt(base, tokenizer)`")


def architecture_of(base: Any) -> str:
    """llama.cpp's name for the base's architecture. Raises HalkaError for one that is not supported here."""
    kind = base.config.model_type
    if kind not in ARCHITECTURES:
        raise HalkaError(
            f"{type(base).__name__} ({kind}) cannot be written as GGUF here, which has {', '.join(ARCHITECTURES)}: "
            f"{WHY_NOT}"
        )
    return ARCHITECTURES[kind]


def check(base: Any) -> None:
    """Raises HalkaError for what llama.cpp would compute in another way."""
    config = base.config
    rotary = config.rope_parameters["rope_type"]
    if rotary not in ("default", "linear", "llama3"):
        raise HalkaError(f"rotary embeddings of the type {rotary!r} cannot be written as GGUF here: {WHY_NOT}")
    if config.hidden_act not in ("silu", "swish"):
        raise HalkaError(f"llama.cpp has silu in this architecture, and the base {config.hidden_act}: {WHY_NOT}")
    window = getattr(config, "sliding_window", None)
    if window is not None and window < config.max_position_embeddings:
        raise HalkaError(f"llama.cpp has no sliding window (of {window} tokens) for this architecture: {WHY_NOT}")


def tensors_of(base: Any, weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Tensors under llama.cpp's names, in fp32 and its order of rows; in the order in which safetensors keeps them."""
    if base.config.rope_parameters["rope_type"] == "llama3":
        yield "rope_freqs.weight", _rotary_factors(base)
    tied = base.all_tied_weights_keys
    for name in sorted(weights):
        if name not in tied:
            yield name_in_gguf(base, name), rotated(base, name, weights[name].detach().cpu().float())


def name_in_gguf(base: Any, name: str) -> str:
    """llama.cpp's name for the base's tensor `name`. Raises HalkaError for one that it does not have."""
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

    architecture = architecture_of(base)
    arch = next(each for each in MODEL_ARCH if MODEL_ARCH_NAMES[each] == architecture)
    found = get_tensor_name_map(arch, base.config.num_hidden_layers).get_name(name, (".weight", ".bias"))
    if found is None:
        raise HalkaError(f"llama.cpp's {architecture} has no tensor for {name}: {WHY_NOT}")
    return found


def rotated(base: Any, name: str, tensor: Tensor) -> Tensor:
    """Rows (heads · d, …) of q and k in llama.cpp's order, where it has another: pairs i, i + d/2 become neighbours."""
    config = base.config
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    module = name.split(".")[-2]
    if architecture_of(base) not in PAIRED or module not in heads:
        return tensor
    rows = tensor.shape[0] // heads[module]
    return tensor.view(heads[module], 2, rows // 2, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def finish(writer: GGUFWriter) -> None:
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
    """By what Llama 3's scheme divides each frequency, (d/2,)."""
    config = base.config
    now = base.model.rotary_emb.inv_freq.float()
    width = 2 * len(now)
    plain = 1.0 / config.rope_parameters["rope_theta"] ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
    return plain / now.cpu()


def _add(writer: GGUFWriter, name: str, tensor: Tensor, kind: str) -> None:
    packed, stored_as, _ = _stored(name, tensor, kind)
    writer.add_tensor(name, packed, raw_dtype=stored_as)


def as_stored(name: str, tensor: Tensor, kind: str) -> Tensor:
    """What is read back, in fp32, where `tensor` is written into a file of that kind. Raises as `write_gguf` does."""
    return torch.as_tensor(np.array(_stored(name, tensor.detach().cpu().float(), kind)[2])).to(tensor.device)


def _stored(name: str, tensor: Tensor, kind: str) -> tuple[Any, Any, Any]:
    """Vectors and norms in fp32, matrices as `kind` says; fp16 where their rows cannot be cut into its blocks.

    Returns what is written, as what, and what is read. Raises HalkaError where what is finite is not so any more, as
    what is too large for fp16.
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
    """The library tells every key it writes."""
    loggers = [logging.getLogger(name) for name in ("gguf", "gguf.vocab", "gguf.gguf_writer", "metadata")]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)

"""`export`: write an adapter for other tools, merged into the whole model or alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from halka.core import AdaptedModel
from halka.core.weights import merged_weights
from halka.merging.error import LIMIT, MergeError, merge_error, written_error
from halka.merging.probes import Probes
from halka.methods import LoRA
from halka.models.kinds import kind_of
from halka.models.quantised import QuantizedLinear
from halka.storage.formats import peft
from halka.storage.formats.gguf.lora import write_gguf_lora
from halka.storage.formats.gguf.model import as_stored, check_whole, write_gguf
from halka.storage.formats.model_folder import stranger, write_model
from halka.storage.formats.peft.experts import confused
from halka.storage.save_load import README, check_adapter_folder, save
from halka.storage.tensors import check_finite
from halka.util.dtypes import Dtype, dtype_name
from halka.util.errors import HalkaError
from halka.util.files import check_writable, contents, new_folder, write_file
from halka.util.quiet import quiet_libraries

ExportFormat = Literal["safetensors", "gguf", "lora-gguf", "peft", "vllm"]
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # those that vLLM's --max-lora-rank takes
# Causal language models that take no LoRA in vLLM, or look for it under the names of the whole that reads images
UNSERVED = ("gpt2", "gpt_neox", "qwen3_5_text", "qwen3_5_moe_text")
SERVED = ("attn.q", "attn.k", "attn.v", "attn.qkv", "attn.o", "mlp.gate", "mlp.up", "mlp.gate_up", "mlp.down")


@dataclass(frozen=True)
class Options:
    """The options of `export`."""

    dtype: str | None
    pad_rank: bool
    card: Mapping[str, Any]
    probes: Probes | None
    limit: float
    force: bool
    on_error: Callable[[MergeError], None] | None

    def check(self, measure: Callable[[], MergeError]) -> None:
        """Measure the error of merging, report it, and raise HalkaError past the limit, unless forced."""
        if self.force and self.on_error is None:
            return
        error = measure()
        if self.on_error is not None:
            self.on_error(error)
        if not self.force:
            error.check(self.limit)


def export(
    model: AdaptedModel,
    name: str | None,
    to: str | Path,
    *,
    format: ExportFormat = "safetensors",
    dtype: Dtype | Literal["q8_0"] | torch.dtype | None = None,
    pad_rank: bool = False,
    card: Mapping[str, Any] | None = None,
    probes: Probes | None = None,
    limit: float = LIMIT,
    force: bool = False,
    on_error: Callable[[MergeError], None] | None = None,
) -> Path:
    """Write adapter `name` to the path `to`, whole or not at all, and return the path.

    format      safetensors  the merged model as a transformers folder, with its tokenizer and settings
                gguf         the merged model as a GGUF file for llama.cpp
                lora-gguf    the LoRA alone as a GGUF file
                peft         the adapter alone as a folder that peft reads
                vllm         the same, but raises HalkaError where vLLM would not serve it
    dtype       of the merged weights, computed in fp32 and rounded once; default: the base's; gguf takes q8_0 too
    pad_rank    for vllm: pad the rank with zeros to the next that its --max-lora-rank takes
    card        for peft and vllm: task, training and measurements, as `save` takes them
    probes      texts on which the merged model and the adapter are compared; default: a neutral text
    limit       of the error's KL, as a share of the effect's KL, measured on the weights as they will be written
    force       write even past the limit, where the error cannot be measured, and over a .gguf file or an adapter's
                folder that exists
    on_error    called with the measured error; without it, a forced export measures nothing

    The name None exports the base's own weights. Raises UnknownAdapterError for another name; HalkaError for an adapter
    that cannot be merged or that the format cannot hold, an error past the limit, values that are not finite, a folder
    that holds something else, and the folder that the base was loaded from.
    """
    precision = checked_precision(format, dtype, pad_rank)
    if name is None and format not in WHOLE:
        raise HalkaError(f"{format} holds an adapter alone: name one")
    to = Path(to).expanduser()
    with model.lock:
        FORMATS[format](model, name, to, Options(precision, pad_rank, card or {}, probes, limit, force, on_error))
    return to


def checked_precision(format: ExportFormat, dtype: str | torch.dtype | None, pad_rank: bool) -> str | None:
    """The name of the precision. Raises HalkaError for an unknown format, and options that the format does not take."""
    if format not in FORMATS:
        raise HalkaError(f"there is no format {format!r}: choose one of {', '.join(FORMATS)}")
    if dtype is not None and format not in WHOLE:
        raise HalkaError(f"{format} keeps the adapter as it is, in fp32: leave dtype out")
    if pad_rank and format != "vllm":
        raise HalkaError("pad_rank is for vllm alone: leave it out, or choose that format")
    return None if dtype is None else dtype_name(dtype, *(["q8_0"] if format == "gguf" else []))


def check_destination(to: Path, format: ExportFormat, base: str, force: bool) -> None:
    """Raises HalkaError where `export` could not write to `to`, as far as can be seen before `base` is loaded."""
    check_writable(to)
    if format in ("gguf", "lora-gguf"):
        _file(to, force)
    elif format == "safetensors":
        _check_folder(to, {base}, ["*"])  # the tokenizer says later which of a marked folder's files are its own
    else:
        _check_adapter_folder(to, force)


def whole_weights(model: AdaptedModel, name: str | None, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Every tensor of the base by its name, on the CPU, with the adapter merged in; what is tied stays so if it can.

    On a GPU there is one weight more than the base's at a time.
    """
    with model.own_weights(), torch.no_grad():
        for path, module in model.base.named_modules():
            if isinstance(module, QuantizedLinear):
                raise HalkaError(
                    f"{path} is quantised to {module.quantization}, and a whole model is written unquantised: load the "
                    "base so (halka.load_base without quantize), load the adapter there and export it"
                )
        weights: dict[str, Tensor] = dict(model.base.state_dict())
        changed: dict[str, Tensor] = {}
        if name is not None:
            adapter = model.adapter(name)
            full = adapter.parts.get("base")
            if full is None:
                changed = {key: tensor.cpu() for key, tensor in merged_weights(adapter, dtype)}
            else:  # its fp32 masters, each under the first name of tied tensors
                masters = dict(full.named_parameters())
                places = {
                    weights[key].data_ptr(): tensor.detach().to("cpu", dtype or weights[key].dtype)
                    for key, tensor in masters.items()
                }
                own = {key: places.get(tensor.data_ptr()) for key, tensor in weights.items()}
                changed = {key: tensor for key, tensor in own.items() if tensor is not None}
    weights = _on_cpu({**weights, **changed}, dtype)
    tied: Mapping[str, str] = cast(Any, model.base).all_tied_weights_keys
    for one, other in tied.items():  # merged one by one, as `Tokens` merges into embeddings and head
        if weights[one].data_ptr() != weights[other].data_ptr() and torch.equal(weights[one], weights[other]):
            weights[one] = weights[other]
    return _finite(weights)


def _on_cpu(weights: dict[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """On the CPU, floats in `dtype`, if there is one; tied tensors stay tied."""
    converted: dict[tuple[torch.device, int, torch.Size], Tensor] = {}
    for key, tensor in weights.items():
        place = tensor.device, tensor.data_ptr(), tensor.shape
        if place not in converted:
            floats = dtype is not None and tensor.is_floating_point()
            converted[place] = tensor.cpu().to(dtype) if floats else tensor.cpu()
        weights[key] = converted[place]
    return weights


def _finite(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights. Raises HalkaError, naming the tensor, for values that are not finite."""
    for key, tensor in weights.items():
        if not tensor.isfinite().all():
            raise HalkaError(
                f"{key} holds values that are not finite in {dtype_name(tensor.dtype, 'float64')}: choose another "
                "dtype (float32 holds the largest), or train the adapter again, more gently"
            )
    return weights


def _safetensors(model: AdaptedModel, name: str | None, to: Path, options: Options) -> None:
    base: Any = model.base
    bases = {getattr(base, "name_or_path", ""), getattr(base.config, "_name_or_path", "")}
    _check_folder(to, bases, getattr(model.tokenizer, "vocab_files_names", {}).values())
    dtype = None if options.dtype is None else getattr(torch, options.dtype)
    weights = whole_weights(model, name, dtype)
    if name is not None:
        own = next(model.base.parameters()).dtype
        computed = dtype or own

        def as_written(other: str | None) -> Mapping[str, Tensor]:
            return weights if other == name else whole_weights(model, other, dtype)

        if computed == own and "base" not in model.adapter(name).parts:
            options.check(lambda: merge_error(model, name, options.probes))
        else:
            precision = dtype_name(computed, "float64")
            options.check(lambda: written_error(model, name, as_written, computed, precision, options.probes))
    with quiet_libraries(), new_folder(to) as beside:
        write_model(model.base, model.tokenizer, weights, beside, model.labels_of(name))


def _check_folder(to: Path, bases: Collection[str], vocabulary: Iterable[str]) -> None:
    """Raises HalkaError for a folder that holds something else than an export, and for the base's own."""
    if not to.exists():
        return
    if not to.is_dir():
        raise HalkaError(f"{to} is a file: choose another folder")
    if any(Path(base).exists() and to.samefile(base) for base in bases if base):
        raise HalkaError(f"{to} is what the base was loaded from: choose another folder")
    if (other := stranger(to, vocabulary)) is not None:
        raise HalkaError(f"{to} exists and holds {other}, which no export wrote: choose another folder")


def _gguf(model: AdaptedModel, name: str | None, to: Path, options: Options) -> None:
    kind = options.dtype or dtype_name(next(model.base.parameters()).dtype, "float64")
    _file(to, options.force)
    check_whole(model.base, model.tokenizer, kind)
    weights = whole_weights(model, name, torch.float32)  # rounded once, as the file's type says
    if name is not None:

        def as_read(other: str | None) -> Mapping[str, Tensor]:
            exact = weights if other == name else whole_weights(model, other, torch.float32)
            return {key: as_stored(key, tensor, kind) for key, tensor in exact.items()}

        options.check(lambda: written_error(model, name, as_read, torch.float32, kind, options.probes))
    write_file(to, lambda path: write_gguf(model.base, model.tokenizer, weights, path, to.stem, kind))


def _lora_gguf(model: AdaptedModel, name: str, to: Path, options: Options) -> None:
    check_finite(name, model.adapter(name).state_dict())
    write_file(_file(to, options.force), lambda path: write_gguf_lora(model.base, model.adapter(name), path, to.stem))


def _peft(model: AdaptedModel, name: str, to: Path, options: Options) -> None:
    if not peft.holds(adapter := model.adapter(name), model.targets):
        raise HalkaError(
            f"peft has no form for this adapter, {adapter.method.name}: halka.save writes it for Halka alone to read"
        )
    _save(model, name, to, options)


def check_served(model: AdaptedModel, name: str) -> LoRA:
    """The method of an adapter that vLLM serves. Raises HalkaError for one that it does not."""
    adapter = model.adapter(name)
    method, config = adapter.method, cast(Any, model.base).config
    if kind_of(model.base) != "causal-lm" or config.model_type in UNSERVED:
        raise HalkaError(f"vLLM serves no adapters of this base ({config.model_type}): merge them instead")
    if not isinstance(method, LoRA):
        raise HalkaError(f"vLLM serves LoRA adapters alone, and this is {method.name}: merge it instead")
    if other := [path for path, target in adapter.targets.items() if target.role not in SERVED]:
        raise HalkaError(f"vLLM does not serve a LoRA at {', '.join(other)}: train it without, or merge it instead")
    if confused(adapter.targets, model.targets):
        raise HalkaError(
            "vLLM reads peft's folders, and peft takes the names of this base's dense MLPs for those of experts: train "
            "the LoRA without them, or merge it instead"
        )
    if method.rank > RANKS[-1]:
        raise HalkaError(
            f"vLLM serves ranks up to {RANKS[-1]}, and this is {method.rank}: use svd, or merge it instead"
        )
    return method


def _vllm(model: AdaptedModel, name: str, to: Path, options: Options) -> None:
    adapter, method = model.adapter(name), check_served(model, name)
    rank = next(rank for rank in RANKS if rank >= method.rank)
    if not options.pad_rank or rank == method.rank:
        _save(model, name, to, options)
        return
    wider = replace(method, rank=rank, alpha=method.scale * rank, scaling="rank")
    missing = rank - method.rank
    filled = {"lora_A": (0, 0, 0, missing), "lora_B": (0, missing)}
    state = {
        key: torch.nn.functional.pad(tensor, filled[key.rpartition(".")[2]])
        for key, tensor in adapter.state_dict().items()
    }
    padded = f"{name}, its rank padded to {rank}"
    model.add(padded, wider, state=state)
    try:
        _save(model, padded, to, options)
    finally:
        model.remove(padded)


def _save(model: AdaptedModel, name: str, to: Path, options: Options) -> None:
    _check_adapter_folder(to, options.force)
    save(model, name, to, format="peft", **options.card)


def _check_adapter_folder(to: Path, force: bool) -> None:
    """Raises HalkaError for a folder that holds something else than an adapter, and unless forced for one that does."""
    check_adapter_folder(to)
    if not force and {*contents(to)} - {README}:
        raise HalkaError(
            f"{to} holds an adapter, and does not say whether it was trained or exported: choose another folder, or "
            "force"
        )


def _file(to: Path, force: bool) -> Path:
    if to.is_dir() or to.suffix != ".gguf":
        raise HalkaError(f"{to} is not the path of a .gguf file: name one that ends with .gguf")
    if to.exists() and not force:
        raise HalkaError(f"{to} exists, and a GGUF file does not say who wrote it: remove it, choose another, or force")
    return to


WHOLE = ("safetensors", "gguf")
FORMATS: dict[str, Callable[[AdaptedModel, Any, Path, Options], None]] = {
    "safetensors": _safetensors,
    "gguf": _gguf,
    "lora-gguf": _lora_gguf,
    "peft": _peft,
    "vllm": _vllm,
}

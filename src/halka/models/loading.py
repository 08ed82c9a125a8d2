"""Names, folders and hub names to a base model and its tokenizer."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halka.models.classes import check_class, from_folder, usual_kind
from halka.models.fetching import cache_dir, is_pulled, known_bases, known_names, pull, source_of
from halka.models.fetching.hub import from_hub
from halka.models.kinds import KINDS
from halka.util.errors import HalkaError
from halka.util.files import let_go_but
from halka.util.quiet import quiet_transformers

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

DTYPES = ("bfloat16", "float32", "float16", "auto")
HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
HUB_FILES = ["*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "model*.safetensors", "README.md"]
HUB_LEFT_OUT = ["*/*", "model.*.safetensors"]  # subfolders, weights in other precisions


def is_base_folder(path: Path) -> bool:
    """Whether `path` holds a base, as `save_pretrained` writes one."""
    return (path / "config.json").is_file()


def load_base(
    name_or_path: str | Path,
    *,
    kind: str | None = None,
    labels: Sequence[str] | None = None,
    dtype: str = "bfloat16",
    device: str | None = None,
    revision: str | None = None,
    quantize: str | None = None,
    seed: int = 0,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A base in eval mode and its tokenizer, which has a pad token.

    `kind` is what the base is for: causal-lm, masked-lm, seq2seq-lm, or, with `labels` that it is to tell apart,
    sequence-classification and token-classification; as its configuration says if not given. A head that the weights
    do not have begins from `seed`; labels that the weights' head has too keep what it learnt for them, in any order.
    `name_or_path` is a known short name (pulled if need be), a folder, or a name on the Hugging Face hub; `revision` is
    for the hub alone. What the hub gave once is taken from its cache from then on. `dtype` is one of bfloat16, float32,
    float16, auto (as stored). `device` defaults to the first there is of cuda, mps, cpu. `quantize` packs the layers'
    weights into fewer bits, "nf4" or "int8" (`models.quantised`). Only safetensors are read, and no code that comes
    with a model is run.

    Raises ValueError for a name nobody knows, a folder without config or safetensors, weights that are damaged or lack
    more than the head, an architecture that is not of that kind, an unknown dtype and a device that is not there; for a
    form that there is not, or that needs what is not installed.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoTokenizer

    from halka.models.quantised import check_form, quantise

    if quantize is not None:
        check_form(quantize)
    if dtype not in DTYPES:
        raise HalkaError(f"dtype {dtype!r} is none of {', '.join(DTYPES)}")
    place = place_of(device)
    folder = _resolve(name_or_path, revision, fetch=True)
    _weight_files(folder)
    with quiet_transformers():
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            kind = kind or usual_kind(config)
            if kind in KINDS:
                check_class(config, kind)
            model = from_folder(
                *(folder, kind, labels, seed),
                dtype=dtype if dtype == "auto" else getattr(torch, dtype),
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
            )
        except SafetensorError as error:
            raise HalkaError(f"the weights in {folder} are damaged ({error}); remove it and fetch it anew") from error
        except (OSError, ImportError, KeyError, RuntimeError, ValueError) as error:
            what = "causal language model" if kind in (None, "causal-lm") else kind
            raise HalkaError(f"{name_or_path} cannot be loaded as a {what}: {error}") from error
    let_go_of_files(model, folder)
    if quantize is not None:
        quantise(model, quantize)
    if known := known_bases().get(str(name_or_path)):
        model.config._name_or_path = (
            known.hub_name
        )  # what an adapter's folder names as its base, not this machine's path
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id  # where a text ends, a classifier tells by it
    if model.can_generate() and model.generation_config.pad_token_id is None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id  # else generate() says so at every call
    return model.to(place).eval(), tokenizer


def let_go_of_files(model: PreTrainedModel, folder: Path) -> None:
    """Hold no more of a base's files than its weights: experts were put together of many, which stay mapped."""
    storages = [each.untyped_storage() for each in (*model.parameters(), *model.buffers())]
    let_go_but(folder.glob("*.safetensors"), [(each.data_ptr(), each.nbytes()) for each in storages])


def base_config(name_or_path: str | Path) -> PretrainedConfig:
    """A base's configuration; of one that is on the hub alone, nothing else is fetched.

    Raises ValueError like `load_base` for a name nobody knows, and for a folder without a configuration.
    """
    from transformers import AutoConfig

    name = str(name_or_path)
    known = known_bases().get(name)
    if known is not None:
        remote = None if is_pulled(cache_dir() / "bases" / name) else known.hub_name
    else:
        remote = None if Path(name).expanduser().exists() or not HUB_NAME.fullmatch(name) else name
    if remote is None:
        folder = _resolve(name_or_path, revision=None, fetch=False)
        _check_config(folder)
    else:
        folder = from_hub(
            *(remote, None),
            files=["config.json"],
            left_out=HUB_LEFT_OUT,
            check=_check_config,
            what="a model",
            hint=known_names(name),
        )
    with quiet_transformers():
        try:
            return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except (OSError, ImportError, KeyError, ValueError) as error:
            raise HalkaError(f"{name_or_path} cannot be read: {error}") from error


def show(name_or_path: str | Path) -> dict[str, Any]:
    """What a base is, from its configs and the headers of its weights; nothing is fetched, no weight is read.

    `bytes` are those of the weights; `chat_template` is the fingerprint that `data.tokens` gives it ("none" without).
    Raises ValueError like `load_base`, and for a base that is not on this machine yet.
    """
    from transformers import AutoConfig, AutoTokenizer

    folder = _resolve(name_or_path, revision=None, fetch=False)
    files = _weight_files(folder)
    with quiet_transformers():
        try:
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except (OSError, ImportError, KeyError, ValueError) as error:
            raise HalkaError(f"{name_or_path} cannot be read: {error}") from error
    text = config.get_text_config()
    parameters, dtypes = _read_headers(files, tied=text.tie_word_embeddings)
    template = tokenizer.get_chat_template() if tokenizer.chat_template else None
    source = source_of(folder) or {}
    here = Path(name_or_path).expanduser() == folder
    return {
        "name": str(name_or_path),
        "path": str(folder),
        "architecture": (config.architectures or [config.model_type])[0],
        "parameters": parameters,
        "layers": text.num_hidden_layers,
        "hidden": text.hidden_size,
        "heads": text.num_attention_heads,
        "kv_heads": getattr(text, "num_key_value_heads", text.num_attention_heads),
        "vocabulary": text.vocab_size,
        "context": getattr(text, "max_position_embeddings", None),
        "dtype": ", ".join(dtypes),
        "bytes": sum(file.stat().st_size for file in files),
        "chat_template": hashlib.sha256(template.encode()).hexdigest()[:12] if template else "none",
        "end_of_turn": _end_of_turn(tokenizer),
        "source": source.get("origin") or (None if here else f"https://huggingface.co/{name_or_path}"),
        "licence": source.get("licence") or _licence(folder),
    }


def _resolve(name_or_path: str | Path, revision: str | None, *, fetch: bool) -> Path:
    """The folder that a short name, a path or a hub name stands for; fetched if need be and if `fetch` allows it."""
    name = str(name_or_path)
    known = isinstance(name_or_path, str) and name in known_bases()
    folder = cache_dir() / "bases" / name if known else Path(name).expanduser()
    if revision and (known or folder.is_dir()):
        raise HalkaError(f"revision {revision!r} is for names on the hub; {name} has none")
    if known and not fetch and not is_pulled(folder):
        raise HalkaError(f"{name} is not on this machine yet; `halka base pull {name}` fetches it")
    if known:
        return pull(name)
    if folder.is_dir():
        return folder
    if isinstance(name_or_path, Path) or not HUB_NAME.fullmatch(name):
        what = "is a file; a base is a folder" if folder.is_file() else "is no folder"
        raise HalkaError(f"{name} {what}; {known_names(name)}")
    return from_hub(
        *(name, revision),
        files=HUB_FILES,
        left_out=HUB_LEFT_OUT,
        check=_weight_files,
        what="a model",
        hint=known_names(name),
        fetch=fetch,
    )


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors of a base. ValueError where the folder has no config, or lacks some of them."""
    _check_config(folder)
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    files = [folder / name for name in names]
    if all(file.is_file() for file in files):
        return files
    others = sorted(file.name for file in folder.iterdir() if file.suffix in (".bin", ".pt", ".pth", ".ckpt", ".gguf"))
    if others and len(files) == 1:
        raise HalkaError(
            f"{folder} has no model.safetensors, only {', '.join(others)}. Halka reads safetensors alone, because a "
            f"pickle can run code. If you trust it, convert it: AutoModelForCausalLM.from_pretrained(folder)"
            f".save_pretrained(new_folder), and the tokenizer likewise"
        )
    lacking = [file.name for file in files if not file.is_file()]
    raise HalkaError(f"{folder} lacks {', '.join(lacking)}; fetch or copy it again")


def _check_config(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        adapter = (folder / "adapter_config.json").is_file()
        what = (
            "it holds an adapter; give the base it was trained on" if adapter else "a base has one beside its weights"
        )
        raise HalkaError(f"{folder} has no config.json: {what}")


def _read_headers(files: list[Path], *, tied: bool) -> tuple[int, list[str]]:
    """Number of parameters and the dtypes they are stored in. A tied head counts once, however it is stored."""
    from safetensors import SafetensorError, safe_open

    names = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
    parameters, dtypes = 0, set()
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                slices = [file.get_slice(key) for key in file.keys() if not (tied and key == "lm_head.weight")]  # noqa: SIM118
                parameters += sum(math.prod(part.get_shape()) for part in slices)
                dtypes |= {names.get(part.get_dtype(), part.get_dtype()) for part in slices}
        except SafetensorError as error:
            raise HalkaError(f"{path} is damaged ({error}); fetch or copy it again") from error
    return parameters, sorted(dtypes)


def _end_of_turn(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The special token that follows an assistant's answer in the chat template, else the end of text."""
    if tokenizer.chat_template:
        answer = "42"
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
        after = str(tokenizer.apply_chat_template(turns, tokenize=False)).rpartition(answer)[2]
        for i in tokenizer(after, add_special_tokens=False)["input_ids"]:
            if i in tokenizer.added_tokens_decoder and tokenizer.added_tokens_decoder[i].special:
                return tokenizer.added_tokens_decoder[i].content
    return str(tokenizer.eos_token) if tokenizer.eos_token else None


def _licence(folder: Path) -> str | None:
    """What the model card says."""
    from huggingface_hub import ModelCard

    card = folder / "README.md"
    if not card.is_file():
        return None
    return ModelCard.load(card, ignore_metadata_errors=True).data.to_dict().get("license")


def place_of(device: str | None = None) -> torch.device:
    """Where a base is loaded to: the device of that name, else the first there is of cuda, mps, cpu.

    Raises ValueError for one that is not there.
    """
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device is None:
        return torch.device(next(kind for kind, found in there.items() if found))
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise HalkaError(f"device {device!r} is none of {', '.join(there)} (or cuda:1, …)") from error
    if not there.get(place.type, True) or (place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count()):
        raise HalkaError(
            f"device {device!r} is not there; there is {', '.join(k for k, found in there.items() if found)}"
        )
    return place

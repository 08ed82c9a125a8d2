"""What a base is, from its configuration and the headers of its weights: nothing is downloaded, no weight is read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halka.models.base_names import hub_parts
from halka.models.fetching import source_of
from halka.models.loading import read_config, read_tokenizer, resolve, weight_files
from halka.util.errors import DamagedFolderError
from halka.util.text import chat_template_fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def describe_base(name_or_path: str | Path) -> dict[str, Any]:
    """Architecture, sizes, precision, template and licence of a base.

    `bytes` is the size of the weights; `chat_template` is the template's fingerprint, as in Cards, or "none".
    Raises HalkaError as `load_base` does, and for a base that is not on this machine yet.
    """
    folder = resolve(name_or_path, fetch=False)
    files = weight_files(folder)
    config: Any = read_config(folder, name_or_path)
    tokenizer = read_tokenizer(folder, name_or_path)
    text = config.get_text_config()
    parameters, dtypes = _read_headers(files, tied=text.tie_word_embeddings)
    source = source_of(folder) or {}
    local = Path(name_or_path).expanduser() == folder
    return {
        "name": str(name_or_path),
        "path": str(folder),
        "architecture": (config.architectures or [config.model_type])[0],
        "parameters": parameters,
        "layers": text.num_hidden_layers,
        "hidden": text.hidden_size,
        "heads": text.num_attention_heads,
        "kv_heads": getattr(text.per_layer_config[0], "num_key_value_heads", text.num_attention_heads),
        "vocabulary": text.vocab_size,
        "context": getattr(text, "max_position_embeddings", None),
        "dtype": ", ".join(dtypes),
        "bytes": sum(file.stat().st_size for file in files),
        "chat_template": chat_template_fingerprint(tokenizer),
        "end_of_turn": _end_of_turn(tokenizer),
        "source": source.get("origin") or (None if local else _page(str(name_or_path))),
        "licence": source.get("licence") or _licence(folder),
    }


def _page(name: str) -> str:
    """A base's page on the hub."""
    name, revision = hub_parts(name)
    return f"https://huggingface.co/{name}" + (f"/tree/{revision}" if revision else "")


def load_tokenizer(name_or_path: str | Path) -> PreTrainedTokenizerBase:
    """A base's tokenizer, without its weights. Raises HalkaError as `describe_base` does."""
    return read_tokenizer(resolve(name_or_path, fetch=False), name_or_path)


def _read_headers(files: list[Path], *, tied: bool) -> tuple[int, list[str]]:
    """The number of parameters, and their dtypes. A tied head counts once, even if it is stored."""
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
            raise DamagedFolderError(f"{path} is damaged ({error}); fetch or copy it again") from error
    return parameters, sorted(dtypes)


def _end_of_turn(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The special token that ends an assistant's answer in the chat template, else the end-of-sequence token."""
    from jinja2 import TemplateError

    if tokenizer.chat_template:
        answer = "42"
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
        try:
            text = str(tokenizer.apply_chat_template(turns, tokenize=False))
        except TemplateError:  # it has errors, or wants other turns
            text = ""
        after = text.rpartition(answer)[2]
        for i in tokenizer(after, add_special_tokens=False)["input_ids"]:
            if i in tokenizer.added_tokens_decoder and tokenizer.added_tokens_decoder[i].special:
                return tokenizer.added_tokens_decoder[i].content
    return str(tokenizer.eos_token) if tokenizer.eos_token else None


def _licence(folder: Path) -> str | None:
    """The licence in the model card; None where there is no card, or one that cannot be read."""
    from huggingface_hub import ModelCard
    from yaml import YAMLError

    card = folder / "README.md"
    if not card.is_file():
        return None
    try:
        return ModelCard.load(card, ignore_metadata_errors=True).data.to_dict().get("license")
    except (YAMLError, ValueError):  # its front matter is no mapping, or it is no text
        return None

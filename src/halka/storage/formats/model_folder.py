"""Write a whole model as a transformers folder: safetensors, configurations, tokenizer, chat template."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import GenerationConfig

from halka.models.heads import NEW, label_rows

WRITTEN = (  # files that `write_model` writes, besides those of the tokenizer's vocabulary
    *("config.json", "generation_config.json", "model.safetensors", "model-*-of-*.safetensors"),
    *("model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "chat_template.jinja", "additional_chat_templates"),
)

MARK = "halka_version"  # key in config.json; only folders that have it may be overwritten


def write_model(
    base: Any, tokenizer: Any, weights: Mapping[str, Tensor], folder: Path, labels: Sequence[str] = ()
) -> None:
    """Write `base` with these `weights` (by its own tensor names, in any precision) into an empty folder.

    `labels` are the classes of a classification head, which is cut to one row per label. A head tied to the embeddings
    is written once; if their weights differ, the configuration says that they are not tied.
    """
    model = described(base, weights)
    if getattr(model, "generation_config", None) is not None:
        model.generation_config = GenerationConfig()  # save_pretrained refuses what a base was given by hand
    if labels:
        model.config.id2label = dict(enumerate(labels))
        model.config.label2id = {label: index for index, label in enumerate(labels)}
        model.config.__dict__.pop(NEW, None)  # the weights include the new head
        rows = label_rows(base)
        weights = {
            key: tensor[: len(labels)].contiguous() if key in rows else tensor for key, tensor in weights.items()
        }
    if base.config.tie_word_embeddings and not model.config.tie_word_embeddings:  # else one of two is left out
        weights = {**weights, **{key: weights[key].clone() for key in base.all_tied_weights_keys}}
    model.save_pretrained(folder, state_dict=dict(weights), max_shard_size="5GB")
    model.config.dtype = next(iter(weights.values())).dtype  # save_pretrained set it to the modules' dtype
    setattr(model.config, MARK, version("halka"))
    model.config.save_pretrained(folder)
    write_generation_config(base, folder)
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)  # safetensors makes files that only the owner can read
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def write_generation_config(base: Any, folder: Path) -> None:
    """Write the base's generation config, if it has one, as it is."""
    if getattr(base, "generation_config", None) is not None:
        (folder / "generation_config.json").write_text(base.generation_config.to_json_string(), encoding="utf-8")


def stranger(folder: Path, vocabulary: Iterable[str]) -> str | None:
    """Return the name of a file that `write_model` did not write, or None; without `MARK` every file is such a file.

    vocabulary   patterns of the names of the tokenizer's vocabulary files
    """
    names = sorted(path.name for path in folder.iterdir())
    own = {*WRITTEN, *vocabulary}
    others = [name for name in names if not any(fnmatch(name, pattern) for pattern in own)]
    return next(iter(others if _marked(folder / "config.json") else names), None)


def _marked(config: Path) -> bool:
    try:
        return MARK in json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):  # missing, or not a configuration of ours
        return False


def described(base: Any, weights: Mapping[str, Tensor]) -> Any:
    """Return a shallow copy of `base` whose configuration fits `weights`: untied if its tied weights differ there."""
    model = copy.copy(base)
    model.config = copy.deepcopy(base.config)
    if model.config.tie_word_embeddings and not is_tied(base, weights):
        model.config.tie_word_embeddings = False
        model.all_tied_weights_keys = {}
    return model


def is_tied(base: Any, weights: Mapping[str, Tensor]) -> bool:
    """Return whether every two weights that the base ties share one tensor in `weights`."""
    tied: Mapping[str, str] = base.all_tied_weights_keys
    return all(weights[one].data_ptr() == weights[other].data_ptr() for one, other in tied.items())

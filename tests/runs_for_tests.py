"""A tiny base with a task in a folder, and a measured run of them, as an experiment describes it."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from halka.studies.spec import Spec
from tiny import tiny
from tokenizers_for_tests import chatml_tokenizer


def a_run(made: Path, method: str = "lora", **changes) -> Spec:
    given = {
        "experiment": "e",
        "task": str(made / "task.yaml"),
        "base": str(made / "base"),
        "dtype": "float32",
        "method": method,
        "label": method,
        "fields": {"rank": 4} if method == "lora" else {},
        "train": {"steps": 6, "batch_size": 4, "evaluate_every": 2, "lr": 1e-2, "seed": 0},
    }
    return Spec(**{**given, **changes})


def base_and_task(folder: Path) -> Path:
    """The folder with `base` and `task.yaml` in it."""
    tokenizer = chatml_tokenizer()
    tiny(vocab_size=len(tokenizer), max_position_embeddings=512).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    written_task(folder, metrics="exact_match", max_new_tokens=3)
    return folder


def written_task(folder: Path, rows: list[dict[str, str]] | None = None, **settings) -> Path:
    """A task's file, and beside it the same rows, or twelve sums, for each split."""
    rows = rows or [{"prompt": f"What is {i} + 1?", "completion": f"It is {i + 1}."} for i in range(12)]
    splits = {split: f"{split}.jsonl" for split in ("train", "validation", "test")}
    for name in splits.values():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "task.yaml").write_text(yaml.safe_dump(splits | settings))
    return folder / "task.yaml"

"""What the tests of the command line start from: a tiny base with data and a run, in an empty folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from commands import TRAIN, halka
from contract import disturb
from halka import AdapterStore, LoRA, Prefix, adapt, load_base, save
from tiny import tiny
from tokenizers_for_tests import chatml_tokenizer


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory) -> Path:
    """A tiny base with its tokenizer, which no test changes."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = chatml_tokenizer()
    base = tiny("llama", vocab_size=len(tokenizer), max_position_embeddings=256, eos_token_id=tokenizer.eos_token_id)
    base.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def run_and_data(base_folder, tmp_path_factory) -> Path:
    """A folder with a base, data, prompts, a page of prose, and a run that is finished."""
    folder = tmp_path_factory.mktemp("run_and_data")
    (folder / "base").symlink_to(base_folder)
    rows = [{"prompt": f"What is {a} plus {b}?", "completion": str(a + b)} for a in range(5) for b in range(5)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "prompts.jsonl").write_text('{"prompt": "Yes?"}\n{"messages": [{"role": "user", "content": "No?"}]}\n')
    (folder / "prose.txt").write_text("What is the capital of France? " * 20)
    halka(f"train {TRAIN} --steps 6 --validation 0.2 -o run", folder)
    return folder


@pytest.fixture
def here(run_and_data, tmp_path, monkeypatch) -> Path:
    """A folder to work in with a copy of the run and its data, and a link to the base."""
    shutil.copytree(run_and_data, tmp_path, symlinks=True, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def kinds(here) -> None:
    """Folders `lora` and `prefix` with adapters, and a store `adapters` with both; a second `lora` is its newest."""
    model = adapt(*load_base("base", dtype="float32"))
    for name, method in (("lora", LoRA(rank=4)), ("prefix", Prefix(length=4))):
        model.add(name, method)
        disturb(model, name, by=0.2)
        save(model, name, name)
        AdapterStore("adapters").save(model, name)
    disturb(model, "lora", seed=4, by=0.2)
    AdapterStore("adapters").save(model, "lora")

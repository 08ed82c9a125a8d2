"""Exports: a folder that transformers loads with equal logits, peft's and vLLM's folder, whole files or none."""

from __future__ import annotations

import json
import stat

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

import halka
from classifiers import CLASSES, LABELS, TAGS, classifier
from contract import disturb, ids
from halka.data.tokens import Tokens
from halka.merging.error import difference
from halka.merging.exporting import FORMATS, check_destination, whole_weights
from halka.merging.precision import in_precision
from halka.models.quantised import quantise
from halka.storage.card import read_card
from kinds import bare, logits, model_with
from numbers_for_tests import close
from tiny import tiny
from tokenizers_for_tests import chatml_tokenizer

PROBES = [Tokens(row, [True] * len(row)) for row in ids(rows=4, length=40).tolist()]


def again(folder, dtype: torch.dtype | str = "auto") -> torch.Tensor:
    base, told = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        return base.eval()(ids()).logits


def merged(model, name: str) -> torch.Tensor:
    model.merge(name)
    found = bare(model)
    model.unmerge()
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["lora", "dora", "ia3"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2", "phi3", "gemma3_text"])
def test_a_merged_folder_computes_in_transformers_what_the_merged_model_does(architecture, kind, dtype, tmp_path):
    if kind == "dora" and architecture in ("gpt2", "phi3"):
        pytest.skip("the roles of this one are others")
    model = model_with(kind, architecture=architecture, dtype=dtype)
    before = bare(model)
    folder = halka.export(model, kind, tmp_path / "merged", probes=PROBES)
    assert torch.equal(again(folder), merged(model, kind))
    assert model.merged is None
    assert torch.equal(bare(model), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["head", "full", None])
@pytest.mark.parametrize("tied", [False, True])
def test_tied_weights_stay_tied_unless_only_one_changed(kind, tied, dtype, tmp_path):
    model = model_with(*([kind] if kind else []), dtype=dtype, tie_word_embeddings=tied)
    expected = logits(model, kind)
    folder = halka.export(model, kind, tmp_path / "merged", probes=PROBES)
    rounding = 0.1 if kind == "head" and dtype == torch.bfloat16 else 1e-5  # beside its product, and in the weight
    close(again(folder), expected, within=rounding)
    stays = tied and kind != "head"
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] == stays
    assert ("lm_head.weight" in load_file(folder / "model.safetensors")) == (not stays)
    assert model.base.config.tie_word_embeddings == tied


def test_weights_in_another_precision_are_rounded_once(tmp_path):
    model = model_with("lora", dtype=torch.bfloat16)
    for name in ("float32", "float16"):
        dtype = getattr(torch, name)
        folder = halka.export(model, "lora", tmp_path / name, dtype=dtype, probes=PROBES)
        assert json.loads((folder / "config.json").read_text())["dtype"] == name
        part = model.adapters["lora"].parts["model.layers.0.mlp.up_proj"]
        exact = model.base.model.layers[0].mlp.up_proj.weight.float() + part.delta().detach()
        stored = load_file(folder / "model.safetensors")
        assert torch.equal(stored["model.layers.0.mlp.up_proj.weight"], exact.to(dtype))
        assert {tensor.dtype for tensor in stored.values()} == {dtype}
    assert model.base.config.dtype == torch.bfloat16


def test_the_folder_is_a_base_with_its_tokenizer_and_settings(tmp_path):
    tokenizer = chatml_tokenizer()
    base = tiny(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    base.generation_config.repetition_penalty = 1.25
    model = halka.adapt(base, tokenizer)
    model.add("a", halka.LoRA(rank=2))
    disturb(model, "a", by=0.2)
    folder = halka.export(model, "a", tmp_path / "merged")
    read = AutoTokenizer.from_pretrained(folder)
    assert read.chat_template == tokenizer.chat_template
    assert read.encode("12 + 30 = 42.") == tokenizer.encode("12 + 30 = 42.")
    loaded, _ = halka.load_base(folder, dtype="auto", device="cpu")
    assert loaded.generation_config.repetition_penalty == 1.25
    with torch.no_grad():
        assert torch.equal(loaded(ids()).logits, merged(model, "a"))
    assert stat.S_IMODE((folder / "model.safetensors").stat().st_mode) == 0o644
    assert halka.export(model, "a", folder) == folder  # it takes its own place


def test_a_folder_of_something_else_is_left_alone_and_a_failure_leaves_nothing(tmp_path, monkeypatch):
    model = model_with("lora", "prefix")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"mine exists and holds thesis.txt, which no export wrote"):
        halka.export(model, "lora", tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "mine"
    with pytest.raises(ValueError, match="not mergeable"):
        halka.export(model, "prefix", tmp_path / "prefix")
    monkeypatch.setattr(type(model.base), "save_pretrained", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        halka.export(model, "lora", tmp_path / "half", force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("value", [float("nan"), 1e20])
def test_values_that_are_not_finite_are_not_exported(value, tmp_path):
    """Nor those that are not once they are rounded to the precision that is asked for."""
    tokenizer = chatml_tokenizer()
    model = halka.adapt(tiny(vocab_size=len(tokenizer)), tokenizer)
    model.add("a", halka.LoRA(rank=2, targets=("mlp.up",)))
    disturb(model, "a")
    model.parameters("a")[1].data[3] = value
    for form, to, dtype in (("safetensors", "a", "float16"), ("gguf", "a.gguf", "float16"), ("gguf", "a.gguf", "q8_0")):
        with pytest.raises(
            ValueError, match=r"(up_proj.weight|ffn_up.weight) holds values that are (not finite|too l)"
        ):
            halka.export(model, "a", tmp_path / to, format=form, dtype=dtype)
    if value != value:
        for form, to in (("safetensors", "a"), ("gguf", "a.gguf"), ("lora-gguf", "a.gguf"), ("peft", "a")):
            with pytest.raises(ValueError, match="not finite"):
                halka.export(model, "a", tmp_path / to, format=form)
    assert not any(tmp_path.iterdir())


def test_what_stands_beside_a_model_without_a_tokenizer_is_left_alone(tmp_path):
    model = halka.adapt(tiny())
    folder = halka.export(model, None, tmp_path / "out")
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"out exists and holds thesis\.txt, which no export wrote"):
        halka.export(model, None, folder)
    assert (folder / "thesis.txt").read_text() == "mine"


def test_what_stands_beside_a_model_and_the_base_itself_are_left_alone(tmp_path):
    tokenizer = chatml_tokenizer()
    tiny(vocab_size=len(tokenizer)).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    (tmp_path / "link").symlink_to("base")
    model = halka.adapt(*halka.load_base(tmp_path / "base", dtype="float32", device="cpu"))
    for base in ("base", "link"):
        with pytest.raises(ValueError, match="is what the base was loaded from: choose another folder"):
            halka.export(model, None, tmp_path / base)
    folder = halka.export(model, None, tmp_path / "out")
    (folder / "LICENSE").write_text("mine")
    with pytest.raises(ValueError, match="out exists and holds LICENSE, which no export wrote"):
        halka.export(model, None, folder)
    (folder / "LICENSE").unlink()
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match="out exists and holds"):
        halka.export(model, None, folder)
    base = tiny(seed=1)
    base.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"other exists and holds config.json, which no export wrote"):
        halka.export(model, None, tmp_path / "other")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is a file: choose another folder"):
        halka.export(model, None, tmp_path / "file")


def test_whole_weights_share_what_is_tied_in_every_precision():
    model = model_with("lora", tie_word_embeddings=True)
    for dtype in (None, torch.float32, torch.float16):
        weights = whole_weights(model, "lora", dtype)
        assert weights["lm_head.weight"].data_ptr() == weights["model.embed_tokens.weight"].data_ptr()
    model.merge("lora")  # what is merged does not stand in for the base's own
    for name, tensor in whole_weights(model, None).items():
        assert torch.equal(tensor, tiny(tie_word_embeddings=True).state_dict()[name])


def test_what_is_merged_alike_into_tied_weights_stays_tied(tmp_path):
    model = halka.adapt(tiny(tie_word_embeddings=True))
    model.add("a", halka.Tokens((5, 6)))
    disturb(model, "a", by=0.1)
    folder = halka.export(model, "a", tmp_path / "merged", probes=PROBES)
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"]
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    close(again(folder), logits(model, "a"), within=1e-5)


@pytest.mark.parametrize("kind", [CLASSES, TAGS])
@pytest.mark.parametrize("method", [halka.LoRA(rank=4), halka.Full()], ids=lambda method: method.name)
def test_a_merged_classifier_names_the_adapters_labels_and_has_a_row_for_each(method, kind, tmp_path):
    model = classifier(kind=kind)
    model.base.config.new_modules = ["classifier"]
    for labels in (("no", "yes"), ("no", "yes", "perhaps"), ()):
        name = f"{len(labels)}"
        model.add(name, method, labels=labels)
        disturb(model, name, by=0.01)
        halka.export(model, name, tmp_path / name)
        base = halka.load_base(tmp_path / name, dtype="float32", device="cpu")[0]
        expected = labels or LABELS
        assert base.config.id2label == dict(enumerate(expected))
        assert base.config.label2id == {label: place for place, label in enumerate(expected)}
        assert "new_modules" not in json.loads((tmp_path / name / "config.json").read_text())
        with torch.no_grad(), model.use(name):
            there = model.base(ids()).logits[..., : len(expected)]
        with torch.no_grad():
            torch.testing.assert_close(base.eval()(ids()).logits, there, rtol=0, atol=1e-4)
    assert model.base.config.id2label == dict(enumerate(LABELS))


@pytest.mark.parametrize("method", [halka.LoRA(rank=2, targets=("embedding",)), halka.BitFit(("head",))], ids=str)
@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_of_two_tied_pairs_one_may_come_apart(architecture, method, tmp_path):
    """As the embeddings and the head's weight do, whose bias is tied to another."""
    base = tiny(architecture)
    with torch.no_grad():
        for parameter in base.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    model = halka.adapt(base)
    model.add("a", method)
    disturb(model, "a", by=0.2)
    folder = halka.export(model, "a", tmp_path / "merged", probes=PROBES)
    read, loading = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
    assert not loading["missing_keys"]
    with torch.no_grad():
        torch.testing.assert_close(read.eval()(ids()).logits, merged(model, "a"), rtol=0, atol=1e-4)


@pytest.mark.parametrize("architecture", ["bert", "roberta", "modernbert"])
def test_a_classifier_of_several_new_layers_is_merged(architecture, tmp_path):
    """BERT's new pooler, RoBERTa's two layers: modules that are trained whole."""
    tiny(architecture).save_pretrained(tmp_path / "base")
    chatml_tokenizer().save_pretrained(tmp_path / "base")
    loading = {"kind": CLASSES, "labels": ["no", "yes"], "dtype": "float32", "device": "cpu"}
    model = halka.adapt(*halka.load_base(tmp_path / "base", **loading))
    model.add("a", halka.LoRA(rank=2))
    disturb(model, "a", by=0.05)
    with torch.no_grad(), model.use("a"):
        expected = model.base(ids()).logits
    folder = halka.export(model, "a", tmp_path / "merged", probes=PROBES)
    with torch.no_grad():
        again = halka.load_base(folder, dtype="float32", device="cpu")[0](ids()).logits
        torch.testing.assert_close(again, expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(merged(model, "a"), expected, rtol=0, atol=1e-4)


def test_a_generation_config_that_was_changed_by_hand_is_written_as_it_is(tmp_path):
    model = model_with("lora")
    config = model.base.generation_config
    config.do_sample, config.temperature, config.top_p = False, 0.6, 0.9
    folder = halka.export(model, "lora", tmp_path / "merged", probes=PROBES)
    written = json.loads((folder / "generation_config.json").read_text())
    assert (written["temperature"], written["top_p"]) == (0.6, 0.9)


@pytest.mark.parametrize("architecture", ["mixtral", "qwen2_moe"])
def test_a_mixture_in_float32_is_measured(architecture, tmp_path):
    """Exact is float64, of which torch has no grouped product."""
    model = halka.adapt(tiny(architecture))
    model.add("a", halka.LoRA(rank=2))
    disturb(model, "a", by=0.2)
    way = model.base.config._experts_implementation
    assert halka.merge_error(model, "a", PROBES).merged.max < 1e-3
    assert model.base.config._experts_implementation == way


# ── what it costs ───────────────────────────────────────────────────────────────────────────────────────────────────


def error_of(model, name, to, **how):
    found = []
    halka.export(model, name, to, probes=PROBES, on_error=found.append, **how)
    return found[0]


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize(
    ("own", "written"), [("float32", "bfloat16"), ("float32", "float16"), ("bfloat16", "float16"), ("bfloat16", None)]
)
def test_the_error_is_that_of_the_folder_as_it_is_read(own, written, kind, tmp_path):
    model = model_with(kind, dtype=getattr(torch, own))
    before = bare(model)
    found = error_of(model, kind, tmp_path / "merged", dtype=written)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto").eval()
    with torch.no_grad():
        read = [base(torch.tensor([row.ids])).logits[0, :-1] for row in PROBES]
    wider = torch.float64 if own == "float32" else torch.float32
    with torch.no_grad(), in_precision(model, wider), model.use(kind):
        exact = [model.base(torch.tensor([row.ids])).logits[0, :-1] for row in PROBES]
    assert found.dtype == (written or own)
    assert found.merged == difference(exact, read)
    assert found.error == found.merged or (kind, written) == ("lora", None)
    assert 0 < found.rounding.kl < 0.05 * found.effect.kl
    assert 0 < found.noise.max < found.effect.max
    assert torch.equal(bare(model), before)


def test_a_wider_precision_than_the_bases_costs_next_to_nothing(tmp_path):
    model = model_with("lora", dtype=torch.bfloat16)
    assert error_of(model, "lora", tmp_path / "wide", dtype="float32", limit=1e-6).relative < 1e-9


def test_what_would_be_lost_in_the_precision_that_is_asked_for_is_not_written_unless_forced(tmp_path):
    """The base in fp32 would keep it: the limit is that of what is written."""
    model = model_with("lora")
    for key, tensor in model.adapters["lora"].state_dict().items():
        tensor.mul_(0.005 if key.endswith("lora_B") else 1)
    assert halka.merge_error(model, "lora", PROBES).relative < 1e-3
    with pytest.raises(ValueError, match=r"of its effect .* past the limit .*rounding to bfloat16 .* write float32"):
        halka.export(model, "lora", tmp_path / "merged", dtype="bfloat16", probes=PROBES)
    assert not any(tmp_path.iterdir())
    halka.export(model, "lora", tmp_path / "merged", dtype="float32", probes=PROBES)
    halka.export(model, "lora", tmp_path / "small", dtype="bfloat16", probes=PROBES, limit=1e3)
    halka.export(model, "lora", tmp_path / "forced", dtype="bfloat16", force=True)


def test_where_nothing_can_be_compared_it_is_said(tmp_path):
    model = model_with("lora")
    for dtype in (None, "float16"):
        with pytest.raises(ValueError, match=r"probes of text need the model's tokenizer: .* or give Tokens"):
            halka.export(model, "lora", tmp_path / "merged", dtype=dtype)
    assert not any(tmp_path.iterdir())
    halka.export(model, "lora", tmp_path / "merged", force=True)


# ── the adapter alone ───────────────────────────────────────────────────────────────────────────────────────────────


def test_pefts_folder_is_the_one_that_save_writes(tmp_path):
    model = model_with("lora")
    halka.export(model, "lora", tmp_path / "exported", format="peft")
    halka.load(model, tmp_path / "exported", name="again")
    assert torch.equal(logits(model, "again"), logits(model, "lora"))


@pytest.mark.parametrize(("form", "pad_rank"), [("peft", False), ("vllm", False), ("vllm", True)])
def test_an_adapter_that_is_there_is_written_over_where_forced(form, pad_rank, tmp_path):
    model = model_with()
    for name in ("a", "b"):
        model.add(name, halka.LoRA(rank=3))
    folder = halka.save(model, "a", tmp_path / "a", task="sums")
    (folder / "README.md").write_text("mine")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(halka.HalkaError, match="a holds an adapter, and does not say whether it was trained"):
        halka.export(model, "b", folder, format=form, pad_rank=pad_rank)
    with pytest.raises(halka.HalkaError, match="a holds an adapter, and does not say whether it was trained"):
        check_destination(folder, form, "base", force=False)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [*model.adapters] == ["a", "b"]
    check_destination(folder, form, "base", force=True)
    halka.export(model, "b", folder, format=form, pad_rank=pad_rank, force=True)
    assert read_card(folder).task == ""
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "README.md").write_text("mine")
    halka.export(model, "b", tmp_path / "b", format=form, pad_rank=pad_rank)


@pytest.mark.parametrize(("form", "pad_rank"), [("peft", False), ("vllm", False), ("vllm", True)])
def test_an_adapter_alone_keeps_what_its_card_says(form, pad_rank, tmp_path):
    model = model_with()
    model.add("a", halka.LoRA(rank=3))
    card = {"task": "sums", "training": {"lr": 0.1}, "measurements": {"loss": 2.0}}
    written = read_card(halka.export(model, "a", tmp_path / "a", format=form, pad_rank=pad_rank, card=card))
    assert {key: getattr(written, key) for key in card} == card


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # peft's own
def test_for_vllm_the_rank_is_padded_where_asked_and_computes_the_same(tmp_path):
    peft = pytest.importorskip("peft")
    model = halka.adapt(tiny())
    model.add("a", halka.LoRA(rank=5, alpha=3.0, scaling="root"))
    disturb(model, "a", by=0.2)
    expected = logits(model, "a")
    for pad, rank in ((False, 5), (True, 8)):
        folder = halka.export(model, "a", tmp_path / f"rank{rank}", format="vllm", pad_rank=pad)
        assert json.loads((folder / "adapter_config.json").read_text())["r"] == rank
        theirs = peft.PeftModel.from_pretrained(tiny(), folder).eval()
        with torch.no_grad():
            torch.testing.assert_close(theirs(ids()).logits, expected, rtol=0, atol=1e-5)
    assert [*model.adapters] == ["a"]


@pytest.mark.parametrize(
    ("method", "why"),
    [
        (halka.DoRA(rank=2), "LoRA adapters alone, and this is dora: merge it"),
        (halka.LoRA(rank=2, targets=("attn.q", "head")), "does not serve a LoRA at lm_head"),
        (halka.LoRA(rank=600, targets=("attn.q",)), "serves ranks up to 512, and this is 600"),
    ],
)
def test_what_vllm_does_not_serve_is_said_by_name(method, why, tmp_path):
    model = halka.adapt(tiny())
    model.add("a", method)
    with pytest.raises(ValueError, match=why):
        halka.export(model, "a", tmp_path / "a", format="vllm", pad_rank=True)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("architecture", "kind"), [("gpt2", None), ("gpt_neox", None), ("bert", None), ("t5", None)])
def test_adapters_of_bases_that_take_none_in_vllm_are_refused(architecture, kind, tmp_path):
    model = halka.adapt(tiny(architecture, kind=kind))
    model.add("a", halka.LoRA(rank=8))
    with pytest.raises(
        ValueError, match=rf"vLLM serves no adapters of this base \({architecture}\): merge them instead"
    ):
        halka.export(model, "a", tmp_path / "a", format="vllm")
    assert not any(tmp_path.iterdir())


def test_what_peft_has_no_form_for_is_not_written_for_vllm(tmp_path):
    model = halka.adapt(tiny("qwen3_moe"))
    model.add("a", halka.LoRA(rank=8))
    with pytest.raises(ValueError, match="peft takes the names of this base's dense MLPs for those of experts"):
        halka.export(model, "a", tmp_path / "a", format="vllm")
    assert not any(tmp_path.iterdir())
    model.add("b", halka.LoRA(rank=8, targets=("attn.qv",)))
    halka.export(model, "b", tmp_path / "b", format="vllm")
    assert json.loads((tmp_path / "b" / "adapter_config.json").read_text())["peft_type"] == "LORA"


def test_what_peft_has_no_form_for_is_not_exported_to_it(tmp_path):
    model = halka.adapt(tiny())
    model.add("a", halka.Bottleneck(width=4))
    with pytest.raises(ValueError, match=r"peft has no form for this adapter, bottleneck: halka\.save writes it"):
        halka.export(model, "a", tmp_path / "a", format="peft")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"format": "onnx"}, "there is no format 'onnx': choose one of safetensors, gguf, lora-gguf, peft, vllm"),
        ({"format": "peft", "name": None}, "peft holds an adapter alone: name one"),
        ({"format": "lora-gguf", "dtype": "float16"}, "keeps the adapter as it is, in fp32"),
        ({"pad_rank": True}, "pad_rank is for vllm alone"),
        ({"dtype": "int4"}, "dtype 'int4' is none of bfloat16, float32, float16"),
        ({"format": "gguf"}, "is not the path of a .gguf file"),
        ({"name": "nobody"}, "no adapter 'nobody'"),
    ],
)
def test_what_cannot_be_exported_is_said(given, why, tmp_path):
    model = model_with("lora")
    with pytest.raises(ValueError, match=why):
        halka.export(model, **{"name": "lora", "to": tmp_path / "a", **given})
    assert not any(tmp_path.iterdir())
    assert {*FORMATS} == {"safetensors", "gguf", "lora-gguf", "peft", "vllm"}


@pytest.mark.parametrize("form", ["gguf", "lora-gguf"])
def test_a_gguf_that_is_there_is_written_over_where_forced(form, tmp_path):
    tokenizer = chatml_tokenizer()
    model = halka.adapt(tiny(vocab_size=len(tokenizer)), tokenizer)
    model.add("a", halka.LoRA(rank=2))
    path = tmp_path / "a.gguf"
    path.write_bytes(b"another's")
    with pytest.raises(ValueError, match=r"a\.gguf exists, and a GGUF file does not say who wrote it"):
        halka.export(model, "a", path, format=form)
    assert path.read_bytes() == b"another's"
    halka.export(model, "a", path, format=form, force=True)
    assert path.read_bytes().startswith(b"GGUF")


def test_a_gguf_of_another_type_is_refused(tmp_path):
    model = halka.adapt(tiny(vocab_size=500), chatml_tokenizer())
    with pytest.raises(ValueError, match="dtype 'int4' is none of bfloat16, float32, float16, q8_0"):
        halka.export(model, None, tmp_path / "a.gguf", format="gguf", dtype="int4")


def test_a_packed_base_is_not_exported(tmp_path):
    base = tiny()
    quantise(base, "int8")
    model = halka.adapt(base)
    model.add("head", halka.LoRA(rank=2, targets=("head",)))
    for name in (None, "head"):
        with pytest.raises(ValueError, match=r"q_proj is quantised to int8, .*load the base so"):
            halka.export(model, name, tmp_path / "a")

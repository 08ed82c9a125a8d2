"""Encoders and T5: the same weights give the same logits and gradients in Hugging Face peft and here, in fp32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import halka
from contract import ids
from exchange import SAVED
from halka.core import AdaptedModel
from tiny import tiny

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # peft's own
P = 5
TASKS = {
    "masked-lm": "FEATURE_EXTRACTION",  # peft has no task for it; this one leaves the base as it is
    "sequence-classification": "SEQ_CLS",
    "token-classification": "TOKEN_CLS",
    "seq2seq-lm": "SEQ_2_SEQ_LM",
}
LINEARS = {  # adapted by LoRA; scaled by (IA)³; of these, at their input
    "llama": (["q_proj", "down_proj"], ["k_proj", "v_proj", "down_proj"], ["down_proj"]),
    "bert": (["query", "value", "output.dense"], ["key", "value", "output.dense"], ["output.dense"]),
    "roberta": (["query", "value", "intermediate.dense"], ["key", "value", "output.dense"], ["output.dense"]),
    "modernbert": (["Wqkv", "Wi", "attn.Wo"], ["Wqkv", "mlp.Wo"], ["mlp.Wo"]),
    "t5": (["q", "v", "wi", "wo"], ["k", "v", "wo"], ["wo"]),
    "flan-t5": (["q", "o", "wi_0"], ["k", "v", "wo"], ["wo"]),
}
BASES = [(name, kind) for name in ("bert", "roberta", "modernbert") for kind in TASKS if kind != "seq2seq-lm"]
BASES += [("t5", "seq2seq-lm"), ("flan-t5", "seq2seq-lm"), ("llama", "sequence-classification")]
every_base = pytest.mark.parametrize(("architecture", "kind"), BASES)
LABELS = ids(length=7, seed=5)


def theirs(name: str, architecture: str, kind: str) -> torch.nn.Module:
    """A peft model with trained values."""
    task, (adapted, scaled, inner) = TASKS[kind], LINEARS[architecture]
    if name == "ia3":
        config = peft.IA3Config(task_type=task, target_modules=scaled, feedforward_modules=inner)
    elif name == "prefix":
        config = peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=P)
    elif name == "prompt":
        config = peft.PromptTuningConfig(task_type=task, num_virtual_tokens=P)
    else:
        config = peft.LoraConfig(task_type=task, r=4, lora_alpha=6, use_dora=name == "dora", target_modules=adapted)
    model = peft.get_peft_model(tiny(architecture, kind=kind), config).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def logits(model: torch.nn.Module, kind: str, mask: torch.Tensor | None = None) -> torch.Tensor:
    """For the text alone: of encoders peft also returns those of its virtual tokens."""
    inputs = {"input_ids": ids()} if mask is None else {"input_ids": ids(), "attention_mask": mask}
    if kind == "seq2seq-lm":
        return model(**inputs, labels=LABELS).logits
    result = model(**inputs).logits
    return result if kind == "sequence-classification" else result[:, -9:]


def masked() -> torch.Tensor:
    mask = torch.ones(3, 9, dtype=torch.int64)
    mask[1, 6:] = 0
    return mask


def read(folder: Path, architecture: str, kind: str) -> AdaptedModel:
    model = halka.adapt(tiny(architecture, kind=kind))
    halka.load(model, folder, name="a")
    return model


def compare(name: str, architecture: str, kind: str, tmp_path: Path, mask: torch.Tensor | None) -> None:
    """Logits, and gradients of their mean square: these are read as if they were an adapter's values."""
    model = theirs(name, architecture, kind)
    model.save_pretrained(tmp_path / "values")
    expected = logits(model, kind, mask)
    expected.square().mean().backward()
    for parameter in model.parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None
            parameter.data.copy_(parameter.grad * 1000)
    model.save_pretrained(tmp_path / "gradients")
    ours = read(tmp_path / "values", architecture, kind)
    bare = logits(ours.base, kind, mask)
    with ours.use("a"):
        found = logits(ours.base, kind, mask)
        found.square().mean().backward()
    real = slice(None) if mask is None or kind == "sequence-classification" else masked().bool()
    if kind == "seq2seq-lm":
        real = slice(None)
    assert (expected - bare).abs().max() > 1e-2
    torch.testing.assert_close(found[real], expected[real], rtol=0, atol=1e-4)
    if mask is None:
        gradients = read(tmp_path / "gradients", architecture, kind).adapter("a").state_dict()
        for key, parameter in ours.adapter("a").named_parameters():
            torch.testing.assert_close(parameter.grad * 1000, gradients[key], rtol=1e-3, atol=1e-2, msg=key)


@every_base
@pytest.mark.parametrize("name", SAVED)
def test_what_peft_saved_computes_and_learns_the_same(name, architecture, kind, tmp_path):
    compare(name, architecture, kind, tmp_path, None)


@every_base
@pytest.mark.parametrize("name", ["lora", "prompt"])
def test_padding_is_as_in_peft(name, architecture, kind, tmp_path):
    compare(name, architecture, kind, tmp_path, masked())


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_a_prefix_is_as_in_peft(architecture, tmp_path):
    """For masked words; to classifiers peft 0.21 hands a cache under a name that transformers has given up."""
    compare("prefix", architecture, "masked-lm", tmp_path, None)
    with pytest.raises(ValueError, match="does not support past key values"):
        logits(theirs("prefix", architecture, "sequence-classification"), "sequence-classification")


@pytest.mark.parametrize("architecture", ["t5", "flan-t5"])
@pytest.mark.parametrize("layers", [2, 3])
def test_a_prefix_of_t5_is_read_as_peft_computes_it(layers, architecture, tmp_path):
    """In layer l peft 0.21 uses the pair of layer 2·l modulo L, here and in training."""
    base = tiny(architecture, num_layers=layers)
    model = peft.get_peft_model(base, peft.PrefixTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=P)).eval()
    model.save_pretrained(tmp_path)
    ours = halka.adapt(tiny(architecture, num_layers=layers))
    halka.load(ours, tmp_path, name="a")
    with torch.no_grad(), ours.use("a"):
        expected, found = logits(model, "seq2seq-lm"), logits(ours.base, "seq2seq-lm")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["lora", "prompt"])
def test_t5_writes_what_it_writes_in_peft(name, tmp_path):
    model = theirs(name, "t5", "seq2seq-lm")
    model.save_pretrained(tmp_path)
    ours = read(tmp_path, "t5", "seq2seq-lm")
    options = {"attention_mask": masked(), "max_new_tokens": 6, "do_sample": False, "num_beams": 2}
    expected = model.generate(input_ids=ids(), **options)
    with ours.use("a"):
        found = ours.base.generate(ids(), **options)
    assert torch.equal(found, expected)
    assert not torch.equal(found, ours.base.generate(ids(), **options))


METHODS = {
    "lora": halka.LoRA(rank=4, alpha=6, targets=("linear",)),
    "dora": halka.DoRA(rank=4, alpha=6, targets=("mlp.linear",)),
    "ia3": halka.IA3(),
    "prompt": halka.Prompt(length=P),
}


@every_base
@pytest.mark.parametrize("name", METHODS)
def test_what_is_saved_here_computes_the_same_in_peft(name, architecture, kind, tmp_path):
    from contract import disturb

    model, method = halka.adapt(tiny(architecture, kind=kind)), METHODS[name]
    if kind in ("sequence-classification", "token-classification"):
        method = halka.Joint((method, halka.Modules()))
    model.add("a", method)
    disturb(model, "a")
    with torch.no_grad(), model.use("a"):
        ours = logits(model.base, kind)
    halka.save(model, "a", tmp_path / "a")
    loaded = peft.PeftModel.from_pretrained(tiny(architecture, kind=kind), tmp_path / "a").eval()
    with torch.no_grad():
        found = logits(loaded, kind)
    torch.testing.assert_close(found, ours, rtol=0, atol=1e-4)

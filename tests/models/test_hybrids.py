"""Bases of whose layers some carry a state in place of attention: what acts there, and what is refused by name."""

from __future__ import annotations

import copy

import pytest
import torch

import halka
from contract import disturb, ids, padded
from halka.models import context
from halka.objectives import packs
from halka.util.errors import HalkaError
from tiny import HYBRIDS, tiny
from tokenizers_for_tests import chatml_tokenizer

every_architecture = pytest.mark.parametrize("architecture", HYBRIDS)
METHODS = {
    "lora": halka.LoRA(rank=3, targets=("linear",)),
    "dora": halka.DoRA(rank=2, targets=("linear",)),
    "bottleneck": halka.Bottleneck(width=3),
    "beside": halka.Bottleneck(width=3, reads="residual", targets=("attn",)),
    "ia3": halka.IA3(),
}
EXAMPLES = [{"prompt": f"How many are {n} and 1?", "completion": f"It is {n + 1}."} for n in range(6)]


def adapted(architecture: str) -> halka.AdaptedModel:
    model = halka.adapt(tiny(architecture))
    for name, method in METHODS.items():
        model.add(name, method)
        disturb(model, name)
    return model


def with_tokenizer(architecture: str) -> halka.AdaptedModel:
    tokenizer = chatml_tokenizer()
    return halka.adapt(
        tiny(architecture, vocab_size=len(tokenizer) + 3, eos_token_id=tokenizer.eos_token_id), tokenizer
    )


@every_architecture
def test_the_roles_are_in_every_layer_and_virtual_tokens_have_none(architecture):
    targets = halka.adapt(tiny(architecture)).targets
    by_layer = [{target.role for target in targets if target.layer == layer} for layer in (0, 1)]
    mlp = {"mlp.gate", "mlp.up", "mlp.down", "mlp", "attn", "attn.o", "attn.residual", "mlp.residual"}
    assert by_layer == [{*mlp, "attn.qkv"}, {*mlp, "attn.q", "attn.k", "attn.v"}]
    assert {target.role for target in targets if target.layer is None} == {"embedding", "head", "base"}


@every_architecture
@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_of_a_mixed_batch_equal_their_own_runs(side, architecture):
    model = adapted(architecture)
    texts = [ids(1, length, seed=length)[0] for length in (4, 9, 6, 5, 8, 7)]
    names = [None, *METHODS]
    batch, mask, positions = padded(texts, side)
    with torch.no_grad(), model.use(names):
        together = model.base(batch, attention_mask=mask, position_ids=positions).logits
    answers = [together[row][mask[row] == 1] for row in range(len(texts))]
    for name, text, row in zip(names, texts, answers, strict=True):
        with torch.no_grad(), model.use(name):
            alone = model.base(text[None]).logits[0]
        torch.testing.assert_close(row, alone, rtol=0, atol=1e-5)
        with torch.no_grad():
            bare = model.base(text[None]).logits[0]
        assert torch.equal(alone, bare) == (name is None)


@every_architecture
def test_a_run_pads_and_learns_and_its_adapter_answers_as_before_when_it_is_loaded(architecture, tmp_path):
    model = with_tokenizer(architecture)
    assert not packs(model)
    model.add("a", halka.LoRA(rank=4, targets=("linear",)))
    steps = [*halka.train(model, "a", EXAMPLES, {"steps": 40, "batch_size": 6, "lr": 0.1})]
    assert steps[-1].loss < 0.9 * steps[0].loss
    questions = [EXAMPLES[0]["prompt"], EXAMPLES[3]["prompt"], "Who?"]
    answers = halka.generate(model, questions, ["a", None, "a"], max_new_tokens=8)
    halka.save(model, "a", tmp_path / "a")
    fresh = with_tokenizer(architecture)
    halka.load(fresh, tmp_path / "a")
    assert halka.generate(fresh, questions, ["a", None, "a"], max_new_tokens=8) == answers
    assert [halka.generate(fresh, [question], "a", max_new_tokens=8)[0] for question in questions[::2]] == answers[::2]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@every_architecture
def test_peft_computes_a_saved_lora_alike(architecture, tmp_path):
    peft = pytest.importorskip("peft")
    base = tiny(architecture)
    model = halka.adapt(copy.deepcopy(base))
    model.add("a", METHODS["lora"])
    disturb(model, "a")
    halka.save(model, "a", tmp_path / "a")
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "a")
    with torch.no_grad(), model.use("a"):
        torch.testing.assert_close(model.base(ids()).logits, theirs(ids()).logits, rtol=0, atol=1e-5)


@every_architecture
def test_a_merged_adapter_computes_alike(architecture):
    model = adapted(architecture)
    with torch.no_grad(), model.use("lora"):
        expected = model.base(ids()).logits
    model.merge("lora")
    with torch.no_grad():
        torch.testing.assert_close(model.base(ids()).logits, expected, rtol=0, atol=1e-4)


@every_architecture
def test_what_needs_attention_in_every_layer_is_refused_by_name(architecture):
    model = with_tokenizer(architecture)
    for method in (halka.Prefix(length=3), halka.Prompt(length=3), halka.LlamaAdapter()):
        with pytest.raises(HalkaError, match="which this base does not have"):
            model.add("a", method)
    with pytest.raises(HalkaError, match=r"carry a state in place of attention.*halka\.generate"):
        halka.Engine(model)
    with pytest.raises(HalkaError, match="carry a state in place of attention"):
        halka.generate(model, ["Who?"], constraint=halka.Constraint(regex="a+"), max_new_tokens=4)
    assert context(model) == 128


@every_architecture
def test_its_memory_is_estimated(architecture):
    config = tiny(architecture).config
    estimate = halka.estimate(config, [METHODS["lora"], "prefix"], batch_size=2, length=16)
    lora, prefix = estimate.rows
    assert lora.trained == halka.adapt(tiny(architecture)).add("a", METHODS["lora"]).count()
    assert lora.memory is not None
    assert "does not have" in (prefix.refused or "")

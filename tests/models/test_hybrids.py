"""Bases of unlike layers: some carry a state in place of attention, or have keys and values of another shape, or none.

What acts there, and what is refused by name.
"""

from __future__ import annotations

import copy

import pytest
import torch

import halka
from contract import disturb, ids, padded
from halka.advisor.probed_base import token_losses
from halka.core import Method
from halka.data.examples import as_examples
from halka.data.tokens import encode
from halka.models import context
from halka.models.attention.function import use_attention
from halka.objectives import packs
from halka.objectives.language_modelling import LanguageModelling
from halka.storage.formats.peft.experts import CONVERTED
from halka.util.errors import HalkaError
from tiny import HYBRIDS, UNEVEN, tiny
from tokenizers_for_tests import chatml_tokenizer

every_architecture = pytest.mark.parametrize("architecture", [*HYBRIDS, *UNEVEN])
with_states = pytest.mark.parametrize("architecture", HYBRIDS)
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
    for name, method in methods_of(architecture).items():
        model.add(name, method)
        disturb(model, name)
    return model


def methods_of(architecture: str) -> dict[str, Method]:
    """Gemma's residual has a norm before it."""
    return {name: method for name, method in METHODS.items() if architecture in HYBRIDS or name != "beside"}


def with_tokenizer(architecture: str) -> halka.AdaptedModel:
    tokenizer = chatml_tokenizer()
    return halka.adapt(
        tiny(architecture, vocab_size=len(tokenizer) + 3, eos_token_id=tokenizer.eos_token_id), tokenizer
    )


@with_states
def test_the_roles_are_in_every_layer_and_virtual_tokens_have_none(architecture):
    targets = halka.adapt(tiny(architecture)).targets
    by_layer = [{target.role for target in targets if target.layer == layer} for layer in (0, 1)]
    mlp = {"mlp.gate", "mlp.up", "mlp.down", "mlp", "attn", "attn.o", "attn.residual", "mlp.residual"}
    mlp |= {target.role for target in targets if target.experts}
    assert by_layer == [{*mlp, "attn.qkv"}, {*mlp, "attn.q", "attn.k", "attn.v"}]
    assert {target.role for target in targets if target.layer is None} == {"embedding", "head", "base"}


@every_architecture
@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_of_a_mixed_batch_equal_their_own_runs(side, architecture):
    model = adapted(architecture)
    names = [None, *methods_of(architecture)]
    texts = [ids(1, length, seed=length)[0] for length in (4, 9, 6, 5, 8, 7)[: len(names)]]
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


@pytest.mark.parametrize("architecture", UNEVEN)
def test_layers_that_attend_to_anothers_keys_have_none(architecture):
    targets = halka.adapt(tiny(architecture)).targets
    attention = [
        {target.role for target in targets if target.layer == layer and "attn." in target.role} for layer in range(4)
    ]
    assert attention == [{"attn.q", "attn.k", "attn.v", "attn.o"}] * 2 + [{"attn.q", "attn.o"}] * 2
    assert {target.role for target in targets if target.layer is None} == {"embedding", "head", "base"}


def test_global_layers_may_have_one_projection_for_keys_and_values():
    targets = halka.adapt(tiny("gemma4_text", num_kv_shared_layers=0, attention_k_eq_v=True)).targets
    assert [target.layer for target in targets if target.role == "attn.v"] == [0, 2]
    assert [target.layer for target in targets if target.role == "attn.k"] == [0, 1, 2, 3]


@with_states
def test_answers_are_made_without_padding(architecture):
    """What an adapter adds to a layer's output is added at padding, too, which layers with states hand to the text."""
    model = with_tokenizer(architecture)
    model.add("a", halka.BitFit())
    disturb(model, "a", by=0.5)
    masks, generate = [], model.base.generate
    model.base.generate = lambda **inputs: masks.append(inputs["attention_mask"]) or generate(**inputs)
    questions = ["Who?", "How many are there, and of which kind?", "Who?", "What?"]
    together = halka.generate(model, questions, "a", max_new_tokens=8)
    assert len(masks) > 1
    assert all(mask.all() for mask in masks)
    assert together == [halka.generate(model, [question], "a", max_new_tokens=8)[0] for question in questions]


@every_architecture
def test_losses_of_probes_are_those_of_each_text(architecture):
    model = with_tokenizer(architecture)
    model.add("a", halka.LoRA(rank=3))
    disturb(model, "a")
    items = [encode(example, model.tokenizer) for example in as_examples(EXAMPLES)]
    losses = token_losses(model, "a", items)
    for (labels, own), item in zip(losses, items, strict=True):
        batch = LanguageModelling().collate([item], 0)
        with torch.no_grad(), model.use("a"):
            logprobs = model.base(batch.input_ids).logits[0, :-1].log_softmax(-1)
        wanted = torch.tensor(item.loss[1:])
        own_tokens = batch.input_ids[0, 1:][wanted]
        assert labels == own_tokens.tolist()
        expected = -logprobs[wanted].gather(1, own_tokens[:, None])[:, 0]
        torch.testing.assert_close(torch.from_numpy(own).float(), expected, rtol=0, atol=1e-5)


@with_states
def test_texts_share_no_line(architecture):
    model = with_tokenizer(architecture)
    model.add("a", halka.LoRA(rank=3))
    batch = LanguageModelling().pack(model, [[encode(example, model.tokenizer) for example in as_examples(EXAMPLES)]])
    with pytest.raises(HalkaError, match="texts share no line of"), model.use("a"), use_attention(model.base):
        LanguageModelling().packed_label_losses(model, ["a"], batch)


@every_architecture
def test_a_run_pads_and_learns_and_its_adapter_answers_as_before_when_it_is_loaded(architecture, tmp_path):
    model = with_tokenizer(architecture)
    assert packs(model) == (architecture in UNEVEN)
    model.add("a", halka.LoRA(rank=4, targets=("linear",)))
    steps = [*halka.train(model, "a", EXAMPLES, {"steps": 40, "batch_size": 6, "lr": 0.01})]
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
    converted = architecture in CONVERTED  # of which peft takes dense MLPs for experts
    model.add("a", halka.LoRA(rank=3, targets=("attn.linear", "experts")) if converted else METHODS["lora"])
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
    layers = "carry a state in place of attention" if architecture in HYBRIDS else "keys and values have several shapes"
    with pytest.raises(HalkaError, match=rf"{layers}.*halka\.generate"):
        halka.Engine(model)
    with pytest.raises(HalkaError, match=layers):
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

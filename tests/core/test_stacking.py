"""Rows of many adapters in one go compute what each adapter computes alone, forward and backward."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
import torch

import halka
from contract import disturb, ids, padded
from halka.core import AdaptedModel, ModulePart
from halka.core.routing import resolve
from halka.methods.lora import LoRAPart
from numbers_for_tests import close
from tiny import tiny

FAMILIES = {
    "lora": [
        halka.LoRA(rank=3, alpha=6),
        halka.LoRA(rank=20, targets=("attn.qv", "mlp.down"), scaling="root"),
        halka.LoRA(rank=16, alpha=4, dropout=0.1, targets=("linear", "head")),
    ],
    "dora": [halka.DoRA(rank=3), halka.DoRA(rank=9, targets=("attn.linear",)), halka.DoRA(rank=16)],
    "bottleneck": [
        halka.Bottleneck(width=5),
        halka.Bottleneck(width=17, scale=2.0, dropout=0.1),
        halka.Bottleneck(width=6, activation="gelu", targets=("mlp",)),
        halka.Bottleneck(width=7, reads="input"),
    ],
    "ia3": [halka.IA3(), halka.IA3(targets=("linear",)), halka.IA3(targets=("mlp.down",))],
    "bitfit": [halka.BitFit(), halka.BitFit(targets=("attn.linear", "head"))],
}
FAMILIES["all"] = [method for methods in list(FAMILIES.values()) for method in methods[:2]] + [
    halka.Prefix(length=3),
    halka.Prompt(length=5),
]
every_family = pytest.mark.parametrize("family", FAMILIES)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def model_of(family: str, dtype=torch.float32, architecture: str = "llama") -> tuple[AdaptedModel, list[str | None]]:
    """A tiny base with the family's adapters, and rows that use each twice and the bare base once, in no order."""
    base = tiny(architecture, dtype, **({"tie_word_embeddings": False} if architecture == "llama" else {}))
    model = halka.adapt(base)
    for seed, method in enumerate(FAMILIES[family]):
        model.add(str(seed), method, seed=seed)
        disturb(model, str(seed), seed=seed, by=0.1)
    names = [str(seed) for seed in range(len(FAMILIES[family]))]
    return model, [*names, None, *reversed(names)]


def outputs(model: AdaptedModel, rows, batch: torch.Tensor, **more) -> torch.Tensor:
    with torch.no_grad(), model.use(rows):
        return model.base(batch, **more).logits


@every_family
@dtypes
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "phi3"])
def test_each_row_is_its_own_single_run(family, dtype, architecture):
    model, rows = model_of(family, dtype, architecture)
    batch = ids(len(rows))
    found = outputs(model, rows, batch)
    for row, name in enumerate(rows):
        alone = outputs(model, name, batch[row : row + 1])
        close(found[row : row + 1], alone)


@every_family
@pytest.mark.parametrize("longest", [1, 5, 40])
def test_runs_of_a_line_are_edited_as_each_by_its_own_part(family, longest):
    """Short ones in one go, also where some are empty; the slow twin is what would be differentiated."""
    model, rows = model_of(family)
    places = {
        (target.key, part.edits): target
        for adapter in model.adapters.values()
        for path, part in adapter.parts.items()
        if isinstance(part, ModulePart) and (target := adapter.targets[path]).layer in (0, None)
    }
    edits = resolve(tuple(rows), model.adapters).edits
    draw = random.Random(longest)
    runs = tuple(draw.choice((0, 1, 1, longest, draw.randint(1, longest))) for _ in rows)
    for place, target in places.items():
        widths = [target.d_in] if place[1] == "input" else [target.d_in, target.d_out]
        values = [torch.randn(1, sum(runs), width) for width in widths]
        with torch.no_grad():
            together = edits[place].edit(runs, *values)
        with torch.enable_grad():
            apart = edits[place].edit(runs, *values)
        torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)


def gradients(model: AdaptedModel) -> dict[str, torch.Tensor | None]:
    return {
        f"{name} {key}": parameter.grad
        for name, adapter in model.adapters.items()
        for key, parameter in adapter.named_parameters()
    }


@every_family
def test_each_row_learns_what_its_own_single_run_does(family):
    """The slow twin of a mixed batch is a loop over its rows."""
    model, rows = model_of(family)
    batch = ids(len(rows))
    with model.use(rows):
        logits = model.base(batch).logits
        logits.square().mean().backward()
    mixed = gradients(model)
    for name in model.adapters:
        for parameter in model.parameters(name):
            parameter.grad = None
    for row, name in enumerate(rows):
        with model.use(name):
            alone = model.base(batch[row : row + 1]).logits
            if name is not None:
                (alone.square().mean() / len(rows)).backward()
        torch.testing.assert_close(logits[row : row + 1], alone, rtol=0, atol=1e-5)
    for key, gradient in gradients(model).items():
        assert (gradient is None) == (mixed[key] is None), key
        if gradient is not None:
            torch.testing.assert_close(mixed[key], gradient, rtol=1e-4, atol=1e-6)


def test_tensors_of_stacked_parts_are_made_once():
    """Twenty LoRAs in a batch: their tensors are made once, and then every pass is products over the whole batch."""

    class Counting(LoRAPart):
        made = 0

        def tensors(self, dtype):
            Counting.made += 1
            return super().tensors(dtype)

    @dataclass(frozen=True)
    class CountingLoRA(halka.LoRA):
        def build(self, target):
            return Counting(target, self.rank, self.scale, self.dropout)

    model = halka.adapt(tiny())
    names = [str(seed) for seed in range(20)]
    for seed, name in enumerate(names):
        model.add(name, CountingLoRA(rank=1 + seed % 5), seed=seed)
        disturb(model, name, seed=seed)
    with torch.no_grad(), model.use(names):
        first = model.base(ids(20)).logits
        assert Counting.made == sum(len(adapter.parts) for adapter in model.adapters.values())
        assert torch.equal(model.base(ids(20)).logits, first)
        assert Counting.made == sum(len(adapter.parts) for adapter in model.adapters.values())
        model.parameters("7")[1].add_(0.1)
        changed = model.base(ids(20)).logits
    assert not torch.equal(changed[7], first[7])
    assert torch.equal(changed[:7], first[:7])


@every_family
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_with_cache_and_beams(family, side):
    model, rows = model_of(family)
    prompts = [row[: 4 + i % 5] for i, row in enumerate(ids(len(rows), 9))]
    batch, mask, positions = padded(prompts, side)
    found = outputs(model, rows, batch, attention_mask=mask, position_ids=positions)
    for row, (name, prompt) in enumerate(zip(rows, prompts, strict=True)):
        alone = outputs(model, name, prompt[None])
        torch.testing.assert_close(found[row][mask[row].bool()], alone[0], rtol=0, atol=1e-4)
    if side == "left":
        options = {"max_new_tokens": 4, "num_beams": 2, "do_sample": False, "pad_token_id": 0}
        with torch.inference_mode(), model.use(rows):
            made = model.base.generate(batch, attention_mask=mask, **options)
        for row, (name, prompt) in enumerate(zip(rows, prompts, strict=True)):
            with torch.inference_mode(), model.use(name):
                alone = model.base.generate(prompt[None], attention_mask=torch.ones_like(prompt[None]), **options)
            mine = made[row, batch.shape[1] :].tolist()
            assert mine[: alone.shape[1] - len(prompt)] == alone[0, len(prompt) :].tolist()


def test_dropout_in_training_is_drawn_for_parts_that_have_it_alone():
    model = halka.adapt(tiny())
    for name, dropout in (("none", 0.0), ("half", 0.5), ("too", 0.5)):
        model.add(name, halka.LoRA(rank=4, dropout=dropout))
        disturb(model, name)
    model.adapter("half").train()
    model.adapter("too").train()
    rows = ["none", "half", "too"]
    batch = ids(1).expand(3, -1)
    with torch.no_grad(), model.use(rows):
        one, two = (model.base(batch).logits for _ in range(2))
    assert torch.equal(one[0], two[0])
    assert not torch.allclose(one[1], two[1])
    assert not torch.allclose(one[1], one[2])


def next_token(model: AdaptedModel, rows, batch: torch.Tensor) -> torch.Tensor:
    """Logits of one token after a cached text: (B, V)."""
    with torch.no_grad(), model.use(rows):
        read = model.base(batch[:, :-1], use_cache=True)
        return model.base(batch[:, -1:], cache=read.past_key_values).logits[:, -1]


@every_family
@dtypes
def test_one_token_a_row_is_what_the_whole_text_gives(family, dtype):
    """Decoding sums weighted rows of tables; its slow twins are a pass over the whole text, and batched products."""
    model, rows = model_of(family, dtype)
    batch = ids(len(rows))
    fast = next_token(model, rows, batch)
    with torch.enable_grad(), model.use(rows):
        read = model.base(batch[:, :-1], use_cache=True)
        batched = model.base(batch[:, -1:], cache=read.past_key_values).logits[:, -1].detach()
    whole = outputs(model, rows, batch)[:, -1]
    close(fast, batched)
    close(fast, whole)


@pytest.mark.parametrize("rows", ["0", ["0", "1", None, "0"]], ids=["one", "mixed"])
def test_trained_values_are_never_stale(rows):
    """Within one block, without gradients in between: an optimiser's step and a load both count."""
    model, _ = model_of("lora")
    batch = ids(4)
    with model.use(rows):
        model.base(batch).logits.sum().backward()
        with torch.no_grad():
            before = model.base(batch).logits
            torch.optim.AdamW(model.parameters("0"), lr=0.1, fused=True).step()
            after = model.base(batch).logits
            state = {key: torch.zeros_like(tensor) for key, tensor in model.adapter("0").state_dict().items()}
            model.adapter("0").load_state_dict(state)
            emptied = model.base(batch).logits
    for found, then in ((after, before), (emptied, after)):
        assert not torch.allclose(found[0], then[0])
    torch.testing.assert_close(emptied[0], outputs(model, None, batch)[0])


def test_changes_in_place_are_seen_where_one_adapter_acts():
    model, _ = model_of("lora")
    batch = ids(2)
    with torch.no_grad(), model.use("0"):
        before = model.base(batch).logits
        for parameter in model.parameters("0"):
            parameter.data = torch.zeros_like(parameter)
        assert not torch.allclose(model.base(batch).logits, before)


@pytest.mark.parametrize("method", [halka.LoRA(rank=4), halka.Prefix(length=3)], ids=["lora", "prefix"])
def test_a_gradient_that_is_assigned_by_hand_is_no_blind_spot(method):
    model = halka.adapt(tiny())
    model.add("a", method)
    disturb(model, "a")
    batch = ids(2)
    with model.use("a"):
        with torch.no_grad():
            before = model.base(batch).logits
        for parameter in model.parameters("a"):
            parameter.grad = torch.ones_like(parameter)
        optimizer = torch.optim.AdamW(model.parameters("a"), lr=0.1, fused=True)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            after = model.base(batch).logits
    torch.testing.assert_close(after, outputs(model, "a", batch))
    assert not torch.allclose(after, before)


def test_heads_of_several_rows_and_adapters_take_a_few_states_of_each():
    model = halka.adapt(tiny(tie_word_embeddings=False))
    for seed, name in enumerate(("a", "b")):
        model.add(name, halka.LoRA(rank=4, targets=("head",)), seed=seed)
        disturb(model, name, seed=seed)
    batch = ids(4)
    found = outputs(model, ["a", "b"], batch, logits_to_keep=3)
    for row, name in enumerate(("a", "a", "b", "b")):
        torch.testing.assert_close(found[row], outputs(model, name, batch[row : row + 1], logits_to_keep=3)[0])

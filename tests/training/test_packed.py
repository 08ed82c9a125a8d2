"""Packed batches train as padded ones do: losses and gradients of every method, on every decoder, in any company."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import halka
from contract import disturb
from halka.core import AdaptedModel
from halka.data.batches import plan_packed
from halka.data.examples import Item
from halka.data.packing import computed_tokens, pack, paths_of
from halka.models import hidden_states
from halka.models.attention.forest import ForestPlan
from halka.models.attention.function import use_attention
from halka.objectives import summed_losses
from halka.objectives.classification import Labelled
from halka.objectives.language_modelling import LINE
from halka.training import Job, Step, TrainConfig, mean_loss, train, train_many
from packed_cases import COMPANIES, FORMS, SHARING, differences, losses_and_gradients, model_of, possible, texts
from pairwise import pairwise
from tiny import CONFIGS, LIKE_OTHERS, tiny
from training_for_tests import items, recorded_gradients, same, weights

CASES = pairwise(
    {
        "architecture": tuple(name for name in CONFIGS if name not in LIKE_OTHERS),
        "method": tuple(FORMS),
        "company": COMPANIES,
        "sharing": SHARING,
        "window": (False, True),
        "checkpointing": (False, True),
        "quantize": (None, "int8"),
    },
    possible,
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(str(value)[:40] for value in case.values()))
def test_losses_and_gradients_are_the_padded_ones(case):
    model, groups = model_of(case)
    packed, padded = (losses_and_gradients(model, groups, packed=way) for way in (True, False))
    assert max(differences(packed, padded)) <= 1e-5
    assert max(differences(packed, padded, floor=1e-4)) <= 1e-4  # a small gradient that is wrong is seen, too


def test_twenty_steps_of_sgd_end_with_the_same_adapter():
    batches = [texts(sharing, seed) for seed in range(5) for sharing in ("nothing", "a beginning", "three levels")]
    starts: list[Tensor] = []
    ends: list[list[Tensor]] = []
    for packed in (True, False):
        model = halka.adapt(tiny())
        model.add("a", halka.LoRA(rank=4, alpha=8))
        disturb(model, "a")
        starts = [parameter.detach().clone() for parameter in model.parameters("a")]
        optimizer = torch.optim.SGD(model.parameters("a"), lr=0.3)
        for step in range(20):
            with model.use("a"), use_attention(model.base):
                batch = batches[step % len(batches)]
                loss = summed_losses(model, {"a": batch}, packed=packed).sum() / sum(item.labels for item in batch)
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        ends.append([parameter.detach() for parameter in model.parameters("a")])
    for ours, expected, start in zip(*ends, starts, strict=True):
        assert (expected - start).norm() > 1e-3
        assert (ours - expected).norm() <= 1e-4 * expected.norm()


def test_runs_with_packed_and_with_padded_batches_of_the_same_examples_learn_the_same():
    results = []
    for batches in ("packed", "padded"):
        model = halka.adapt(tiny())
        model.add("a", halka.LoRA(rank=4))
        config = TrainConfig(steps=6, batch_size=3, batches=batches, evaluate_every=3, seed=2, lr=1e-3)
        steps = list(train(model, "a", texts("a beginning", 0), config, validation=items(4, seed=5)))
        results.append((steps, weights(model)))
    (packed, mine), (padded, theirs) = results
    assert [step.tokens for step in packed] == [step.tokens for step in padded]
    assert packed[-1].computed < packed[-1].tokens < padded[-1].computed
    assert padded[-1].saved < 0 < packed[-1].saved
    assert [step.loss for step in packed] == pytest.approx([step.loss for step in padded], rel=1e-5)
    assert packed[-1].validation == pytest.approx(padded[-1].validation, rel=1e-5)
    for key, tensor in theirs.items():
        torch.testing.assert_close(mine[key], tensor, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("grouped", [False, True])
def test_a_run_with_shared_segments_goes_on_to_the_bit(grouped, tmp_path):
    examples = [*texts("three levels", 0), *texts("a beginning", 1), *texts("nothing", 2)]
    config = TrainConfig(steps=7, batch_tokens=60, group_shared=grouped, save_every=2, evaluate_every=3, lr=1e-2)

    def steps(folder: Path | None) -> tuple[Iterator[Step], AdaptedModel]:
        model = halka.adapt(tiny())
        model.add("a", halka.LoRA(rank=4, dropout=0.2))
        return train(model, "a", examples, config, validation=texts("labels in it", 3), folder=folder), model

    whole, expected = steps(None)
    whole = [(step.loss, step.validation, step.computed) for step in whole]
    first, _ = steps(tmp_path)
    begun = [next(first) for _ in range(4)]  # into the second epoch
    first.close()
    rest, resumed = steps(tmp_path)
    assert [(step.loss, step.validation, step.computed) for step in (*begun, *rest)] == whole
    assert same(weights(resumed), weights(expected))
    assert begun[-1].saved > (0.35 if grouped else 0.15)


LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}


@pytest.mark.parametrize("rope", [None, {**LONGROPE, "original_max_position_embeddings": 10}], ids=["", "longrope"])
def test_adapters_trained_together_learn_what_they_learn_apart(rope):
    """Also where the texts of `a` alone are so long that a base takes other rotary frequencies for the pass."""
    jobs = {"a": texts("a beginning", 0), "b": texts("nothing", 1)}
    config = TrainConfig(steps=5, batch_size=3, lr=1e-3)
    changes = {} if rope is None else {"rope_parameters": rope}
    model = halka.adapt(tiny(**changes))
    for name in jobs:
        model.add(name, halka.LoRA(rank=4))
    list(train_many(model, [Job(name, examples, config) for name, examples in jobs.items()]))
    for name, examples in jobs.items():
        alone = halka.adapt(tiny(**changes))
        alone.add(name, halka.LoRA(rank=4))
        list(train(alone, name, examples, config))
        for key, tensor in weights(alone, name).items():
            torch.testing.assert_close(weights(model, name)[key], tensor, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("batches", ["packed", "padded"])
def test_a_head_and_embeddings_that_are_named_by_their_paths_are_trained_in_any_company(batches):
    head, embedding = "module:lm_head", "module:model.embed_tokens"
    methods = {
        "a": halka.Joint((halka.LoRA(rank=4), halka.Modules((head, embedding)))),
        "b": halka.LoRA(rank=4, targets=("linear", head, embedding)),
        "c": halka.LoRA(rank=4),
    }
    config = TrainConfig(steps=1, batch_size=3, lr=1e-2, batches=batches)
    ends: dict[str, dict[str, Tensor]] = {}
    for names in (["a"], ["b"], ["c"], ["a", "b", "c"]):
        model = halka.adapt(tiny())
        for name in names:
            model.add(name, methods[name])
            disturb(model, name)
        starts = {name: weights(model, name) for name in names}
        with recorded_gradients() as gradients:  # which fails for a parameter without one
            list(train_many(model, [Job(name, texts("a beginning", 0), config) for name in names]))
        assert all(gradient.any() for of_step in gradients for gradient in of_step)
        for name in names:
            end = weights(model, name)
            assert not any(torch.equal(end[key], start) for key, start in starts[name].items())
            torch.testing.assert_close(end, ends.setdefault(name, end), rtol=1e-3, atol=1e-5)


def test_bf16_stays_within_rounding():
    results = []
    for dtype, packed in ((torch.bfloat16, True), (torch.bfloat16, False), (torch.float32, False)):
        model = halka.adapt(tiny(dtype=dtype))
        model.add("a", halka.LoRA(rank=4))
        disturb(model, "a")
        results.append(losses_and_gradients(model, {"a": texts("three levels", 0)}, packed=packed)[1:])
    ours, padded, exact = (torch.cat([tensor.flatten() for tensor in tensors]) for tensors in results)
    assert (ours - exact).norm() <= 1.5 * (padded - exact).norm()


def test_tokens_that_fill_up_a_line_count_as_computed():
    """On a CPU in half precision."""
    computed = []
    for dtype in (torch.float32, torch.bfloat16):
        model = halka.adapt(tiny(dtype=dtype))
        model.add("a", halka.LoRA(rank=4))
        (step,) = train(model, "a", texts("a beginning", 0), TrainConfig(steps=1, batch_size=6))
        computed.append(step.computed)
    exact, filled = computed
    assert exact % LINE
    assert filled == exact + -exact % LINE


def test_the_mean_loss_is_the_padded_ones():
    model = halka.adapt(tiny())
    examples = texts("labels in it", 0)
    padded = mean_loss(model, None, examples, TrainConfig(batches="padded"))
    assert mean_loss(model, None, examples) == pytest.approx(padded, rel=1e-5)


def computed(examples: list[Item], *, group_shared: bool) -> int:
    """The tokens of packed batches of at most 32."""
    batches = plan_packed(examples, seed=0, epoch=0, batch_tokens=32, group_shared=group_shared)
    return sum(computed_tokens(paths_of([examples[index] for index in batch])) for batch in batches)


def test_validation_has_batches_as_training_has():
    model, seen, examples = halka.adapt(tiny()), [], texts("three levels", 0)
    model.add("a", halka.LoRA(rank=4))
    model.base.get_input_embeddings().register_forward_pre_hook(lambda module, args: seen.append(args[0].numel()))
    config = TrainConfig(batch_tokens=32)
    losses = [mean_loss(model, "a", examples, config)]
    assert sum(seen) == computed(examples, group_shared=True) < computed(examples, group_shared=False)
    losses.append(mean_loss(model, "a", examples[::-1], config))
    assert max(seen) <= 32
    seen.clear()
    (step,) = train(model, "a", examples, TrainConfig(batch_tokens=32, steps=1, lr=1e-9), validation=examples)
    assert max(seen) <= 32
    assert step.validation == pytest.approx(losses[0], rel=1e-5)
    assert losses == pytest.approx([mean_loss(model, "a", examples)] * 2, rel=1e-5)


def test_a_line_with_other_runs_than_use_named_is_refused():
    model = halka.adapt(tiny())
    model.add("a", halka.LoRA(rank=4))
    batch = pack([texts("nothing", 0), texts("nothing", 1)])
    refused = pytest.raises(halka.HalkaError, match="the line has 2 runs, but `use` named 3 adapters")
    with refused, model.use(["a", None, "a"]), use_attention(model.base):
        forest = ForestPlan(batch.forest)
        hidden_states(model, input_ids=batch.input_ids, position_ids=batch.position_ids, **forest.inputs)


def test_an_encoders_batches_cannot_be_packed():
    model = halka.adapt(tiny("bert", kind="sequence-classification"))
    with pytest.raises(halka.HalkaError, match="cannot be packed: train with batches=padded"):
        summed_losses(model, {None: []}, packed=True)


def test_a_packed_batch_outside_of_its_blocks_is_refused():
    model = halka.adapt(tiny())
    for name, targets in (("a", ("linear",)), ("head", ("head",))):
        model.add(name, halka.LoRA(rank=4, targets=targets))
    groups = {"a": texts("nothing", 0), "head": texts("nothing", 1)}
    blocks = pytest.raises(halka.HalkaError, match=r"needs `model\.use\(\['a'\]\)` and `use_attention")
    with blocks, model.use("a"):
        summed_losses(model, {"a": groups["a"]}, packed=True)
    with blocks, use_attention(model.base):
        summed_losses(model, {"a": groups["a"]}, packed=True)
    head = pytest.raises(halka.HalkaError, match="one trains the head")
    with head, model.use(["a", "head"]), use_attention(model.base):
        summed_losses(model, groups, packed=True)


def test_group_shared_is_for_packed_batches():
    with pytest.raises(halka.HalkaError, match="group_shared is for packed batches"):
        TrainConfig(group_shared=True, batches="padded")
    model = halka.adapt(tiny("bert", kind="sequence-classification"))
    model.add("a", halka.LoRA(rank=4))
    with pytest.raises(halka.HalkaError, match="BertForSequenceClassification are padded"):
        next(train(model, "a", [Labelled([5, 6], 1, [])], TrainConfig(group_shared=True)))

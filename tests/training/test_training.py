"""The loop: what it counts, what it learns, what it leaves behind, and a killed run that ends as any other."""

from __future__ import annotations

import itertools
import json
import math
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from transformers import AutoConfig, AutoModelForMaskedLM

import contract
import halka
from contract import VARIANTS, disturb, weights_of
from full_disk import file_limit
from halka.core import AdaptedModel, Method
from halka.data.examples import Example, Message
from halka.data.tokens import Tokens
from halka.methods import all_methods
from halka.models.rates import rate_at
from halka.training import Job, RunFolder, Step, TrainConfig, as_tokens, fit, mean_loss, train, train_many
from halka.training.checkpoint import Progress, identity_of
from halka.training.run import after_evaluation
from halka.util.errors import HalkaError, TrainingError
from halka.util.text import plural
from tiny import tiny
from tokenizers_for_tests import UNMARKED, chatml_tokenizer, tokenizer
from training_for_tests import (
    contradicting,
    items,
    items_without_a_loss,
    model_for,
    recorded_gradients,
    same,
    weights,
)

METHODS = [method for name, kind in all_methods().items() for method in VARIANTS.get(name, [kind()])]
DROPOUT = halka.LoRA(rank=4, dropout=0.3)


def run(model: AdaptedModel, config: TrainConfig, data: list[Tokens] | None = None, **options) -> list[Step]:
    return list(train(model, "a", items() if data is None else data, config, **options))


def examples(*answers: str) -> list[Example]:
    return [
        Example((Message("user", "What is it?"), Message("assistant", answer)), where=f"x:{i}")
        for i, answer in enumerate(answers)
    ]


# ── it learns ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("method", METHODS, ids=lambda method: repr(method)[:60])
def test_the_loss_falls(method):
    model = model_for(method)
    steps = run(model, TrainConfig(lr=1e-2, steps=20, batch_size=6, seed=1))
    assert steps[-1].loss < steps[0].loss - 0.005
    assert mean_loss(model, "a", items()) == pytest.approx(steps[-1].loss, abs=0.1)


def test_the_methods_own_learning_rate_is_the_default():
    model = model_for(halka.IA3())
    step, *_ = run(model, TrainConfig(steps=1, warmup=0, schedule="constant"))
    assert step.lr == pytest.approx(rate_at(halka.IA3.lr, model.base))


def test_the_loss_of_a_step_is_the_mean_over_its_label_tokens():
    model = model_for()
    expected = mean_loss(model, "a", items())
    assert run(model, TrainConfig(steps=1, batch_size=6))[0].loss == pytest.approx(expected, rel=1e-5)
    ids, labels = torch.tensor([items(1)[0].ids]), torch.tensor([items(1)[0].ids])
    labels[0, : len(items(1)[0].ids) // 3] = -100
    with torch.no_grad():
        own = float(model.base(ids, labels=labels).loss)
    assert mean_loss(model, None, items(1)) == pytest.approx(own, rel=1e-5)


# ── steps, epochs, batches ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"batch_size": 2}, 9),  # 3 batches an epoch, 3 epochs
        ({"batch_size": 2, "epochs": 1}, 3),
        ({"batch_size": 2, "epochs": 0.5}, 2),
        ({"batch_size": 2, "epochs": 0.1}, 1),
        ({"batch_size": 2, "epochs": 1, "accumulate": 2}, 2),
        ({"batch_size": 2, "epochs": 2, "accumulate": 2}, 3),
        ({"batch_size": 2, "epochs": 1, "accumulate": 5}, 1),
        ({"batch_tokens": 12, "epochs": 1}, 6),
        ({"epochs": 2}, 2),  # all six fit the default budget
        ({"batch_size": 2, "epochs": 7, "steps": 4}, 4),
    ],
    ids=str,
)
def test_the_stream_has_as_many_steps_as_the_config_says(config, expected):
    steps = run(model_for(), TrainConfig(**config))
    assert [step.step for step in steps] == list(range(1, expected + 1))
    assert {step.steps for step in steps} == {expected}


def test_an_epoch_reads_every_example_once():
    total = sum(len(item.ids) for item in items())
    for config in (TrainConfig(batch_size=2, epochs=3), TrainConfig(batch_size=1, epochs=1, accumulate=3)):
        steps = run(model_for(), config)
        assert steps[-1].tokens == config.epochs * total
        assert [step.tokens for step in steps] == sorted(step.tokens for step in steps)


def test_whole_epochs_have_a_whole_number_of_steps_whatever_floats_make_of_it():
    steps = next(train(model_for(), "a", items(29), TrainConfig(batch_size=1, accumulate=7, epochs=7))).steps
    assert steps == 29


def test_a_step_says_what_it_did():
    steps = run(model_for(), TrainConfig(steps=3, batch_size=2))
    assert all(step.seconds > 0 and step.tokens_per_second > 0 and step.memory > 2**20 for step in steps)
    assert all(step.gradient_norm > 0 and step.validation is None and not step.best for step in steps)
    assert steps[2].seconds > steps[1].seconds > steps[0].seconds


@pytest.mark.parametrize("method", [halka.LoRA(rank=4), halka.Prompt(length=3), halka.Full()], ids=lambda m: m.name)
def test_accumulated_batches_are_one_larger_batch(method):
    results = []
    for config in (
        TrainConfig(batch_size=6),
        TrainConfig(batch_size=2, accumulate=3),
        TrainConfig(batch_size=1, accumulate=6),
    ):
        model = model_for(method)
        disturb(model, "a")
        with recorded_gradients() as gradients:
            (step,) = run(model, replace(config, steps=1, clip=0, lr=1e-2))
        results.append((step, gradients[0]))
    (whole, expected), *others = results
    for step, gradients in others:
        assert step.loss == pytest.approx(whole.loss, rel=1e-5)
        assert step.gradient_norm == pytest.approx(whole.gradient_norm, rel=1e-4)
        for mine, theirs in zip(gradients, expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-6)


# ── learning rate, clipping ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"schedule": "constant", "warmup": 0.0}, [1, 1, 1, 1, 1, 1, 1, 1]),
        ({"schedule": "constant", "warmup": 0.5}, [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
        ({"schedule": "constant", "warmup": 0.3}, [1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1]),
        (
            {"warmup": 0.5},
            [0.25, 0.5, 0.75, 1, *(0.55 + 0.45 * math.cos(math.pi * part) for part in (0.25, 0.5, 0.75, 1))],
        ),
        ({"warmup": 0.0}, [0.55 + 0.45 * math.cos(math.pi * part / 8) for part in range(1, 9)]),
        ({"schedule": "linear", "warmup": 0.0}, [part / 9 for part in range(8, 0, -1)]),
        ({"schedule": "linear", "warmup_steps": 2}, [0.5, 1, 6 / 7, 5 / 7, 4 / 7, 3 / 7, 2 / 7, 1 / 7]),
        ({"schedule": "constant", "warmup_steps": 0}, [1, 1, 1, 1, 1, 1, 1, 1]),
        ({"warmup_steps": 20}, [part / 20 for part in range(1, 9)]),
    ],
)
def test_the_learning_rate_rises_and_falls_as_it_should(config, expected):
    steps = run(model_for(), TrainConfig(lr=1e-3, steps=8, **config))
    assert [step.lr / 1e-3 for step in steps] == pytest.approx(expected)


def test_the_optimiser_steps_with_that_learning_rate():
    """AdamW's first step moves a weight by the learning rate, whatever its gradient."""
    model = model_for(halka.BitFit())
    for step in train(model, "a", items(), TrainConfig(lr=1e-2, steps=8, warmup=0.5)):
        if step.step == 1:
            moved = torch.cat([tensor.abs() for tensor in weights(model).values()])
    assert moved.max() == pytest.approx(1e-2 / 4, rel=1e-3)
    assert moved.median() == pytest.approx(1e-2 / 4, rel=1e-2)


def test_weight_decay_shrinks_what_has_no_gradient():
    model = model_for(halka.LoRA(rank=4))
    before = weights(model)
    run(model, TrainConfig(lr=1e-2, steps=1, warmup=0.0, schedule="constant", weight_decay=0.5))
    key = "model.layers.0.self_attn.q_proj.lora_A"  # B is zero, so A has no gradient in the first step
    torch.testing.assert_close(weights(model)[key], before[key] * (1 - 1e-2 * 0.5))


@pytest.mark.parametrize("clip", [0.0, 1e-3, 1e9])
def test_gradients_are_clipped_to_the_norm_and_reported_as_they_were(clip):
    model = model_for()
    with recorded_gradients() as gradients:
        (step,) = run(model, TrainConfig(steps=1, clip=clip))
    norm = float(torch.stack([gradient.norm() for gradient in gradients[0]]).norm())
    assert step.gradient_norm > 0.01
    assert norm == pytest.approx(1e-3 if clip == 1e-3 else step.gradient_norm, rel=1e-3)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[(name, 0) for name in ("lr", "epochs", "steps", "batch_size", "batch_tokens", "accumulate", "max_length")],
        *[("evaluate_every", 0), ("patience", 0), ("save_every", 0), ("lr", -1e-3), ("warmup", 1.0), ("warmup", -0.1)],
        ("schedule", "step"),
        ("warmup_steps", -1),
        *[(name, math.inf) for name in ("epochs", "clip", "weight_decay")],
        *[(name, math.nan) for name in ("lr", "epochs", "clip", "weight_decay", "warmup")],
        pytest.param("clip", -1.0),
        pytest.param("too_long", "cat"),
        pytest.param("weight_decay", -1.0),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=rf"{field}.*{value}"):
        TrainConfig(**{field: value})


# ── evaluation, the best weights, patience ──────────────────────────────────────────────────────────────────────────

# With `contradicting` held out the loss rises from the first evaluations on, on any machine.
OVERFIT = TrainConfig(lr=5e-2, steps=20, batch_size=2, evaluate_every=2, schedule="constant", save_every=None)


@pytest.mark.parametrize("on_disk", [False, True])
def test_the_best_evaluations_weights_are_in_place_at_the_end(on_disk, tmp_path):
    model, held_out = model_for(), contradicting()
    seen, steps = {}, []
    for step in train(model, "a", items(), OVERFIT, validation=held_out, folder=tmp_path / "run" if on_disk else None):
        seen[step.step] = weights(model)
        steps.append(step)
    evaluated = [step for step in steps if step.validation is not None]
    assert [step.step for step in evaluated] == list(range(2, 21, 2))
    best = min(evaluated, key=lambda step: step.validation)
    assert best.step < 20  # else this proves nothing
    assert best.best
    assert same(weights(model), seen[best.step])
    assert not same(weights(model), seen[19])
    assert mean_loss(model, "a", held_out) == pytest.approx(best.validation, rel=1e-6)
    lowest = math.inf
    for step in evaluated:
        assert step.best == (step.validation < lowest)
        lowest = min(lowest, step.validation)


def test_without_validation_the_last_weights_stay():
    model, seen = model_for(), {}
    for step in train(model, "a", items(), OVERFIT):
        seen[step.step] = weights(model)
    assert same(weights(model), seen[20])


@pytest.mark.parametrize("patience", [None, 3])
def test_who_leaves_at_the_last_step_has_the_best_weights_too(patience):
    model, held_out = model_for(), contradicting()
    config = replace(OVERFIT, steps=60 if patience else 20, patience=patience)
    best = None
    count = len(list(train(model_for(), "a", items(), config, validation=held_out)))
    for step in train(model, "a", items(), config, validation=held_out):
        if step.best:
            best, seen = step.step, weights(model)
        if step.step == count:
            break
    assert best < count
    assert same(weights(model), seen)


def test_it_stops_when_patience_is_at_its_end_with_the_best_weights():
    model, held_out, seen, steps = model_for(), contradicting(), {}, []
    for step in train(model, "a", items(), replace(OVERFIT, steps=60, patience=3), validation=held_out):
        seen[step.step] = weights(model)
        steps.append(step)
    best = [step.step for step in steps if step.best][-1]
    assert steps[-1].step == best + 3 * 2 < 60
    assert same(weights(model), seen[best])


def test_patience_is_counted_from_the_last_best():
    progress, best, stopped = Progress(), [], []
    for step, loss in enumerate((5.0, 4.0, 6.0, 3.0, 7.0, 8.0), start=1):
        progress = after_evaluation(replace(progress, step=step), loss, patience=2)
        best.append(progress.best_step == step)
        stopped.append(progress.stopped)
    assert best == [True, True, False, True, False, False]
    assert stopped == [False] * 5 + [True]
    assert not after_evaluation(replace(progress, stopped=False), 9.0, patience=None).stopped


def test_a_score_decides_instead_of_the_loss_and_patience_counts_by_it():
    model, held_out, seen, steps = model_for(), contradicting(), {}, []
    scores = iter([0.1, 0.5, 0.4, 0.5, 0.3, 0.9])
    config = replace(OVERFIT, steps=60, patience=3)
    for step in train(model, "a", items(), config, validation=held_out, score=lambda: next(scores)):
        seen[step.step] = weights(model)
        steps.append(step)
    evaluated = [step for step in steps if step.validation is not None]
    assert [step.score for step in evaluated] == [0.1, 0.5, 0.4, 0.5, 0.3]
    lower = evaluated[3].validation < evaluated[1].validation
    assert [step.best for step in evaluated] == [True, True, False, lower, False], "of two scores the lower loss"
    assert same(weights(model), seen[evaluated[3 if lower else 1].step])


def test_a_score_is_that_of_the_weights_at_its_evaluation():
    model, at_score, at_step = model_for(), [], []

    def score() -> float:
        at_score.append(weights(model))
        return float(len(at_score))

    for step in train(model, "a", items(), replace(OVERFIT, steps=6), validation=items(2, seed=9), score=score):
        if step.score is not None:
            at_step.append(weights(model))
    assert len(at_score) == len(at_step) == 3
    assert all(map(same, at_score, at_step))


def test_of_two_evaluations_with_one_score_that_with_the_lower_loss_is_the_best():
    progress, best = Progress(), []
    for step, (score, loss) in enumerate(((0.5, 2.0), (0.5, 1.0), (0.5, 3.0), (0.4, 0.1), (0.6, 9.0)), start=1):
        progress = after_evaluation(replace(progress, step=step), loss, patience=None, score=score)
        best.append(progress.best_step)
    assert best == [1, 2, 2, 2, 5]


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_ends_the_run(score):
    with pytest.raises(TrainingError, match=f"the score became {score} at step 2"):
        [*train(model_for(), "a", items(), replace(OVERFIT, steps=4), validation=items(2), score=lambda: score)]


def test_a_score_needs_validation_examples():
    with pytest.raises(HalkaError, match="give validation examples"):
        train(model_for(), "a", items(), OVERFIT, score=lambda: 1.0)


@pytest.mark.parametrize("score", [None, "good", {"value": 1.0}])
def test_a_score_that_is_none_says_what_came(score):
    with pytest.raises(TrainingError, match=re.escape(f"the score at step 2 is {score}, and no number")):
        [*train(model_for(), "a", items(), replace(OVERFIT, steps=4), validation=items(2), score=lambda: score)]


def test_the_best_score_is_known_to_a_run_that_goes_on(tmp_path):
    config, scores = replace(OVERFIT, steps=8, save_every=1), iter([0.9, 0.2, 0.3, 0.4])

    def beginning():
        model, options = model_for(), {"validation": items(2, seed=9), "folder": tmp_path}
        return model, train(model, "a", items(), config, score=lambda: next(scores), **options)

    model, steps = beginning()
    seen = {step.step: weights(model) for step in itertools.islice(steps, 3)}
    steps.close()
    model, steps = beginning()
    later = [(step.step, step.score, step.best) for step in steps if step.score]
    assert later == [(4, 0.2, False), (6, 0.3, False), (8, 0.4, False)]
    assert same(weights(model), seen[2])


def test_fit_and_train_many_take_scores():
    config, held_out = replace(OVERFIT, steps=4), items(2, seed=9)
    scores = iter([0.75, 0.5])
    options = {"validation": held_out, "score": lambda: torch.tensor(next(scores))}
    result = halka.fit(model_for(), "a", items(), config, **options)
    assert (result.best_step, result.score) == (2, 0.75)
    model, scores = model_for(), {"a": iter([0.75, 0.5]), "b": iter([0.25, 0.5])}
    model.add("b", halka.LoRA(rank=2))
    jobs = [
        halka.training.Job(name, items(), config, held_out, score=lambda own=own: next(own))
        for name, own in scores.items()
    ]
    best = {name: step.step for steps in train_many(model, jobs) for name, step in steps.items() if step.best}
    assert best == {"a": 2, "b": 4}


def test_a_run_by_score_does_not_go_on_by_loss(tmp_path):
    config = replace(OVERFIT, steps=6, save_every=1)
    steps = train(model_for(), "a", items(), config, validation=items(2), folder=tmp_path, score=lambda: 1.0)
    next(steps)
    steps.close()
    with pytest.raises(HalkaError, match="best by was 'score', is 'loss'"):
        [*train(model_for(), "a", items(), config, validation=items(2), folder=tmp_path)]
    again = train(model_for(), "a", items(), config, validation=items(2), folder=tmp_path, score=lambda: 1.0)
    assert [step.step for step in again] == [2, 3, 4, 5, 6]


def test_evaluations_are_ten_in_all_and_one_at_the_end_unless_said():
    for count, expected in (
        *((25, [3, 5, 8, 10, 13, 15, 18, 20, 23, 25]), (19, [2, 4, 6, 8, 10, 12, 14, 16, 18, 19])),
        *((20, [*range(2, 21, 2)]), (3, [1, 2, 3])),
    ):
        steps = run(model_for(), TrainConfig(steps=count), validation=items(2, seed=9))
        assert [step.step for step in steps if step.validation is not None] == expected


@pytest.mark.parametrize("method", [DROPOUT, halka.Prompt(length=3), halka.Full()], ids=lambda m: m.name)
def test_evaluation_does_not_disturb_training(method):
    runs = []
    for held_out in ([], items(3, seed=9)):
        model = model_for(method)
        torch.manual_seed(1)
        config = TrainConfig(lr=1e-2, steps=6, batch_size=2, evaluate_every=2)
        runs.append([(step.loss, weights(model)) for step in train(model, "a", items(), config, validation=held_out)])
    assert runs[0][5][0] == runs[1][5][0]  # its weights are those of the best evaluation
    for (one, mine), (two, theirs) in zip(runs[0][:5], runs[1][:5], strict=True):
        assert one == two
        assert same(mine, theirs)


def test_a_validation_loss_that_is_no_number_ends_the_run():
    model = model_for()
    with pytest.raises(TrainingError, match="the validation loss became nan at step 2: try a lower learning rate"):
        run(model, OVERFIT, validation=items_without_a_loss(model))


def test_the_mean_loss_knows_no_dropout():
    model = model_for(architecture="gpt2", resid_pdrop=0.5, embd_pdrop=0.5)
    expected = mean_loss(model, "a", items())
    model.base.train()
    assert mean_loss(model, "a", items()) == expected
    assert model.base.training


def test_checkpointing_that_was_on_stays_on():
    model = model_for()
    model.base.activation_checkpointing_enable({"use_reentrant": False})
    run(model, TrainConfig(steps=1, batch_size=2, checkpointing=True))
    assert model.base.is_activation_checkpointing


@pytest.mark.parametrize("method", [halka.LoRA(rank=4), halka.Prompt(length=5)], ids=["lora", "prompt"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_tokens_beyond_the_bases_context_are_refused(architecture, method):
    model = model_for(method, architecture)
    room = 128 - (5 if method.name == "prompt" else 0)
    run(model, TrainConfig(steps=1, batch_size=2), items(2, length=room))
    data = [*items(2), *items(1, length=room + 1)]
    with pytest.raises(
        ValueError, match=f"1 of 3 encoded examples, the first at 2, are longer than the {room} positions"
    ):
        run(model, TrainConfig(steps=1), data)


def test_a_max_length_beyond_the_bases_context_is_the_context():
    tokenizer = chatml_tokenizer()
    model = halka.adapt(tiny("gpt2", vocab_size=len(tokenizer), n_positions=32), tokenizer)
    model.add("a", halka.Prefix(length=4))
    with pytest.warns(UserWarning, match="1 are cut to 28 tokens"):
        tokens = as_tokens(model, examples("Yes. " * 40), TrainConfig(max_length=500), "a")
    assert [len(each.ids) for each in tokens] == [28]


def test_an_encoder_is_not_trained_as_a_language_model():
    config = AutoConfig.for_model("bert", hidden_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=97)
    model = halka.adapt(AutoModelForMaskedLM.from_config(config))
    model.add("a", halka.LoRA(rank=4))
    with pytest.raises(ValueError, match="BertForMaskedLM is an encoder: it has no next token"):
        run(model, TrainConfig(steps=1))


# ── the same again ──────────────────────────────────────────────────────────────────────────────────────────────────


def after(config: TrainConfig, method: Method | None = None, torch_seed: int = 0, **options) -> dict[str, torch.Tensor]:
    model = model_for(method)
    torch.manual_seed(torch_seed)
    run(model, config, **options)
    return weights(model)


SHORT = TrainConfig(lr=1e-2, steps=5, batch_size=2)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    expected = after(SHORT)
    assert same(after(SHORT), expected)
    assert same(after(SHORT, torch_seed=7), expected)
    assert not same(after(replace(SHORT, seed=1)), expected)


def test_dropout_acts_in_training_and_nowhere_else():
    assert not same(after(SHORT, DROPOUT), after(SHORT, replace(DROPOUT, dropout=0.0)))
    model = model_for(DROPOUT)
    run(model, SHORT)
    assert mean_loss(model, "a", items()) == mean_loss(model, "a", items())


def test_the_seed_says_what_dropout_drops():
    expected = after(SHORT, DROPOUT)
    assert same(after(SHORT, DROPOUT, torch_seed=7), expected)
    single = replace(SHORT, batch_size=6, steps=2)  # all examples in one batch, so that their order says nothing
    assert not same(after(replace(single, seed=1), DROPOUT), after(single, DROPOUT))


def test_the_callers_random_state_is_neither_used_nor_changed():
    model = model_for(DROPOUT)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    run(model, SHORT)
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize(
    "method", [DROPOUT, halka.Prefix(length=3), halka.Prompt(length=3), halka.Full()], ids=lambda m: m.name
)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_gradient_checkpointing_gives_the_same_weights(method, architecture):
    """With GPT-2 the base itself has dropout."""
    results = []
    for checkpointing in (False, True):
        model = model_for(method, architecture)
        torch.manual_seed(0)
        run(model, replace(SHORT, checkpointing=checkpointing))
        results.append(weights(model))
        assert not any(getattr(module, "gradient_checkpointing", False) for module in model.base.modules())
    for key, tensor in results[0].items():
        torch.testing.assert_close(results[1][key], tensor, rtol=0, atol=1e-5)


def test_checkpointing_recomputes_the_layers():
    model, calls = model_for(), []
    model.base.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    run(model, replace(SHORT, steps=1))
    assert len(calls) == 1
    run(model, replace(SHORT, steps=1, checkpointing=True))
    assert len(calls) == 3


def test_two_adapters_trained_in_turn_are_as_if_trained_alone():
    model, expected = model_for(), after(SHORT)
    model.add("b", halka.Prompt(length=3))
    for _ in zip(train(model, "a", items(), SHORT), train(model, "b", items(), SHORT), strict=True):
        pass
    assert same(weights(model), expected)
    alone = model_for(halka.Prompt(length=3))
    run(alone, SHORT)
    assert same(weights(model, "b"), weights(alone))


# ── what it leaves behind ───────────────────────────────────────────────────────────────────────────────────────────


def is_untouched(model: AdaptedModel, before: dict[str, torch.Tensor], expected: torch.Tensor) -> bool:
    base = model.base
    return (
        all(torch.equal(parameter, before[name]) for name, parameter in base.named_parameters())
        and all(parameter.grad is None and not parameter.requires_grad for parameter in base.parameters())
        and not any(module.training for module in base.modules())
        and not any(part.training for part in model.adapters["a"].parts.values())
        and base.config._attn_implementation == "sdpa"
        and model.active == (None,)
        and torch.equal(base(contract.ids()).logits, expected)
    )


@pytest.mark.parametrize(
    "method", [DROPOUT, halka.Prefix(length=3), halka.Prompt(length=3), halka.Full()], ids=lambda m: m.name
)
@pytest.mark.parametrize("how", ["finished", "closed", "between steps", "failed"])
def test_the_base_is_in_eval_mode_and_untouched(method, how):
    model = model_for(method)
    before, expected = weights_of(model.base), model.base(contract.ids()).logits
    stream = train(model, "a", items(), replace(SHORT, checkpointing=True), validation=items(2, seed=9))
    if how == "finished":
        list(stream)
    elif how == "failed":
        with raising(model, RuntimeError("something else")), pytest.raises(RuntimeError, match=r"^something else$"):
            next(stream)
    else:
        next(stream)
        if how == "closed":
            stream.close()
    assert is_untouched(model, before, expected)
    assert all(parameter.grad is None for parameter in model.parameters("a"))


# ── errors ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def raising(model: AdaptedModel, error: BaseException, when: str = "always") -> Iterator[None]:
    """The second layer of the base fails."""

    def fail(module, args):
        if when == "always" or (when == "evaluation") != module.training:
            raise error

    handle = model.base.model.layers[1].register_forward_pre_hook(fail)
    yield
    handle.remove()


CPU = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "4000000000000000 bytes. Error code 12 (Cannot allocate memory)"
)
OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 400 bytes."),
    pytest.param(RuntimeError(CPU)),
]


def test_the_cpu_says_it_so():
    """Should torch's wording change, this fails, and `_is_out_of_memory` must follow."""
    with pytest.raises(RuntimeError, match=r"DefaultCPUAllocator: (can't allocate memory|not enough memory)"):
        torch.empty(10**15)


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["CUDA", "CPU elsewhere", "CPU on Linux"])
def test_out_of_memory_says_what_to_do(error, tmp_path):
    model = model_for()
    before = weights(model)
    message = r"out of memory at step 1, with a batch of 2 examples .*: lower batch_tokens .* checkpointing on"
    with raising(model, error), pytest.raises(TrainingError, match=message):
        run(model, SHORT, folder=tmp_path)
    assert same(weights(model), before)
    run(model, SHORT, folder=tmp_path)
    assert same(weights(model), after(SHORT))


def test_out_of_memory_in_an_evaluation_says_what_to_do():
    model = model_for()
    with raising(model, OUT_OF_MEMORY[0], "evaluation"), pytest.raises(TrainingError, match="out of memory"):
        run(model, SHORT, validation=items(2, seed=9))


@pytest.mark.parametrize("when", ["forward", "evaluation", "optimiser"])
def test_a_run_that_ran_out_of_memory_goes_on_where_it_was(when, tmp_path):
    held_out, expected = items(2, seed=9), model_for(DROPOUT)
    run(expected, RUN, validation=held_out, folder=tmp_path / "whole")
    stopped = model_for(DROPOUT)
    stream = train(stopped, "a", items(), RUN, validation=held_out, folder=tmp_path / "stopped")
    done = [next(stream).step, next(stream).step]
    optimizer_fails = register_optimizer_step_pre_hook(out_of_memory) if when == "optimiser" else None
    fails = raising(stopped, OUT_OF_MEMORY[0], when) if optimizer_fails is None else nullcontext()
    with fails, pytest.raises(halka.OutOfMemoryError, match="out of memory"):
        next(stream)
    if optimizer_fails is not None:
        optimizer_fails.remove()
    assert (tmp_path / "stopped" / "checkpoint.safetensors").exists()
    assert all(parameter.grad is None for parameter in stopped.parameters("a"))
    resumed = model_for(DROPOUT)
    rest = run(resumed, RUN, validation=held_out, folder=tmp_path / "stopped")
    assert done == [1, 2]
    assert rest[0].step == 3
    assert lines(tmp_path / "stopped") == lines(tmp_path / "whole")
    assert same(weights(resumed), weights(expected))


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("a bug of a kernel")])
def test_a_run_that_is_interrupted_within_a_pass_goes_on_where_it_was(error, tmp_path):
    expected, stopped, resumed = model_for(DROPOUT), model_for(DROPOUT), model_for(DROPOUT)
    run(expected, RUN, folder=tmp_path / "whole")
    stream = train(stopped, "a", items(), RUN, folder=tmp_path / "stopped")
    assert [next(stream).step, next(stream).step] == [1, 2]
    with raising(stopped, error), pytest.raises(type(error)):
        next(stream)
    rest = run(resumed, RUN, folder=tmp_path / "stopped")
    assert rest[0].step == 3
    assert lines(tmp_path / "stopped") == lines(tmp_path / "whole")
    assert same(weights(resumed), weights(expected))


def test_an_error_while_weights_change_leaves_the_last_checkpoint(tmp_path):
    model = model_for()
    stream = train(model, "a", items(), RUN, folder=tmp_path)
    assert [next(stream).step, next(stream).step] == [1, 2]

    def fails(*args: object) -> None:
        raise KeyboardInterrupt

    handle = register_optimizer_step_post_hook(fails)
    try:
        with pytest.raises(KeyboardInterrupt):
            next(stream)
    finally:
        handle.remove()
    assert not (tmp_path / "checkpoint.safetensors").exists()


def test_a_checkpoint_that_cannot_be_written_takes_no_error_s_place(tmp_path):
    model = model_for()
    stream = train(model, "a", items(), RUN, folder=tmp_path)
    next(stream)
    with raising(model, KeyboardInterrupt()), file_limit(10), pytest.raises(KeyboardInterrupt) as caught:
        next(stream)
    assert "No checkpoint was written: " in caught.value.__notes__[0]


def test_items_without_labels_have_no_loss():
    for none in ([], [Tokens([1, 2, 3], [True, False, False])]):
        with pytest.raises(halka.DataError, match="no token to score"):
            mean_loss(model_for(), "a", none)


@pytest.mark.parametrize(
    "error", [KeyError("a bug"), ConnectionError("no judge"), KeyboardInterrupt(), HalkaError("no room"), "no number"]
)
@pytest.mark.parametrize("at", [3, 9], ids=["on the way", "after the last step"])
def test_an_evaluation_that_an_error_ended_is_made_when_the_run_goes_on(error, at, tmp_path):
    held_out, expected = items(2, seed=9), model_for(DROPOUT)
    scores = {3: 0.5, 6: 0.25, 9: 0.125}

    def score_of(model: AdaptedModel, *, fails: bool = False):
        steps = iter([step for step in scores if not failed or step >= at])

        def score() -> object:
            step = next(steps)
            if fails and step == at:
                failed.append(weights(model))
                if isinstance(error, str):
                    return error
                raise error
            return scores[step]

        return score

    failed: list[dict[str, torch.Tensor]] = []
    whole = {"validation": held_out, "folder": tmp_path / "whole"}
    run(expected, RUN, score=score_of(expected), **whole)
    stopped, resumed = model_for(DROPOUT), model_for(DROPOUT)
    both = {"validation": held_out, "folder": tmp_path / "stopped"}
    with pytest.raises(TrainingError if isinstance(error, str) else type(error)):
        run(stopped, RUN, score=score_of(stopped, fails=True), **both)
    assert [line["step"] for line in lines(tmp_path / "stopped")] == list(range(1, at))
    rest = run(resumed, RUN, score=score_of(resumed), **both)
    assert [step.step for step in rest] == list(range(at, 10))
    assert lines(tmp_path / "stopped") == lines(tmp_path / "whole")
    assert same(weights(resumed), weights(expected))
    assert run(resumed, RUN, score=score_of(resumed), **both) == []


def out_of_memory(*args: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_loss_or_gradient_that_is_not_finite_says_what_to_do(what):
    model = model_for()
    before = weights(model)
    parameter = model.parameters("a")[0]
    if what == "gradient":
        handle = parameter.register_hook(lambda gradient: gradient * math.nan)
    else:
        handle = model.base.model.layers[1].register_forward_hook(lambda module, args, output: output * math.nan)
    with pytest.raises(
        TrainingError, match=r"the loss became .* at step 1 .*: try a lower learning rate.*before this step"
    ):
        run(model, SHORT)
    handle.remove()
    assert same(weights(model), before)
    assert all(parameter.grad is None for parameter in model.parameters("a"))
    run(model, SHORT)
    assert same(weights(model), after(SHORT))


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("what", ["loss", "validation loss"])
def test_the_best_weights_of_a_run_that_diverges_are_kept(what, on_disk, tmp_path):
    """Where the user finds them, and not as a finished run's."""
    model, folder = model_for(), tmp_path / "run"
    config = replace(SHORT, evaluate_every=2, save_every=1)
    if on_disk:
        RunFolder(folder).begin({})
    steps = train(model, "a", items(), config, validation=items(2, seed=9), folder=folder if on_disk else None)
    best = next(itertools.dropwhile(lambda step: not step.best, steps))
    expected, training = weights(model), what == "loss"

    def diverge(module, args, output):
        return output * math.nan if module.training == training else output

    model.base.model.layers[1].register_forward_hook(diverge)
    with pytest.raises(TrainingError, match=f"the {what} became nan.* at step {3 if training else 4}") as error:
        list(steps)
    assert same(weights(model), expected)
    where = folder / "adapter-best" if on_disk else "the adapter"
    assert f"; the best weights, of step 2 (validation loss {best.validation:.4g}), are in {where}" in str(error.value)
    if on_disk:
        other = halka.adapt(model_for().base)
        halka.load(other, folder / "adapter-best", name="a")
        assert same(weights(other), expected)
        assert not RunFolder(folder).finished
        assert not (folder / "adapter").exists()
        fit(model_for(), "a", items(), config, validation=items(2, seed=9), folder=folder)
        assert not (folder / "adapter-best").exists()


def test_a_run_whose_validation_diverges_is_not_scored_then_and_the_others_go_on():
    model = model_for()
    model.add("b", halka.LoRA(rank=2))
    config, scored = replace(SHORT, steps=2, evaluate_every=1), []
    ruined = Job(
        "a", items(), replace(config, lr=1e30, clip=0.0), items(2, seed=9), score=lambda: scored.append(1) or 1
    )
    steps = [*halka.train_many(model, [ruined, Job("b", items(), config)])]
    assert [[*step] for step in steps] == [["a", "b"], ["b"]]
    assert str(steps[0]["a"]).startswith("the validation loss became nan at step 1")
    assert steps[1]["b"].step == 2
    assert not scored


def test_other_errors_stay_what_they_are():
    model = model_for()
    with raising(model, RuntimeError("size mismatch")), pytest.raises(RuntimeError, match=r"^size mismatch$"):
        run(model, SHORT)


@pytest.mark.parametrize("data", [[], [Tokens([5, 6, 7], [False] * 3)], [Tokens([5, 6, 7], [True, False, False])]])
def test_nothing_to_learn_from_is_refused_before_the_first_step(data):
    with pytest.raises(ValueError, match=f"no token to learn from in {plural(len(data), 'example')}:"):
        train(model_for(), "a", data)
    with pytest.raises(ValueError, match="no token to learn from in 1 example:"):
        train(model_for(), "a", items(), validation=[Tokens([5, 6, 7], [False] * 3)])


def test_examples_without_labels_among_others_are_harmless():
    data = [*items(2), Tokens([5, 6, 7, 8, 9, 10, 11], [False] * 7)]
    steps = run(model_for(), replace(SHORT, batch_size=1, steps=6), data)
    assert all(math.isfinite(step.loss) for step in steps)


def test_examples_need_a_tokenizer():
    with pytest.raises(ValueError, match=r"needs its tokenizer: `halka\.adapt\(base, tokenizer\)`"):
        train(model_for(), "a", examples("It is Paris."))


def test_an_unknown_adapter_is_refused():
    with pytest.raises(ValueError, match="no adapter 'b' here"):
        train(model_for(), "b", items())


# ── examples as tokens ──────────────────────────────────────────────────────────────────────────────────────────────


def model_that_reads(method: Method | None = None, **changes) -> AdaptedModel:
    tokenizer = chatml_tokenizer()
    model = halka.adapt(tiny(vocab_size=len(tokenizer), **changes), tokenizer)
    model.add("a", method or halka.LoRA(rank=4))
    return model


LONG = "It is what it is. " * 60


def test_examples_and_tokens_may_stand_together():
    model = model_that_reads()
    found = as_tokens(model, [items(1)[0], *examples("It is Paris.")], TrainConfig())
    assert len(found) == 2
    assert items(1)[0] in found
    steps = list(train(model, "a", examples("It is Paris.", "It is open."), SHORT))
    assert steps[-1].loss < steps[0].loss


@pytest.mark.filterwarnings("ignore:of 3 examples")
def test_the_card_counts_the_examples_that_were_trained_on(tmp_path):
    shorter = replace(SHORT, steps=2, too_long="drop")
    fit(model_that_reads(), "a", examples("It is Paris.", LONG, "It is open."), shorter, folder=tmp_path / "run")
    card = json.loads((tmp_path / "run" / "adapter" / "halka.json").read_text())
    assert card["training"]["examples"] == 2


@pytest.mark.filterwarnings("ignore:the training examples have .* of validation")
@pytest.mark.parametrize("split", ["train", "validation"])
def test_what_is_cut_or_left_out_is_said(split):
    model = model_that_reads()
    bad = [*examples("It is Paris.", LONG), Example((Message("user", "And?"),), where="y:7")]
    given = {"examples": bad} if split == "train" else {"examples": examples("Yes."), "validation": bad}
    with pytest.warns(UserWarning, match=r"of 3 examples 1 are cut to 128 tokens and 1 left out, first .*y:7"):
        train(model, "a", **given, config=SHORT).close()
    with pytest.warns(
        UserWarning, match=r"of 2 examples 0 are cut to 128 tokens and 1 left out, first .*x:1.*max_length 128"
    ):
        train(model, "a", examples("It is Paris.", LONG), replace(SHORT, too_long="drop")).close()
    with pytest.raises(ValueError, match=r"x:1: \d+ tokens, more than max_length 128"):
        train(model, "a", examples("It is Paris.", LONG), replace(SHORT, too_long="error"))


def test_answers_without_an_end_are_said():
    model = model_that_reads()
    model.tokenizer = tokenizer(UNMARKED)
    with pytest.warns(UserWarning, match="^1 of 1 example: answers end without a token that closes them"):
        as_tokens(model, examples("Yes."), TrainConfig())


def test_max_length_is_kept():
    model = model_that_reads()
    with pytest.warns(UserWarning, match="cut to 40 tokens"):
        (tokens,) = as_tokens(model, examples(LONG), TrainConfig(max_length=40))
    assert len(tokens.ids) == len(tokens.loss) == 40


@pytest.mark.parametrize("method", [halka.Prefix(length=5), halka.Prompt(length=5)], ids=lambda m: m.name)
def test_long_examples_leave_room_for_virtual_tokens(method):
    model = model_that_reads(method)
    with pytest.warns(UserWarning, match="cut to 123 tokens"):
        stream = train(model, "a", examples(LONG), SHORT)
    next(stream)


# ── the folder ──────────────────────────────────────────────────────────────────────────────────────────────────────

RUN = TrainConfig(lr=1e-2, steps=9, batch_size=2, evaluate_every=3, save_every=4)
CLOCK = ("seconds", "tokens_per_second", "memory")


def lines(folder: Path) -> list[dict]:
    """The metrics, without what a clock or the system says."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in CLOCK} for line in found]


def test_each_step_is_a_line_of_metrics(tmp_path):
    steps = run(model_for(), RUN, validation=items(2, seed=9), folder=tmp_path / "deep" / "run")
    found = (tmp_path / "deep" / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in found] == [asdict(step) for step in steps]
    assert sorted(path.name for path in (tmp_path / "deep" / "run").iterdir()) == [
        "best-9.safetensors",
        "checkpoint.safetensors",
        "metrics.jsonl",
    ]


def test_without_saving_there_is_no_checkpoint(tmp_path):
    run(model_for(), replace(RUN, save_every=None), folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    run(model_for(), replace(RUN, save_every=None), folder=tmp_path)
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 10))


@pytest.mark.parametrize(("close_after", "accumulate"), [(1, 1), (4, 1), (6, 1), (9, 1), (5, 2)])
def test_a_stream_that_is_closed_early_goes_on_where_it_was(close_after, accumulate, tmp_path):
    held_out, config = items(2, seed=9), replace(RUN, accumulate=accumulate)
    model = model_for(DROPOUT)
    torch.manual_seed(0)
    whole = [(step.step, step.loss) for step in train(model, "a", items(), config, validation=held_out)]
    expected = weights(model)
    model = model_for(DROPOUT)
    torch.manual_seed(0)
    first = []
    for step in train(model, "a", items(), config, validation=held_out, folder=tmp_path):
        first.append((step.step, step.loss))
        if step.step == close_after:
            break
    torch.manual_seed(99)
    model = model_for(DROPOUT)
    rest = [(step.step, step.loss) for step in run(model, config, validation=held_out, folder=tmp_path)]
    assert first + rest == whole
    assert same(weights(model), expected)
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == whole


def test_the_best_weights_of_the_last_checkpoint_stay_until_the_next(tmp_path):
    """A run that is killed between them may go on another way, on other devices, and find no better weights."""
    model, seen = model_for(), {}
    config = replace(OVERFIT, lr=1e-3, evaluate_every=1, save_every=4)
    for step in train(model, "a", items(), config, validation=items(), folder=tmp_path / "run"):
        seen[step.step] = weights(model)
        if step.step == 7:  # of the killed run nothing else is left
            shutil.copytree(tmp_path / "run", tmp_path / "killed")
    left = RunFolder(tmp_path / "killed")
    assert sorted(path.name for path in left.path.glob("best*")) == ["best-4.safetensors", "best-7.safetensors"]
    assert same(left.load_best(4), seen[4])
    (tmp_path / "killed" / "best-4.safetensors").rename(tmp_path / "killed" / "best.safetensors")  # its old name
    resumed = train(model_for(), "a", items(), config, validation=items(), folder=left.path)
    next(resumed)
    assert same(left.load_best(4), seen[4])
    resumed.close()


def test_a_finished_run_has_nothing_to_do_and_gives_its_best_weights_back(tmp_path):
    model, held_out = model_for(), contradicting()
    config = replace(OVERFIT, save_every=5)
    steps = run(model, config, validation=held_out, folder=tmp_path)
    assert [step.step for step in steps if step.best][-1] < 20
    again = model_for()
    assert run(again, config, validation=held_out, folder=tmp_path) == []
    assert same(weights(again), weights(model))
    assert len(lines(tmp_path)) == 20


def test_of_a_damaged_metrics_file_the_whole_lines_of_done_steps_are_kept(tmp_path):
    list(itertools.islice(train(model_for(), "a", items(), replace(RUN, save_every=2), folder=tmp_path), 6))
    file = tmp_path / "metrics.jsonl"
    rows = file.read_text().splitlines()
    file.write_text("\n".join([*rows[:2], *rows[4:], '{"step": 7, "lo']))
    run(model_for(), replace(RUN, save_every=2), folder=tmp_path)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 5, 6, 7, 8, 9]


def test_a_run_that_patience_stopped_stays_stopped(tmp_path):
    model, held_out, config = model_for(), items(4, seed=9), replace(OVERFIT, steps=60, patience=2, save_every=5)
    stopped = run(model, config, validation=held_out, folder=tmp_path)[-1].step
    again = model_for()
    assert run(again, config, validation=held_out, folder=tmp_path) == []
    assert same(weights(again), weights(model))
    assert len(lines(tmp_path)) == stopped < 60


def started(folder: Path, method: Method = halka.LoRA(rank=4)) -> None:  # noqa: B008 (frozen)
    stream = train(model_for(method), "a", items(), RUN, validation=items(2, seed=9), folder=folder)
    next(stream)
    stream.close()


OTHERS = [
    ({"config": replace(RUN, lr=2e-2)}, r"lr was 0\.01, is 0\.02"),
    ({"config": replace(RUN, seed=1, batch_size=3)}, r"batch_size was 2, is 3; seed was 0, is 1"),
    ({"config": replace(RUN, steps=10)}, "steps was 9, is 10"),
    ({"config": replace(RUN, accumulate=2)}, "accumulate was 1, is 2"),
    ({"method": halka.LoRA(rank=5)}, "rank was 4, is 5"),
    ({"method": halka.LoRA(rank=4, targets=("attn.q",))}, r"targets was \['linear'\], is \['attn\.q'\]"),
    ({"method": halka.DoRA(rank=4)}, "method was 'lora', is 'dora'"),
    ({"examples": items(6, seed=1)}, "data was '[0-9a-f]+', is '[0-9a-f]+'"),
    ({"examples": [Tokens(item.ids, [True] * len(item.ids)) for item in items()]}, "data was"),
    pytest.param(
        {"validation": items(2, seed=8)},
        "validation",
    ),
    pytest.param(
        {"base": {"seed": 1}}, "base"
    ),
    ({"base": {"dtype": torch.bfloat16}}, r"dtype was 'torch.float32', is 'torch.bfloat16'"),
]  # fmt: skip


@pytest.mark.parametrize(("other", "named"), OTHERS, ids=[str(i) for i in range(len(OTHERS))])
def test_an_unfinished_run_of_other_settings_is_refused_naming_them(other, named, tmp_path):
    started(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    model = model_for(other.get("method"), **other.get("base", {}))
    own = weights(model)
    given = {"examples": items(), "config": RUN, "validation": items(2, seed=9)}
    given |= {key: value for key, value in other.items() if key in given}
    steps = train(model, "a", **given, folder=tmp_path)
    with pytest.raises(
        ValueError, match=rf"holds an unfinished run that differs from this one: .*{named}.*another folder"
    ):
        list(steps)
    steps.stop()  # as one does at the end, whatever happened
    assert same(weights(model), own)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_patience_needs_evaluations():
    with pytest.raises(HalkaError, match="patience counts evaluations, and there are none"):
        halka.fit(model_for(), "a", items(), replace(RUN, patience=1))


def test_a_run_goes_on_with_its_time_where_the_chat_template_writes_it(tmp_path):
    """As Llama 3's write the day: after midnight the same examples would be other tokens."""
    rows = [{"prompt": f"What is {number}?", "completion": "A number."} for number in range(4)]

    def steps(folder):
        tokenizer = chatml_tokenizer()
        tokenizer.chat_template = "Now: {{ strftime_now('%f') }}\n" + tokenizer.chat_template
        model = halka.adapt(tiny(vocab_size=len(tokenizer)), tokenizer)
        model.add("a", halka.LoRA(rank=2))
        return train(model, "a", rows, {"steps": 4, "batch_size": 2, "save_every": 1}, folder=folder)

    first = steps(tmp_path / "cut")
    next(first)
    first.stop()
    identity = identity_of(RunFolder(tmp_path / "cut").checkpoint)
    second = steps(tmp_path / "cut")
    assert next(second).step == 2
    second.stop()
    assert identity_of(RunFolder(tmp_path / "cut").checkpoint) == identity
    other = steps(tmp_path / "other")
    next(other)
    other.stop()
    assert identity_of(RunFolder(tmp_path / "other").checkpoint)["data"] != identity["data"]


def test_how_often_a_run_is_saved_may_change(tmp_path):
    started(tmp_path)
    config = replace(RUN, save_every=1, keep_every=1)
    assert run(model_for(), config, validation=items(2, seed=9), folder=tmp_path)[0].step == 2


@pytest.mark.parametrize("at_first", [False, True])
def test_activations_may_be_recomputed_from_a_checkpoint_on(at_first, tmp_path):
    """As the error of memory that ran out advises."""
    config, held_out = replace(RUN, checkpointing=at_first), items(2, seed=9)
    stream = train(model_for(), "a", items(), config, validation=held_out, folder=tmp_path)
    next(stream)
    stream.close()
    resumed, model, calls = replace(RUN, checkpointing=not at_first), model_for(), []
    model.base.model.layers[0].mlp.register_forward_pre_hook(lambda module, args: calls.append(module.training))
    rest = run(model, resumed, validation=held_out, folder=tmp_path)
    assert [step.step for step in rest] == list(range(2, 10))
    assert calls.count(True) == 8 * (1 if at_first else 2)
    whole = model_for()
    run(whole, RUN, validation=held_out)
    for key, tensor in weights(whole).items():
        torch.testing.assert_close(weights(model)[key], tensor, rtol=0, atol=1e-5)


def test_two_do_not_train_in_one_folder_and_no_finished_run_is_begun_again(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HalkaError, match="is a file: name a folder"):
        run(model_for(), RUN, folder=tmp_path / "file")
    folder = tmp_path / "run"
    first, model = train(model_for(), "a", items(), RUN, folder=folder), model_for()
    next(first)
    job = halka.Job("a", items(), RUN, folder=folder)
    for second in (train(model, "a", items(), RUN, folder=folder), train_many(model, [job])):
        with pytest.raises(HalkaError, match=r"a training is under way in .*: .* close its steps"):
            next(second)
    first.close()
    assert next(train(model, "a", items(), RUN, folder=folder)).step == 2
    finished = tmp_path / "finished"
    fit(model, "a", items(), RUN, folder=finished)
    with pytest.raises(HalkaError, match="holds a finished run"):
        run(model, RUN, folder=finished)
    assert len(lines(finished)) == 9


def test_files_of_others_stay_what_they_are(tmp_path):
    (tmp_path / "best-of-all.safetensors").write_text("another's")
    run(model_for(), RUN, validation=items(2, seed=9), folder=tmp_path)
    assert (tmp_path / "best-of-all.safetensors").read_text() == "another's"
    metrics = tmp_path / "other" / "metrics.jsonl"
    metrics.parent.mkdir()
    for line in ('{"epoch": 3}', "[1, 2]", '{"step": 1, "loss": 0.5}'):
        metrics.write_text(f"{line}\n")
        with pytest.raises(HalkaError, match=r"metrics.jsonl has a line that is no step of a training \(.*\): choose"):
            run(model_for(), RUN, folder=metrics.parent)
        assert metrics.read_text() == f"{line}\n"


def test_a_write_that_was_cut_short_leaves_no_broken_line(tmp_path):
    started(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "loss": 4.')
    run(model_for(), RUN, validation=items(2, seed=9), folder=tmp_path)
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 10))


# ── killed ──────────────────────────────────────────────────────────────────────────────────────────────────────────

KILLED = TrainConfig(lr=1e-2, steps=24, batch_size=2, evaluate_every=4, save_every=3)
PATIENCE = 300  # seconds for a process, the first of which waits for all that it needs to be imported
SURVIVORS = {
    "lora": halka.LoRA(rank=4, dropout=0.2),
    "prefix": halka.Prefix(length=3),
    "full": halka.Full(),
}


def train_to_the_end(kind: str, folder: Path, wait_at: int | None = None) -> None:
    """What the process does that is killed, at step `wait_at` at the latest.

    Its base has dropout of its own (GPT-2's is 0.1).
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = model_for(SURVIVORS[kind], "gpt2")
    for step in train(model, "a", items(9), KILLED, validation=items(3, seed=9), folder=folder):
        time.sleep(PATIENCE if step.step == wait_at else 0.003)  # so that there is time to be killed in
    save_file(weights(model), folder / "final.safetensors")


def process(kind: str, folder: Path, wait_at: int | None = None) -> multiprocessing.Process:
    """A process of its own, forked from one that has imported all that it needs."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["test_training"])
    with pytest.MonkeyPatch.context() as patch:  # Python below 3.12 does not hand its path on to what is preloaded
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        forkserver.ensure_running()
    child = context.Process(target=train_to_the_end, args=(kind, folder, wait_at), daemon=True)
    child.start()
    return child


def wait_for(condition, child: multiprocessing.Process) -> None:
    deadline = time.monotonic() + PATIENCE
    while child.is_alive() and not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.parametrize("kind", SURVIVORS)
def test_a_run_killed_again_and_again_ends_bit_for_bit_like_one_that_was_not(kind, tmp_path):
    draw = random.Random(kind)
    whole = process(kind, tmp_path / "whole")
    whole.join(PATIENCE)
    assert whole.exitcode == 0
    folder = tmp_path / "killed"
    metrics = folder / "metrics.jsonl"
    for target in (2, 6, 11, 16):
        child = process(kind, folder, wait_at=target + 3)  # else it might end before it is killed
        wait_for(lambda target=target: metrics.exists() and metrics.read_bytes().count(b"\n") >= target, child)
        time.sleep(draw.uniform(0, 0.02))
        child.kill()
        child.join(PATIENCE)
        assert child.exitcode == -signal.SIGKILL
    last = process(kind, folder)
    last.join(PATIENCE)
    assert last.exitcode == 0
    assert same(load_file(folder / "final.safetensors"), load_file(tmp_path / "whole" / "final.safetensors"))
    assert lines(folder) == lines(tmp_path / "whole")
    assert [line["step"] for line in lines(folder)] == list(range(1, 25))

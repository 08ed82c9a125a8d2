"""In fp16 the loss is scaled, so that small gradients do not vanish, and a step that overflows changes nothing."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

import halka
from halka.training.checkpoint import Progress
from halka.training.job import EncodedJob
from halka.training.loss_scale import GROWTH, LEAST, after_step
from halka.training.run import Run
from tiny import tiny
from training_for_tests import items, recorded_gradients, same, weights

FAINT = halka.LoRA(rank=4, alpha=1e-3)  # whose factor A has gradients that fp16 alone has no numbers for


def gradients(dtype: torch.dtype) -> torch.Tensor:
    """Those of the second step, before which B is no longer zero."""
    model = halka.adapt(tiny("llama").to(dtype))
    model.add("a", FAINT)
    with recorded_gradients() as recorded:
        for _ in halka.train(model, "a", items(), halka.TrainConfig(lr=1e-3, steps=2, batch_size=6, clip=0)):
            pass
    return torch.cat([gradient.flatten() for gradient in recorded[1][::2]])


def test_small_gradients_are_those_of_fp32():
    half, exact = gradients(torch.float16), gradients(torch.float32)
    assert exact.abs().median() < 6e-8  # the smallest number of fp16
    assert torch.cosine_similarity(half, exact, dim=0) > 0.99


def test_a_step_that_overflows_changes_no_weights_and_halves_the_scale(tmp_path):
    model = halka.adapt(tiny("llama").half())
    model.add("a", halka.LoRA(rank=4))
    before = weights(model)
    config = halka.TrainConfig(lr=1e-2, steps=60, batch_size=6, save_every=1)
    steps = halka.train(model, "a", [*items()], config, folder=tmp_path)
    hooks = [base.register_full_backward_hook(_too_large) for base in [model.base.model.layers[0].mlp]]
    step = next(steps)
    assert step.gradient_norm == 0
    assert same(weights(model), before)
    for hook in hooks:
        hook.remove()
    steps.close()
    again = halka.train(model, "a", [*items()], config, folder=tmp_path)
    assert next(again).gradient_norm > 0
    again.close()


def _too_large(module, inputs, outputs):
    return tuple(None if gradient is None else gradient * torch.inf for gradient in inputs)


def test_the_scale_halves_at_once_and_doubles_after_many_steps():
    progress = Progress()
    assert after_step(progress, overflow=True).scale == progress.scale / 2
    steady = replace(progress, steady=GROWTH - 1)
    assert after_step(steady, overflow=False) == replace(progress, scale=2 * progress.scale)
    assert after_step(progress, overflow=False) == replace(progress, steady=1)


def test_a_scale_that_fell_to_one_falls_further_and_grows_again():
    model = halka.adapt(tiny("llama").half())
    model.add("a", halka.LoRA(rank=4))
    run = Run(model, EncodedJob("a", items(), halka.TrainConfig(lr=1e-3, steps=9)))
    overflow, fine = {"loss": 1.0, "norm": math.inf}, {"loss": 1.0, "norm": 1.0}
    run.progress = replace(run.progress, scale=2.0)
    for norms, scale, steady in [(overflow, 1.0, 0), (fine, 1.0, 1), (overflow, 0.5, 0), (fine, 0.5, 1)]:
        run.optimise(**norms, tokens=1, computed=1, seconds=1.0)
        assert (run.progress.scale, run.progress.steady) == (scale, steady)
    run.progress = replace(run.progress, scale=LEAST)
    with pytest.raises(halka.TrainingError, match="gradient norm inf"):
        run.optimise(**overflow, tokens=1, computed=1, seconds=1.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_other_precisions_have_no_scale(dtype):
    model = halka.adapt(tiny("llama").to(dtype))
    model.add("a", halka.LoRA(rank=4))
    assert Run(model, EncodedJob("a", items(), halka.TrainConfig(steps=1))).scale == 1

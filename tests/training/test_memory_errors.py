"""Where memory runs out, the error says what needs less there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from halka.training import TrainConfig, train
from halka.util.errors import OutOfMemoryError
from training_for_tests import items, model_for

CONFIG = TrainConfig(lr=1e-2, steps=2, batch_tokens=30)


@pytest.mark.parametrize(
    ("config", "in_training", "message"),
    [
        (replace(CONFIG, batch_tokens=1), True, "lower max_length, since a batch is a single example, or turn check"),
        (replace(CONFIG, batch_tokens=1, checkpointing=True), True, "lower max_length, .* single example$"),
        (CONFIG, False, "in the evaluation after step 1: lower batch_tokens or batch_size$"),
    ],
    ids=["one example", "one example, recomputed", "evaluation"],
)
def test_memory_that_runs_out_says_what_needs_less(config: TrainConfig, in_training: bool, message: str):
    model = model_for()

    def full(module: Any, inputs: Any) -> None:
        if module.training == in_training:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    base: Any = model.base
    base.model.layers[1].register_forward_pre_hook(full)
    with pytest.raises(OutOfMemoryError, match=message):
        list(train(model, "a", items(), config, validation=items(2, seed=9)))

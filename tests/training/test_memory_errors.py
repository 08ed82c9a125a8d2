"""Where memory runs out, the error says what needs less there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import halka
from halka.training import TrainConfig, train
from halka.util.errors import OutOfMemoryError
from tiny import tiny
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


def test_memory_that_runs_out_in_a_score_says_so():
    def full() -> float:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    with pytest.raises(OutOfMemoryError, match="in the score after step 1: score fewer examples"):
        list(train(model_for(), "a", items(), CONFIG, validation=items(2, seed=9), score=full))


class NoRoomForCasts(TorchDispatchMode):
    """Memory runs out where fp32 is cast to bf16, as the masters of full fine-tuning are before a step's batches."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and (args[0].dtype, result.dtype) == (torch.float32, torch.bfloat16):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return result


class NoRoomForBatches(TorchDispatchMode):
    """Memory runs out where a line of tokens is put together."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if (
            isinstance(result, torch.Tensor)
            and result.dtype == torch.int64
            and func is not torch.ops.aten._to_copy.default
        ):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return result


def test_memory_that_runs_out_for_a_batch_says_so(tmp_path: Path):
    steps = train(model_for(), "a", items(), CONFIG, folder=tmp_path)
    message = r"out of memory at step 1, with a batch of \d+ examples .*: lower batch_tokens"
    with NoRoomForBatches(), pytest.raises(OutOfMemoryError, match=message):
        next(steps)


def test_memory_that_runs_out_before_a_batch_says_so_and_leaves_a_checkpoint(tmp_path: Path):
    model = halka.adapt(tiny("llama").bfloat16())
    model.add("a", halka.Full())
    steps = train(model, "a", items(), replace(CONFIG, save_every=5), folder=tmp_path)
    next(steps)
    with NoRoomForCasts(), pytest.raises(OutOfMemoryError, match="at step 2, before its first batch: train fewer"):
        next(steps)
    assert (tmp_path / "checkpoint.safetensors").exists()


def test_memory_that_runs_out_in_the_first_step_leaves_nothing_to_go_on_with(tmp_path: Path):
    """So that a smaller batch is no other run's."""
    model = model_for()

    def full(module: Any, inputs: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    base: Any = model.base
    hook = base.model.layers[1].register_forward_pre_hook(full)
    with pytest.raises(OutOfMemoryError, match="lower batch_tokens or batch_size"):
        list(train(model, "a", items(), CONFIG, folder=tmp_path))
    hook.remove()
    list(train(model, "a", items(), replace(CONFIG, batch_tokens=15), folder=tmp_path))

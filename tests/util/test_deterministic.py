"""Kernels that give the same bits in every run, for a while."""

from __future__ import annotations

import os

import pytest
import torch

import halka
from halka.util.deterministic import WORKSPACE, check_product
from training_for_tests import items, model_for


@pytest.mark.parametrize("wanted", [True, False])
def test_training_runs_within_it_and_torch_is_as_before(wanted, monkeypatch):
    monkeypatch.delenv(WORKSPACE, raising=False)
    assert not torch.are_deterministic_algorithms_enabled()
    with halka.deterministic(wanted):
        assert torch.are_deterministic_algorithms_enabled() == wanted
        assert (os.environ.get(WORKSPACE) == ":4096:8") == wanted
        for _ in halka.train(model_for(), "a", items(), halka.TrainConfig(steps=2)):
            pass
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_gpu_that_has_computed_before_is_refused():
    def refused():
        raise RuntimeError("not deterministic because it uses CuBLAS: set CUBLAS_WORKSPACE_CONFIG=:4096:8")

    def broken():
        raise RuntimeError("CUDA error: device-side assert triggered")

    check_product(lambda: None)
    with pytest.raises(halka.HalkaError, match="start the process with CUBLAS_WORKSPACE_CONFIG=:4096:8"):
        check_product(refused)
    with pytest.raises(RuntimeError, match="device-side assert"):
        check_product(broken)

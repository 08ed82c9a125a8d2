"""What was made from parameters is made anew when these change, and when others change only if it must be."""

from __future__ import annotations

import gc

import pytest
import torch

import halka
from engine_for_tests import model_of
from halka.util.cached import Cached, Changes


@pytest.fixture
def model():
    return model_of(families={"a": halka.LoRA(rank=2), "b": halka.LoRA(rank=2)})


def step(parameters) -> None:
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    torch.optim.AdamW(parameters, lr=0.1, fused=True).step()


def test_an_optimisers_step_is_seen_in_the_parameters_that_it_changes_alone(model):
    before = {name: Changes.state(model.parameters(name)) for name in "ab"}
    step(model.parameters("a"))
    assert Changes.state(model.parameters("a")) != before["a"]
    assert Changes.state(model.parameters("b")) == before["b"]


def test_an_optimiser_of_copies_may_have_changed_any(model):
    before = Changes.state(model.parameters("b"))
    for _ in range(50):  # whatever ids its tensors have, which others may have had
        step([torch.zeros(2, 2, requires_grad=True)])
        after, before = Changes.state(model.parameters("b")), before
        assert after != before
        before = after


def test_a_load_is_seen_also_where_it_replaces_parameters(model):
    parameters = {name: model.parameters(name) for name in "ab"}
    before = {name: Changes.state(parameters[name]) for name in "ab"}
    state = {key: tensor.clone() for key, tensor in model.adapter("a").state_dict().items()}
    model.adapter("a").load_state_dict(state, assign=True)
    assert Changes.state(parameters["a"]) != before["a"]
    assert Changes.state(parameters["b"]) == before["b"]


def test_parameters_that_are_gone_leave_nothing_behind(model):
    step(model.parameters("a"))
    ids = {name: {id(parameter) for parameter in model.parameters(name)} for name in "ab"}
    assert Changes._of.keys() >= ids["a"] | ids["b"]
    model.remove("a")
    gc.collect()
    assert not ids["a"] & Changes._of.keys()
    assert Changes._of.keys() >= ids["b"]


def test_what_is_kept_is_made_anew_by_a_change_of_its_own_parameters(model):
    made = dict.fromkeys("ab", 0)
    cached = {name: Cached[int]() for name in "ab"}

    def get(name: str, look: bool) -> int:
        def make() -> int:
            made[name] += 1
            return made[name]

        return cached[name].get(model.parameters(name), make, look=look)

    with torch.no_grad():
        for look in (True, False):
            assert [get(name, look) for name in "ab"] == [1, 1]
        step(model.parameters("a"))
        assert [get(name, look=False) for name in "ab"] == [2, 1]
        model.parameters("b")[0].add_(1)
        assert [get(name, look=False) for name in "ab"] == [2, 1]
        assert [get(name, look=True) for name in "ab"] == [2, 2]

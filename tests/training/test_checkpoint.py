"""A checkpoint holds all that a run needs, to the bit, and is taken for no other run's."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import halka
from contract import disturb, ids
from full_disk import room_for
from halka.core import AdaptedModel, Adapter, Method
from halka.methods import described
from halka.training.checkpoint import (
    Progress,
    open_checkpoint,
    restore,
    save_checkpoint,
    shards_folders,
    shards_name,
)
from halka.training.config import Step
from halka.training.run_folder import RunFolder
from tiny import tiny

RUN = {"method": "lora", "targets": ("linear",), "lr": None, "steps": 9}
PROGRESS = Progress(step=4, tokens=70, seconds=1.0 / 3.0, best_step=2, best_loss=0.1 + 0.2, waited=1, stopped=True)
METHODS = [halka.LoRA(rank=4), halka.Prefix(length=3, hidden=4), halka.Prompt(length=3), halka.Full()]


def trained(method: Method, steps: int = 3, seed: int = 0) -> tuple[AdaptedModel, torch.optim.Optimizer]:
    model = halka.adapt(tiny())
    model.add("a", method)
    disturb(model, "a", seed=seed)
    optimizer = torch.optim.AdamW(model.parameters("a"), lr=1e-2, fused=True)
    for _ in range(steps):
        with model.use("a"):
            model.base(ids(), labels=ids()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def loaded(path: Path, adapter: Adapter, optimizer: torch.optim.Optimizer) -> Progress:
    """The progress of a checkpoint of RUN, which adapter and optimiser are put back to."""
    checkpoint = open_checkpoint(path, dict(RUN))
    assert checkpoint is not None
    restore(checkpoint.tensors(), adapter, optimizer)
    return checkpoint.progress


def everything(model: AdaptedModel, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    states = optimizer.state_dict()["state"]
    kept = [torch.as_tensor(states[index][key]) for index in sorted(states) for key in sorted(states[index])]
    return [tensor.clone() for tensor in (*model.adapters["a"].state_dict().values(), *kept)]


def same(one: list[torch.Tensor], two: list[torch.Tensor]) -> bool:
    return len(one) == len(two) and all(torch.equal(*pair) for pair in zip(one, two, strict=True))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_everything_comes_back_to_the_bit(method, tmp_path):
    path = tmp_path / "run" / "checkpoint.safetensors"
    model, optimizer = trained(method)
    torch.manual_seed(5)
    save_checkpoint(path, RUN, PROGRESS, model.adapters["a"], optimizer)
    expected = everything(model, optimizer)
    assert len(expected) >= 4 * len(model.parameters("a"))
    for steps in (0, 2):  # into an optimiser that has not begun, and into one that has
        other, fresh = trained(method, steps, seed=8)
        torch.manual_seed(6)
        assert loaded(path, other.adapters["a"], fresh) == PROGRESS
        assert same(everything(other, fresh), expected)
        with other.use("a"):
            other.base(ids(), labels=ids()).loss.backward()
        fresh.step()  # the states are where and of the types that the optimiser needs


def test_a_run_whose_batches_would_be_others_is_refused(tmp_path):
    model, optimizer = trained(METHODS[0], steps=0)
    path, run = tmp_path / "c", {**RUN, "plan of batches": "0a1b"}
    save_checkpoint(path, run, Progress(), model.adapters["a"], optimizer)
    assert open_checkpoint(path, run) is not None
    other = {**run, "plan of batches": "2c3d"}
    with pytest.raises(halka.HalkaError, match="plan of batches was '0a1b', is '2c3d'"):
        open_checkpoint(path, other)
    with pytest.raises(halka.HalkaError, match=r"this one: steps was 9, is 8\."):
        open_checkpoint(path, {**other, "steps": 8})
    save_checkpoint(path, RUN, Progress(), model.adapters["a"], optimizer)  # as before plans were recorded
    assert open_checkpoint(path, run) is not None


def test_a_run_that_has_not_begun_comes_back_too(tmp_path):
    model, optimizer = trained(METHODS[0], steps=0)
    save_checkpoint(tmp_path / "c", RUN, Progress(), model.adapters["a"], optimizer)
    expected = everything(model, optimizer)
    other, fresh = trained(METHODS[0], steps=0, seed=8)
    assert loaded(tmp_path / "c", other.adapters["a"], fresh) == Progress()
    assert same(everything(other, fresh), expected)


def test_where_there_is_none_there_is_nothing_to_go_on_from(tmp_path):
    assert open_checkpoint(tmp_path / "none", RUN) is None


def test_tensors_of_another_adapter_are_refused(tmp_path):
    model, optimizer = trained(METHODS[0], steps=0)
    save_checkpoint(tmp_path / "c", RUN, Progress(), model.adapters["a"], optimizer)
    other, fresh = trained(METHODS[1], steps=0)
    for refuse in (loaded, lambda path, adapter, _: open_checkpoint(path, RUN).check_fits(adapter)):
        with pytest.raises(ValueError, match="is no tensor of this run"):
            refuse(tmp_path / "c", other.adapters["a"], fresh)
    with pytest.raises(ValueError, match="the checkpoint lacks 1 of the adapter's tensors"):
        restore([*open_checkpoint(tmp_path / "c", RUN).tensors()][1:], model.adapters["a"], optimizer)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"lr": 0.1}, "lr was None, is 0.1"),
        ({"method": "dora", "lr": 2}, "lr was None, is 2; method was 'lora', is 'dora'"),
        ({"targets": ("attn.q",)}, "targets was ['linear'], is ['attn.q']"),
        ({"rank": 4}, "rank was None, is 4"),
    ],
    ids=str,
)
def test_another_runs_checkpoint_is_refused(changes, named, tmp_path):
    path = tmp_path / "run" / "checkpoint.safetensors"
    model, optimizer = trained(METHODS[0])
    save_checkpoint(path, RUN, PROGRESS, model.adapters["a"], optimizer)
    with pytest.raises(ValueError, match="Use another folder") as refused:
        open_checkpoint(path, {**RUN, **changes})
    assert f"{path.parent} holds an unfinished run that differs from this one: {named}. " in str(refused.value)


def test_no_alpha_is_twice_the_rank_as_it_was(tmp_path):
    path = tmp_path / "run" / "checkpoint.safetensors"
    model, optimizer = trained(METHODS[0])
    for method in (halka.LoRA(rank=16), halka.Joint((halka.LoRA(rank=16), halka.Modules(("head",))))):
        now = described(method)
        before = json.loads(json.dumps(now).replace('"alpha": 32.0', '"alpha": null'))
        assert before != now
        flat, old = (
            {"method": m["name"], **{f"{m['name']}'s {k}": v for k, v in m["fields"].items()}} for m in (now, before)
        )
        save_checkpoint(path, old, PROGRESS, model.adapters["a"], optimizer)
        assert open_checkpoint(path, flat) is not None
    old, flat = ({"method": "lora", "lora's rank": 4, "lora's alpha": alpha} for alpha in (None, 32.0))
    save_checkpoint(path, old, PROGRESS, model.adapters["a"], optimizer)
    with pytest.raises(
        ValueError, match=r"lora's alpha was 8.0, is 32.0. Where none was named α was twice the rank: name"
    ):
        open_checkpoint(path, flat)


def test_a_full_disk_while_saving_leaves_the_old_one(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    model, optimizer = trained(METHODS[0])
    save_checkpoint(path, RUN, PROGRESS, model.adapters["a"], optimizer)
    before = path.read_bytes()
    with room_for(len(before) - 100):
        save_checkpoint(path, RUN, Progress(step=8), model.adapters["a"], optimizer)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == before


def test_its_metadata_is_plain_json(tmp_path):
    model, optimizer = trained(METHODS[0])
    save_checkpoint(tmp_path / "c", RUN, PROGRESS, model.adapters["a"], optimizer)
    with safe_open(tmp_path / "c", framework="pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["run"]) == {**RUN, "targets": ["linear"]}
    assert json.loads(metadata["progress"]) == asdict(PROGRESS)


def test_a_step_that_is_saved_again_once_it_is_recorded_leaves_the_shards_of_before(tmp_path):
    before, after = Progress(step=3, unrecorded=Step(3, 9, 1.0, 1e-3, 1.0, 3, 1.0, 1.0, 1)), Progress(step=3)
    assert shards_name(after) == "parts-3"
    assert shards_name(before) != shards_name(after)
    for name in (shards_name(before), shards_name(after), "parts-list", "parts-3-more"):
        (tmp_path / name).mkdir()
    assert {folder.name for folder in shards_folders(tmp_path)} == {shards_name(before), shards_name(after)}
    RunFolder(tmp_path).keep_parts(shards_name(after))
    assert {path.name for path in tmp_path.iterdir()} == {"parts-3", "parts-list", "parts-3-more"}

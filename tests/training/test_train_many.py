"""Adapters trained together learn what each learns alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import halka
from contract import disturb, weights_of
from halka.core import AdaptedModel, Method
from halka.data.tokens import Tokens
from halka.objectives.classification import Labelled
from halka.training import Job, Step, TrainConfig, train, train_many
from halka.util.errors import TrainingError
from tiny import tiny
from training_for_tests import items, items_without_a_loss, recorded_gradients, weights

METHODS: dict[str, Method] = {
    "lora": halka.LoRA(rank=4),
    "wide": halka.LoRA(rank=20, targets=("attn.qv", "mlp.down"), scaling="root"),
    "head": halka.LoRA(rank=4, targets=("attn.linear", "head")),
    "dora": halka.DoRA(rank=3),
    "bottleneck": halka.Bottleneck(width=5),
    "parallel": halka.Bottleneck(width=7, reads="input"),
    "prefix": halka.Prefix(length=3),
    "prompt": halka.Prompt(length=5),
    "ia3": halka.IA3(),
    "bitfit": halka.BitFit(),
    "full": halka.Full(),
}
CONFIG = TrainConfig(steps=4, batch_size=3, lr=1e-2)


def configs(batches: str = "packed") -> dict[str, TrainConfig]:
    """No two alike, in rate, length, seed, batches and what they do with them."""
    return {
        name: replace(
            CONFIG,
            lr=3e-3 * (1 + i % 3),
            steps=3 + i % 3,
            seed=i,
            batch_size=2 + i % 3,
            accumulate=1 + i % 2,
            batches=batches,
        )
        for i, name in enumerate(METHODS)
    }


def data(name: str) -> list[Tokens]:
    return items(6, seed=sum(map(ord, name)))


def model_with(*names: str, **changes) -> AdaptedModel:
    model = halka.adapt(tiny(**changes))
    for seed, name in enumerate(METHODS):
        if name in names:
            model.add(name, METHODS[name], seed=seed)
            disturb(model, name, seed=seed)
    return model


@pytest.mark.parametrize(("architecture", "path"), [("gemma3_text", "self_attn.q_norm"), ("mixtral", "mlp")])
def test_a_module_whose_tokens_do_not_come_first_learns_what_it_learns_alone(architecture, path):
    def model() -> AdaptedModel:
        adapted = halka.adapt(tiny(architecture))
        adapted.add("whole", halka.Modules((f"model.layers.0.{path}",)))
        adapted.add("lora", METHODS["lora"])
        return adapted

    together = model()
    list(train_many(together, [Job(name, data(name), CONFIG) for name in ("whole", "lora")]))
    for name in ("whole", "lora"):
        alone = model()
        list(train(alone, name, data(name), CONFIG))
        for key, tensor in weights(alone, name).items():
            torch.testing.assert_close(weights(together, name)[key], tensor, rtol=0, atol=1e-6, msg=key)


def jobs(model: AdaptedModel, batches: str = "packed", **options) -> list[Job]:
    return [Job(name, data(name), configs(batches)[name], **options) for name in model.adapters]


def test_the_gradients_are_those_of_training_alone():
    config = replace(CONFIG, steps=1, clip=0.0)
    model = model_with(*METHODS)
    with recorded_gradients() as together:
        (told,) = train_many(model, [Job(name, data(name), config) for name in METHODS])
    for name, found in zip(METHODS, together, strict=True):
        with recorded_gradients() as alone:
            (step,) = train(model_with(name), name, data(name), config)
        assert told[name].loss == pytest.approx(step.loss, rel=1e-5)
        assert any(tensor.abs().max() > 1e-4 for tensor in alone[0])
        for mine, expected in zip(found, alone[0], strict=True):
            torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("architecture", "batches"), [("llama", "packed"), ("gpt2", "packed"), ("llama", "padded")])
def test_each_has_its_own_data_rate_length_seed_and_batches(architecture, batches):
    changes = {"architecture": architecture}
    if architecture == "gpt2":
        changes |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    model = model_with(*METHODS, **changes)
    before = weights_of(model.base)
    steps: dict[str, list[Step]] = {name: [] for name in METHODS}
    for told in train_many(model, jobs(model, batches)):
        for name, step in told.items():
            steps[name].append(step)
    for name, config in configs(batches).items():
        alone = model_with(name, **changes)
        expected = list(train(alone, name, data(name), config))
        assert [step.step for step in steps[name]] == list(range(1, config.steps + 1))
        for one, two in zip(steps[name], expected, strict=True):
            assert (one.lr, one.tokens, one.steps) == (two.lr, two.tokens, two.steps)
            assert one.loss == pytest.approx(two.loss, rel=1e-4)
        for key, tensor in weights(alone, name).items():
            torch.testing.assert_close(weights(model, name)[key], tensor, rtol=1e-3, atol=2e-5)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.base.named_parameters())
    assert not model.base.training


def passes_of(model: AdaptedModel, given: list[Job]) -> int:
    seen = []
    handle = model.base.get_decoder().register_forward_pre_hook(lambda *_: seen.append(1))
    list(train_many(model, given))
    handle.remove()
    return len(seen)


def test_batches_of_like_length_go_through_the_base_in_one_pass():
    model = model_with("lora", "bottleneck", "wide")
    one, other = items(4, length=10), items(4, length=30, seed=1)
    config = replace(CONFIG, steps=5, batch_size=4, batches="padded")
    assert passes_of(model, [Job("lora", one, config), Job("bottleneck", one, config), Job("wide", one, config)]) == 5
    assert passes_of(model, [Job("lora", one, config), Job("wide", other, config)]) == 10
    assert passes_of(model_with("lora", "head"), [Job("lora", one, config), Job("head", one, config)]) == 10


def test_packed_batches_of_any_lengths_go_through_the_base_in_one_pass():
    model = model_with("lora", "bottleneck", "wide")
    config = replace(CONFIG, steps=5, batch_size=4)
    jobs = [Job("lora", items(4, length=10), config), Job("wide", items(4, length=30, seed=1), config)]
    assert passes_of(model, jobs) == 5
    one = items(4, length=10)
    assert passes_of(model_with("lora", "head"), [Job("lora", one, config), Job("head", one, config)]) == 10


def test_one_that_fails_is_told_once_and_the_others_go_on():
    model = model_with("lora", "bottleneck", "ia3")
    with torch.no_grad():
        model.parameters("bottleneck")[0].fill_(math.inf)
    told = list(train_many(model, [Job(name, data(name), CONFIG) for name in model.adapters]))
    assert [sorted(each) for each in told] == [["bottleneck", "ia3", "lora"]] + [["ia3", "lora"]] * 3
    assert isinstance(told[0]["bottleneck"], TrainingError)
    assert "learning rate" in str(told[0]["bottleneck"])
    alone = model_with("lora")
    list(train(alone, "lora", data("lora"), CONFIG))
    for key, tensor in weights(alone, "lora").items():
        torch.testing.assert_close(weights(model, "lora")[key], tensor, rtol=1e-3, atol=2e-5)


def test_a_validation_loss_that_is_no_number_ends_that_run_alone():
    model = model_with("lora", "ia3")
    held_out = {"lora": items(2), "ia3": items_without_a_loss(model)}
    told = list(train_many(model, [Job(name, data(name), CONFIG, held_out[name]) for name in model.adapters]))
    assert isinstance(told[0]["ia3"], TrainingError)
    assert [each["lora"].validation is not None for each in told] == [True] * 4


@pytest.mark.parametrize("close_after", [1, 2, 4])
def test_a_stream_that_is_closed_early_goes_on_where_it_was(close_after, tmp_path):
    """Some had ended by then, some had not."""
    names = ("lora", "bottleneck", "prefix")

    def given(folder: bool) -> list[Job]:
        return [
            Job(name, data(name), configs()[name], items(2, seed=9), tmp_path / name if folder else None)
            for name in names
        ]

    whole = model_with(*names)
    expected = [{name: step.loss for name, step in told.items()} for told in train_many(whole, given(False))]
    first = []
    for told in train_many(model_with(*names), given(True)):
        first.append({name: step.loss for name, step in told.items()})
        if len(first) == close_after:
            break
    again = model_with(*names)
    rest = [{name: step.loss for name, step in told.items()} for told in train_many(again, given(True))]
    assert first + rest == expected
    for name in names:
        assert all(torch.equal(weights(again, name)[key], tensor) for key, tensor in weights(whole, name).items())


@pytest.mark.parametrize(("file", "goes_on_after"), [("checkpoint-next.safetensors", 3), ("checkpoint.safetensors", 4)])
def test_one_that_dies_between_two_checkpoints_goes_on_with_both_at_one_step(file, goes_on_after, tmp_path):
    """Of which the second cannot be written, or not be put in place. What dropout drops follows from all adapters."""
    configs = {
        "lora": replace(CONFIG, steps=7, save_every=2),
        "prefix": replace(CONFIG, steps=5, save_every=3, seed=1),
    }

    def started(folder: Path | None) -> tuple[AdaptedModel, Iterator[dict[str, Any]]]:
        model = model_with(*configs, architecture="gpt2")  # which has dropout
        jobs = [
            Job(name, data(name), config, items(2, seed=9), folder and folder / name)
            for name, config in configs.items()
        ]
        return model, ({name: step.loss for name, step in steps.items()} for steps in train_many(model, jobs))

    whole, losses = started(None)
    expected = [*losses]
    _, losses = started(tmp_path)
    assert [*itertools.islice(losses, 3)] == expected[:3]
    blocked = tmp_path / "prefix" / file
    before = blocked.rename(tmp_path / "before") if blocked.exists() else None
    blocked.mkdir()
    with pytest.raises(IsADirectoryError):
        next(losses)
    blocked.rmdir()
    if before is not None:
        before.rename(blocked)
    again, losses = started(tmp_path)
    assert [*losses] == expected[goes_on_after:]
    for name in configs:
        assert all(torch.equal(weights(again, name)[key], tensor) for key, tensor in weights(whole, name).items())


def test_a_whole_checkpoint_that_was_not_put_in_place_is_gone_on_from(tmp_path):
    """The process dies between the two, or cannot put it there."""

    def started(folder: Path | None, steps: int = 7) -> Iterator[float]:
        config = replace(CONFIG, steps=steps, save_every=2)
        return (step.loss for step in train(model_with("lora"), "lora", data("lora"), config, folder=folder))

    expected = [*started(None)]
    losses = started(tmp_path)
    assert [*itertools.islice(losses, 3)] == expected[:3]
    place = tmp_path / "checkpoint.safetensors"
    before = place.rename(tmp_path / "before")
    place.mkdir()
    with pytest.raises(IsADirectoryError):
        next(losses)
    place.rmdir()
    before.rename(place)
    assert [*started(tmp_path)] == expected[4:]


def test_one_job_is_train():
    results = []
    for many in (False, True):
        model = model_with("lora")
        if many:
            list(train_many(model, [Job("lora", data("lora"), CONFIG)]))
        else:
            list(train(model, "lora", data("lora"), CONFIG))
        results.append(weights(model, "lora"))
    assert all(torch.equal(results[0][key], results[1][key]) for key in results[0])


def test_what_cannot_be_is_refused_before_the_first_step(tmp_path):
    model = model_with("lora", "ia3")
    with pytest.raises(ValueError, match="nothing to train"):
        train_many(model, [])
    with pytest.raises(ValueError, match="name lora"):
        train_many(model, [Job("lora", items()), Job("lora", items())])
    with pytest.raises(ValueError, match=r"folder .*run"):
        train_many(model, [Job(name, items(), folder=tmp_path / "run") for name in ("lora", "ia3")])
    folders = {"lora": tmp_path / "run", "ia3": f"{tmp_path}/other/../run"}
    with pytest.raises(ValueError, match=r"folder .*run"):
        train_many(model, [Job(name, items(), folder=folder) for name, folder in folders.items()])
    with pytest.raises(ValueError, match="ia3: no token to learn from"):
        train_many(model, [Job("lora", items()), Job("ia3", [Tokens([5, 6], [False] * 2)])])
    with pytest.raises(ValueError, match="no adapter 'nobody'"):
        train_many(model, [Job("nobody", items())])
    with pytest.raises(ValueError, match="no token to learn from"):
        train_many(model, [Job("lora", items()), Job("ia3", [])])


def run_out_of_memory(model: AdaptedModel, after: int) -> None:
    """Let memory run out in the base's head, which computes each adapter's logits, after so many times."""
    times = itertools.count()

    def full(module: torch.nn.Module, inputs: object) -> None:
        if next(times) >= after:
            raise torch.OutOfMemoryError("full")

    model.base.get_output_embeddings().register_forward_pre_hook(full)


def test_memory_that_runs_out_ends_all_and_leaves_no_gradient():
    model = model_with("lora", "ia3")
    run_out_of_memory(model, after=0)
    with pytest.raises(TrainingError, match="out of memory at step 1, with a batch of 6 examples"):
        list(train_many(model, [Job(name, items(length=9), CONFIG) for name in model.adapters]))
    assert all(parameter.grad is None for name in model.adapters for parameter in model.parameters(name))


def test_memory_that_runs_out_loses_no_step(tmp_path):
    names = ("lora", "ia3")

    def given(model: AdaptedModel) -> list[Job]:
        return [Job(name, items(length=9), CONFIG, folder=tmp_path / name) for name in names]

    whole = model_with(*names)
    expected = [told["lora"].loss for told in train_many(whole, [Job(name, items(length=9), CONFIG) for name in names])]
    model, seen = model_with(*names), []
    run_out_of_memory(model, after=3)
    with pytest.raises(TrainingError, match="train fewer adapters together"):
        seen.extend(told["lora"].loss for told in train_many(model, given(model)))
    again = model_with(*names)
    assert seen + [told["lora"].loss for told in train_many(again, given(again))] == expected
    assert len(seen) == 3


def test_an_evaluation_that_an_error_ended_loses_no_step_of_the_others(tmp_path):
    names = ("lora", "bottleneck", "ia3")

    def steps(folder: Path | None, fails: bool = False) -> tuple[AdaptedModel, Iterator[dict[str, Any]]]:
        def score() -> float:
            if fails:
                raise RuntimeError("in the score")
            return 1.0

        model = model_with(*names, architecture="gpt2")  # which has dropout
        config = replace(CONFIG, evaluate_every=2)
        validation = {"lora": items(2, seed=9), "bottleneck": items(2, seed=9), "ia3": []}
        jobs = [
            Job(
                *(name, data(name), config, validation[name], folder and folder / name),
                score=score if name == "bottleneck" else None,
            )
            for name in names
        ]
        return model, ({name: step.loss for name, step in of_all.items()} for of_all in train_many(model, jobs))

    whole, losses = steps(None)
    expected = [*losses]
    _, losses = steps(tmp_path, fails=True)
    assert next(losses) == expected[0]
    with pytest.raises(RuntimeError, match="in the score"):
        next(losses)
    again, losses = steps(tmp_path)
    missing = {name: expected[1][name] for name in ("bottleneck", "ia3")}
    assert [*losses] == [missing, *expected[2:]]
    for name in names:
        assert len((tmp_path / name / "metrics.jsonl").read_text().splitlines()) == CONFIG.steps
        assert all(torch.equal(weights(again, name)[key], tensor) for key, tensor in weights(whole, name).items())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_in_bf16_and_with_checkpointing(checkpointing):
    config = replace(CONFIG, steps=1, clip=0.0, checkpointing=checkpointing)
    names = ("lora", "bottleneck", "prefix", "prompt", "dora")
    model = model_with(*names, dtype=torch.bfloat16)
    with recorded_gradients() as together:
        list(train_many(model, [Job(name, items(length=9), config) for name in names]))
    for name, found in zip(names, together, strict=True):
        alone_model = model_with(name, dtype=torch.bfloat16)
        with recorded_gradients() as alone:
            list(train(alone_model, name, items(length=9), config))
        size = max(float(tensor.norm()) for tensor in alone[0])
        for mine, expected in zip(found, alone[0], strict=True):
            assert float((mine - expected).norm()) < 0.03 * size


def test_classifiers_with_batches_of_other_sizes_learn_what_they_learn_alone():
    examples = {
        "a": [Labelled([5 + i, 6, 7 + i], i % 2, []) for i in range(6)],
        "b": [Labelled([9 + i, 4, 3 + i], i % 2, []) for i in range(10)],
    }
    sizes, model = {"a": 3, "b": 5}, halka.adapt(tiny("bert", kind="sequence-classification"))
    for name in examples:
        model.add(name, halka.LoRA(rank=4))
    config = {name: TrainConfig(steps=3, batch_size=size, lr=1e-2) for name, size in sizes.items()}
    together = list(train_many(model, [Job(name, examples[name], config[name]) for name in examples]))
    for name in examples:
        alone = halka.adapt(tiny("bert", kind="sequence-classification"))
        alone.add(name, halka.LoRA(rank=4))
        steps = list(train(alone, name, examples[name], config[name]))
        assert [step[name].loss for step in together] == pytest.approx([step.loss for step in steps], rel=1e-4)


def test_long_texts_of_classifiers_keep_clear_of_anothers_virtual_tokens():
    model = halka.adapt(tiny("bert", kind="sequence-classification"))  # 128 positions
    methods = {"prompt": halka.Prompt(length=8), "lora": halka.LoRA(rank=2)}
    lengths = {"prompt": 120, "lora": 128}
    for name, method in methods.items():
        model.add(name, method)
    jobs = [Job(name, [Labelled([5] * length, 1, [])] * 2, {"steps": 1}) for name, length in lengths.items()]
    (steps,) = train_many(model, jobs)
    assert all(isinstance(step, Step) for step in steps.values())


def test_a_configuration_may_be_a_dict():
    model = halka.adapt(tiny())
    model.add("a", halka.LoRA(rank=2))
    (step,) = train_many(model, [Job("a", items(), {"steps": 1})])
    assert step["a"].steps == 1


@pytest.mark.parametrize("batches", ["packed", "padded"])
@pytest.mark.parametrize("broken", ["gated", "prefix", "lora"])
def test_a_number_that_is_none_stays_in_its_adapter(broken, batches):
    """LLaMA-Adapter's tokens are in the pass of rows that have none, too."""
    families = {"lora": halka.LoRA(rank=4), "gated": halka.LlamaAdapter(length=3), "prefix": halka.Prefix(length=4)}
    model = halka.adapt(tiny())
    for name, method in families.items():
        model.add(name, method)
    with torch.no_grad():
        for parameter in model.parameters(broken):
            parameter.fill_(math.nan)
    config = TrainConfig(steps=1, batch_size=5, lr=1e-2, batches=batches)
    (results,) = train_many(model, [Job(name, items(5, length=9), config) for name in families])
    assert {name for name, step in results.items() if isinstance(step, TrainingError)} == {broken}

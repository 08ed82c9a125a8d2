"""What is kept between calls changes no answer, and keeps no memory that nobody asked for."""

from __future__ import annotations

import gc
import weakref
from contextlib import ExitStack

import pytest
import torch
from safetensors.torch import load_file

import halka
from engine_for_tests import NoTwin, Tokenizer, alone, filled, model_of
from halka.engine.engine import Engine
from halka.engine.kept import kept_of
from halka.engine.request import Request
from halka.engine.stopping import Stopping
from halka.models.attention.paged import KVBlocks
from halka.storage.adapter_store import AdapterStore
from halka.storage.pool import AdapterPool

FAMILIES = {"lora": halka.LoRA(rank=4), "bottleneck": halka.Bottleneck(width=8), "prompt": halka.Prompt(length=5)}
NAMES = [None, *FAMILIES]


def requests() -> list[Request]:
    return [Request([5, 6, 7, 8 + number], name, stopping=Stopping(6)) for number, name in enumerate(NAMES)]


def answers(model, wanted: list[Request]) -> list[list[int]]:
    with kept_of(model) as kept, Engine(model, rows=4, kept=kept) as engine:
        made = [engine.submit(request)[0] for request in wanted]
        while engine.step():
            pass
    assert not any(answer.error for answer in made)
    return [answer.tokens for answer in made]


def right(model) -> None:
    assert answers(model, requests()) == [alone(model, request) for request in requests()]


def test_a_tokenizer_s_vocabulary_is_read_for_all_calls():
    model = model_of(families={})

    def constraints(**settings):
        with kept_of(model) as kept, Engine(model, kept=kept, **settings) as engine:
            return engine.constraints

    first = constraints()
    assert constraints() is first
    assert constraints(ends={5}).ends == {5}
    model.tokenizer = Tokenizer()
    assert constraints().tokenizer is model.tokenizer


def test_the_next_call_finds_what_the_last_one_made():
    model = model_of(families=FAMILIES)
    right(model)
    first, forward = model.kept, model.kept.forward
    ids = {name: version.id for name, version in first.adapters._added.items()}
    right(model)
    assert model.kept is first
    assert model.kept.forward is forward
    assert {name: version.id for name, version in first.adapters._added.items()} == ids
    assert {*ids} == {*NAMES}


def by_hand(model) -> None:
    with torch.no_grad():
        for parameter in model.parameters("lora"):
            parameter.add_(0.2)


def by_an_optimiser(model) -> None:
    parameters = model.parameters("lora")
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    torch.optim.AdamW(parameters, lr=0.3, fused=True).step()


def by_a_load(model) -> None:
    model.adapter("lora").load_state_dict({k: -v for k, v in model.adapter("lora").state_dict().items()})


def by_another(model) -> None:
    model.remove("lora")
    filled(model, "lora", halka.Prefix(length=3), seed=9)


def by_the_base(model) -> None:
    with torch.no_grad():
        for parameter in model.base.parameters():
            parameter.mul_(1.5)


def by_training_the_base(model) -> None:
    parameters = [*model.base.parameters()]
    for parameter in parameters:
        parameter.requires_grad_(True)
        parameter.grad = torch.randn_like(parameter)
    torch.optim.AdamW(parameters, lr=0.1, fused=True).step()


def by_a_base_moved_by_hand(model) -> None:
    model.base.to(torch.float64).to(torch.float32)


def by_moving_it(model) -> None:
    model.to(torch.bfloat16).to(torch.float32)
    assert model.kept is None


CHANGES = [
    by_hand,
    by_an_optimiser,
    by_a_load,
    by_another,
    by_the_base,
    by_training_the_base,
    by_a_base_moved_by_hand,
    by_moving_it,
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_what_changes_between_two_calls_counts_in_the_second(architecture, change):
    model = model_of(architecture, families=FAMILIES)
    right(model)
    change(model)
    right(model)
    assert model.kept.current
    right(model)


def test_an_engine_beside_leaves_the_pass_that_is_kept_as_it_is():
    model = model_of(families=FAMILIES)
    right(model)
    first = model.kept
    with Engine(model):
        right(model)
    assert model.kept is first
    assert first.current
    right(model)
    assert model.kept is first


def test_a_call_beside_an_open_engine_leaves_its_pass_as_it_is():
    model = model_of(families=FAMILIES)
    with Engine(model) as engine:
        engine._forward._twin = NoTwin()
        for _ in range(2):
            right(model)
            made = [engine.submit(request)[0] for request in requests()]
            while engine.step():
                pass
            assert [answer.tokens for answer in made] == [alone(model, request) for request in requests()]
    right(model)


def test_what_is_merged_between_two_calls_answers_in_the_second():
    model = model_of(families=FAMILIES)
    right(model)
    first = model.kept
    model.merge("lora")
    request = Request([5, 6, 7], "lora", stopping=Stopping(6))
    assert answers(model, [request]) == [alone(model, request)]
    model.unmerge()
    right(model)
    assert model.kept is first


def test_a_changed_generation_config_and_tokenizer_count_at_once():
    model = model_of(families={})
    request = Request([5, 6, 7, 8], stopping=Stopping(6))
    (whole,) = answers(model, [request])
    assert len(whole) > 1
    model.base.generation_config.eos_token_id = whole[0]
    assert answers(model, [request]) == [whole[:1]]
    model.base.generation_config.eos_token_id = None
    model.tokenizer = Tokenizer()
    model.tokenizer.eos_token_id = whole[1]
    assert answers(model, [request]) == [whole[: 1 + (whole[0] != whole[1])]]


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_a_base_is_saved_trained_and_merged_as_if_no_engine_had_been_there(name, tmp_path):
    model, untouched = (model_of(name, families=FAMILIES) for _ in range(2))
    right(model)
    model.base.save_pretrained(tmp_path / "a")
    untouched.base.save_pretrained(tmp_path / "b")
    halka.save(model, "lora", tmp_path / "lora")
    halka.save(untouched, "lora", tmp_path / "lora-b")
    assert_equal(*(load_file(tmp_path / folder / "model.safetensors") for folder in "ab"))
    assert_equal(*(load_file(tmp_path / folder / "adapter_model.safetensors") for folder in ("lora", "lora-b")))
    for one in (model, untouched):
        one.merge("lora")
    assert_equal(*(one.base.state_dict() for one in (model, untouched)))
    for one in (model, untouched):
        one.unmerge()
        loss = one.base(torch.arange(5, 12)[None]).logits.square().sum()
        with one.use("lora"):
            loss = one.base(torch.arange(5, 12)[None]).logits.square().sum()
        loss.backward()
    for a, b in zip(model.parameters("lora"), untouched.parameters("lora"), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def assert_equal(first, second) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_calls_within_calls_have_engines_of_their_own():
    model = model_of(families=FAMILIES)
    right(model)
    with ExitStack() as stack:
        engines = [
            stack.enter_context(Engine(model, rows=2, kept=stack.enter_context(kept_of(model)))) for _ in range(2)
        ]
        made = [engine.submit(request)[0] for engine in engines for request in requests()]
        for _ in range(100):
            for engine in engines:
                engine.step()
        assert model.kept is None
    assert [answer.tokens for answer in made] == [alone(model, request) for request in requests()] * 2
    right(model)


def every_kv_blocks() -> list[KVBlocks]:
    """Those of this process, of other tests too."""
    gc.collect()
    return [it for it in gc.get_objects() if type(it) is KVBlocks]


def test_keys_and_values_and_stored_adapters_are_given_back(tmp_path):
    model = model_of(families=FAMILIES)
    store = AdapterStore(tmp_path)
    store.save(model, "lora")
    model.remove("lora")
    AdapterPool(model, store)
    others = {id(blocks): blocks for blocks in every_kv_blocks()}  # held, so that no other takes an id of theirs
    right(model)
    assert {id(blocks) for blocks in every_kv_blocks()} <= {*others}
    assert {*model.adapters} - {"lora"} == {"bottleneck", "prompt"}  # `alone` takes "lora" from the pool


def test_an_adapter_and_a_model_that_are_gone_are_not_kept():
    model = model_of(families=FAMILIES)
    right(model)
    adapter, gone = weakref.ref(model.adapter("lora")), weakref.ref(model)
    model.remove("lora")
    gc.collect()
    assert adapter() is None
    del model
    gc.collect()
    assert gone() is None

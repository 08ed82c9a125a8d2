"""An answer is made by the content that its name meant, or fails by that name; nothing else fails with it."""

from __future__ import annotations

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest
import torch

import halka
from engine_for_tests import alone, filled, model_of, run, taken
from halka.engine.engine import Engine
from halka.engine.request import Request
from halka.engine.stopping import Stopping
from halka.storage.adapter_folder import AdapterFolder
from halka.util.errors import HalkaError, UnknownAdapterError

PROMPT = [5, 6, 7, 8] * 10


@pytest.fixture
def model():
    return model_of(families={})


@pytest.fixture
def store(model, tmp_path):
    """Of eight LoRAs."""
    store = halka.AdapterStore(tmp_path / "store")
    for number in range(8):
        save(model, store, f"lora-{number}", number)
    return store


def save(model, store, name: str, seed: int, method=None) -> None:
    filled(model, "filled", method or halka.LoRA(rank=4), seed)
    store.save(model, "filled", stored_as=name)
    model.remove("filled")


def single(model, folder: Path) -> list[int]:
    halka.load(model, folder, name="single")
    tokens = alone(model, request("single"))
    model.remove("single")
    return tokens


def request(name: str | None = None, tokens: int = 6, tenant: str = "") -> Request:
    return Request(PROMPT, name, stopping=Stopping(tokens), tenant=tenant)


@pytest.mark.parametrize(("architecture", "path"), [("apertus", "self_attn.q_norm"), ("mixtral", "mlp")])
def test_a_module_whose_tokens_do_not_come_first_shares_no_line(architecture, path):
    whole = halka.Modules((f"model.layers.1.{path}",))
    model = model_of(architecture, families={"whole": whole, "lora": halka.LoRA(rank=2)})
    requests = [
        Request([*PROMPT, token], name, stopping=Stopping(6)) for token in (9, 11) for name in ("whole", "lora", None)
    ]
    with Engine(model) as engine:
        answers = [engine.submit(request)[0] for request in requests]
        run(engine)
    assert [answer.tokens for answer in answers] == [alone(model, request) for request in requests]


def test_more_adapters_than_room_take_turns(model, store):
    names = store.names()
    expected = {name: single(model, store.get(name).folder) for name in names}
    size = taken(AdapterFolder.open(store.get(names[0]).folder))
    with Engine(model, store, adapter_memory=2 * size, rows=4) as engine:
        answers = [(name, engine.submit(request(name))[0]) for _ in range(3) for name in names]
        run(engine)
        for name, answer in answers:
            assert (answer.error, answer.tokens) == (None, expected[name])
            assert answer.adapter_id == AdapterFolder.open(store.get(name).folder).id
        assert len(model.adapters) <= 2
    assert not model.adapters


def test_an_adapter_gets_room_though_others_are_always_asked_for(model, store):
    size = taken(AdapterFolder.open(store.get("lora-0").folder))
    with Engine(model, store, adapter_memory=size, rows=2) as engine:
        busy = [engine.submit(request("lora-0"))[0] for _ in range(4)]
        (late,) = engine.submit(request("lora-1"))
        for _ in range(150):
            busy += engine.submit(request("lora-0"))
            engine.step()
        assert late.finish is not None
        run(engine)
        assert {answer.error for answer in busy} == {None}


def test_a_new_version_under_an_old_name_is_atomic(model, store, tmp_path):
    """In the store, by `put`, and in place of one that was removed."""
    before = single(model, store.get("lora-0").folder)
    with Engine(model, store) as engine:
        first, second = (engine.submit(request("lora-0", count))[0] for count in (6, 6))
        engine.step()
        save(model, store, "lora-0", 100)
        (third,) = engine.submit(request("lora-0"))
        run(engine)
        assert first.tokens == second.tokens == before
        assert third.tokens == single(model, store.get("lora-0").folder) != before
        store.remove("lora-0", 2)
        save(model, store, "lora-0", 200)
        assert store.versions("lora-0") == [1, 3]
        (fourth,) = engine.submit(request("lora-0"))
        engine.put("lora-0", store.get("lora-3").folder)
        (fifth,) = engine.submit(request("lora-0"))
        run(engine)
        assert fourth.tokens == single(model, store.get("lora-0").folder)
        assert fifth.tokens == single(model, store.get("lora-3").folder)
        engine.drop("lora-0")
        (sixth,) = engine.submit(request("lora-0"))
        run(engine)
        assert sixth.tokens == fourth.tokens
        assert len({answer.adapter_id for answer in (first, third, fourth, fifth)}) == 4


def test_a_folder_that_was_replaced_answers_as_it_is_when_it_is_loaded(model, tmp_path):
    filled(model, "filled", halka.LoRA(rank=4), 1)
    halka.save(model, "filled", tmp_path / "a")
    before = single(model, tmp_path / "a")
    model.remove("filled")
    with Engine(model) as engine:
        engine.put("a", tmp_path / "a")
        (first,) = engine.submit(request("a"))
        run(engine)
        assert first.tokens == before
        engine.adapters.residents._evict(engine.adapters.residents.versions[0])
        filled(model, "filled", halka.LoRA(rank=4), 2)
        (waiting,) = engine.submit(request("a"))
        halka.save(model, "filled", tmp_path / "a")
        run(engine)
        assert waiting.tokens == single(model, tmp_path / "a") != before
        assert first.adapter_id != waiting.adapter_id == AdapterFolder.open(tmp_path / "a").id


def test_a_folder_that_is_replaced_while_it_is_loaded_is_read_again(model, tmp_path):
    """Between its files are read and the model has it; a folder that is gone by then fails its requests."""
    filled(model, "filled", halka.LoRA(rank=4), 1)
    halka.save(model, "filled", tmp_path / "a")
    model.remove("filled")
    filled(model, "filled", halka.Prefix(length=5), 2)
    with Engine(model) as engine:
        engine.put("a", tmp_path / "a")
        answer, other = engine.submit(request("a"), n=2)
        wait([engine.adapters.prepare([engine._texts[answer].version])[1]])
        halka.save(model, "filled", tmp_path / "a")
        run(engine)
        assert answer.error is None
        assert answer.tokens == other.tokens == alone(model, request("filled"))
        assert answer.adapter_id == AdapterFolder.open(tmp_path / "a").id
        engine.adapters.residents._evict(engine.adapters.residents.versions[0])
        (answer,) = engine.submit(request("a"))
        shutil.rmtree(tmp_path / "a")
        run(engine)
        assert answer.error is not None
        assert answer.adapter_id is None


def test_a_damaged_or_missing_adapter_fails_its_own_requests_by_name(model, store):
    weights = store.get("lora-1").folder / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-8])
    with Engine(model, store, adapter_memory=10**6) as engine:
        (right,) = engine.submit(request("lora-0"))
        damaged = engine.submit(request("lora-1"), n=2)
        with pytest.raises(UnknownAdapterError, match="nobody"):
            engine.submit(request("nobody"))
        engine.put("large", store.get("lora-2").folder)
        while right.adapter_id is None:
            engine.step()
        engine.adapters.residents.budget = 10
        (large,) = engine.submit(request("large"))
        while large.finish is None:
            engine.step()
        engine.adapters.residents.budget = 10**6
        run(engine)
        assert right.error is None
        assert len(right.tokens) == 6
        assert all("lora-1" in str(answer.error) and not answer.tokens for answer in damaged)
        assert large.error is None or "'large'" in str(large.error)
        weights.write_bytes(whole)
        (mended,) = engine.submit(request("lora-1"))
        run(engine)
        assert mended.error is None


@pytest.mark.parametrize("how", ["replaced", "written", "removed", "trained"])
def test_an_adapter_of_the_model_that_changes_is_another(model, how):
    """Neither its parts nor its virtual tokens nor cached beginnings are hit any more."""
    for name, method in {"lora": halka.LoRA(rank=4), "prefix": halka.Prefix(length=5)}.items():
        filled(model, name, method, 1)
        with Engine(model) as engine:
            (before,) = engine.submit(request(name))
            run(engine)
            (under_way,), (bare,) = engine.submit(request(name)), engine.submit(request())
            engine.step()
            if how == "replaced":
                model.remove(name)
                filled(model, name, method, 2)
            elif how == "removed":
                model.remove(name)
            else:
                with torch.no_grad():
                    for parameter in model.parameters(name):
                        parameter.data.mul_(3) if how == "trained" else parameter.mul_(3)
                if how == "trained":  # fused optimisers do not count a parameter's version up
                    torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1).step()
            run(engine)
            assert "was changed or removed" in str(under_way.error)
            assert bare.tokens == alone(model, request())
            if how != "removed":
                (after,) = engine.submit(request(name))
                run(engine)
                assert after.tokens == alone(model, request(name))
                assert after.adapter_id != before.adapter_id


def test_values_that_are_written_and_written_back_leave_nothing_behind(model):
    """Whoever used them meanwhile fails, and nobody finds what they made."""
    for name in ("a", "b", "c"):
        filled(model, name, halka.LoRA(rank=4), 1)
    values = [parameter.clone() for parameter in model.parameters("a")]
    with Engine(model) as engine:
        (before,) = engine.submit(request("a"))
        run(engine)
        under_way = [answer for name in ("a", "b", "c") for answer in engine.submit(request(name))]
        engine.step()
        with torch.no_grad():
            for parameter in model.parameters("a"):
                parameter.mul_(3)
            engine.step()
            for parameter, value in zip(model.parameters("a"), values, strict=True):
                parameter.copy_(value)
        run(engine)
        assert [answer.finish == "error" for answer in under_way] == [True, False, False]
        (after,) = engine.submit(request("a"))
        run(engine)
        assert after.tokens == before.tokens == alone(model, request("a"))
        assert after.adapter_id == before.adapter_id


def test_what_is_merged_answers_alone(model):
    filled(model, "lora", halka.LoRA(rank=4), 1)
    bare, lora = alone(model, request()), alone(model, request("lora"))
    assert bare != lora
    with Engine(model) as engine:
        (first,), (second,) = engine.submit(request()), engine.submit(request("lora"))
        engine.step()
        model.merge("lora")
        run(engine)
        assert "merged into the base" in str(first.error)
        assert second.tokens == lora
        with pytest.raises(HalkaError, match="merged into the base"):
            engine.submit(request())
        (third,) = engine.submit(request("lora"))
        engine.step()
        model.unmerge()
        (fourth,) = engine.submit(request())
        run(engine)
        assert third.tokens == lora
        assert fourth.tokens == bare


def test_a_full_copy_beside_others_waits_a_bounded_time(model):
    """And so do they, though it is always asked for."""
    filled(model, "full", halka.Full(), 1)
    lengths = {None: (3, 5, 7, 4), "full": (6,)}
    with Engine(model, rows=2) as engine:
        answers = {name: engine.submit(request(name, length[0])) for name, length in lengths.items()}
        for number in range(30):
            for name, length in lengths.items():
                answers[name] += engine.submit(request(name, length[number % len(length)]))
            engine.step()
        assert all(answers[name][0].finish is not None for name in answers)
        run(engine, steps=2000)
    for name, mine in answers.items():
        expected = alone(model, request(name, 7))
        assert all(answer.tokens == expected[: answer.request.stopping.max_new_tokens] for answer in mine)


def test_versions_of_one_name_answer_side_by_side(model, store):
    """What is pinned by the name alone is its newest version, whichever name loaded that before."""
    save(model, store, "lora-0", 20)
    names = ["lora-0@2", "lora-0@1", "lora-0", None]
    wanted = [single(model, store.get("lora-0", number).folder) for number in (2, 1, 2)]
    with Engine(model, store) as engine:
        answers = [engine.submit(request(name))[0] for name in names]
        run(engine)
        assert [answer.tokens for answer in answers] == [*wanted, alone(model, request())]
        assert wanted[0] != wanted[1]
        engine.adapters.pin("lora-0")
        pinned = [version.name for version in engine.adapters.residents.versions if version.pinned]
        assert pinned == ["lora-0"]
        with pytest.raises(UnknownAdapterError, match="'lora-0' has no version 3: it has 1, 2"):
            engine.submit(request("lora-0@3"))


def test_a_pools_adapters_are_the_engines_own(model, store):
    """What the pool evicts meanwhile fails no request."""
    pool = halka.AdapterPool(model, store, budget=taken(AdapterFolder.open(store.get("lora-0").folder)))
    with model.use("lora-0"):
        pass
    with Engine(model) as engine:
        (answer,) = engine.submit(request("lora-0"))
        engine.step()
        pool.forget("lora-0")
        run(engine)
        assert answer.error is None


def test_what_is_said_of_an_engine_s_adapters_goes_before_what_their_pool_has(model, store):
    size = taken(AdapterFolder.open(store.get("lora-0").folder))
    halka.AdapterPool(model, store, budget=5 * size)
    with Engine(model) as own, Engine(model, adapter_memory=3 * size) as other:
        assert (own.adapters.residents.budget, other.adapters.residents.budget) == (5 * size, 3 * size)
        assert own.adapters.store is other.adapters.store is store


def test_loading_and_unloading_leaves_nothing(model, store):
    size = taken(AdapterFolder.open(store.get("lora-0").folder))
    with Engine(model, store, adapter_memory=size, rows=2) as engine:
        for number in range(24):
            save(model, store, f"lora-{number % 8}", number)
            (answer,) = engine.run([request(f"lora-{number % 8}", 2, tenant=str(number))])
            assert answer.error is None
        assert (len(model.adapters), len(engine.adapters.residents.versions), len(engine.adapters._stored)) == (1, 1, 1)
        assert not engine.schedule.waiting._adapters
        assert not engine.schedule.waiting._tenants.of


def test_a_configuration_that_is_replaced_while_its_folder_is_opened_computes(model, tmp_path):
    """The Card, which is read behind it, is a pipe here: whoever opens it waits until the other is there."""
    filled(model, "new", halka.LoRA(rank=4))
    folder = halka.save(model, "new", tmp_path / "new")
    model.remove("new")
    config, card = folder / "adapter_config.json", folder / "halka.json"
    content = json.dumps(json.loads(card.read_text()) | {"files": {}})
    card.unlink()
    os.mkfifo(card)

    def replace_it():
        with card.open("w") as pipe:
            card.unlink()
            (tmp_path / "other").write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": 400}))
            os.replace(tmp_path / "other", config)
            pipe.write(content)

    with Engine(model) as engine, ThreadPoolExecutor(1) as other:
        replacing = other.submit(replace_it)
        engine.put("new", folder)
        replacing.result()
        (answer,) = engine.submit(request("new"))
        run(engine)
        (version,) = engine.adapters.residents.versions
        assert answer.error is None
        assert version.adapter.method.alpha == 400
        assert answer.adapter_id == AdapterFolder.open(folder).id

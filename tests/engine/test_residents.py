"""What an engine loads stays within its budget; what is pinned stays, but its own next version takes its place."""

from __future__ import annotations

import os
import resource
import threading
import time
from concurrent.futures import wait
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode

import halka
from engine_for_tests import filled, model_of, run, taken
from halka.engine.adapters import Adapters
from halka.engine.engine import Engine
from halka.engine.request import Request
from halka.engine.residents import TENSORS
from halka.engine.stopping import Stopping
from halka.storage.adapter_store import AdapterStore
from halka.util.errors import HalkaError, OutOfMemoryError, UnknownAdapterError


@pytest.fixture
def model():
    return model_of(families={})


@pytest.fixture
def store(model, tmp_path):
    """Four LoRAs of equal size."""
    store = AdapterStore(tmp_path / "store")
    for seed in range(4):
        save(model, store, f"lora-{seed}", seed)
    return store


def save(model, store, name: str, seed: int, method: halka.core.Method | None = None) -> None:
    filled(model, "new", method or halka.LoRA(rank=4), seed)
    store.save(model, "new", stored_as=name)
    model.remove("new")


def answer(engine: Engine, name: str):
    (answer,) = engine.submit(Request([5, 6, 7], name, stopping=Stopping(2)))
    run(engine)
    return answer


def names(engine: Engine) -> set[str]:
    return {version.name for version in engine.adapters.residents.versions}


def test_pinned_adapters_stay_and_the_longest_unused_of_the_others_go(model, store):
    size = taken(store.get("lora-0").open())
    with Engine(model, store, adapter_memory=2 * size) as engine:
        engine.adapters.pin("lora-0")
        for name in ("lora-0", "lora-1", "lora-2", "lora-3"):
            assert answer(engine, name).error is None
        assert names(engine) == {"lora-0", "lora-3"}
        assert (engine.adapters.residents.loads, engine.adapters.residents.evictions) == (4, 2)
        engine.adapters.unpin("lora-0")
        assert answer(engine, "lora-1").error is None
        assert names(engine) == {"lora-3", "lora-1"}


@pytest.mark.parametrize(("dtype", "copies"), [(torch.float32, 2), (torch.bfloat16, 3)])  # of rank 4, padded to 16
def test_an_adapter_takes_its_parameters_and_the_kernels_copy(store, dtype, copies):
    save(model_of(families={}), store, "full", 0, halka.Full())  # which has none
    with Engine(model_of(families={}, dtype=dtype), store) as engine:
        assert [answer(engine, name).error for name in ("lora-0", "full")] == [None, None]
        lora, full = engine.adapters.residents.versions
        assert lora.bytes == copies * store.get("lora-0").open().memory
        assert full.bytes == store.get("full").open().memory


def test_a_prompt_takes_what_its_keys_and_values_take(model, store):
    save(model, store, "prompt", 0, halka.Prompt(length=5))
    with Engine(model, store) as engine:
        assert answer(engine, "prompt").error is None
        (version,) = engine.adapters.residents.versions
        assert version.bytes == store.get("prompt").open().memory + version.virtual.nbytes
        assert version.virtual.nbytes > store.get("prompt").open().memory


def test_the_next_version_of_a_pinned_adapter_takes_its_place(model, store):
    size = taken(store.get("lora-0").open())
    with Engine(model, store, adapter_memory=size) as engine:
        engine.adapters.pin("lora-0")
        first = answer(engine, "lora-0")
        refused = answer(engine, "lora-1")
        assert f"pinned adapters take {size:,}" in str(refused.error)
        save(model, store, "lora-0", 9)
        second = answer(engine, "lora-0")
        assert first.adapter_id != second.adapter_id
        assert [version.pinned for version in engine.adapters.residents.versions] == [True]


def test_an_older_version_that_is_loaded_later_leaves_the_pin_to_the_newer(model, store):
    adapters, versions = Adapters(model), []
    for number in range(2):
        adapters.put("pinned", store.get(f"lora-{number}").folder)
        adapters.pin("pinned")
        versions.append(adapters.version("pinned"))
    for version in reversed(versions):
        while not version.here:
            adapters.prepare([version])
    assert [version.pinned for version in versions] == [False, True]
    adapters.close()


def test_a_pin_goes_back_with_its_name_to_the_version_before(model, store):
    with Engine(model, store) as engine:
        engine.adapters.pin("lora-0")
        before = answer(engine, "lora-0")
        save(model, store, "lora-0", 9)
        after = answer(engine, "lora-0")
        (waiting,) = engine.submit(Request([5, 6, 7], "lora-0", stopping=Stopping(2)))
        store.remove("lora-0", 2)
        engine.adapters.evict_removed("lora-0")
        residents = engine.adapters.residents
        pinned = {version.id: version.pinned for version in residents.versions}
        assert pinned == {before.adapter_id: True, after.adapter_id: False}, "a request has it"
        run(engine)
        assert waiting.adapter_id == after.adapter_id
        engine.adapters.evict_removed("lora-0")
        assert [version.id for version in residents.versions] == [before.adapter_id]
        store.remove("lora-0")
        engine.adapters.evict_removed("lora-0")
        assert (residents.versions, residents.pins) == ([], {})


def test_an_adapter_is_unloaded_only_when_nobody_uses_it(model, store):
    with Engine(model, store) as engine:
        (waiting,) = engine.submit(Request([5, 6, 7], "lora-0", stopping=Stopping(50)))
        engine.adapters.pin("lora-0")
        while not waiting.tokens:
            engine.step()
        with pytest.raises(HalkaError, match="1 requests use adapter 'lora-0'"):
            engine.adapters.unload("lora-0")
        run(engine)
        engine.adapters.unload("lora-0")
        assert names(engine) == set()
        assert not model.adapters
        assert answer(engine, "lora-0").error is None
        with pytest.raises(UnknownAdapterError):
            engine.adapters.pin("nobody")


def test_an_adapter_is_loaded_before_a_request_wants_it(model, store):
    with Engine(model, store) as engine:
        loading, damaged = engine.adapters.load("lora-0"), store.get("lora-1").folder / "adapter_model.safetensors"
        assert engine.busy
        while not loading.done():
            engine.step()
        assert names(engine) == {"lora-0"}
        assert not engine.busy
        assert engine.adapters.load("lora-0").done()
        failing = engine.adapters.load("lora-1")
        damaged.write_bytes(damaged.read_bytes()[:-8])
        while not failing.done():
            engine.step()
        assert isinstance(failing.exception(), HalkaError)
        left = engine.adapters.load("lora-2")
    assert "closed" in str(left.exception())


def test_files_are_waited_for_where_nothing_else_is_to_be_done(model, store):
    gate = threading.Event()
    with Engine(model, store) as engine:
        (bare,) = engine.submit(Request([5, 6, 7], stopping=Stopping(2)))
        (stored,) = engine.submit(Request([5, 6, 7], "lora-0", stopping=Stopping(2)))
        engine.adapters.residents._reader.submit(gate.wait)  # files are read one after the other
        while bare.finish is None:
            assert engine.advance() is None
        reading = engine.advance()
        assert reading is not None
        assert not reading.done()
        gate.set()
        wait([reading])
        assert engine.advance() is None
        assert len(stored.tokens) == 1


def test_an_adapter_that_fails_while_another_is_read_fails_at_once(model, store):
    gate = threading.Event()
    with Engine(model, store) as engine:
        weights = store.get("lora-0").folder / "adapter_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-8])
        (damaged,) = engine.submit(Request([5, 6, 7], "lora-0", stopping=Stopping(2)))
        reading = engine.advance()
        assert reading is not None
        wait([reading])
        engine.adapters.residents._reader.submit(gate.wait)
        engine.submit(Request([5, 6, 7], "lora-1", stopping=Stopping(2)))
        assert engine.advance() is None
        engine.advance()
        assert "lora-0" in str(damaged.error)
        gate.set()


@contextmanager
def no_file_can_be_opened():
    """No descriptor is free: to open a file is an OSError."""
    before, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before, hard))


def test_files_that_cannot_be_opened_fail_their_own_requests(model, store):
    with Engine(model, store) as engine:
        assert answer(engine, "lora-1").error is None
        (unreadable,) = engine.submit(Request([5, 6, 7], "lora-0", stopping=Stopping(2)))
        (other,) = engine.submit(Request([5, 6, 7], "lora-1", stopping=Stopping(2)))
        with no_file_can_be_opened():
            run(engine)
        assert unreadable.error is not None
        assert other.error is None
        assert answer(engine, "lora-0").error is None


class Full(TorchDispatchMode):
    """No operation has the memory that it needs."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


def test_an_adapter_that_finds_no_memory_while_it_is_loaded_fails_its_own_requests_and_leaves_nothing(model, store):
    with Engine(model, store) as engine:
        (waiting,) = engine.submit(Request([5, 6, 7], "lora-0", stopping=Stopping(2)))
        with Full():
            while waiting.error is None:
                engine.step()
        assert isinstance(waiting.error, OutOfMemoryError)
        assert str(waiting.error).startswith("out of memory while adapter 'lora-0' was loaded: lower adapter_memory")
        assert not model.adapters
        assert answer(engine, "lora-0").error is None


def test_what_is_to_be_loaded_fails_with_all_that_waits(model, store):
    with Engine(model, store) as engine:
        loading = engine.adapters.load("lora-0")
        engine.fail(RuntimeError("out of memory"))
        assert str(loading.exception(0)) == "out of memory"
        assert not engine.busy


def test_a_reading_that_was_cancelled_is_made_anew(model, store):
    adapters = Adapters(model)
    adapters.put("put", store.get("lora-0").folder)
    version, loading = adapters.version("put"), adapters.load("put")

    def until_cancelled():
        while version.reading is None or not version.reading.cancelled():
            time.sleep(0.001)

    adapters.residents._reader.submit(until_cancelled)
    adapters.prepare([])
    adapters.close()
    assert "closed" in str(loading.exception(0))
    again = adapters.load("put")
    while not again.done():
        adapters.prepare([])
    assert again.exception() is None
    adapters.close()


def test_there_are_no_more_adapters_than_an_engine_may_have(model, store):
    with Engine(model, store, most_adapters=2) as engine:
        answers = [answer(engine, name) for name in ("lora-0", "lora-1", "lora-0", "lora-2")]
        assert not any(one.error for one in answers)
        assert names(engine) == {"lora-0", "lora-2"}
        requests = [Request([5, 6, 7], f"lora-{seed}", stopping=Stopping(3)) for seed in range(4)]
        together = [answer for request in requests for answer in engine.submit(request)]
        while engine.step():
            assert len(engine.adapters.residents.versions) <= 2
        assert not any(one.error for one in together)
        engine.adapters.pin("lora-0")
        engine.adapters.pin("lora-1")
        for name in ("lora-0", "lora-1"):
            answer(engine, name)
        assert "has no room: all 2 in memory are pinned" in str(answer(engine, "lora-2").error)
    with pytest.raises(HalkaError, match="most_adapters is 1 or more, not 0"):
        Engine(model, store, most_adapters=0)


def test_the_reader_refuses_an_adapter_of_too_many_tensors(model, store):
    """Taking them over would hold the engine, however small they are."""
    folder, most = store.get("lora-0").folder, TENSORS * len([*model.base.modules()])
    (folder / "halka.json").unlink()
    with Engine(model, store) as engine:
        for count in (most, most + 1):
            save_file({f"x{number}": torch.zeros(1) for number in range(count)}, folder / "adapter_model.safetensors")
            error = answer(engine, "lora-0").error
            assert (f"at most {most:,}" in str(error)) == (count > most), error


@pytest.mark.parametrize("method", [halka.Prompt, halka.Prefix])
def test_virtual_tokens_that_leave_no_position_are_refused_before_they_are_computed(model, store, method):
    save(model, store, "fits", 0, method(length=123))
    save(model, store, "long", 0, method(length=128))
    passes = []
    model.base.register_forward_pre_hook(lambda *_: passes.append(1))
    with Engine(model, store) as engine:
        assert "128 virtual tokens, and this base 128 positions" in str(answer(engine, "long").error)
        assert passes == []
        assert answer(engine, "fits").error is None

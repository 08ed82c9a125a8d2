"""Coroutines wait for answers that a thread makes; who leaves cancels, who fails fails alone, nobody hangs."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref

import pytest

import halka
from engine_for_tests import alone, model_of
from halka.engine.background import AsyncEngine
from halka.engine.engine import Engine
from halka.engine.pulse import Pulse
from halka.engine.request import Request
from halka.engine.stopping import Stopping
from halka.util.errors import HalkaError, UnknownAdapterError


@pytest.fixture
def model():
    return model_of(families={"lora": halka.LoRA(rank=4)})


def request(adapter: str | None = None, tokens: int = 6) -> Request:
    return Request([5, 6, 7], adapter, stopping=Stopping(tokens))


def endless() -> Request:
    """A request whose answer does not end before a test has cancelled it; its base needs 5,000 positions."""
    return Request([5, 6, 7], stopping=Stopping(4000, ignore_ends=True))


def in_time(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 60))


def test_answers_and_pieces_are_those_of_the_engine(model):
    async def both():
        async with AsyncEngine(Engine(model)) as running:
            pieces = [piece async for piece in running.stream(request("lora"))]
            answers = await asyncio.gather(*(running.answers(request(name), n=2) for name in (None, "lora") * 3))
            return pieces, [answer for pair in answers for answer in pair]

    pieces, answers = in_time(both())
    assert "".join(pieces).split() == [str(token) for token in alone(model, request("lora")) if token != 2]
    for answer in answers:
        assert answer.tokens == alone(model, answer.request)


def test_an_adapter_that_is_removed_while_nothing_runs_is_gone(model):
    adapter = weakref.ref(model.adapter("lora"))

    async def removed():
        async with AsyncEngine(Engine(model)) as running:
            await running.answers(request("lora"))
            await running.call(lambda: model.remove("lora"))
            await running.call(lambda: None)  # by now what followed the first call is done, too
            gc.collect()
            return adapter()

    assert in_time(removed()) is None


def test_who_wants_no_pieces_wakes_at_the_first_token_and_the_end(model):
    """However many tokens come in between."""

    async def follow():
        async with AsyncEngine(Engine(model)) as running:
            progress = running.follow(request("lora", tokens=60), n=2, pieces=False)
            seen = [(answer, answer.finish) async for answer in progress]
            assert sum(finish is not None for _, finish in seen) == 2
            assert len(seen) <= 4
            assert all(answer.tokens == alone(model, answer.request) for answer, _ in seen)

    in_time(follow())


def test_answers_of_one_request_are_followed_together(model):
    async def follow():
        async with AsyncEngine(Engine(model)) as running:
            seen, ends = {}, []
            async for answer in running.follow(request("lora"), n=3):
                assert len(answer.tokens) >= seen.get(answer, 0)
                seen[answer] = len(answer.tokens)
                ends += [answer] if answer.finish is not None else []
            assert len(seen) == len(ends) == 3
            assert all(answer.tokens == alone(model, answer.request) for answer in ends)
            progress = running.follow(request(tokens=100), n=2)
            await anext(progress)
            await progress.aclose()
            await running.answers(request(tokens=1))
            assert not running.engine.busy
            assert not running._listeners

    in_time(follow())


def test_calls_run_between_steps_and_adapters_load_before_they_are_wanted(model, tmp_path):
    halka.save(model, "lora", tmp_path / "lora")

    async def call():
        async with AsyncEngine(engine := Engine(model)) as running:
            under_way = asyncio.create_task(running.answers(request(tokens=50)))
            await running.call(lambda: engine.put("stored", tmp_path / "lora"))
            await running.load("stored")
            assert [version.name for version in engine.adapters.residents.versions] == ["stored"]
            await running.load("stored")
            with pytest.raises(UnknownAdapterError):
                await running.load("nobody")
            (tmp_path / "lora" / "adapter_model.safetensors").write_bytes(b"")
            await running.call(lambda: engine.put("damaged", tmp_path / "lora"))
            with pytest.raises(HalkaError):
                await running.load("damaged")
            await under_way
        with pytest.raises(HalkaError, match="closed"):
            await running.call(lambda: None)

    in_time(call())


def while_files_are_read(model, folder, meanwhile, kind=Engine):
    """Do `meanwhile` while a request waits for its adapter's files, which are read afterwards."""
    halka.save(model, "lora", folder / "lora")
    gate = threading.Event()

    async def ask():
        async with AsyncEngine(engine := kind(model)) as running:
            engine.put("stored", folder / "lora")
            engine.adapters.residents._reader.submit(gate.wait)  # files are read one after the other
            under_way = asyncio.create_task(running.answers(request("stored")))
            await meanwhile(running)
            assert not under_way.done()
            gate.set()
            return await under_way

    try:
        (answer,) = in_time(ask())
    finally:
        gate.set()
    assert answer.tokens == alone(model, request("lora"))


def test_calls_are_made_while_an_adapters_files_are_waited_for(model, tmp_path):
    """It is no stall: a step waits for them for a moment only."""

    async def call(running):
        while not running.engine.adapters.residents._reader._work_queue.qsize():
            await asyncio.sleep(0.001)
        await running.call(lambda: None)

    while_files_are_read(model, tmp_path, call)


class Impatient(Engine):
    """An engine that waits for nothing."""

    def step(self):
        raise AssertionError("a step waits for an adapter's files, and whoever calls meanwhile for the step")


def test_answers_begin_and_end_while_anothers_files_are_read(model, tmp_path):
    async def ask(running):
        for name in (None, "lora") * 3:
            (answer,) = await running.answers(request(name))
            assert answer.tokens == alone(model, request(name))

    while_files_are_read(model, tmp_path, ask, Impatient)


def test_a_step_stalls_that_takes_longer_than_those_before_let_expect(model):
    now = [0.0]
    pulse = Pulse(lambda: now[0])
    assert not pulse.stalls(0)
    for seconds, stalls in ((5, False), (50, True), (60, False), (120, False), (241, True)):
        with pulse.step():
            now[0] += seconds
            assert pulse.stalls(40) == stalls, seconds
    with pytest.raises(ValueError, match="no"), pulse.step():
        raise ValueError("no")
    now[0] += 1000
    assert not pulse.stalls(0), "nothing is done"

    async def wait():
        gate = threading.Event()
        async with AsyncEngine(Engine(model)) as running:
            under_way = asyncio.create_task(running.call(gate.wait))
            while not running.stalls(0.0):
                await asyncio.sleep(0.001)
            assert not running.stalls(60.0)
            gate.set()
            await under_way
            while running.stalls(0.0):
                await asyncio.sleep(0.001)

    in_time(wait())


def test_a_reader_sees_that_another_has_cancelled():
    model = model_of(families={}, max_position_embeddings=5000)

    async def follow():
        async with AsyncEngine(Engine(model)) as running:
            async for answer in running.follow(endless()):
                await running.call(lambda answer=answer: running.engine.cancel(answer))
            assert answer.finish == "cancelled"

    in_time(follow())


def test_who_stops_reading_cancels(model):
    async def leave():
        async with AsyncEngine(engine := Engine(model)) as running:
            stream = running.stream(request(tokens=100))
            await anext(stream)
            await stream.aclose()
            waiting = asyncio.create_task(running.answers(request(tokens=100)))
            await asyncio.sleep(0.05)
            waiting.cancel()
            at_once = asyncio.create_task(running.answers(request(tokens=100)))
            await asyncio.sleep(0)
            at_once.cancel()
            await asyncio.gather(waiting, at_once, return_exceptions=True)
            await running.answers(request(tokens=1))
            assert not engine.busy
            assert not running._listeners

    in_time(leave())


def test_errors_reach_who_asked_and_nobody_else(model):
    async def ask():
        async with AsyncEngine(engine := Engine(model)) as running:
            with pytest.raises(UnknownAdapterError):
                await running.answers(request("nobody"))
            forward, engine._forward = engine._forward, Failing(engine._forward)
            with pytest.raises(RuntimeError, match="no such kernel"):
                await running.answers(request())
            engine._forward = forward
            (answer,) = await running.answers(request("lora"))
            return answer

    assert in_time(ask()).tokens == alone(model, request("lora"))


class Failing:
    def __init__(self, forward):
        self.forget, self.close = forward.forget, forward.close

    def __call__(self, line):
        raise RuntimeError("no such kernel")


class Broken(Engine):
    """An engine of which some calls raise."""

    broken = ""

    def cancel(self, answer):
        if self.broken == "cancel":
            raise RuntimeError("cannot cancel")
        super().cancel(answer)

    def fail(self, error):
        if self.broken == "fail":
            raise RuntimeError("cannot fail")
        super().fail(error)


def test_a_cancel_that_raises_fails_who_waits_and_the_thread_goes_on():
    model = model_of(families={"lora": halka.LoRA(rank=4)}, max_position_embeddings=5000)

    async def leave():
        async with AsyncEngine(engine := Broken(model)) as running:
            waiting = asyncio.create_task(running.answers(endless()))
            stream = running.stream(endless())
            await anext(stream)
            engine.broken = "cancel"
            await stream.aclose()
            with pytest.raises(RuntimeError, match="cannot cancel"):
                await waiting
            assert running.alive
            return await running.answers(request("lora"))

    (answer,) = in_time(leave())
    assert answer.tokens == alone(model, request("lora"))


def test_a_step_and_a_fail_that_raise_fail_who_waits_and_the_thread_goes_on(model):
    async def ask():
        async with AsyncEngine(engine := Broken(model)) as running:
            engine.broken = "fail"
            forward, engine._forward = engine._forward, Failing(engine._forward)
            with pytest.raises(RuntimeError, match="no such kernel"):
                await running.answers(request())
            engine._forward = forward
            assert running.alive
            return await running.answers(request("lora"))

    (answer,) = in_time(ask())
    assert answer.tokens == alone(model, request("lora"))


def test_an_exit_of_a_call_is_the_caller_s(model):
    class Exit(BaseException):
        pass

    def leave():
        raise Exit

    async def call():
        async with AsyncEngine(Engine(model)) as running:
            with pytest.raises(Exit):
                await running.call(leave)
            return await running.answers(request("lora"))

    (answer,) = in_time(call())
    assert answer.tokens == alone(model, request("lora"))


def test_closing_cancels_what_is_under_way_and_refuses_the_rest():
    async def close():
        model = model_of(families={}, max_position_embeddings=5000)
        running = AsyncEngine(Engine(model))
        progress = running.follow(endless(), pieces=False)
        assert (await anext(progress)).finish is None
        await running.aclose()
        await running.aclose()
        assert (await anext(progress)).finish == "cancelled"
        with pytest.raises(HalkaError, match="closed"):
            await running.answers(request())
        with pytest.raises(HalkaError, match="closed"):
            await anext(running.stream(request()))

    in_time(close())

"""Whoever waits gets a row after a bounded time, whatever others ask for."""

from __future__ import annotations

import random

import pytest

import halka
from engine_for_tests import alone, model_of, run
from halka.engine.engine import Engine
from halka.engine.request import Answer, Request
from halka.engine.stopping import Stopping


def request(tenant: str, adapter: str | None = None, tokens: int = 20, prompt: int = 10) -> Request:
    return Request([5 + ord(tenant[0]) % 7] * prompt, adapter, stopping=Stopping(tokens), tenant=tenant)


def test_a_flood_of_one_tenant_delays_another_by_a_step_or_two():
    with Engine(model_of(families={}), rows=4) as engine:
        flood = [engine.submit(request("flood"))[0] for _ in range(60)]
        for _ in range(5):
            engine.step()
        (one,) = engine.submit(request("one", tokens=5))
        run(engine, one, steps=8)
        assert sum(answer.finish is not None for answer in flood) <= 4
        run(engine, steps=2000)
        assert {len(answer.tokens) for answer in flood} <= set(range(1, 21))


def test_a_flood_of_prompts_does_not_delay_the_reading_of_another():
    draw = random.Random(0)
    with Engine(model_of(families={}), rows=8, prefill_beside=4) as engine:
        for _ in range(40):
            prompt = [draw.randrange(5, 12) for _ in range(40)]
            engine.submit(Request(prompt, stopping=Stopping(20), tenant="flood"))
        for _ in range(60):
            engine.step()
        (one,) = engine.submit(request("one", tokens=5))
        for _ in range(3):
            engine.step()
        assert one.tokens


def flooded(engine: Engine, count: int = 60, steps: int = 8) -> list[Answer]:
    """Requests of one tenant, of which as many run as there are rows."""
    flood = [engine.submit(request("flood", tokens=40))[0] for _ in range(count)]
    for _ in range(steps):
        engine.step()
    assert len(engine.schedule.running) == 4
    return flood


def test_a_prompt_beside_a_flood_is_read_at_once_in_a_step_of_its_own():
    with Engine(model_of(families={}), rows=4, prefill=64, prefill_beside=4) as engine:
        flood = flooded(engine)
        written = tokens_of(flood)
        (one,) = engine.submit(request("one", tokens=5, prompt=32))
        engine.step()
        assert len(one.tokens) == 1
        assert tokens_of(flood) == written
        engine.step()
        assert len(one.tokens) == 2
        assert tokens_of(flood) == written + 3


def test_who_reads_in_steps_of_its_own_leaves_every_other_step_to_all():
    """It has had fewer tokens all the time: a flood's texts wait one step at most, and lose no token."""
    model = model_of(families={})
    with Engine(model, rows=4, prefill=64, prefill_beside=4) as engine:
        flood = flooded(engine)
        for prompt in range(12):
            (one,) = engine.submit(request("one", tokens=1, prompt=2 + prompt % 5))
            written = tokens_of(flood)
            engine.step()
            assert one.finish is not None
            assert tokens_of(flood) == written
            engine.step()
            assert tokens_of(flood) >= written + 3
        assert engine.schedule.preempted
        run(engine, steps=3000)
        assert {tuple(answer.tokens) for answer in flood} == {tuple(alone(model, flood[0].request))}


def test_two_floods_share_every_step():
    with Engine(model_of(families={}), rows=4, prefill_beside=4) as engine:
        for tenant in "ab":
            for _ in range(30):
                engine.submit(request(tenant, tokens=40))
        for _ in range(100):
            decoding = [text.answer for text in engine.schedule.running if text.left == 1]
            written = tokens_of(decoding)
            engine.step()
            assert tokens_of(decoding) >= written + len(decoding) - 1  # one may lose its row


def test_a_step_of_its_own_takes_no_turn_from_others_of_its_base():
    """A full copy's flood, and a quiet tenant's prompts on the base, where another tenant's answer goes on too."""
    with Engine(model_of(families={"full": halka.Full()}), rows=8, prefill=64, prefill_beside=4) as engine:
        (one,) = engine.submit(request("one", tokens=30))
        flood, quiet = list[Answer](), list[Answer]()
        for _ in range(400):
            while sum(answer.finish is None for answer in flood) < 30:
                flood += engine.submit(request("flood", "full", tokens=40))
            while sum(answer.finish is None for answer in quiet) < 2:
                quiet += engine.submit(request("quiet", tokens=1, prompt=2))
            engine.step()
            if one.finish is not None:
                break
        assert one.finish is not None


def test_where_rows_are_left_no_step_is_one_tenants_alone():
    """One of twenty tenants has three requests, more than its share of the rows: no flood."""
    with Engine(model_of(families={}), rows=32, ends=frozenset()) as engine:
        answers = [engine.submit(request(tenant, tokens=60))[0] for tenant in "aaabcdefghijklmnopqrs"]
        while not all(answer.tokens for answer in answers):
            engine.step()
        for _ in range(10):
            written = tokens_of(answers)
            engine.submit(request("t", tokens=1))
            engine.step()
            assert tokens_of(answers) == written + len(answers)


def test_a_row_is_not_taken_for_who_would_lose_it_again():
    """`b` has had more tokens than `a`, who would be next for the row that `a` gives up."""
    with Engine(model_of(families={}), rows=4, prefill=64, ends=frozenset()) as engine:
        engine.submit(request("u", tokens=110))
        prompts = [[5 + (number + place * number) % 80 for place in range(110)] for number in range(1, 7)]
        read = [engine.submit(Request(prompt, stopping=Stopping(1), tenant="b"))[0] for prompt in prompts]
        while any(answer.finish is None for answer in read):
            engine.step()
        for _ in range(3):
            engine.submit(request("a", tokens=100))
        for _ in range(10):
            engine.step()
        before = engine.schedule.preempted
        engine.submit(request("b", tokens=4))
        for _ in range(10):
            engine.step()
        assert engine.schedule.preempted == before


def test_a_prompt_that_finds_no_room_takes_no_step_of_its_own():
    with Engine(model_of(families={}), rows=8) as engine:
        block = engine.cache.kv.data[0].nbytes
    with Engine(model_of(families={}), rows=8, memory=20 * block) as engine:
        (first,) = engine.submit(request("one", tokens=100))
        engine.step()
        for _ in range(30):
            engine.submit(request("flood", tokens=90))
        for _ in range(20):
            engine.step()
        (second,) = engine.submit(request("one", tokens=4, prompt=110))
        while not second.times.begun:
            decoding = [text.answer for text in engine.schedule.running if text.left == 1]
            written = tokens_of(decoding)
            engine.step()
            assert second.times.begun or tokens_of(decoding) > written + 1
        assert first.finish is not None or first.tokens


@pytest.mark.parametrize("other", [None, "full"])
def test_rows_of_another_base_count_as_those_that_decode(other):
    """Four rows decode, and seven others, here or on a full copy: a prompt is read as slowly."""
    with Engine(model_of(families={"full": halka.Full()}), rows=12, prefill=64, prefill_beside=4) as engine:
        for adapter in (*[None] * 4, *[other] * 7):
            engine.submit(request("a", adapter, tokens=100, prompt=4))
        for _ in range(12):
            engine.step()
        (read,) = engine.submit(request("a", tokens=4, prompt=60))
        for _ in range(4):
            engine.step()
        (text,) = [text for text in engine.schedule.running if text.answer is read]
        assert text.done <= 4 * 4


def tokens_of(answers: list[Answer]) -> int:
    return sum(len(answer.tokens) for answer in answers)


def test_tenants_have_equal_shares_whatever_they_queue():
    with Engine(model_of(families={}), rows=4) as engine:
        answers = {tenant: [] for tenant in "abc"}
        for tenant, count in {"a": 90, "b": 30, "c": 20}.items():
            answers[tenant] = [engine.submit(request(tenant))[0] for _ in range(count)]
        for _ in range(150):
            engine.step()
        written = [sum(len(answer.tokens) for answer in mine) for mine in answers.values()]
        assert max(written) < 1.3 * min(written)


def test_a_tenants_adapters_have_equal_shares():
    families = {name: halka.LoRA(rank=2) for name in ("x", "y")}
    with Engine(model_of(families=families), rows=2) as engine:
        answers = {}
        for name, count in {"x": 60, "y": 20}.items():
            answers[name] = [engine.submit(request("a", name))[0] for _ in range(count)]
        for _ in range(150):
            engine.step()
        written = [sum(len(answer.tokens) for answer in mine) for mine in answers.values()]
        assert max(written) < 1.4 * min(written)


def test_nobody_saves_up_while_away():
    """Who comes late has no claim to what others had before; who was served much is not forgiven by leaving."""
    with Engine(model_of(families={}), rows=1) as engine:
        early = [engine.submit(request("early"))[0] for _ in range(20)]
        run(engine, early[9])
        late = [engine.submit(request("late"))[0] for _ in range(10)]
        run(engine, early[12], steps=160)
        assert sum(answer.finish is not None for answer in late) <= 5

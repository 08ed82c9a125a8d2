"""A constraint is compiled once for a request, however many answers it has, and nobody waits for that."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import halka
from engine_for_tests import run
from halka.engine import AsyncEngine, Constraint, Engine, Request, Stopping
from tiny import tiny
from tokenizers_for_tests import chatml_tokenizer

TOKENIZER = chatml_tokenizer()
END = TOKENIZER.eos_token_id


class Schema(dict[str, Any]):
    """A schema that knows by which threads it was compiled, and whether others could have the model meanwhile."""

    def __init__(self, lock: Any):
        super().__init__({"enum": ["a", "b"]})
        self.lock, self.threads, self.free = lock, list[str](), list[bool]()

    def items(self):
        self.threads.append(threading.current_thread().name)
        with ThreadPoolExecutor(1) as other:
            self.free.append(other.submit(self._is_free).result())
        return super().items()

    def _is_free(self) -> bool:
        free = self.lock.acquire(blocking=False)
        if free:
            self.lock.release()
        return free


@pytest.fixture
def model():
    return halka.adapt(tiny("llama", vocab_size=len(TOKENIZER)), TOKENIZER)


def request(schema: Schema) -> Request:
    return Request([5, 6, 7], stopping=Stopping(8), constraint=Constraint(schema=schema))


def test_it_is_compiled_once_while_others_may_have_the_model(model):
    with Engine(model, ends=frozenset([END])) as engine:
        schema = Schema(model.lock)
        answers = engine.submit(request(schema), n=3)
        assert schema.free == [True]
        run(engine, *answers)
    assert {answer.text for answer in answers} <= {'"a"', '"b"'}
    assert [answer.finish for answer in answers] == ["stop"] * 3


def test_the_engines_thread_does_not_compile(model):
    async def ask(schema: Schema) -> list[str]:
        async with AsyncEngine(Engine(model, ends=frozenset([END]))) as running:
            return [answer.text for answer in await running.answers(request(schema), n=3)]

    schema = Schema(model.lock)
    assert {*asyncio.run(asyncio.wait_for(ask(schema), 60))} <= {'"a"', '"b"'}
    (thread,) = schema.threads
    assert thread not in ("halka-engine", threading.main_thread().name)

"""A step that raises changes no token, and what is wrong with one request is wrong with no other."""

from __future__ import annotations

import threading
import time

import pytest
import torch

import halka
from engine_for_tests import alone, filled, model_of, prompts, run
from halka.engine.engine import Engine
from halka.engine.request import Request
from halka.engine.sampling import Sampling
from halka.engine.stopping import Stopping
from halka.util.errors import HalkaError, OutOfMemoryError


class Failing:
    """A forward that raises at some calls, before or after it computed."""

    def __init__(self, forward, errors: dict[int, BaseException], *, after: bool):
        self.forward, self.errors, self.after, self.calls = forward, errors, after, 0
        self.forget, self.close = forward.forget, forward.close

    def __call__(self, line):
        error = self.errors.get(self.calls)
        self.calls += 1
        if error is not None and not self.after:
            raise error
        logits = self.forward(line)
        if error is not None:
            raise error
        return logits


@pytest.mark.parametrize("after", [False, True])
def test_a_step_that_raises_changes_no_token(after):
    model = model_of(families={"lora": halka.LoRA(rank=4), "prefix": halka.Prefix(length=5)})
    names = [None, "lora", "prefix"]
    requests = [Request(prompt, names[i % 3], stopping=Stopping(8)) for i, prompt in enumerate(prompts(9))]
    errors = {2: KeyboardInterrupt(), 5: torch.OutOfMemoryError(), 6: RuntimeError("x"), 14: KeyboardInterrupt()}
    with Engine(model, rows=4, prefill=24, prefill_beside=8) as engine:
        engine._forward = Failing(engine._forward, errors, after=after)
        answers = [engine.submit(request)[0] for request in requests]
        raised = list[BaseException]()
        while engine.busy:
            try:
                engine.step()
            except (KeyboardInterrupt, RuntimeError, OutOfMemoryError) as error:
                raised.append(error)
        assert [type(error) for error in raised] == [
            KeyboardInterrupt,
            OutOfMemoryError,
            RuntimeError,
            KeyboardInterrupt,
        ]
        assert "lower rows, prefill" in str(raised[1])
        assert [answer.tokens for answer in answers] == [alone(model, request) for request in requests]
        assert engine.cache.room == engine.cache.size


def test_an_interrupt_while_blocks_are_handed_out_leaves_none_that_was_not_computed():
    model = model_of(families={})
    request = Request([5, 6, 7, 8] * 10, stopping=Stopping(8))
    with Engine(model) as engine:
        (answer,) = engine.submit(request)
        engine._forward = Failing(engine._forward, {0: KeyboardInterrupt()}, after=False)
        with pytest.raises(KeyboardInterrupt):
            engine.step()
        (other,) = engine.submit(request)
        run(engine)
        assert answer.tokens == other.tokens == alone(model, request)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0, seed=1)])
def test_weights_that_are_no_numbers_fail_their_own_requests(sampling):
    model = model_of(families={"lora": halka.LoRA(rank=4)})
    filled(model, "broken", halka.LoRA(rank=4))
    with torch.no_grad():
        model.parameters("broken")[0].fill_(torch.nan)
    with Engine(model) as engine:
        broken, right = (
            engine.submit(Request([5, 6, 7], name, sampling, Stopping(5)))[0] for name in ("broken", "lora")
        )
        run(engine)
        assert "'broken'" in str(broken.error)
        assert not broken.tokens
        assert len(right.tokens) == 5 or right.finish == "stop"


@pytest.mark.parametrize("logprobs", [None, 2])
def test_a_row_that_has_no_token_to_draw_fails_alone(logprobs):
    model = model_of(families={})
    good = Request([5, 6, 7], sampling=Sampling(1.0, seed=3), stopping=Stopping(6))
    with Engine(model) as engine:
        (expected,) = engine.submit(good)
        run(engine)
        poisoned = Sampling(
            1.0, seed=3, bias={9: 3e38}, presence_penalty=-3e38
        )  # its second token's logit is too large
        (poison,) = engine.submit(Request([5, 6, 7], sampling=poisoned, logprobs=logprobs, stopping=Stopping(6)))
        (answer,) = engine.submit(good)
        run(engine)
        assert "no token to draw" in str(poison.error)
        assert poison.tokens == [9]
        assert answer.error is None
        assert answer.tokens == expected.tokens


def test_a_text_that_cannot_be_decoded_fails_alone():
    model = model_of(families={})
    with Engine(model) as engine:
        answers = [engine.submit(Request([5, 6, number], stopping=Stopping(5)))[0] for number in (7, 8)]
        text = engine._texts[answers[0]]
        text._text.push = interrupted_by(ValueError("no such token"))  # type: ignore[method-assign]
        run(engine)
        assert isinstance(answers[0].error, ValueError)
        assert answers[1].error is None


def interrupted_by(error):
    def push(token):
        raise error

    return push


def test_threads_submit_and_cancel_while_another_steps_and_a_third_uses_the_model():
    model = model_of(families={"lora": halka.LoRA(rank=4)})
    expected = {name: alone(model, Request([5, 6, 7], name, stopping=Stopping(6))) for name in (None, "lora")}
    answers, over = [], threading.Event()

    def ask(engine):
        for number in range(20):
            name = (None, "lora")[number % 2]
            answers.append((name, number % 5 == 4, engine.submit(Request([5, 6, 7], name, stopping=Stopping(6)))[0]))
            if answers[-1][1]:
                engine.cancel(answers[-1][2])

    def use(engine):
        while not over.is_set():
            with model.use("lora"):
                engine.room("lora")  # the engine, from within the model's block
            time.sleep(0.001)

    with Engine(model, rows=4) as engine:
        threads = [threading.Thread(target=target, args=(engine,)) for target in (ask, ask, use)]
        for thread in threads:
            thread.start()
        end = time.monotonic() + 60
        while any(thread.is_alive() for thread in threads[:2]) or engine.busy:
            engine.step()
            time.sleep(0.0005)  # a lock that is taken again at once is not had by others
            assert time.monotonic() < end, "a deadlock, or starvation"
        over.set()
        for thread in threads:
            thread.join(10)
    assert len(answers) == 40
    for name, cancelled, answer in answers:
        assert cancelled or answer.tokens == expected[name]


def test_an_engine_needs_a_tokenizer():
    with pytest.raises(HalkaError, match="needs the tokenizer"):
        Engine(halka.adapt(model_of(families={}).base))

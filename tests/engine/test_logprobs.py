"""Tokens come with the base's own log probabilities, whatever chose them; what the cache had is counted, and when."""

from __future__ import annotations

import pytest
import torch

import halka
from engine_for_tests import model_of, run
from halka.engine.engine import Engine
from halka.engine.logprobs import token_logprobs
from halka.engine.request import Request
from halka.engine.sampling import Sampling
from halka.engine.stopping import Stopping
from halka.models import memory_of
from halka.models.attention.paged import KVBlocks
from halka.util.errors import HalkaError

PROMPT = [*range(5, 45)]


@pytest.fixture
def model():
    return model_of(families={"lora": halka.LoRA(rank=4)})


def block_bytes(model) -> int:
    return KVBlocks.bytes_of(memory_of(model).stack.shape, model.base.dtype)


def test_log_probabilities_are_those_of_a_softmax():
    logits = torch.randn(3, 40)
    expected = logits.log_softmax(-1)
    rows = token_logprobs(logits, [1, 2, 3], [0, 2, 5])
    assert [row.logprob for row in rows] == pytest.approx(expected[range(3), [1, 2, 3]].tolist(), abs=1e-5)
    for row, top, own in zip(rows, [0, 2, 5], expected, strict=True):
        values, places = own.topk(top)
        assert [token for token, _ in row.top] == places.tolist()
        assert [logprob for _, logprob in row.top] == pytest.approx(values.tolist(), abs=1e-5)


def test_an_answers_tokens_have_the_log_probabilities_of_whole_passes(model):
    drawn = Sampling(temperature=3.0, seed=1, presence_penalty=1.0, bias={9: 3.0})
    asked = [
        Request(PROMPT, "lora", stopping=Stopping(6), logprobs=3),
        Request(PROMPT, None, drawn, Stopping(6), logprobs=0),
    ]
    with Engine(model) as engine:
        answers = [
            *engine.submit(asked[0]),
            *engine.submit(asked[1]),
            *engine.submit(Request(PROMPT, stopping=Stopping(2))),
        ]
        run(engine)
    for answer in answers[:2]:
        assert [entry.token for entry in answer.logprobs] == answer.tokens
        with torch.inference_mode(), model.use(answer.request.adapter):
            logits = model.base(input_ids=torch.tensor([PROMPT + answer.tokens])).logits[0, len(PROMPT) - 1 : -1]
        expected = logits.log_softmax(-1)[range(len(answer.tokens)), answer.tokens]
        assert [entry.logprob for entry in answer.logprobs] == pytest.approx(expected.tolist(), abs=1e-4)
        assert {len(entry.top) for entry in answer.logprobs} == {answer.request.logprobs}
    assert all(entry.top[0] == (entry.token, entry.logprob) for entry in answers[0].logprobs)
    assert answers[2].logprobs == []


def test_what_the_cache_had_of_a_prompt_is_counted(model):
    with Engine(model) as engine:
        first, beside = engine.submit(Request(PROMPT, stopping=Stopping(2)), n=2)
        run(engine)
        (later,) = engine.submit(Request(PROMPT, stopping=Stopping(2)))
        (other,) = engine.submit(Request(PROMPT, "lora", stopping=Stopping(2)))
        run(engine)
    assert (first.cached, beside.cached, later.cached, other.cached) == (0, 32, 32, 0)


def test_preempted_answers_count_what_others_computed_alone(model):
    requests = [Request([number, *PROMPT], stopping=Stopping(40)) for number in range(5, 9)]
    with Engine(model, memory=9 * block_bytes(model)) as engine:
        answers = [answer for request in requests for answer in engine.submit(request)]
        run(engine)
        assert engine.schedule.preempted
    assert [answer.cached for answer in answers] == [0] * 4


def test_times_follow_each_other(model):
    with Engine(model, rows=1) as engine:
        answers = engine.submit(Request(PROMPT, stopping=Stopping(3)), n=2)
        assert answers[0].times.begun is None
        run(engine)
    for times in (answer.times for answer in answers):
        assert times.begun is not None
        assert times.first is not None
        assert times.last is not None
        assert times.submitted <= times.begun < times.first < times.last
    assert answers[1].times.begun >= answers[0].times.last


def test_tokens_that_the_base_does_not_have_are_refused(model):
    with Engine(model) as engine:
        with pytest.raises(HalkaError, match="bias has token 999: this base has those from 0 to"):
            engine.submit(Request([5], sampling=Sampling(bias={999: 1.0}), stopping=Stopping(2)))
        with pytest.raises(HalkaError, match="logprobs is a number of tokens from 0 to"):
            engine.submit(Request([5], logprobs=999, stopping=Stopping(2)))

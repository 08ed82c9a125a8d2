"""Whatever company an answer is made in, it is the answer that its adapter gives alone."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch

import halka
from engine_for_tests import Tokenizer, alone, filled, model_of, prompts, run
from halka.engine.cache import most_memory
from halka.engine.constraint import Constraint
from halka.engine.engine import Engine
from halka.engine.request import Answer, Request
from halka.engine.sampling import Sampling
from halka.engine.stopping import Stopping
from halka.models.attention.paged import SIZE
from halka.util.errors import ContextLengthError, HalkaError
from tiny import CONFIGS, tiny, windowed
from tokenizers_for_tests import chatml_tokenizer

EACH = 16 * 4 * 2 * 2 * 16 * 2  # bytes of a block
FAMILIES = {
    "lora": halka.LoRA(rank=4),
    "lora2": halka.LoRA(rank=3),
    "bottleneck": halka.Bottleneck(width=8),
    "prefix": halka.Prefix(length=5),
    "prefix2": halka.Prefix(length=21),
    "prompt": halka.Prompt(length=18),
    "full": halka.Full(),
}


def check(model, requests, **settings) -> Engine:
    answers: list[Answer] = []
    with Engine(model, **settings) as engine:
        for request in requests:
            answers += engine.submit(request)
        while engine.step():
            pass
        for request, answer in zip(requests, answers, strict=True):
            assert answer.error is None
            assert answer.tokens == alone(model, request), request
    assert engine.cache.room == engine.cache.size
    return engine


@pytest.mark.parametrize("architecture", CONFIGS)
def test_answers_of_all_families_side_by_side_are_those_of_each_alone(architecture):
    model = model_of(architecture, families=FAMILIES)
    names = [None, *FAMILIES]
    requests = [
        Request(prompt, names[number % len(names)], stopping=Stopping(6)) for number, prompt in enumerate(prompts(24))
    ]
    check(model, requests, rows=8, prefill=32, prefill_beside=16)


@pytest.mark.parametrize("blocks", [7, 9, 14])
def test_a_cache_that_is_too_small_changes_no_token(blocks):
    model = model_of(families=FAMILIES)
    names = [None, "lora", "prefix", "lora2", "prompt"]
    requests = [
        Request(prompt, names[number % len(names)], stopping=Stopping(20)) for number, prompt in enumerate(prompts(20))
    ]
    engine = check(model, requests, rows=6, memory=blocks * EACH, prefill=24, prefill_beside=8)
    assert engine.cache.size == blocks
    assert engine.schedule.preempted


WINDOWS = ["mistral", "gemma2", "gemma3_text", "qwen2_moe"]
OTHERS = {
    "head": halka.LoRA(rank=3, targets=("head",)),
    "embedding": halka.LoRA(rank=3, targets=("linear", "head", "embedding")),
    "dora": halka.DoRA(rank=2),
    "ia3": halka.IA3(),
    "bitfit": halka.BitFit(),
    "joint": halka.Joint((halka.Prefix(length=17), halka.Bottleneck(width=4))),
    "llama-adapter": halka.LlamaAdapter(length=4),
}


@pytest.mark.parametrize("architecture", ["llama", *WINDOWS, "gpt2"])
def test_adapters_at_heads_and_embeddings_share_a_step_with_others(architecture):
    """In windows shorter than the texts."""
    families = {name: method for name, method in OTHERS.items() if architecture != "gpt2" or name != "llama-adapter"}
    model = model_of(architecture, families=families, **(windowed(architecture, 12) if architecture in WINDOWS else {}))
    names = [None, *families]
    requests = [
        Request(prompt, names[number % len(names)], stopping=Stopping(6)) for number, prompt in enumerate(prompts(24))
    ]
    check(model, requests, rows=8, prefill=32, prefill_beside=16)


def test_several_answers_to_one_prompt_read_it_once():
    model = model_of(families={"lora": halka.LoRA(rank=4)})
    prompt = prompts(1, longest=2)[0][:1] * 50
    with Engine(model, rows=4, prefill=64) as engine:
        computed = []
        forward = engine._forward
        engine._forward = lambda line: computed.append(len(line.tokens)) or forward(line)  # type: ignore[assignment]
        engine._forward.forget, engine._forward.close = forward.forget, forward.close  # type: ignore[attr-defined]
        answers = engine.submit(Request(prompt, "lora", stopping=Stopping(4)), n=4)
        while engine.step():
            pass
    assert [answer.tokens for answer in answers] == [answers[0].tokens] * 4
    assert sum(computed) == 50 + 3 * 2 + 4 * 3  # three blocks are shared, two tokens behind them are not


def test_a_text_as_long_as_the_context_fits_one_row():
    model = model_of(families={}, max_position_embeddings=5000)
    with Engine(model, rows=1) as engine:
        assert engine.cache.size * 16 >= 5000
        with pytest.raises(HalkaError, match="are 11 more than the 5000 positions"):
            engine.submit(Request([5] * 5001, stopping=Stopping(10)))


@pytest.mark.parametrize(("prompt", "why"), [([], "has no tokens"), ([5, 97], "has token 97"), ([-1], "has token -1")])
def test_a_prompt_that_the_base_cannot_read_is_refused(prompt, why):
    with Engine(model_of(families={})) as engine, pytest.raises(HalkaError, match=why):
        engine.submit(Request(prompt))


@pytest.mark.parametrize("prompt", ["hello", [5, 6.0], torch.tensor([[5, 6]]), torch.tensor([5.0]), None])
def test_a_prompt_that_is_no_token_ids_is_refused(prompt):
    with pytest.raises(HalkaError, match=r"a prompt is token ids \(.*\): `Request.of` takes a text"):
        Request(prompt)


@pytest.mark.parametrize("logprobs", [True, 1.5, -1])
def test_logprobs_that_are_no_number_of_tokens_are_refused(logprobs):
    with pytest.raises(HalkaError, match=f"logprobs is {logprobs!r}: it is a number of tokens"):
        Request([5, 6], logprobs=logprobs)


def test_a_tensor_and_numbers_of_numpy_make_the_request_that_python_s_do():
    request = Request(torch.tensor([5, 6]), logprobs=np.int64(2), stopping=Stopping(np.int64(3)))
    assert request == Request([5, 6], logprobs=2, stopping=Stopping(3))
    with Engine(model_of(families={}), ends=[2]) as engine:
        (answer,) = engine.submit(request)
        run(engine)
    assert answer.error is None
    assert len(answer.logprobs) == len(answer.tokens)


def test_keys_and_values_leave_room_on_a_card_that_the_base_nearly_fills(monkeypatch):
    card = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 17)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (7, 24))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 16)
    assert (most_memory(card), most_memory(card, beside=2)) == (4, 2)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 4)
    assert most_memory(card) == 6


def test_keys_and_values_leave_room_in_a_machine_that_the_base_nearly_fills(monkeypatch):
    memory = SimpleNamespace(rss=20, shared=3)  # which a mapped file has: it can make room
    monkeypatch.setattr(psutil.Process, "memory_info", lambda _: memory)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=7))
    assert most_memory(torch.device("cpu")) == 3
    memory.rss = 8
    assert most_memory(torch.device("cpu")) == 3


def test_an_answer_that_the_cache_cannot_hold_is_refused_when_its_adapter_is_known():
    model = model_of(families={"prefix": halka.Prefix(length=21)})
    with Engine(model, memory=3 * EACH) as engine:
        (answer,) = engine.submit(Request([5] * 30, stopping=Stopping(10)))
        with pytest.raises(ContextLengthError, match="are 32 more than the cache's 48"):
            engine.submit(Request([5] * 30, "prefix", stopping=Stopping(10)))
        while engine.step():
            pass
        assert answer.error is None
    with pytest.raises(HalkaError, match="closed"):
        engine.submit(Request([5]))


def test_virtual_tokens_that_are_there_take_no_room():
    """Four texts of one block each, behind four blocks that they share."""
    model = model_of(families={"prefix": halka.Prefix(length=64)})
    with Engine(model, memory=8 * EACH) as engine:
        answers = [*engine.submit(Request([5] * 8, "prefix", stopping=Stopping(6, ignore_ends=True)), n=4)]
        engine.step()
        assert len(engine.schedule.running) == 4
        run(engine, *answers)
        assert {tuple(answer.tokens) for answer in answers} == {tuple(alone(model, answers[0].request))}


def test_more_memory_holds_a_prefix_without_positions_and_a_text_of_all():
    model = model_of(families={"prefix": halka.PositionlessPrefix(length=40)}, max_position_embeddings=64)
    request = Request([5] * 60, "prefix", stopping=Stopping(4, ignore_ends=True))
    with Engine(model, rows=1) as engine, pytest.raises(HalkaError, match="give the engine more memory"):
        engine.submit(request)
    with Engine(model, rows=1, memory=64 * EACH) as engine:
        assert engine.cache.size == 2 * (64 // SIZE + 1)
        [answer] = engine.submit(request)
        run(engine, answer)
        assert answer.tokens == alone(model, request)


def test_a_classifier_is_no_decoder():
    model = halka.adapt(tiny("llama", kind="sequence-classification", num_labels=3), Tokenizer())
    with pytest.raises(HalkaError, match="LlamaForSequenceClassification is no decoder"):
        Engine(model)


def test_a_cancelled_answer_frees_its_row_and_blocks_at_once():
    model = model_of(families={})
    with Engine(model, rows=1) as engine:
        first, second = (engine.submit(Request([5, 6, number], stopping=Stopping(40)))[0] for number in (7, 8))
        engine.step()
        engine.cancel(first)
        assert (first.finish, len(first.tokens)) == ("cancelled", 1)
        assert engine.cache.room == engine.cache.size
        engine.step()
        assert len(second.tokens) == 1
        engine.cancel(second)
        engine.cancel(second)
        assert not engine.busy


def test_who_stops_reading_answers_wants_none_of_the_rest():
    with Engine(model_of(families={}), rows=2) as engine:
        answers = engine.run([Request([5, 6], stopping=Stopping(count)) for count in (2, 30, 30)])
        assert len(next(answers).tokens) == 2
        answers.close()
        assert not engine.busy


def test_an_answer_goes_on_behind_the_tokens_that_another_engine_wrote():
    """With its seed, penalties and constraint, which count these tokens; what they end has ended."""
    tokenizer = chatml_tokenizer()
    model = halka.adapt(tiny("llama", vocab_size=len(tokenizer)), tokenizer)
    filled(model, "lora", halka.LoRA(rank=4), 0)
    drawn = Sampling(temperature=1.0, seed=3, frequency_penalty=0.5)
    requests = [
        Request([5, 6, 7], "lora", stopping=Stopping(12, ignore_ends=True)),
        Request([5, 6, 7], "lora", drawn, Stopping(12, ignore_ends=True), logprobs=1),
        Request([5, 6, 7], "lora", drawn, Stopping(12), Constraint(regex="(ab|ba|cd){40}")),
    ]
    for request in requests:
        with Engine(model) as engine:
            whole = engine.submit(request, 2)
            run(engine, *whole)
        written = [answer.tokens[:count] for answer, count in zip(whole, (5, 12), strict=True)]
        with Engine(model) as engine:
            rest = engine.submit(request, 2, written=written)
            assert [answer.finish for answer in rest] == [None, "length"]
            run(engine, *rest)
        assert [answer.tokens for answer in rest] == [answer.tokens for answer in whole]
        assert [answer.text for answer in rest] == [answer.text for answer in whole]
        if request.constraint is not None:
            assert {*rest[0].text} <= {*"abcd"}
        assert len(rest[0].logprobs) == (0 if request.logprobs is None else 7)


@pytest.mark.parametrize("broken", ["gated", "prefix", "lora"])
def test_a_number_that_is_none_fails_its_own_adapters_answers(broken):
    families = {"lora": halka.LoRA(rank=4), "gated": halka.LlamaAdapter(length=3), "prefix": halka.Prefix(length=4)}
    model = model_of(families=families)
    with torch.no_grad():
        for parameter in model.parameters(broken):
            parameter.fill_(torch.nan)
    with Engine(model) as engine:
        answers = {name: engine.submit(Request([5, 6, 7], name, stopping=Stopping(4)))[0] for name in families}
        run(engine)
    assert {name for name, answer in answers.items() if answer.error is not None} == {broken}


@pytest.mark.parametrize("architecture", ["mixtral", "qwen3_moe"])
@pytest.mark.parametrize("other", ["lora", None])
def test_rows_go_on_when_those_with_an_adapter_of_experts_have_ended(architecture, other):
    families = {"experts": halka.LoRA(rank=2, targets=("experts",)), "lora": halka.LoRA(rank=2)}
    model = model_of(architecture, families=families)
    requests = [
        Request([5, 6, 7], name, stopping=Stopping(tokens, ignore_ends=True))
        for name, tokens in (("experts", 2), (other, 6))
    ]
    with Engine(model) as engine:
        answers = [engine.submit(request)[0] for request in requests]
        run(engine)
    assert [len(answer.tokens) for answer in answers] == [2, 6]
    assert answers[1].tokens == alone(model, requests[1])


def test_answers_know_no_dropout_whatever_mode_the_base_is_in():
    model = model_of("gpt2", families={}, resid_pdrop=0.5, attn_pdrop=0.5, embd_pdrop=0.5)
    request = Request([5, 6, 7], stopping=Stopping(6))
    expected = alone(model, request)
    model.base.train()
    with Engine(model) as engine:
        answers = [engine.submit(request)[0] for _ in range(2)]
        run(engine)
    assert [answer.tokens for answer in answers] == [expected] * 2
    assert model.base.training


def test_a_prefix_and_a_prompt_in_one_adapter_are_refused():
    model = model_of(families={})
    model.add("both", halka.Joint((halka.Prefix(length=2), halka.Prompt(length=2))))
    with Engine(model) as engine, pytest.raises(HalkaError, match="works in encoders alone"):
        engine.submit(Request([5, 6, 7], "both", stopping=Stopping(4)))

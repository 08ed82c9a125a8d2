"""Completions go on with texts: one prompt or many, in words or token ids, whole or streamed."""

from __future__ import annotations

import json
import re
from collections import defaultdict

import pytest

import halka
from engine_for_tests import alone
from halka.engine import Request, Stopping

BODY = {"model": "lora", "prompt": "The capital of", "max_tokens": 7}


def complete(client, **more):
    answer = client.post("/v1/completions", json=BODY | more)
    assert answer.status_code == 200, answer.text
    return answer.json()


def texts(answer):
    return [choice["text"] for choice in answer["choices"]]


def test_it_is_the_engines_text(base, stored, visitor):
    model = halka.adapt(*halka.load_base(base, dtype="float32"))
    halka.load(model, stored / "lora" / "1", name="lora")
    ids = model.tokenizer(BODY["prompt"])["input_ids"]
    expected = alone(model, Request(ids, "lora", stopping=Stopping(7)))
    answer = complete(visitor)
    assert texts(answer) == [model.tokenizer.decode(expected, skip_special_tokens=True)]
    assert answer["object"] == "text_completion"
    assert answer["usage"]["prompt_tokens"] == len(ids)
    assert texts(complete(visitor, prompt=ids)) == texts(answer)


def test_many_prompts_and_several_answers_stand_in_order(visitor):
    prompts = ["The capital of", "How do I", "Open the settings"]
    singles = [complete(visitor, prompt=prompt, n=2, temperature=1, seed=3) for prompt in prompts]
    together = complete(visitor, prompt=prompts, n=2, temperature=1, seed=3)
    assert [choice["index"] for choice in together["choices"]] == [*range(6)]
    assert texts(together) == [text for single in singles for text in texts(single)]
    for key in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert together["usage"][key] == sum(single["usage"][key] for single in singles)


@pytest.mark.parametrize(
    "more", [{}, {"prompt": ["The capital of", "How"], "n": 2, "temperature": 1, "seed": 1, "logprobs": 2}]
)
def test_a_stream_says_the_same(visitor, more):
    answer = visitor.post(
        "/v1/completions", json=BODY | more | {"stream": True, "stream_options": {"include_usage": True}}
    )
    *events, done, _ = answer.content.split(b"\n\n")
    assert done == b"data: [DONE]"
    *chunks, last = [json.loads(event.removeprefix(b"data: ")) for event in events]
    whole = complete(visitor, **more)
    streamed, tokens, offsets, finishes = defaultdict(str), defaultdict(list), defaultdict(list), {}
    for chunk in chunks:
        (choice,) = chunk["choices"]
        streamed[choice["index"]] += choice["text"]
        tokens[choice["index"]] += (choice["logprobs"] or {"tokens": []})["tokens"]
        offsets[choice["index"]] += (choice["logprobs"] or {"text_offset": []})["text_offset"]
        if choice["finish_reason"]:
            assert choice["text"] == ""
            assert choice["index"] not in finishes
            finishes[choice["index"]] = choice["finish_reason"]
    for choice in whole["choices"]:
        index = choice["index"]
        assert streamed[index] == choice["text"]
        assert finishes[index] == choice["finish_reason"]
        if choice["logprobs"]:
            assert tokens[index] == choice["logprobs"]["tokens"]
            assert offsets[index] == choice["logprobs"]["text_offset"]
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == whole["usage"]["total_tokens"]


def test_log_probabilities(visitor):
    (choice,) = complete(visitor, logprobs=3)["choices"]
    logprobs = choice["logprobs"]
    assert re.sub(r"bytes:(\\x..)+", "\ufffd", "".join(logprobs["tokens"])) == choice["text"]
    assert logprobs["text_offset"][0] == 0
    assert all(len(top) <= 3 for top in logprobs["top_logprobs"])
    for token, logprob, top in zip(
        logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True
    ):
        assert top[token] == pytest.approx(logprob), "greedy takes the likeliest"


def test_what_is_not_supported_is_named(visitor):
    for change, param in (
        ({"suffix": "x"}, "suffix"),
        ({"echo": True}, "echo"),
        ({"best_of": 3}, "best_of"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [10**6]}, None),
    ):
        answer = visitor.post("/v1/completions", json=BODY | change)
        assert answer.status_code == 400, answer.text
        assert (answer.json()["error"]["param"] or "").startswith(param or "")

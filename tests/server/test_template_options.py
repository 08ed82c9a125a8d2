"""What a request sets of the base's chat template: Qwen3's thoughts, and what is refused."""

from __future__ import annotations

import pytest

from serving_for_tests import WEATHER, InProcess, make_base
from tokenizers_for_tests import CHATML, qwen_tokenizer, tokenizer

BODY = {"messages": [{"role": "user", "content": "Is it warm in Paris?"}], "model": "qwen"}
THOUGHT = "<think>\n\n</think>\n\n"
REFUSED = ["think", "enable_thin", "message", "", "if", "message.*", "messages", "tools", "eos_token", "x" * 1_000_000]


@pytest.fixture
def qwen(tmp_path):
    """A server of a base whose template may think, or not; it says this text."""
    base = make_base(tmp_path / "qwen", qwen_tokenizer())
    with InProcess.open(base, None, tmp_path / "data", says=["Yes."]) as server:
        yield server


def prompt(server, **more):
    """The text that the base reads for a request."""
    answer = server.client.post("/v1/chat/completions", json=BODY | more)
    assert answer.status_code == 200, answer.text
    return server.service.tokenizer.decode(server.service.backend.asked[-1].prompt)


@pytest.mark.parametrize("more", [{}, {"tools": [WEATHER]}], ids=["plain", "tools"])
def test_a_request_sets_what_the_template_reads(qwen, more):
    usual = prompt(qwen, **more)
    assert usual.endswith("<|im_start|>assistant\n")
    assert prompt(qwen, chat_template_kwargs={"enable_thinking": False}, **more) == usual + THOUGHT
    for nothing in (None, {}, {"enable_thinking": True}):
        assert prompt(qwen, chat_template_kwargs=nothing, **more) == usual


@pytest.mark.parametrize("name", REFUSED, ids=lambda name: name[:20])
def test_what_the_template_does_not_read_is_refused_by_name(qwen, name):
    asked = BODY | {"chat_template_kwargs": {"enable_thinking": False, name: "x"}}
    answer = qwen.client.post("/v1/chat/completions", json=asked)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == "chat_template_kwargs"
    assert error["code"] == "unsupported_parameter"
    assert f"{name[:80]!r} is nothing that this base's chat template takes" in error["message"]


@pytest.mark.parametrize("value", ["no", ["enable_thinking"]])
def test_other_values_than_an_object_are_refused(qwen, value):
    answer = qwen.client.post("/v1/chat/completions", json=BODY | {"chat_template_kwargs": value})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == "chat_template_kwargs"


def test_a_value_that_the_template_cannot_compute_with_is_the_clients_error(tmp_path):
    base = make_base(tmp_path / "counting", tokenizer("{{ 5 // n if n is defined }}" + CHATML))
    with InProcess.open(base, None, tmp_path / "data", says=["Yes."]) as server:
        asked = BODY | {"model": "counting", "chat_template_kwargs": {"n": 0}}
        answer = server.client.post("/v1/chat/completions", json=asked)
        assert answer.status_code == 400, answer.text
        assert "refuses the messages" in answer.json()["error"]["message"]
        assert prompt(server, model="counting", chat_template_kwargs={"n": 2}).startswith("2<|im_start|>")


def test_a_base_without_a_template_has_nothing_to_set(client):
    asked = BODY | {"model": "tiny", "chat_template_kwargs": {"enable_thinking": False}}
    answer = client.post("/v1/chat/completions", json=asked)
    assert answer.status_code == 400, answer.text
    assert "is nothing that this base's chat template takes" in answer.json()["error"]["message"]

"""Unmodified clients talk to a real server: OpenAI's own, LangChain's, LlamaIndex's and LiteLLM."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import openai
import pytest

from serving_for_tests import PARIS, WEATHER, Running, make_base, no_white_space
from tokenizers_for_tests import hermes_tokenizer

MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def client(running):
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def expected(client) -> str:
    return client.chat.completions.create(model="lora", messages=MESSAGES, max_tokens=8).choices[0].message.content


def test_models(client):
    assert {model.id for model in client.models.list()} > {"tiny", "bottleneck", "lora", "prefix"}
    assert client.models.retrieve("lora").owned_by == "main"


def test_chat_streams(client, expected):
    with client.chat.completions.create(
        model="lora", messages=MESSAGES, max_tokens=8, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = [*stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == expected
    assert chunks[-1].usage.total_tokens > 0
    with client.chat.completions.stream(model="lora", messages=MESSAGES, stop=expected[3:]) as stream:
        assert stream.get_final_completion().choices[0].message.content == expected[:3]


def test_several_answers_with_log_probabilities(client, running):
    answer = client.chat.completions.create(
        model="lora",
        messages=MESSAGES,
        max_completion_tokens=4,
        n=2,
        temperature=1,
        logprobs=True,
        top_logprobs=2,
        logit_bias={str(end): -100 for end in running.service.engine.engine.ends},  # none is empty
    )
    assert len(answer.choices) == 2
    assert len(answer.choices[0].logprobs.content[0].top_logprobs) == 2


def test_completions(client):
    answer = client.completions.create(model="tiny", prompt=["One", "Two"], max_tokens=4, logprobs=1)
    assert [choice.index for choice in answer.choices] == [0, 1]
    with client.completions.create(model="tiny", prompt="One", max_tokens=4, stream=True) as stream:
        assert "".join(chunk.choices[0].text for chunk in stream) == answer.choices[0].text


def test_responses(client, expected):
    options = {"model": "lora", "input": MESSAGES[0]["content"], "max_output_tokens": 8, "store": False}
    assert client.responses.create(**options).output_text == expected
    with client.responses.create(**options, stream=True) as stream:
        events = [*stream]
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == expected
    assert events[-1].response.output_text == expected


def test_embeddings(client):
    """In base64, as the client asks by default, and as numbers: the same."""
    (model,) = {model.id for model in client.models.list()} - {"tiny", "bottleneck", "lora", "prefix"}
    packed = client.embeddings.create(model=model, input=["One", "Two"])
    plain = client.embeddings.create(model=model, input=["One", "Two"], encoding_format="float")
    assert [one.index for one in packed.data] == [0, 1]
    for one, other in zip(packed.data, plain.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6)


def test_calls_of_tools_stream_into_the_clients_own_objects(tmp_path):
    base = make_base(tmp_path / "hermes", hermes_tokenizer())
    with Running(base, None, tmp_path / "data", says=[f"I look. {PARIS}\n{PARIS}"]) as running:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0, timeout=60)
        with client, client.chat.completions.stream(model="hermes", messages=MESSAGES, tools=[WEATHER]) as stream:
            (choice,) = stream.get_final_completion().choices
            flat = {"type": "function", **WEATHER["function"]}
            options = {"model": "hermes", "input": "Is it warm?", "tools": [flat], "store": False}
            with client.responses.stream(**options) as responding:
                text, *calls = responding.get_final_response().output
    assert choice.message.content == text.content[0].text == "I look."
    assert choice.finish_reason == "tool_calls"
    assert [call.function.name for call in choice.message.tool_calls] == ["weather"] * 2
    for arguments in (calls[1].arguments, choice.message.tool_calls[1].function.arguments):
        assert json.loads(arguments) == {"city": "Paris"}


def test_errors_are_the_clients_own(client):
    ask = client.chat.completions.create
    with pytest.raises(openai.NotFoundError) as unknown:
        ask(model="nobody", messages=MESSAGES)
    assert unknown.value.code == "model_not_found"
    assert unknown.value.param == "model"
    with pytest.raises(openai.BadRequestError, match="audio is not supported here"):
        ask(model="lora", messages=MESSAGES, audio={"voice": "ash", "format": "wav"})
    ask(model="lora", messages=MESSAGES, max_tokens=1)  # the positions that it leaves are known once it is loaded
    with pytest.raises(openai.BadRequestError, match="positions"):
        ask(model="lora", messages=MESSAGES, max_tokens=10**6, stream=True)


LANGCHAIN = """
from langchain_openai import ChatOpenAI
from pydantic import BaseModel
chat = ChatOpenAI(model="lora", base_url=f"{url}/v1", api_key="none", max_tokens=8)
answer = chat.invoke(question)
print(ascii(answer.content))
pieces = [*chat.stream(question, stream_usage=True)]
print(ascii("".join(piece.content for piece in pieces)))
assert answer.usage_metadata["output_tokens"] == sum((p.usage_metadata or {}).get("output_tokens", 0) for p in pieces)
class Answer(BaseModel):
    yes: bool
typed = chat.with_structured_output(Answer, method="json_schema")
assert isinstance(typed.invoke(question, max_tokens=80, logit_bias=bias).yes, bool)
"""
LLAMA_INDEX = """
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike
llm = OpenAILike(model="lora", api_base=f"{url}/v1", api_key="none", is_chat_model=True, max_tokens=8, temperature=0)
print(ascii(llm.chat([ChatMessage(role="user", content=question)]).message.content))
print(ascii("".join(piece.delta or "" for piece in llm.stream_chat([ChatMessage(role="user", content=question)]))))
assert OpenAILike(model="lora", api_base=f"{url}/v1", api_key="none", max_tokens=4).complete(question).text
"""
LITELLM = """
import litellm
options = {"model": "openai/lora", "api_base": f"{url}/v1", "api_key": "none", "max_tokens": 8}
messages = [{"role": "user", "content": question}]
print(ascii(litellm.completion(messages=messages, **options).choices[0].message.content))
pieces = litellm.completion(messages=messages, stream=True, stream_options={"include_usage": True}, **options)
print(ascii("".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)))
try:
    litellm.completion(**{**options, "model": "openai/nobody"}, messages=messages)
except litellm.NotFoundError as error:
    assert "nobody" in str(error)
else:
    raise AssertionError("no error")
"""


@pytest.mark.slow
@pytest.mark.parametrize("script", [LANGCHAIN, LLAMA_INDEX, LITELLM], ids=["langchain", "llama-index", "litellm"])
def test_other_clients(script, running, expected, tmp_path):
    """In a process of their own, whose warnings are their own."""
    head = f"url, question, bias = {running.url!r}, {MESSAGES[0]['content']!r}, {no_white_space(running.service)}\n"
    offline = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "TIKTOKEN_CACHE_DIR": str(tmp_path), "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", head + script],
        env={**os.environ, **offline},
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[:2] == [ascii(expected)] * 2, done.stdout

"""A body of a million wrong items is refused by the first: to name all of them would keep all others waiting."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from halka.server.answers.chat_request import ChatRequest
from halka.server.answers.completions import CompletionRequest
from halka.server.answers.responses_request import ResponsesRequest
from halka.server.jobs.requests import Job
from halka.server.requests import ITEMS
from halka.server.resources.collections import Search
from halka.server.resources.embeddings import EmbeddingsRequest

WRONG = [{} for _ in range(3 * ITEMS)]
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}
CALL = {"role": "assistant", "tool_calls": WRONG}


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (ChatRequest, CHAT | {"messages": WRONG}),
        (ChatRequest, CHAT | {"messages": [0] * len(WRONG)}),
        (ChatRequest, CHAT | {"messages": CHAT["messages"] * (ITEMS + 1)}),
        (ChatRequest, CHAT | {"messages": [{"role": "user", "content": WRONG}]}),
        (ChatRequest, CHAT | {"messages": [*CHAT["messages"], CALL]}),
        (ChatRequest, CHAT | {"tools": WRONG}),
        (ChatRequest, CHAT | {"stop": [0] * len(WRONG)}),
        (ChatRequest, CHAT | {"logit_bias": {str(number): "x" for number in range(len(WRONG))}}),
        (ChatRequest, CHAT | {f"field{number}": 1 for number in range(len(WRONG))}),
        (CompletionRequest, {"model": "tiny", "prompt": ["x"] * len(WRONG)}),
        (CompletionRequest, {"model": "tiny", "prompt": WRONG}),
        (CompletionRequest, {"model": "tiny", "prompt": [WRONG]}),
        (ResponsesRequest, {"model": "tiny", "store": False, "input": WRONG}),
        (ResponsesRequest, {"model": "tiny", "store": False, "input": [{"role": "user", "content": WRONG}]}),
        (ResponsesRequest, {"model": "tiny", "store": False, "input": "a", "include": ["x"] * len(WRONG)}),
        (ResponsesRequest, {"model": "tiny", "store": False, "input": "a", "tools": WRONG}),
        (EmbeddingsRequest, {"model": "words", "input": WRONG}),
        (Search, {"query": "a", "tags": WRONG}),
        (Job, {"kind": "evaluate", "data": [0] * len(WRONG)}),
        (Job, {"kind": "evaluate", "metrics": [0] * len(WRONG)}),
        (Job, {"kind": "evaluate", "adapters": ["/"] * len(WRONG)}),
        (Job, {"kind": "advise", "skip": ["x"] * len(WRONG)}),
    ],
)
def test_the_first_error_is_all(kind: Any, body: Any):
    with pytest.raises(ValidationError) as refused:
        TypeAdapter(kind).validate_python(body)
    assert refused.value.error_count() < 12

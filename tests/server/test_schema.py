"""Schemathesis over the server's own schema: whatever is sent, no response is a 5xx, and each error is OpenAI's."""

from __future__ import annotations

import warnings
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable

schemathesis, requests = pytest.importorskip("schemathesis"), pytest.importorskip("requests")

FORM = {"method", "url", "headers", "files", "data", "json", "params", "auth", "cookies"}
BOUNDED = settings(
    max_examples=20, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=[*HealthCheck]
)
KNOWN = {"model": "lora", "max_tokens": 2, "max_completion_tokens": 2, "max_output_tokens": 2}
"""What a body must have for its request to come as far as the engine, and back soon."""


@pytest.mark.slow
@pytest.mark.parametrize("mode", [*schemathesis.GenerationMode])
@pytest.mark.parametrize("known", [True, False], ids=["a known model", "any model"])
def test_no_data_makes_a_5xx(server, mode, known):
    schema = schemathesis.openapi.from_dict(server.client.app.openapi())
    operations = [result.ok() for result in schema.get_all_operations()]
    sent = {operation.label for operation in operations if send_many(server, operation, mode, known)}
    assert sent >= {operation.label for operation in operations if operation.body}


def send_many(server: Any, operation: Any, mode: Any, known: bool) -> list[int]:
    """Send what fits the operation, or what does not; returns the statuses."""
    statuses = []

    @seed(0)
    @BOUNDED
    @given(case=operation.as_strategy(generation_mode=mode))
    def send(case: Any) -> None:
        request = case.as_transport_kwargs(base_url="http://127.0.0.1:8000")
        body = request.get("json")
        if known and isinstance(body, dict):
            body |= {name: value for name, value in KNOWN.items() if name in body}
        sent = requests.Request(**{name: value for name, value in request.items() if name in FORM}).prepare()
        response = server.client.request(sent.method, sent.url, content=sent.body, headers={**sent.headers})
        statuses.append(response.status_code)
        assert response.status_code < 500, (request, response.text)
        if response.status_code >= 400 and response.request.method != "HEAD":
            assert set(response.json()["error"]) == {"message", "type", "param", "code"}

    with warnings.catch_warnings(), suppress(Unsatisfiable):  # an operation without parameters has none that are wrong
        warnings.simplefilter("ignore")  # those of the tools that make the data
        send()
    return statuses

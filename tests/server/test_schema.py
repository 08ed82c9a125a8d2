"""Schemathesis over the server's own schema: whatever is sent, no response is a 5xx, and each error is OpenAI's.

What another tenant sends changes nothing, though it names what is there.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable

from halka.server.jobs.folder import JobFolder, JobRequest
from halka.server.previews.looks import Looks
from halka.server.tenants import Tenant

schemathesis, requests = pytest.importorskip("schemathesis"), pytest.importorskip("requests")

FORM = {"method", "url", "headers", "files", "data", "json", "params", "auth", "cookies"}
BOUNDED = settings(max_examples=12, database=None, phases=[Phase.generate], suppress_health_check=[*HealthCheck])
FEW = settings(BOUNDED, max_examples=2)
KNOWN = {"model": "lora", "max_tokens": 2, "max_completion_tokens": 2, "max_output_tokens": 2}
"""What a body must have for its request to come as far as the engine, and back soon."""


@pytest.mark.slow
@pytest.mark.parametrize("mode", [*schemathesis.GenerationMode])
def test_no_data_makes_a_5xx(server, mode):
    server.service.looks = Looks([sys.executable, "-c", "print({})"])  # each that fits would take seconds
    schema = schemathesis.openapi.from_dict(server.client.app.openapi())
    operations = [result.ok() for result in schema.get_all_operations()]
    headers = server.key("main", "admin")  # else the first key that is added would close it
    sent = {operation.label for operation in operations if send_many(server, operation, mode, headers=headers)}
    assert sent >= {operation.label for operation in operations if operation.body}


@pytest.mark.slow
@pytest.mark.parametrize("role", ["user", "manager"])
def test_nothing_that_another_tenant_sends_changes_a_thing(server, role):
    server.service.looks = Looks([sys.executable, "-c", "print({})"])
    main = server.service.tenants.of("main")
    assert server.client.post("/v1/collections", json={"name": "faq"}).status_code == 201
    files = [("files", ("secret.md", b"The secret is nine."))]
    assert server.client.post("/v1/collections/faq/documents", files=files).status_code == 201
    job = JobFolder.new(main.jobs, JobRequest("evaluate", {}, ["true"]), {})
    job.write(state="failed")
    names = {
        "name": "lora",
        "model": "lora",
        "file": "halka.json",
        "collection": "faq",
        "document": "secret.md",
        "id": job.id,
    }
    headers = server.key("acme", role)
    before = contents(server, main)
    operations = [
        result.ok() for result in schemathesis.openapi.from_dict(server.client.app.openapi()).get_all_operations()
    ]
    for operation in operations:
        for mode in schemathesis.GenerationMode:
            statuses = send_many(server, operation, mode, names=names, headers=headers, times=FEW)
            if "{" in operation.path:
                assert not statuses or min(statuses) >= 400, operation.label
    assert contents(server, main) == before


def contents(server: Any, tenant: Tenant) -> dict[str, bytes]:
    """All that is stored of a tenant, and the keys."""
    folders = tenant.store.folder, tenant.collections, tenant.jobs
    paths = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return {str(path): path.read_bytes() for path in [*paths, server.service.guards.keys.path]}


def send_many(
    server: Any,
    operation: Any,
    mode: Any,
    names: Mapping[str, str] = MappingProxyType({}),
    headers: Mapping[str, str] = MappingProxyType({}),
    times: Any = BOUNDED,
) -> list[int]:
    """Send what fits the operation, or what does not, every second time with a known model; returns the statuses.

    names: of its path's parameters
    """
    statuses = list[int]()

    @seed(0)
    @times
    @given(case=operation.as_strategy(generation_mode=mode))
    def send(case: Any) -> None:
        case.path_parameters = {name: names.get(name, value) for name, value in (case.path_parameters or {}).items()}
        request = case.as_transport_kwargs(base_url="http://127.0.0.1:8000")
        body = request.get("json")
        if len(statuses) % 2 == 0 and isinstance(body, dict):
            body |= {name: value for name, value in KNOWN.items() if name in body}
        sent = requests.Request(**{name: value for name, value in request.items() if name in FORM}).prepare()
        response = server.client.request(sent.method, sent.url, content=sent.body, headers={**sent.headers, **headers})
        statuses.append(response.status_code)
        assert response.status_code < 500, (request, response.text)
        if response.status_code >= 400 and response.request.method != "HEAD":
            assert set(response.json()["error"]) == {"message", "type", "param", "code"}

    with warnings.catch_warnings(), suppress(Unsatisfiable):  # an operation without parameters has none that are wrong
        warnings.simplefilter("ignore")  # those of the tools that make the data
        send()
    return statuses

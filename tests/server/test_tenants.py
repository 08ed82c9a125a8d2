"""What is another tenant's is not there: adapters, collections and jobs, by name, id or upload, and in no list."""

from __future__ import annotations

import json
import resource
import shutil
from pathlib import Path

import pytest

from halka.server.jobs.folder import JobFolder, JobRequest
from halka.server.resources.collection_access import new_collection
from serving_for_tests import InProcess

ROWS = [{"prompt": "a", "completion": "b"}]


@pytest.fixture
def two(server):
    """A server whose tenant `main` has adapters, a collection and a job; and headers of its manager and another's."""
    ours = server.key("main")
    collection = new_collection(server.service, "main", "faq")
    [*collection.put([("secret.md", "The secret is nine.")])]
    job = JobFolder.new(server.service.tenants.of("main").jobs, JobRequest("evaluate", {}, ["true"]), {})
    job.write(state="failed")
    return server, ours, server.key("acme"), job.id


def everything(id: str) -> list[tuple[str, str, object]]:
    """Every request that names an adapter, a collection or a job."""
    chat = {"messages": [{"role": "user", "content": "What is the secret?"}], "max_tokens": 2}
    return [
        ("POST", "/v1/chat/completions", {**chat, "model": "lora"}),
        ("POST", "/v1/chat/completions", {**chat, "model": "main/lora"}),
        ("POST", "/v1/chat/completions", {**chat, "model": "../main/lora"}),
        ("POST", "/v1/chat/completions", {**chat, "model": "tiny", "halka": {"collection": "faq"}}),
        (
            "POST",
            "/v1/chat/completions",
            {**chat, "model": "tiny", "halka": {"collection": "../../main/collections/faq"}},
        ),
        ("GET", "/v1/models/lora", None),
        ("GET", "/v1/adapters/lora", None),
        ("GET", "/v1/adapters/lora/archive", None),
        ("GET", "/v1/adapters/lora/files/halka.json", None),
        *(("POST", f"/v1/adapters/lora/{action}", None) for action in ("load", "pin", "unpin", "unload")),
        ("PATCH", "/v1/adapters/lora", {"tags": ["mine"]}),
        ("DELETE", "/v1/adapters/lora", None),
        ("GET", "/v1/collections/faq", None),
        ("GET", "/v1/collections/faq/documents", None),
        ("POST", "/v1/collections/faq/search", {"query": "secret"}),
        ("DELETE", "/v1/collections/faq/documents/secret.md", None),
        ("DELETE", "/v1/collections/faq", None),
        ("GET", f"/v1/jobs/{id}", None),
        ("GET", f"/v1/jobs/{id}/events", None),
        ("GET", f"/v1/jobs/{id}/predictions", None),
        ("POST", f"/v1/jobs/{id}/resume", None),
        ("POST", f"/v1/jobs/{id}/stop", None),
        ("DELETE", f"/v1/jobs/{id}", None),
        ("POST", "/v1/jobs", {"kind": "evaluate", "adapters": ["lora"], "data": ROWS}),
    ]


def test_another_tenants_things_are_not_there(two):
    server, ours, theirs, id = two
    for method, path, body in everything(id):
        response = server.client.request(method, path, json=body, headers=theirs)
        assert response.status_code == 404, (method, path, response.text)
        assert "secret is" not in response.text
        assert str(server.service.settings.data) not in response.text
    for path in ("/v1/adapters", "/v1/collections", "/v1/jobs"):
        assert server.client.get(path, headers=theirs).json()["data"] == []
    assert {model["id"] for model in server.client.get("/v1/models", headers=theirs).json()["data"]} == {
        "tiny",
        "words",
    }
    for method, path, body in everything(id)[:1]:
        assert server.client.request(method, path, json=body, headers=ours).status_code == 200
    assert server.client.get("/v1/collections/faq", headers=ours).json()["documents"] == 1
    assert server.client.get(f"/v1/jobs/{id}", headers=ours).json()["status"] == "failed"


def test_the_same_names_are_others(two, store):
    """An upload under another tenant's name is a new adapter, and answers its own tenant alone."""
    server, ours, theirs, _ = two
    client = server.client
    files = [("files", (path.name, path.read_bytes())) for path in (store / "bottleneck" / "1").iterdir()]
    assert client.post("/v1/adapters", data={"name": "lora"}, files=files, headers=theirs).json()["version"] == 1
    assert client.post("/v1/collections", json={"name": "faq"}, headers=theirs).status_code == 201
    assert client.get("/v1/collections/faq/documents", headers=theirs).json()["data"] == []
    body = {"messages": [{"role": "user", "content": "Why?"}], "max_tokens": 8}

    def answer(model: str, headers: dict[str, str]) -> str:
        response = client.post("/v1/chat/completions", json={**body, "model": model}, headers=headers)
        return response.json()["choices"][0]["message"]["content"]

    assert answer("lora", theirs) == answer("bottleneck", ours) != answer("lora", ours)
    assert client.delete("/v1/adapters/lora", headers=theirs).status_code == 200
    assert client.get("/v1/adapters/lora", headers=ours).json()["versions"] == [1]


def test_a_link_between_tenants_leads_nowhere(two):
    server, _, theirs, id = two
    main, acme = server.service.tenants.of("main"), server.service.tenants.of("acme")
    for own, foreign in (
        (acme.store.folder / "lora", main.store.folder / "lora"),
        (acme.collections / "faq", main.collections / "faq"),
        (acme.jobs / id, main.jobs / id),
    ):
        own.parent.mkdir(parents=True, exist_ok=True)
        own.symlink_to(foreign)
    for method, path, body in everything(id):
        assert server.client.request(method, path, json=body, headers=theirs).status_code == 404, path
    assert {model["id"] for model in server.client.get("/v1/models", headers=theirs).json()["data"]} == {
        "tiny",
        "words",
    }


def test_who_may_only_ask_changes_nothing(two):
    server, _, _, id = two
    user = server.key("main", "user")
    changes = [
        (method, path, body) for method, path, body in everything(id) if method == "DELETE" or "/v1/jobs" in path
    ]
    changes += [("POST", f"/v1/adapters/lora/{action}", None) for action in ("load", "pin", "unpin", "unload")]
    changes += [("POST", "/v1/collections", {"name": "new"}), ("GET", "/v1/jobs", None)]
    changes += [("POST", "/v1/adapters/import", {"folder": "x"})]
    for method, path, body in changes:
        response = server.client.request(method, path, json=body, headers=user)
        assert (response.status_code, response.json()["error"]["code"]) == (403, "role_too_low"), path
    for path in ("/v1/adapters", "/v1/jobs/upload", "/v1/collections/faq/documents"):
        response = server.client.post(path, files=[("files", ("a.md", b"a"))], headers=user)
        assert response.status_code == 403, path
    for path in ("/v1/adapters/lora", "/v1/collections/faq/documents"):
        assert server.client.get(path, headers=user).status_code == 200
    assert server.client.get("/v1/adapters/lora/archive", headers=user).status_code == 403


def test_readers_are_roles_and_keys(two):
    server, ours, _, _ = two
    client, user = server.client, server.key("main", "user")
    text, key = server.service.guards.keys.add("main", "user")
    mine = {"authorization": f"Bearer {text}"}
    for name, reader in (("managers.md", "manager"), ("mine.md", key.id), ("tenants.md", "main"), ("nobodys.md", "x")):
        files = [("files", (name, b"The secret is ten."))]
        path = "/v1/collections/faq/documents"
        assert client.post(path, files=files, data={"readers": reader}, headers=ours).status_code == 201
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "The secret?"}], "max_tokens": 1}

    def seen(headers: dict[str, str]) -> set[str]:
        listed = client.get("/v1/collections/faq/documents", headers=headers).json()["data"]
        found = client.post("/v1/collections/faq/search", json={"query": "secret", "count": 50}, headers=headers).json()
        names = {document["id"] for document in listed}
        assert {hit["document"] for hit in found["data"]} <= names
        body = chat | {"halka": {"collection": "faq", "passages": 50}}
        answer = client.post("/v1/chat/completions", json=body, headers=headers).json()
        assert {source["document"] for source in answer["halka"]["sources"]} <= names
        return names

    assert seen(ours) == {"secret.md", "managers.md", "tenants.md"}
    assert seen(user) == {"secret.md", "tenants.md"}
    assert seen(mine) == {"secret.md", "tenants.md", "mine.md"}


def test_a_tenant_stores_no_more_than_its_keys_limit(base, store, tmp_path):
    from halka.server.guards.keys import Limits

    with InProcess.open(base, store, tmp_path / "data") as server:
        small = server.key("acme", limits=Limits(storage=20_000))
        files = [("files", (path.name, path.read_bytes())) for path in (store / "lora" / "1").iterdir()]
        refused = server.client.post("/v1/adapters", data={"name": "lora"}, files=files, headers=small)
        assert (refused.status_code, refused.json()["error"]["code"]) == (413, "storage_full")
        assert server.client.post("/v1/collections", json={"name": "faq"}, headers=small).status_code == 201
        big = [("files", ("big.md", b"word " * 5000))]
        refused = server.client.post("/v1/collections/faq/documents", files=big, headers=small)
        assert (refused.status_code, refused.json()["error"]["code"]) == (413, "storage_full")
        whole = [("data", ("rows.jsonl", b'{"prompt": "a", "completion": "b"}\n' * 1000))]
        job = {"job": json.dumps({"kind": "train", "name": "new"})}
        refused = server.client.post("/v1/jobs/upload", data=job, files=whole, headers=small)
        assert (refused.status_code, refused.json()["error"]["code"]) == (413, "storage_full")
        rows = {"kind": "train", "name": "new", "data": [{"prompt": "a", "completion": "b"}] * 1000}
        refused = server.client.post("/v1/jobs", json=rows, headers=small)
        assert (refused.status_code, refused.json()["error"]["code"]) == (413, "storage_full")


def test_an_import_that_has_no_room_is_refused_before_its_copy(base, store, tmp_path):
    from halka.server.guards.keys import Limits

    shutil.copytree(store / "lora" / "1", tmp_path / "root" / "big")
    with (tmp_path / "root" / "big" / "adapter_model.safetensors").open("r+b") as file:
        file.truncate(2_000_000)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with InProcess.open(base, store, tmp_path / "data", adapter_roots=(Path(f"acme={tmp_path / 'root'}"),)) as server:
        small = server.key("acme", limits=Limits(storage=20_000))
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))  # its copy would fail
        try:
            refused = server.client.post("/v1/adapters/import", json={"folder": "big"}, headers=small)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert (refused.status_code, refused.json()["error"]["code"]) == (413, "storage_full")

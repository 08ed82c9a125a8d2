"""What is damaged on the disk fails its own requests, and no route names a folder, whole or relative."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
import threading
from pathlib import Path

import pytest

from halka.server.jobs.folder import JobFolder, JobRequest
from halka.server.jobs.queue import JobQueue
from halka.storage.adapter_store import AdapterStore
from serving_for_tests import InProcess, until

ROWS = [{"prompt": "a", "completion": "b"}]
CHAT = {"model": "lora", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
BODIES = {
    "/v1/chat/completions": [CHAT, CHAT | {"model": "tiny", "halka": {"collection": "faq"}}],
    "/v1/completions": [{"model": "lora", "prompt": "a", "max_tokens": 1}],
    "/v1/responses": [{"model": "lora", "input": "a", "max_output_tokens": 1}],
    "/v1/embeddings": [{"model": "words", "input": "a"}],
    "/v1/collections": [{"name": "new"}],
    "/v1/collections/{collection}/search": [{"query": "a"}],
    "/v1/adapters/import": [{"folder": "lora/1", "name": "new"}],
    "/v1/jobs": [
        {"kind": "evaluate", "data": ROWS, "adapters": ["lora"]},
        {"kind": "evaluate", "data": [{"nothing": 1}]},
        {"kind": "evaluate", "data": ROWS, "metrics": ["x"]},
    ],
}
"""What goes to each path that reads JSON; nothing to the others."""
NAMES = {"name": "lora", "file": "halka.json", "model": "lora", "collection": "faq", "document": "a.md"}


def requests(server: InProcess, store: Path, job: JobFolder):
    """A request, or several, to each route of the application: those that remove something are the last."""
    paths = server.client.app.openapi()["paths"]
    routes = [(method.upper(), path) for path, methods in paths.items() for method in methods]
    weights = (store / "lora" / "1" / "adapter_model.safetensors").read_bytes()
    files = {
        "/v1/adapters": ({"name": "new"}, [("files", ("adapter_model.safetensors", weights))]),
        "/v1/collections/{collection}/documents": ({}, [("files", ("b.md", b"b"))]),
        "/v1/files": ({}, [("file", ("rows.jsonl", b"{}"))]),
        "/v1/jobs/upload": ({"job": json.dumps({"kind": "evaluate"})}, [("data", ("rows.jsonl", b"{"))]),
    }
    for method, path in sorted(routes, key=lambda route: route[0] == "DELETE"):
        place = path.replace("{document:path}", "{document}").replace("{model:path}", "{model}")
        place = place.format_map(NAMES | {"id": job.id if "jobs" in path else "lora"})
        if method == "POST" and path in files:
            fields, uploads = files[path]
            yield server.client.post(place, data=fields, files=uploads)
        elif method == "POST" and path in BODIES:
            for body in BODIES[path]:
                yield server.client.post(place, json=body)
        else:
            yield server.client.request(method, place)


PLAIN, SPACES = "own-", "my own ঘর "


@pytest.mark.parametrize(
    ("damage", "own"),
    [
        ("adapter_model.safetensors", SPACES),
        ("adapter_config.json", SPACES),
        ("halka.json", SPACES),
        ("halka.json", PLAIN),
        ("tags.json", SPACES),
        ("store.json", SPACES),
        ("collection.json", SPACES),
        ("collection.json", PLAIN),
        ("state.json", SPACES),
        ("job.json", SPACES),
        ("job.json", PLAIN),
    ],
)
def test_no_route_names_a_folder(base, stored, tmp_path, monkeypatch, damage, own):
    monkeypatch.chdir(tmp_path)
    store, data = Path(f"{own}store"), Path(f"{own}data")
    shutil.copytree(stored, store)
    AdapterStore(store).tag("lora", ["new"])
    with InProcess.open(base, store, data, adapter_roots=(store,)) as server:
        server.client.post("/v1/collections", json={"name": "faq"})
        job = JobFolder.new(server.service.tenants.of("main").jobs, JobRequest("evaluate", {}, ["true"]), {})
        written = data.absolute() if " " in own else data
        job.write(state="failed", error=f"{written}/tenants/main/x.jsonl is damaged")  # so that its events end
        places = [path for folder in (store, data) for path in folder.rglob(damage) if "prefix" not in path.parts]
        assert places
        for place in places:
            place.write_text("{")
        statuses = list[int]()
        for response in requests(server, store, job):
            if response.headers.get("content-type", "").startswith(("application/json", "text/event-stream")):
                for secret in (str(tmp_path), f"{own}store", f"{own}data", "ঘর", "tenants/", "uploads/"):
                    assert secret not in response.text, (response.request.method, response.url)
            statuses.append(response.status_code)
        assert max(statuses) < 500
        assert statuses.count(409) + statuses.count(400) > 1


@pytest.mark.parametrize("change", ["load", "pin"])
def test_a_damaged_adapter_is_not_loaded_and_its_folder_not_named(client, store, change):
    (weights,) = (store / "lora").rglob("*.safetensors")
    weights.write_bytes(b"damaged")
    response = client.post(f"/v1/adapters/lora/{change}")
    assert response.status_code == 409
    assert "damaged" in (message := response.json()["error"]["message"])
    assert str(store) not in message
    assert "/" not in message


@pytest.mark.parametrize(
    ("file", "content"),
    [("1/halka.json", "{"), ("1/halka.json", "[" * 10**5), *(("tags.json", text) for text in ("{", "{}", "[1]", "0"))],
)
def test_a_damaged_adapter_is_listed_with_its_reason_beside_the_others_and_can_go(client, store, file, content):
    (store / "lora" / file).write_text(content)
    listed = {entry["id"]: entry for entry in client.get("/v1/adapters").json()["data"]}
    assert {*listed} == {"lora", "prefix", "bottleneck"}
    assert {*listed["lora"]} == {*listed["prefix"], "error"}
    assert (listed["lora"]["versions"], listed["lora"]["method"]) == ([1], None)
    assert Path(file).name in (reason := listed["lora"]["error"])
    assert "/" not in reason
    assert client.get("/v1/adapters/lora").json() == {**listed["lora"], "curve": None, "fingerprint": None}
    refused = client.post("/v1/chat/completions", json=CHAT)
    assert (refused.status_code, refused.json()["error"]["message"]) == (400, reason)
    assert client.post("/v1/chat/completions", json=CHAT | {"model": "prefix"}).status_code == 200
    assert client.delete("/v1/adapters/lora").json()["deleted"]
    assert {entry["id"] for entry in client.get("/v1/adapters").json()["data"]} == {"prefix", "bottleneck"}


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"fingerprint": 1}'])
def test_a_store_that_forgot_its_base_says_what_to_do(client, store, content):
    (store / "store.json").write_text(content)
    files = [("files", (path.name, path.read_bytes())) for path in (store / "lora" / "1").iterdir()]
    refused = client.post("/v1/adapters", data={"name": "new"}, files=files)
    assert refused.status_code == 400
    assert "store.json is damaged: remove it" in refused.json()["error"]["message"]
    assert len(client.get("/v1/adapters").json()["data"]) == 3


@pytest.mark.parametrize("file", ["collection.json", "passages.lance"])
def test_a_damaged_collection_is_listed_with_its_reason_beside_the_others_and_can_go(client, server, file):
    for name in ("faq", "whole"):
        client.post("/v1/collections", json={"name": name})
    place = server.service.tenants.of("main").collections / "faq" / file
    for path in [*place.rglob("*")] if place.is_dir() else [place]:
        if path.is_file():
            path.write_text("{")
    listed = {entry["id"]: entry for entry in client.get("/v1/collections").json()["data"]}
    assert {*listed} == {"faq", "whole"}
    assert {*listed["faq"]} == {*listed["whole"], "error"}
    assert listed["faq"]["documents"] is None
    assert file == "passages.lance" or "collection.json is damaged" in listed["faq"]["error"]
    assert "/" not in listed["faq"]["error"]
    assert client.delete("/v1/collections/faq").json()["deleted"]
    assert [entry["id"] for entry in client.get("/v1/collections").json()["data"]] == ["whole"]
    assert client.post("/v1/collections", json={"name": "faq"}).status_code == 201


# ── jobs ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def jobs(server) -> tuple[JobFolder, JobFolder]:
    folder = server.service.tenants.of("main").jobs
    first, second = (JobFolder.new(folder, JobRequest("evaluate", {}, ["true"]), {}) for _ in range(2))
    return first, second


CONTENTS = ("", "{}", "[]", "{", '{"state": "lost", "queued": 1}', "[" * 10**5)


@pytest.mark.parametrize(
    ("file", "content"),
    [(file, content) for file in ("state.json", "job.json") for content in (None, *CONTENTS)],
    ids=lambda value: str(value)[:12],
)
def test_a_damaged_job_is_listed_as_failed_beside_the_others_and_can_go(client, jobs, file, content):
    damaged, whole = jobs
    (damaged.path / file).unlink()
    if content is not None:
        (damaged.path / file).write_text(content)
    listed = {view["id"]: view for view in client.get("/v1/jobs").json()["data"]}
    assert {*listed} == {damaged.id, whole.id}
    assert {*listed[damaged.id]} == {*listed[whole.id]}
    assert listed[whole.id]["status"] == "queued"
    assert listed[damaged.id]["status"] == "failed"
    assert f"{file} of {damaged.id} is damaged" in listed[damaged.id]["error"]
    assert client.get(f"/v1/jobs/{damaged.id}").json() == listed[damaged.id]
    assert "event: status" in client.get(f"/v1/jobs/{damaged.id}/events").text
    if file == "state.json":
        for change in ("stop", "resume"):
            assert client.post(f"/v1/jobs/{damaged.id}/{change}").status_code == 409
    assert client.delete(f"/v1/jobs/{damaged.id}").json()["deleted"]
    assert [view["id"] for view in client.get("/v1/jobs").json()["data"]] == [whole.id]


@pytest.mark.parametrize("file", ["state.json", "job.json"])
def test_a_damaged_job_that_runs_can_be_stopped_and_go(client, jobs, tmp_path, file):
    request = JobRequest("evaluate", {}, [sys.executable, "-c", "import time; time.sleep(100)"])
    for job in jobs:
        job.stop()
    job = JobFolder.new(jobs[0].path.parent, request, {})
    assert JobQueue(lambda: [job.path.parent], tmp_path / "lock").look() == 1
    until(lambda: job.written()["state"] == "running", "it does not begin")
    (job.path / file).write_text("{")
    view = client.get(f"/v1/jobs/{job.id}").json()
    assert view["status"] == "running"
    assert f"{file} of {job.id} is damaged" in view["error"]
    refused = client.delete(f"/v1/jobs/{job.id}")
    assert (refused.status_code, refused.json()["error"]["message"]) == (409, f"{job.id} is running: stop it first")
    assert client.post(f"/v1/jobs/{job.id}/stop").json()["status"] in ("stopping", "failed")
    until(lambda: not job.alive, "it does not end")
    assert client.delete(f"/v1/jobs/{job.id}").json()["deleted"]


def test_a_damaged_step_is_no_step(client, jobs):
    job, _ = jobs
    (job.path / "run").mkdir()
    (job.path / "run" / "metrics.jsonl").write_text('{"step": 1, "loss": NaN}\n{\n[]\n')
    job.write(state="failed")
    events = client.get(f"/v1/jobs/{job.id}/events").text
    assert 'data: {"step":1,"loss":null}' in events
    assert client.get(f"/v1/jobs/{job.id}").json()["last_step"] is None


def test_a_jobs_error_and_result_name_no_folder(client, jobs):
    job, _ = jobs
    job.write(state="failed", error="/srv/models/tiny and own/run/adapter.safetensors are damaged")
    assert client.get(f"/v1/jobs/{job.id}").json()["error"] == "tiny and adapter.safetensors are damaged"
    (job.path / "output.json").write_text('{"loss": NaN, "notes": ["see /srv/a/b.txt,\\nor c"]}')
    job.write(state="done", error=None)
    assert client.get(f"/v1/jobs/{job.id}").json()["result"] == {"loss": None, "notes": ["see b.txt,\nor c"]}


@pytest.mark.parametrize(("method", "path"), [("GET", ""), ("GET", "/events"), ("POST", "/stop"), ("POST", "/resume")])
def test_a_job_that_goes_meanwhile_is_not_there(client, jobs, method, path):
    job, _ = jobs
    state = job.path / "state.json"
    state.unlink()
    os.mkfifo(state)

    def remove() -> None:
        with state.open("w") as file:  # once somebody reads it
            job.path.rename(job.path.with_name(f".{job.id}"))
            file.write('{"state": "queued", "queued": 1}')

    removing = threading.Thread(target=remove, daemon=True)
    removing.start()
    assert client.request(method, f"/v1/jobs/{job.id}{path}").status_code == 404
    removing.join()


def test_a_job_that_somebody_looks_at_is_deleted_all_the_same(client, jobs):
    job, _ = jobs
    lock = os.open(job.path / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_SH)
    letting_go = threading.Timer(0.2, os.close, [lock])
    letting_go.start()
    assert client.delete(f"/v1/jobs/{job.id}").status_code == 200
    letting_go.join()


def test_a_server_whose_queue_has_ended_is_not_ready(client, server):
    assert client.get("/readyz").status_code == 200
    client.portal.call(server.service.jobs.aclose)
    response = client.get("/readyz")
    assert (response.status_code, response.json()) == (503, {"status": "the queue of jobs has stopped"})

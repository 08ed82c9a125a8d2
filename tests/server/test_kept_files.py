"""`/v1/files`: data is sent once, named by what follows, and kept for a while alone."""

from __future__ import annotations

import asyncio
import json
import os
import time
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from full_disk import file_limit
from halka.server.guards.keys import Limits
from halka.server.jobs import files
from halka.server.jobs.folder import JobFolder
from halka.server.resources.uploads import remove_stale
from serving_for_tests import InProcess, LooksHere, until

ROWS = b'{"prompt": "Why?", "completion": "So."}\n' * 3
LONG = ROWS * 1000
TRAIN = {"kind": "train", "name": "why"}


def keep(server: InProcess, content: bytes = ROWS, name: str = "mine.jsonl", **more) -> str:
    """The id of a file that is kept."""
    response = server.client.post("/v1/files", files={"file": (name, content)}, **more)
    assert response.status_code == 201, response.text
    return response.json()["id"]


def test_a_file_is_looked_at_estimated_with_and_trained_on(server):
    server.service.looks = LooksHere()
    made = server.client.post("/v1/files", files={"file": ("মেঘ.CSV", b"prompt,completion\nWhy?,So.\n")}).json()
    about = made["filename"], made["bytes"], made["expires_at"] - made["created_at"]
    assert about == ("মেঘ.CSV", 27, server.service.file_life)
    named = {"data_file": made["id"], "validation_file": keep(server)}
    seen = server.client.post("/v1/data/preview", json=named).json()
    assert (seen["examples"], seen["shown"][0]["where"], seen["shared"]["count"]) == (1, "মেঘ.csv:2", 1)
    assert server.client.post("/v1/estimate", json=named).json()["steps"] >= 1
    for _ in range(2):
        job = server.client.post("/v1/jobs", json=TRAIN | named)
        assert job.status_code == 201, job.text
        folder = server.service.tenants.of("main").jobs / job.json()["id"]
        assert (folder / "data" / "মেঘ.csv").read_bytes().startswith(b"prompt,")
        assert (folder / "validation" / "mine.jsonl").read_bytes() == ROWS
        assert yaml.safe_load((folder / "settings.yaml").read_text())["data"] == ["data/মেঘ.csv"]
        assert job.json()["files"] == {"data": "মেঘ.csv", "validation": "mine.jsonl"}


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("My letters (2026).v2.JSONL", "My-letters-2026-v2.jsonl"),
        ("-rf; $(x) `y`.jsonl", "rf-x-y.jsonl"),
        ("র‍্যাঙ্ক.jsonl", "র‍্যাঙ্ক.jsonl"),
        ("…!.jsonl", "data.jsonl"),
        ("আ" * 150 + ".jsonl", "আ" * 50 + ".jsonl"),
    ],
)
def test_a_file_keeps_its_name_but_for_what_no_name_needs(server, name, plain):
    job = server.client.post("/v1/jobs", json=TRAIN | {"data_file": keep(server, ROWS, name)}).json()
    folder = server.service.tenants.of("main").jobs / job["id"]
    assert [path.name for path in (folder / "data").iterdir()] == [job["files"]["data"]] == [plain]
    JobFolder(folder).write(state="failed", error=f"{folder}/data/{plain}:3 is no row")
    assert server.client.get(f"/v1/jobs/{job['id']}").json()["error"] == f"{plain}:3 is no row"


def test_a_list_is_whole_and_says_so(server):
    """OpenAI's client asks for more, after the last one, until it hears that there is none."""
    ids = {keep(server), keep(server)}
    listed = server.client.get("/v1/files").json()
    assert {file["id"] for file in listed["data"]} == ids
    assert listed["has_more"] is False


def test_a_full_temporary_disk_is_the_servers_fault_and_in_its_log(server, caplog):
    with file_limit(1_500_000):
        response = server.client.post("/v1/files", files={"file": ("mine.jsonl", ROWS * 20_000)})
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")
    assert "File too large" in caplog.text
    assert keep(server)


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"data_file": "file-0123456789abcdef"}, 404, "data_file"),
        ({"data_file": "../../keys"}, 400, "train.data_file"),
        ({"data_file": "KEPT", "data": [{"prompt": "a", "completion": "b"}]}, 400, "data"),
        ({"data_file": "KEPT", "task": "support"}, 400, "data"),
    ],
)
def test_what_names_no_file_is_refused(server, body, status, param):
    id = keep(server)
    response = server.client.post("/v1/jobs", json=TRAIN | json.loads(json.dumps(body).replace("KEPT", id)))
    assert (response.status_code, response.json()["error"]["param"]) == (status, param), response.text


def test_a_file_comes_in_one_way(server):
    job = json.dumps(TRAIN | {"data_file": keep(server)})
    response = server.client.post("/v1/jobs/upload", data={"job": job}, files={"data": ("a.jsonl", ROWS)})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "data_file")


def test_it_is_its_tenants_and_counts_as_stored(server):
    mine, theirs = server.key("main"), server.key("acme", limits=Limits(storage=len(ROWS) + 500))
    id, storage = keep(server, headers=theirs), server.service.tenants.of("acme").storage
    assert server.client.post("/v1/data/preview", json={"data_file": id}, headers=mine).status_code == 404
    assert storage.used() == len(ROWS)
    full = server.client.post("/v1/files", files={"file": ("a.jsonl", ROWS * 9)}, headers=theirs)
    assert (full.status_code, full.json()["error"]["code"]) == (413, "storage_full")
    user = server.client.post("/v1/files", files={"file": ("a.jsonl", ROWS)}, headers=server.key("acme", "user"))
    assert user.status_code == 403


def test_it_counts_once_however_many_jobs_have_it(server):
    """They share its bytes: a tenant with room for them would else be refused, or its job not begin."""
    mine = server.key("main", limits=Limits(storage=3 * len(LONG)))
    id, storage = keep(server, LONG, headers=mine), server.service.tenants.of("main").storage
    before = storage.used()
    for _ in range(3):
        job = server.client.post("/v1/jobs", json=TRAIN | {"data_file": id}, headers=mine)
        assert job.status_code == 201, job.text
    assert storage.used() < before + len(LONG)
    server.service.tenants.of("main").files.joinpath(f"{id}.mine.jsonl").unlink()
    assert storage.used() > len(LONG), "as long as a job has it"


def test_the_newest_stay_and_none_for_long(server, monkeypatch):
    ids = [keep(server) for _ in range(files.MOST + 1)]
    folder = server.service.tenants.of("main").files
    assert {path.name.partition(".")[0] for path in folder.glob("file-*")} == {*ids[1:]}
    gone = server.client.post("/v1/estimate", json={"data_file": ids[0]})
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "no_file")
    monkeypatch.setattr(server.service, "file_life", 0)
    id = keep(server)
    assert server.client.get("/healthz").status_code == 200, "the loop has turned"
    assert server.client.post("/v1/estimate", json={"data_file": id}).status_code == 404


def test_files_are_listed_and_removed(server):
    mine, theirs = server.key("main"), server.key("acme")
    ids = [keep(server, ROWS * count, headers=mine) for count in (1, 2)]
    listed = server.client.get("/v1/files", headers=mine).json()["data"]
    assert [(file["id"], file["bytes"]) for file in listed] == [(ids[1], 2 * len(ROWS)), (ids[0], len(ROWS))]
    assert server.client.get(f"/v1/files/{ids[0]}", headers=mine).json() == listed[1]
    assert server.client.get("/v1/files", headers=theirs).json()["data"] == []
    nobodys = ((theirs, ids[0]), *((mine, id) for id in ("file-*", f"{ids[0][:-1]}?", f"{ids[0]}.jsonl", ".", "")))
    for method in ("GET", "DELETE"):
        for headers, id in nobodys[: 4 if method == "GET" else None]:
            response = server.client.request(method, f"/v1/files/{id}", headers=headers)
            assert response.status_code in (404, 405), response.text
    assert len(server.client.get("/v1/files", headers=mine).json()["data"]) == 2
    gone = server.client.delete(f"/v1/files/{ids[0]}", headers=mine).json()
    assert gone == {"id": ids[0], "object": "file", "deleted": True}
    assert [file["id"] for file in server.client.get("/v1/files", headers=mine).json()["data"]] == [ids[1]]
    assert server.client.delete(f"/v1/files/{ids[0]}", headers=mine).status_code == 404
    job = server.client.post("/v1/jobs", json=TRAIN | {"data_file": ids[0]}, headers=mine)
    assert (job.status_code, job.json()["error"]["code"]) == (404, "no_file")


def age(server: InProcess, id: str, seconds: float) -> None:
    """Let a file be so old."""
    then = time.time() - seconds
    os.utime(server.service.tenants.of("main").files / f"{id}.mine.jsonl", (then, then))


def test_another_server_at_the_same_data_leaves_files_that_are_not_old(server):
    server.service.looks = LooksHere()
    life, tenant = server.service.file_life, server.service.tenants.of("main")
    old, new, future = (keep(server) for _ in range(3))
    for id, seconds in ((old, life), (new, life / 2), (future, -life)):
        age(server, id, seconds)
    (tenant.files / "file-folder").mkdir()
    remove_stale(server.service.settings.data, server.service.tenants.all())
    assert len([*tenant.files.glob("file-*.jsonl")]) == 3
    sweep = server.client.portal.start_task_soon(files.end_old_files, server.service)
    until(lambda: [path.name for path in tenant.files.glob("file-*.jsonl")] == [f"{new}.mine.jsonl"], "old files end")
    sweep.cancel()
    assert not {old, future} & {file["id"] for file in server.client.get("/v1/files").json()["data"]}
    assert server.client.post("/v1/estimate", json={"data_file": new}).status_code == 200


def test_what_a_killed_server_left_ends_while_another_runs(server):
    tenant, data = server.service.tenants.of("main"), server.service.settings.data
    left = [data / "uploads" / "half", tenant.jobs / ".job-half", tenant.collections / ".faq.1a2b3c4d"]
    new, other = tenant.collections / ".new.1a2b3c4d", tenant.collections / ".mine"
    for folder in (*left, new, other):
        folder.mkdir(parents=True)
    for folder in (*left, other):
        os.utime(folder, (0, 0))
    sweep = server.client.portal.start_task_soon(files.end_old_files, server.service)
    until(lambda: not any(folder.exists() for folder in left), "they stay")
    sweep.cancel()
    assert new.exists()
    assert other.exists()


def test_a_file_is_not_named_beyond_its_hour(server):
    id = keep(server)
    age(server, id, server.service.file_life)
    assert server.client.post("/v1/estimate", json={"data_file": id}).status_code == 404
    assert not [*server.service.tenants.of("main").files.glob("file-*")]


def test_what_fails_once_does_not_end_the_removal_of_old_files(caplog):
    async def fails(*arguments):
        raise OSError("too many open files")

    async def watched() -> bool:
        service: Any = SimpleNamespace(threads=SimpleNamespace(manage=fails), tenants=SimpleNamespace(all=None))
        watching = asyncio.create_task(files.end_old_files(service))
        while not caplog.records:
            await asyncio.sleep(0)
        goes_on = not watching.done()
        watching.cancel()
        return goes_on

    assert asyncio.run(watched())
    assert "could not be removed" in caplog.text

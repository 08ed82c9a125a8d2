"""Merges as jobs: the error is measured, what is written is downloaded, and nobody merges what is another's."""

from __future__ import annotations

import io
import time
import zipfile

import httpx
import pytest

from halka.server.guards.keys import Limits
from halka.server.jobs.folder import JobFolder, JobRequest
from serving_for_tests import InProcess


@pytest.fixture
def server(base, store, tmp_path):
    """A server that starts jobs."""
    with InProcess.open(base, store, tmp_path / "data", jobs=1) as server:
        yield server


def merge(client: httpx.Client, **job) -> dict:
    """A merge that has ended."""
    response = client.post("/v1/jobs", json={"kind": "merge", "adapter": "lora", **job})
    assert response.status_code == 201, response.text
    return ended(client, response.json()["id"])


def ended(client: httpx.Client, id: str) -> dict:
    """A job that has ended."""
    end = time.monotonic() + 300
    while (job := client.get(f"/v1/jobs/{id}").json())["status"] in ("queued", "running"):
        assert time.monotonic() < end, job
        time.sleep(0.1)
    return job


@pytest.mark.slow
def test_a_merge_is_measured_written_and_downloaded(client, tmp_path):
    job = merge(client, format="safetensors")
    assert job["status"] == "done", job
    assert job["result"]["error"]["relative"] < 0.05
    assert str(tmp_path) not in str(job)
    archive = client.get(f"/v1/jobs/{job['id']}/archive")
    with zipfile.ZipFile(io.BytesIO(archive.content)) as files:
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= {*files.namelist()}
        assert files.testzip() is None
    assert archive.headers["content-disposition"] == f'attachment; filename="{job["id"]}.zip"'


@pytest.mark.slow
def test_what_cannot_be_merged_says_why_and_has_nothing_to_download(client):
    job = merge(client, adapter="prefix@1", format="safetensors")
    assert job["status"] == "failed"
    assert "prefix" in job["error"]
    assert client.get(f"/v1/jobs/{job['id']}/archive").status_code == 404


@pytest.mark.parametrize(
    ("job", "status", "param"),
    [
        ({"adapter": "nobody"}, 404, "adapter"),
        ({"adapter": "lora@7"}, 404, "adapter"),
        ({"adapter": "../lora"}, 400, "merge.adapter"),
        ({"adapter": "--into=/tmp"}, 400, "merge.adapter"),
        ({"format": "pickle"}, 400, "merge.format"),
        ({"format": "peft", "dtype": "q8_0"}, 400, "dtype"),
        ({"dtype": "float32"}, 400, "merge"),
        ({"limit": -1}, 400, "merge.limit"),
        ({"data": [{"prompt": "Why?", "completion": "So."}]}, 400, "merge.data"),
    ],
)
def test_a_wrong_merge_is_refused_at_once(visitor, job, status, param):
    response = visitor.post("/v1/jobs", json={"kind": "merge", "adapter": "lora", **job})
    assert (response.status_code, response.json()["error"]["param"]) == (status, param), response.text


def test_what_is_written_has_room_beforehand(server, base):
    """As the request comes, and again when the job begins: others may have filled it meanwhile."""
    whole, job = (base / "model.safetensors").stat().st_size, {"kind": "merge", "adapter": "lora"}
    stored = server.service.tenants.of("main").storage.used()
    for room, formats in ((whole - 1, {"safetensors": 413, "peft": 201}), (4 * whole, {"gguf": 201})):
        headers = server.key("main", limits=Limits(storage=stored + room))
        for format, status in formats.items():
            response = server.client.post("/v1/jobs", json=job | {"format": format}, headers=headers)
            assert response.status_code == status, response.text
            if status == 201:
                server.client.post(f"/v1/jobs/{response.json()['id']}/stop", headers=headers)
            else:
                assert response.json()["error"]["code"] == "storage_full"


def test_a_name_alone_means_its_newest_version_as_the_merge_is_asked_for(server):
    """Else it would be of one that comes while it waits, and the page could not say whose it is."""
    job = server.client.post("/v1/jobs", json={"kind": "merge", "adapter": "lora"}).json()
    assert job["settings"]["adapter"] == "lora@1"
    folder = JobFolder(server.service.tenants.of("main").jobs / job["id"])
    assert "lora@1" in folder.request().command
    server.client.post(f"/v1/jobs/{job['id']}/stop")


def test_a_merge_that_has_no_room_any_more_does_not_begin(server):
    tenant = server.service.tenants.of("acme")
    request = JobRequest("merge", {}, ["false"], storage=tenant.storage.described(), room=10_000)
    job = JobFolder.new(tenant.jobs, request, {}, limit=9_000)
    server.client.headers = httpx.Headers(server.key("acme"))
    view = ended(server.client, job.id)
    assert view["status"] == "failed"
    assert "10,000 more do not fit" in view["error"]


WRITES = "open('merged.gguf', 'x').write('whole'); print('{}')"  # where none is there, as the command


@pytest.mark.slow
def test_a_merge_that_was_killed_when_it_had_written_its_file_is_resumed(server, tmp_path):
    tenant, written = server.service.tenants.of("main"), tmp_path / "written"
    written.write_text("of before")
    job = JobFolder.new(tenant.jobs, JobRequest("merge", {}, ["python", "-c", WRITES]), {"merged.gguf": written})
    view = ended(server.client, job.id)
    assert view["status"] == "done", view
    assert (job.path / "merged.gguf").read_text() == "whole"


@pytest.mark.parametrize("format", ["safetensors", "gguf"])
def test_no_whole_model_is_written_of_a_quantised_base(base, store, tmp_path, format):
    with InProcess.open(base, store, tmp_path / "data", quantize="int8") as server:
        response = server.client.post("/v1/jobs", json={"kind": "merge", "adapter": "lora", "format": format})
        assert (response.status_code, response.json()["error"]["param"]) == (400, "format")
        assert "in int8" in response.json()["error"]["message"]


def test_another_tenants_adapter_is_not_there(server):
    acme = server.key("acme", "manager")
    job = {"kind": "merge", "adapter": "lora"}
    assert server.client.post("/v1/jobs", json=job, headers=acme).status_code == 404
    assert server.client.post("/v1/jobs", json=job, headers=server.key("main", "user")).status_code == 403

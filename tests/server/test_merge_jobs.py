"""Merges as jobs: the error is measured, what is written is downloaded, and nobody merges what is another's."""

from __future__ import annotations

import io
import time
import zipfile

import httpx
import pytest

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
    end = time.monotonic() + 300
    while (job := client.get(f"/v1/jobs/{response.json()['id']}").json())["status"] in ("queued", "running"):
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
def test_a_wrong_merge_is_refused_at_once(client, job, status, param):
    response = client.post("/v1/jobs", json={"kind": "merge", "adapter": "lora", **job})
    assert (response.status_code, response.json()["error"]["param"]) == (status, param), response.text


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

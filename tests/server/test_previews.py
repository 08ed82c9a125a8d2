"""`/v1/data/preview` and `/v1/estimate`: a draft looked at before it is a job, in a process that has its bounds."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import threading
from dataclasses import replace
from pathlib import Path

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from guarded_for_tests import until
from halka.data.preview import preview
from halka.models.description import load_tokenizer
from halka.server.errors import ApiError
from halka.server.guards.keys import Limits
from halka.server.one_at_a_time import OneAtATime
from halka.server.previews.looks import Looks
from serving_for_tests import LooksHere

ROWS = [{"prompt": f"What is {a} plus {b}?", "completion": str(a + b)} for a in range(4) for b in range(4)]
SHAREGPT = [{"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]}] * 3
OPENAI = [{"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}], "id": 7}] * 3


@pytest.fixture
def here(server) -> httpx.Client:
    """A client of a server that looks at drafts in this process."""
    server.service.looks = LooksHere()
    return server.client


def lines(rows) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def parquet(rows, path: Path) -> bytes:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path.read_bytes()


def keep(client, name: str, content: bytes) -> str:
    """The id of a file that is kept."""
    response = client.post("/v1/files", files={"file": (name, content)})
    assert response.status_code == 201, response.text
    return response.json()["id"]


def test_what_a_training_would_read(server, base, tmp_path):
    """As `halka data preview` says it; its lists have an end. In this process it is the same."""
    rows = [*ROWS, ROWS[0], {"prompt": "Why?"}, {"prompt": "What? " * 300, "completion": "Long."}]
    draft = {"data": rows, "examples": 2, "settings": {"train": {"max_length": 60}}}
    response = server.client.post("/v1/data/preview", json=draft)
    assert response.status_code == 200, response.text
    seen = response.json()
    server.service.looks = LooksHere()
    assert server.client.post("/v1/data/preview", json=draft).json() == seen
    (tmp_path / "data.jsonl").write_bytes(lines(rows))
    same = preview(tmp_path / "data.jsonl", load_tokenizer(base), 60, show=2, batch_tokens=1024)
    assert (seen["shape"], seen["fields"], seen["unread"]) == ("prompt", ["prompt", "completion"], [])
    assert (seen["examples"], seen["loss_share"]) == (18, same.loss_share)
    assert seen["lengths"]["longest"] == same.lengths.longest
    assert seen["lengths"]["longest_at"] == "data.jsonl:19"
    assert seen["lengths"]["quantiles"].keys() == {"50", "90", "95", "99"}
    assert (seen["lengths"]["max_length"], seen["lengths"]["too_long"]) == (60, 1)
    assert sum(bin["examples"] for bin in seen["lengths"]["bins"]) == 18
    assert seen["problems"] == {
        "count": 1,
        "first": [{"where": "data.jsonl:18", "line": 18, "reason": same.problems[0].reason}],
    }
    assert seen["repeated"] == {
        "count": 1,
        "first": [{"first": "data.jsonl:1", "second": "data.jsonl:17", "same_answer": True}],
    }
    assert seen["packing"]["computed"] <= seen["packing"]["useful"] <= seen["packing"]["padded"]
    assert seen["shared"] is None
    first, _ = seen["shown"]
    assert "".join(span["text"] for span in first["spans"] if span["loss"]).startswith("0")
    assert sum(span["tokens"] for span in first["spans"]) == first["tokens"]


@pytest.mark.parametrize(
    ("name", "rows", "shape", "unread"),
    [
        ("a.jsonl", OPENAI, "messages", ["id"]),
        ("a.PARQUET", SHAREGPT, "sharegpt", []),
    ],
)
def test_files_of_every_kind(here, tmp_path, name, rows, shape, unread):
    content = parquet(rows, tmp_path / "a") if name.lower().endswith("parquet") else lines(rows)
    response = here.post("/v1/data/preview", json={"data_file": keep(here, name, content)})
    assert response.status_code == 200, response.text
    assert (response.json()["shape"], response.json()["unread"]) == (shape, unread)
    assert response.json()["examples"] == len(rows)


def test_what_validation_shares_with_the_data_and_nothing_is_left(server, here):
    client, storage = here, server.service.tenants.of("main").storage
    job = {"kind": "train", "name": "sums", "settings": {"rank": 4}}
    files = {
        "data_file": keep(client, "a.jsonl", lines(ROWS)),
        "validation_file": keep(client, "b.csv", b"prompt,completion\nwhat is 1 plus  2?,4\n"),
    }
    before = storage.used()
    response = client.post("/v1/data/preview", json=job | files)
    assert response.status_code == 200, response.text
    (shared,) = response.json()["shared"]["first"]
    assert (shared["first"], shared["same_answer"]) == ("b.csv:2", False)
    assert [*(server.service.settings.data / "uploads").iterdir()] == []
    assert storage.used() == before


def test_validation_examples_of_their_own_leave_the_data_whole(here):
    files = {
        "data_file": keep(here, "a.jsonl", lines(ROWS)),
        "validation_file": keep(here, "b.jsonl", lines(ROWS[:2])),
    }
    job = {"settings": {"rank": 4, "train": {"batch_size": 1, "epochs": 1}}, "validation": 0.5}
    assert here.post("/v1/estimate", json=job | files).json()["steps"] == len(ROWS)


def test_what_a_training_would_need(client):
    draft = {"data": ROWS, "validation": 0.25, "settings": {"method": "lora", "rank": 4, "train": {"epochs": 2}}}
    response = client.post("/v1/estimate", json=draft)
    assert response.status_code == 200, response.text
    needs = response.json()
    assert (needs["method"], needs["fields"]["rank"]) == ("lora", 4)
    memory = needs["memory"]
    parts = ("weights", "gradients", "optimizer", "activations", "allocator")
    assert memory["total"] == sum(memory[part] for part in parts) < memory["all"]
    assert needs["fits"] == (memory["all"] <= needs["available"])
    assert needs["steps"] >= 2
    assert needs["seconds"] == pytest.approx(needs["steps"] * needs["seconds_a_step"])
    assert needs["speed"] == "measured here"
    assert 0 < needs["trained"] < needs["parameters"]


@pytest.mark.parametrize(
    ("draft", "param", "reason"),
    [
        ({}, "data", "give data"),
        ({"data": []}, "data", "at least 1"),
        ({"data": "/etc/passwd"}, "data", "list"),
        ({"data": ROWS, "settings": {"rnk": 4}}, "settings.rnk", "did you mean rank?"),
        ({"data": ROWS, "settings": {"base": "/etc"}}, "settings.base", "no such setting"),
        ({"data": ROWS, "validation": 2}, "validation", "share of data"),
        ({"data": ROWS, "examples": 21}, "examples", "less than"),
        ({"data": ROWS, "task": "support"}, "task", "unknown parameter"),
        ({"data": ROWS, "kind": "evaluate"}, "kind", "train"),
    ],
)
def test_what_is_no_draft_is_refused_at_once(visitor, draft, param, reason):
    for path in ("/v1/data/preview", "/v1/estimate"):
        response = visitor.post(path, json=draft)
        assert response.status_code == 400, response.text
        error = response.json()["error"]
        assert reason in error["message"]
        assert error["param"] == param


def test_data_that_cannot_be_read_is_refused_and_names_no_folder(client, tmp_path):
    response = client.post("/v1/estimate", json={"data": [{"nothing": 1}]})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "data")
    assert response.json()["error"]["message"].startswith("data.jsonl: no row has a known shape")
    assert str(tmp_path) not in response.text


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.parquet", b"PAR1", "not a whole Parquet file"),
        ("a.py", b"print()", "kind '.py'"),
        ("../a.jsonl", b"{}", "cannot be a file's name"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(visitor, name, content, reason):
    job = {"job": json.dumps({"kind": "train", "name": "sums"})}
    for path, field in (("/v1/files", "file"), ("/v1/jobs/upload", "data")):
        response = visitor.post(path, files={field: (name, content)}, data=job)
        assert response.status_code == 400, response.text
        assert reason in response.json()["error"]["message"]
    assert visitor.get("/v1/jobs").json()["data"] == []


def test_parquet_becomes_a_jobs_data(server, tmp_path):
    """Its rows keep their places."""
    rows = [*ROWS, {"prompt": "Why?", "completion": None}]
    job = {"kind": "train", "name": "sums", "settings": {"train": {"steps": 1}}}
    files = {"data": ("rows.parquet", parquet(rows, tmp_path / "a"))}
    response = server.client.post("/v1/jobs/upload", data={"job": json.dumps(job)}, files=files)
    assert response.status_code == 201, response.text
    folder = server.service.tenants.of("main").jobs / response.json()["id"]
    assert [json.loads(line) for line in (folder / "data" / "rows.jsonl").read_text().splitlines()] == rows


@pytest.mark.parametrize("name", ["notes.txt", "notes.md"])
def test_a_text_file_is_one_raw_text(server, name):
    files, job = {"data": (name, b"Parcels are sent\n\non Monday.")}, {"kind": "train", "name": "notes"}
    response = server.client.post("/v1/jobs/upload", data={"job": json.dumps(job)}, files=files)
    assert response.status_code == 201, response.text
    assert response.json()["files"] == {"data": name}
    kept = server.client.post("/v1/files", files={"file": files["data"]}).json()["id"]
    preview = server.client.post("/v1/data/preview", json={"data_file": kept})
    assert preview.status_code == 200, preview.text
    assert (preview.json()["shape"], preview.json()["examples"]) == ("text", 1)


def test_parquet_that_expands_is_refused(server, tmp_path):
    """A file of a few KB may hold any number of equal rows."""
    small = parquet([{"prompt": "Why? " * 1000, "completion": "So."}] * 5000, tmp_path / "a")
    assert len(small) < 100_000
    server.service.settings = replace(server.service.settings, upload_size=1.0)
    response = server.client.post("/v1/files", files={"file": ("a.parquet", small)})
    assert response.status_code == 400
    assert "file has more than 1,000,000 bytes of rows" in response.json()["error"]["message"]


def test_only_managers_look(server):
    user, manager = server.key("acme", "user"), server.key("acme", "manager")
    for path in ("/v1/data/preview", "/v1/estimate"):
        assert server.client.post(path, json={"data": ROWS}, headers=user).status_code == 403
    assert server.client.post("/v1/data/preview", json={}, headers=manager).status_code == 400


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("os.kill(os.getpid(), 11)", "ended with signal SIGSEGV"),
        ("raise MemoryError", "ended with no memory"),
        ("time.sleep(60)", "takes longer than 0.5 s"),
        ("print('x' * (33 << 20))", "more to say"),
    ],
)
def test_a_look_that_fails_is_a_draft_that_is_refused(server, code, reason):
    program = [sys.executable, "-c", f"import os, time\n{code}"]
    server.service.looks = Looks(program, 0.5 if "sleep" in code else 60)
    response = server.client.post("/v1/data/preview", json={"data": ROWS})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "too_much")
    assert reason in response.json()["error"]["message"]


@pytest.mark.parametrize("code", ["raise OSError('my secret')", "{}['my secret']", "raise SystemExit(1)"])
def test_a_look_that_fails_by_the_servers_fault_is_in_the_log(server, caplog, code):
    """A part of the data would fail as well; its texts stay out of the log."""
    server.service.looks = Looks([sys.executable, "-c", code])
    response = server.client.post("/v1/data/preview", json={"data": ROWS})
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")
    (error,) = [record.exc_info[1] for record in caplog.records if record.exc_info]
    assert "the process that looks at drafts failed" in str(error)
    assert ("File" in str(error)) == ("Exit" not in code)
    assert "secret" not in str(error)


def test_nobody_waits_long_for_a_turn():
    turns, release = OneAtATime(timeout=0.05), threading.Event()

    async def two() -> str | None:
        first = asyncio.create_task(turns("acme", release.wait))
        await asyncio.sleep(0)
        try:
            await turns("globex", print)
        except ApiError as error:
            return f"{error.status} {error.headers['retry-after']}"
        finally:
            release.set()
            await first

    assert asyncio.run(two()) == "429 10"
    assert asyncio.run(turns("globex", int)) == 0


def test_parquet_is_read_one_file_at_a_time_beside_managers_threads(server, tmp_path):
    """A reader has 4 GB."""
    content, turns = parquet(ROWS, tmp_path / "a"), []
    managers = server.service.threads.manage.limiter

    class Counted(OneAtATime):
        async def __call__(self, tenant, function, *arguments):
            await until(lambda: not managers.borrowed_tokens)  # old files end meanwhile; its own thread never would
            turns.append(function)
            return await super().__call__(tenant, function, *arguments)

    server.service.reading = Counted()
    files, job = dict.fromkeys(("data", "validation"), ("a.parquet", content)), {"kind": "train", "name": "sums"}
    response = server.client.post("/v1/jobs/upload", files=files, data={"job": json.dumps(job)})
    assert response.status_code == 201, response.text
    assert len(turns) == 2


def test_parquet_expands_into_the_storage_that_is_left_alone(server, tmp_path):
    content = parquet([{"prompt": "Why? " * 1000, "completion": "So."}] * 100, tmp_path / "a")
    headers = server.key("acme", "manager", limits=Limits(storage=100_000))
    response = server.client.post("/v1/files", files={"file": ("a.parquet", content)}, headers=headers)
    assert response.status_code == 400
    assert re.search(r"file has more than \d\d,\d{3} bytes of rows", response.json()["error"]["message"])


def test_a_tenant_looks_twice_at_once(tmp_path):
    """So that others come in, too."""
    looks = Looks([sys.executable, "-c", "print({})"])

    async def look(tenant: str) -> dict | str | None:
        try:
            return await looks(tmp_path, tenant)
        except ApiError as error:
            return error.code

    async def several() -> list[dict | str | None]:
        return await asyncio.gather(*(look(tenant) for tenant in ("acme", "acme", "acme", "globex")))

    assert asyncio.run(several()) == [{}, {}, "busy", {}]
    assert asyncio.run(look("acme")) == {}

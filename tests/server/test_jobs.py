"""Jobs over HTTP: checked at once, watched as events, stopped and resumed; what is trained answers by its name."""

from __future__ import annotations

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from halka.data.examples import as_examples
from halka.data.splits import hold_out
from halka.rag.sources import listed
from halka.server.guards.keys import Limits
from halka.server.jobs.folder import JobFolder, JobRequest
from halka.server.locks import locked
from halka.server.resources.collection_access import new_collection
from serving_for_tests import InProcess, Running, until

ROWS = [{"prompt": f"What is {a} plus {b}?", "completion": str(a + b)} for a in range(4) for b in range(4)]
SETTINGS = {"rank": 4, "train": {"steps": 3, "batch_size": 4}}
PATIENCE = 300  # seconds for a job, whose process imports torch first, and gives way to all others


@pytest.fixture
def server(base, store, tmp_path):
    """A server that starts jobs."""
    with InProcess.open(base, store, tmp_path / "data", jobs=1) as server:
        yield server


def start(client: httpx.Client, **job) -> httpx.Response:
    return client.post("/v1/jobs", json={"kind": "train", "name": "sums", "data": ROWS, "settings": SETTINGS} | job)


def ended(client: httpx.Client, id: str) -> dict:
    """A job when it has ended."""
    end = time.monotonic() + PATIENCE
    while (job := client.get(f"/v1/jobs/{id}").json())["status"] in ("queued", "running", "stopping"):
        assert time.monotonic() < end, job
        time.sleep(0.1)
    return job


def events_of(client: httpx.Client, id: str, **headers: str) -> list[tuple[str, dict]]:
    with client.stream("GET", f"/v1/jobs/{id}/events", headers=headers) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        text = "".join(response.iter_text())
    events = []
    for block in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if lines:
            events.append((lines["event"], json.loads(lines["data"])))
    return events


# ── what may be asked ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("change", "param", "reason"),
    [
        ({"settings": {"rnk": 4}}, "settings.rnk", "did you mean rank?"),
        ({"settings": {"lr": 0.1}}, "settings.lr", "train.lr"),
        ({"settings": {"rank": "four"}}, "settings.rank", "whole number"),
        ({"settings": {"rank": 0}}, "settings.rank", "rank"),
        ({"settings": {"train": {"lr": -1}}}, "settings.train.lr", "above 0"),
        ({"settings": {"train": {"steps": True}}}, "settings.train.steps", "whole number"),
        ({"settings": {"method": "magic"}}, "settings.method", "choose one of"),
        ({"settings": {"method": "prefix", "rank": 4}}, "settings.rank", "rank"),
        ({"settings": {"text": "Hello"}}, "settings.text", "no virtual tokens"),
        ({"settings": {"best_by": "luck"}}, "settings.best_by", "loss, score"),
        ({"settings": {"best_by": "score"}}, "settings.best_by", "give validation"),
        ({"settings": {"base": "org/model"}}, "settings.base", "no such setting"),
        ({"settings": {"out": "/tmp/x"}}, "settings.out", "no such setting"),
        ({"settings": {"data": ["/etc/passwd"]}}, "settings.data", "no such setting"),
        ({"task": "/tmp/task.py", "data": None}, "train.task", "support"),
        ({"task": "support"}, "data", "either data"),
        ({"data": None}, "data", "either data"),
        ({"data": "/etc/passwd"}, "train.data", "list"),
        ({"data": []}, "train.data", "at least 1"),
        ({"data": [{"nothing": 1}]}, "data", "Known shapes"),
        ({"validation": 2}, "train.validation", "share of data"),
        ({"name": "../evil"}, "train.name", "'../evil' cannot be a name: use up to 100 letters"),
        ({"name": None}, "train.name", "string"),
        ({"name": "tiny"}, "name", "the base"),
        ({"shape": "magic"}, "data", "unknown"),
        ({"kind": "delete"}, None, "train"),
        ({"command": ["rm"]}, "train.command", "unknown parameter"),
    ],
)
def test_a_wrong_job_is_refused_at_once_with_its_field(visitor, change, param, reason):
    response = start(visitor, **change)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert reason in error["message"]
    assert param is None or error["param"] == param
    assert visitor.get("/v1/jobs").json()["data"] == []


@pytest.mark.parametrize(
    ("job", "status", "param", "reason"),
    [
        ({"adapters": ["nothing"]}, 404, "adapters", "no adapter 'nothing'"),
        ({"adapters": ["lora@7"]}, 404, "adapters", "no adapter 'lora@7'"),
        ({"adapters": ["x=/etc"]}, 400, "evaluate.adapters.0", "pattern"),
        ({"adapters": ["org/lora"]}, 400, "evaluate.adapters.0", "pattern"),
        ({"with_base": True}, 400, None, "beside adapters"),
        ({"metrics": ["magic"]}, 400, "metrics", "unknown metric"),
        ({"data": [{**ROWS[0], "adapter": "prefix"}], "adapters": ["lora"]}, 400, "adapters", "not among adapters"),
        ({"split": "test"}, 400, "split", "for a task"),
        ({"limit": 0}, 400, "evaluate.limit", "greater than"),
        ({"seed": -5}, 400, "evaluate.seed", "greater than"),
    ],
)
def test_a_wrong_evaluation_is_refused_at_once(visitor, job, status, param, reason):
    response = visitor.post("/v1/jobs", json={"kind": "evaluate", "data": ROWS} | job)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert reason in error["message"]
    assert param is None or error["param"] == param


@pytest.mark.parametrize(
    ("files", "job", "reason"),
    [
        ({"data": ("rows.arrow", b"ARROW1")}, {}, "kind '.arrow'"),
        ({"data": ("rows.jsonl.gz", b"")}, {}, "kind '.gz'"),
        ({"data": ("task.py", b"print()")}, {}, "kind '.py'"),
        ({"data": ("../rows.jsonl", b"{}")}, {}, "cannot be a file's name"),
        ({"data": ("rows.jsonl", b"no json")}, {}, "data"),
        ({"data": ("rows.jsonl", b"{}")}, {"data": ROWS}, "as rows and as a file"),
        ({"data": ("rows.jsonl", b"{}")}, {"kind": "nothing"}, "kind"),
        ({"validation": ("rows.jsonl", b"{}")}, {}, "data"),
    ],
)
def test_a_file_that_is_no_data_is_refused(visitor, files, job, reason):
    body = json.dumps({"kind": "train", "name": "sums", **job})
    response = visitor.post("/v1/jobs/upload", data={"job": body}, files=files)
    assert response.status_code == 400, response.text
    assert reason in response.json()["error"]["message"]
    assert visitor.get("/v1/jobs").json()["data"] == []


def test_a_tenant_has_so_many_jobs(base, store, tmp_path):
    with InProcess.open(base, store, tmp_path / "data", jobs=0, jobs_kept=2) as server:
        ids = [start(server.client).json()["id"] for _ in range(2)]
        response = start(server.client)
        assert (response.status_code, response.json()["error"]["code"]) == (429, "too_many")
        assert int(response.headers["retry-after"]) > 0
        assert server.client.delete(f"/v1/jobs/{ids[0]}").json()["deleted"]
        assert start(server.client).status_code == 201


def test_jobs_that_come_at_once_are_no_more_than_one_tenant_has(base, store, tmp_path):
    with (
        InProcess.open(base, store, tmp_path / "data", jobs=0, jobs_kept=1) as server,
        ThreadPoolExecutor(3) as managers,
    ):
        with locked(server.service.tenants.of("main").jobs):
            answers = [managers.submit(start, server.client) for _ in range(3)]
            until(lambda: server.service.threads.manage.limiter.borrowed_tokens == 3, "they do not wait")
        assert sorted(answer.result().status_code for answer in answers) == [201, 429, 429]
        assert len(server.client.get("/v1/jobs").json()["data"]) == 1


def test_what_a_killed_server_left_of_a_job_goes_with_a_later_one(base, store, tmp_path):
    """It counts against the limit, and no client can remove it; a fresh one may be another server's, at work."""
    jobs = tmp_path / "data" / "tenants" / "acme" / "jobs"
    for name, age in ((f".job-{'0' * 16}.5f3a", 25), (f".job-{'1' * 16}.5f3a", 1), (f"job-{'2' * 16}", 25)):
        (jobs / name).mkdir(parents=True)
        (jobs / name / "data.jsonl").write_bytes(b" " * 1000)
        os.utime(jobs / name, (time.time() - age * 3600,) * 2)
    with InProcess.open(base, store, tmp_path / "data", jobs=0):
        until(lambda: len([*jobs.iterdir()]) == 2, "the old half stays")
        assert sorted(path.name[:6] for path in jobs.iterdir()) == [".job-1", "job-22"]


def test_an_advice_retrieves_from_a_collection(base, store, tmp_path):
    """From what every manager of the tenant may read, as it is when the job is queued."""
    text = "# Parcels\n\nParcels are sent on Monday.\n\n" + "They take nine days, or ten.\n\n" * 40
    with InProcess.open(base, store, tmp_path / "data", jobs=0) as server:
        collection = new_collection(server.service, "main", "faq")
        [*collection.put([("parcels.md", text)])]
        [*collection.put([("rules.md", "Managers decide.")], readers=["manager"])]
        [*collection.put([("salaries.md", "Bob earns nine.")], readers=["admin", "hr"])]
        job = {"kind": "advise", "data": ROWS, "collection": "faq"}
        view = server.client.post("/v1/jobs", json=job).json()
        assert view["settings"] == {"data": 16, "collection": "faq"}
        queued = JobFolder(server.service.tenants.of("main").jobs / view["id"])
        assert "--documents=documents.jsonl" in queued.request().command
        texts, files = listed([str(queued.path / "documents.jsonl")])
        assert texts == {"parcels.md": text.strip(), "rules.md": "Managers decide."}
        assert files == []
        new_collection(server.service, "main", "empty")
        for change, status, param in (
            ({"collection": "nothing"}, 404, "collection"),
            ({"collection": "empty"}, 400, "collection"),
            ({"collection": "../faq"}, 404, "collection"),
            ({"kind": "evaluate"}, 400, "evaluate.collection"),
        ):
            response = server.client.post("/v1/jobs", json=job | change)
            assert (response.status_code, response.json()["error"]["param"]) == (status, param), response.text
        assert len(server.client.get("/v1/jobs").json()["data"]) == 1
        poor = server.key("main", limits=Limits(storage=1))
        full = server.client.post("/v1/jobs", json=job, headers=poor)
        assert (full.status_code, full.json()["error"]["code"]) == (413, "storage_full")
        assert not [*(tmp_path / "data" / "uploads").iterdir()]


# ── a whole training ────────────────────────────────────────────────────────────────────────────────────────────────


def held_out_and_evaluated(client: httpx.Client, training: str) -> None:
    """What a training held out is what its adapter is evaluated on."""
    evaluate = {"kind": "evaluate", "adapters": ["sums@1"], "with_base": True, "max_new_tokens": 2}
    view = client.post("/v1/jobs", json=evaluate | {"held_out_of": training}).json()
    assert view["settings"]["held_out_of"] == training
    view = ended(client, view["id"])
    assert view["status"] == "done", view
    assert view["progress"] == "answers of the bare base: 4 of 4"
    assert view["result"]["examples"] == 4
    assert view["result"]["base_scores"].keys() == view["result"]["scores"].keys()
    _, held_out = hold_out(as_examples(ROWS), 0.25)
    lines = client.get(f"/v1/jobs/{view['id']}/predictions").text.splitlines()
    prompts = [example.prompt[-1].content for example in held_out]
    assert [json.loads(line)["prompt"] for line in lines] == 2 * prompts

    refused = client.post("/v1/jobs", json=evaluate | {"held_out_of": training, "data": ROWS})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "held_out_of")
    for id, status in ((view["id"], 404), ("job-0000000000000000", 404)):
        refused = client.post("/v1/jobs", json=evaluate | {"held_out_of": id})
        assert (refused.status_code, refused.json()["error"]["param"]) == (status, "held_out_of")


@pytest.mark.slow
def test_what_is_trained_answers_by_its_name(client, server, tmp_path):
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    settings = {**SETTINGS, "best_by": "score"}
    job = json.dumps({"kind": "train", "name": "sums", "settings": settings, "validation": 0.25})
    made = client.post("/v1/jobs/upload", data={"job": job}, files={"data": ("sums.jsonl", lines)})
    assert made.status_code == 201, made.text
    id = made.json()["id"]
    events = events_of(client, id)
    assert [step["step"] for kind, step in events if kind == "step"] == [1, 2, 3]
    assert [view["status"] for kind, view in events if kind == "status"][-1] == "done"
    view = client.get(f"/v1/jobs/{id}").json()
    assert (view["adapter"], view["error"]) == ({"name": "sums", "version": 1}, None)
    assert view["result"]["steps"] == 3
    assert view["result"]["validation_loss"] > 0
    assert view["result"]["score"] == view["last_step"]["score"] == 0
    assert view["last_step"]["step"] == 3
    assert str(tmp_path) not in json.dumps(events)
    for last, rest in (("2", [3]), ("9" * 5000, []), ("x", [1, 2, 3])):
        events = events_of(client, id, **{"last-event-id": last})
        assert [step["step"] for kind, step in events if kind == "step"] == rest
    body = {"model": "sums", "messages": [{"role": "user", "content": "What is 1 plus 1?"}], "max_tokens": 4}
    assert client.post("/v1/chat/completions", json=body).status_code == 200
    assert client.get("/v1/adapters/sums").json()["parameters"] > 0
    assert client.post(f"/v1/jobs/{id}/resume").status_code == 409
    assert client.post(f"/v1/jobs/{id}/stop").status_code == 409
    held_out_and_evaluated(client, id)
    job = JobFolder(server.service.tenants.of("main").jobs / id)
    for stored in (True, False):  # its process was killed when the adapter was stored, and before
        if not stored:
            client.delete("/v1/adapters/sums")
        while job.alive:  # it has written its end, and is about to go
            time.sleep(0.05)
        job.write(state="running")
        assert client.get(f"/v1/jobs/{id}").json()["status"] == "interrupted"
        assert client.post(f"/v1/jobs/{id}/resume").status_code == 200
        assert ended(client, id)["status"] == "done"
        assert client.get("/v1/adapters/sums").json()["versions"] == [1]
        assert len((job.path / "run" / "metrics.jsonl").read_text().splitlines()) == 3
    assert client.delete(f"/v1/jobs/{id}").json()["deleted"]
    assert client.get(f"/v1/jobs/{id}").status_code == 404
    assert client.get("/v1/adapters/sums").status_code == 200


@pytest.mark.slow
def test_a_training_stops_after_its_step_and_goes_on_where_it_was(client, server):
    settings = {"rank": 4, "train": {"steps": 4000, "batch_size": 1}}
    id = start(client, settings=settings).json()["id"]
    end = time.monotonic() + PATIENCE
    while client.get(f"/v1/jobs/{id}").json()["last_step"] is None:
        assert time.monotonic() < end
        time.sleep(0.1)
    assert client.delete(f"/v1/jobs/{id}").status_code == 409
    assert client.post(f"/v1/jobs/{id}/stop").json()["status"] in ("stopping", "stopped")
    stopped = ended(client, id)
    assert (stopped["status"], stopped["error"]) == ("stopped", None)
    run = server.service.tenants.of("main").jobs / id / "run"
    assert (run / "checkpoint.safetensors").exists()
    steps = stopped["last_step"]["step"]
    assert client.post(f"/v1/jobs/{id}/resume").json()["status"] in ("queued", "running")
    end = time.monotonic() + PATIENCE
    while client.get(f"/v1/jobs/{id}").json()["last_step"]["step"] <= steps:
        assert time.monotonic() < end
        time.sleep(0.1)
    numbers = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()[: steps + 1]]
    assert numbers == [*range(1, steps + 2)]
    client.post(f"/v1/jobs/{id}/stop")
    assert ended(client, id)["status"] == "stopped"


@pytest.mark.slow
def test_adapters_are_evaluated_beside_the_base(client, tmp_path):
    job = {
        "kind": "evaluate",
        "data": ROWS[:4],
        "adapters": ["lora", "prefix@1"],
        "with_base": True,
        "max_new_tokens": 2,
    }
    id = client.post("/v1/jobs", json=job).json()["id"]
    view = ended(client, id)
    assert view["status"] == "done", view
    assert {row["adapter"] for row in view["result"]["by_adapter"]} == {"lora", "prefix@1"}
    assert view["result"]["base"] == "tiny"
    lines = client.get(f"/v1/jobs/{id}/predictions").text.splitlines()
    assert len(lines) == 3 * 4
    assert {json.loads(line)["adapter"] for line in lines} == {"lora", "prefix@1", None}
    assert str(tmp_path) not in json.dumps(view)
    assert view["settings"] == {"data": 4, "adapters": ["lora", "prefix@1"], "with_base": True, "max_new_tokens": 2}


def test_what_a_job_does_is_told_as_it_goes(base, store, tmp_path):
    with Running(base, store, tmp_path / "data") as running:
        client = running.client
        id = client.post("/v1/jobs", json={"kind": "advise", "data": ROWS}).json()["id"]
        assert client.get(f"/v1/jobs/{id}").json()["progress"] is None
        folder = running.service.tenants.of("main").jobs / id
        with client.stream("GET", f"/v1/jobs/{id}/events") as response:
            lines = response.iter_lines()
            assert next(lines) == "event: status"
            (folder / "log.txt").write_text(f"strength: reads {folder}/data.jsonl\nhalf a li")
            assert next(line for line in lines if line.startswith("event:")) == "event: progress"
            assert json.loads(next(lines).removeprefix("data: ")) == {"progress": "strength: reads data.jsonl"}
            client.post(f"/v1/jobs/{id}/stop")
            assert next(line for line in lines if line.startswith("event:")) == "event: status"


def copying(server: InProcess, store: Path, limit: int | None = None, **more) -> JobFolder:
    """A job of acme, whose key the client has then: its training takes an adapter that there is."""
    tenant, command = (
        server.service.tenants.of("acme"),
        "import shutil, sys; shutil.copytree(sys.argv[1], 'run/adapter')",
    )
    server.client.headers = httpx.Headers(server.key("acme"))
    words = [sys.executable, "-c", command, str(store / "lora" / "1")]
    request = JobRequest("train", {}, words, name="sums", store=str(tenant.store.folder), **more)
    return JobFolder.new(tenant.jobs, request, {}, limit)


def test_an_adapter_that_does_not_fit_stays_with_its_job_until_it_does(client, server, store):
    """Its training is done: when there is room, the job is resumed and adds it."""
    job = copying(server, store, 5000, storage=server.service.tenants.of("acme").storage.described())
    view = ended(client, job.id)
    assert (view["status"], view["adapter"]) == ("failed", None)
    assert "5,000 bytes of adapters, documents and jobs is the limit" in view["error"]
    assert view["error"].endswith("remove some")
    assert (job.path / "run" / "adapter" / "adapter_model.safetensors").exists()
    assert client.get("/v1/adapters").json()["data"] == []
    assert client.post(f"/v1/jobs/{job.id}/resume").json()["status"] in ("queued", "running")
    assert ended(client, job.id)["adapter"] == {"name": "sums", "version": 1}
    assert [entry["id"] for entry in client.get("/v1/adapters").json()["data"]] == ["sums"]


def test_a_job_that_was_queued_before_storage_had_limits_stores_its_adapter(client, server, store):
    job = copying(server, store)
    assert ended(client, job.id)["adapter"] == {"name": "sums", "version": 1}


def test_a_queued_training_moves_with_the_servers_data(base, store, tmp_path):
    with InProcess.open(base, store, tmp_path / "data", jobs=0) as server:
        server.client.headers = httpx.Headers(server.key("acme"))
        id = start(server.client).json()["id"]
    (tmp_path / "data").rename(tmp_path / "moved")
    with InProcess.open(base, store, tmp_path / "moved", jobs=1) as server:
        server.client.headers = httpx.Headers(server.key("acme"))
        assert ended(server.client, id)["adapter"] == {"name": "sums", "version": 1}
        assert [entry["id"] for entry in server.client.get("/v1/adapters").json()["data"]] == ["sums"]
    assert not (tmp_path / "data").exists()


def test_a_new_adapters_name_differs_by_more_than_capitals(server):
    refused = start(server.client, name="LORA")
    assert refused.status_code == 400
    assert "'LORA' differs from 'lora' in capitals alone" in refused.json()["error"]["message"]


def test_a_job_stores_nothing_through_a_link(client, server, store, tmp_path):
    """It came after the job was queued."""
    (tmp_path / "shared").mkdir()
    folder = server.service.tenants.of("acme").store.folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sums").symlink_to(tmp_path / "shared")
    job = copying(server, store)
    view = ended(client, job.id)
    assert (view["status"], view["adapter"]) == ("failed", None)
    assert "there is no adapter 'sums'" in view["error"]
    assert not [*(tmp_path / "shared").iterdir()]


# ── what is not one's own ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("id", ["..%2F..", "job-0", "job-" + "0" * 16, "%2e%2e", ".hidden", "job-%2e%2e%2fx"])
def test_paths_and_guesses_lead_to_no_job(visitor, id):
    for method, path in (
        ("GET", ""),
        ("GET", "/events"),
        ("GET", "/predictions"),
        ("POST", "/stop"),
        ("POST", "/resume"),
        ("DELETE", ""),
    ):
        response = visitor.request(method, f"/v1/jobs/{id}{path}")
        assert response.status_code == 404
        assert {*response.json()} == {"error"}


def test_a_link_is_no_job(client, server, tmp_path):
    elsewhere = JobFolder.new(tmp_path / "others", JobRequest("train", {}, ["true"]), {})
    jobs = server.service.tenants.of("main").jobs
    jobs.mkdir(parents=True)
    (jobs / elsewhere.id).symlink_to(elsewhere.path)
    assert client.get("/v1/jobs").json()["data"] == []
    assert client.get(f"/v1/jobs/{elsewhere.id}").status_code == 404
    assert client.delete(f"/v1/jobs/{elsewhere.id}").status_code == 404
    assert elsewhere.state() == "queued"


def test_no_message_of_a_job_has_a_path(client, server):
    jobs: Path = server.service.tenants.of("main").jobs
    store = server.service.tenants.of("main").store.folder
    hidden = {str(store): "the store"}
    job = JobFolder.new(jobs, JobRequest("evaluate", {}, ["true"], hidden=hidden), {})
    job.write(state="failed", error=f"{job.path}/data.jsonl:3 is no row, {store}/lora is damaged")
    assert client.get(f"/v1/jobs/{job.id}").json()["error"] == "data.jsonl:3 is no row, the store/lora is damaged"

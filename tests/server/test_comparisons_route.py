"""`/v1/comparisons`: what `halka compare` wrote, for those whose it is, and nothing else of the disk."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from halka.server.resources.comparison_files import runs_of
from serving_for_tests import InProcess

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


@pytest.fixture
def root(tmp_path) -> Path:
    """A folder with a real comparison, whose answers are gone, and a small one, whose answers are there."""
    root = tmp_path / "studies"
    shutil.copytree(RESULTS / "demo", root / "demo")
    small = root / "small"
    (small / "runs").mkdir(parents=True)
    summary = {
        **{"experiment": "small", "task": "support", "base": "tiny", "rows": [{}, {}], "finished": 4, "total": 5},
        "headline": f"It is in {tmp_path}.",
        "provenance": {"last": "2026-11-27T00:00:00+00:00", "command": f"halka {root}/x"},
    }
    (small / "summary.json").write_text(json.dumps(summary))
    for key, label, seed in (("a0", "LoRA", 1), ("a1", "LoRA", 0), ("b0", "base", 0)):
        sample = {"prompt": "Why?", "reference": "So.", "prediction": f"sample of {key}"}
        run = {
            "status": "done",
            "purpose": "final",
            "seed": seed,
            "method": {"name": "m", "label": label},
            "samples": [sample],
        }
        (small / "runs" / f"{key}.json").write_text(json.dumps(run))
        if key != "b0":
            lines = [
                {"where": "", "prompt": f"{n}?", "references": [f"{n}!"], "prediction": f"{key} {n}"} for n in range(30)
            ]
            (small / "work" / key).mkdir(parents=True)
            (small / "work" / key / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


@pytest.fixture
def server(base, store, root, tmp_path):
    roots = (root, Path(f"acme={root / 'small'}"))
    with InProcess.open(base, store, tmp_path / "data", comparisons=roots) as server:
        yield server


def test_those_there_are(client):
    demo, small = client.get("/v1/comparisons").json()["data"]
    assert (demo["name"], demo["base"], demo["methods"], demo["finished"]) == ("demo", "smollm2-135m", 6, 35)
    assert demo["headline"].startswith("LoRA r16 reaches")
    assert (small["name"], small["date"], small["total"]) == ("small", "2026-11-27T00:00:00+00:00", 5)


def test_a_long_list_has_pages(client):
    pages = [client.get(f"/v1/comparisons?start={start}&count=1").json() for start in range(3)]
    assert [[one["name"] for one in page["data"]] for page in pages] == [["demo"], ["small"], []]
    assert {(page["total"], page["start"]) for page in pages} == {(2, 0), (2, 1), (2, 2)}
    for query in ("count=0", "count=201", "start=-1"):
        assert client.get(f"/v1/comparisons?{query}").status_code == 400


def test_one_is_its_summary_and_runs(client):
    comparison = client.get("/v1/comparisons/demo").json()
    written = json.loads((RESULTS / "demo" / "summary.json").read_text())
    del written["provenance"]["source"]  # it names a file
    assert comparison["summary"].pop("provenance").items() >= written.pop("provenance").items()
    assert comparison["summary"] == written
    assert len(comparison["runs"]) == 35
    (search, *_) = [run for run in comparison["runs"] if run["purpose"] == "search"]
    assert search["method"]["name"]
    assert search["validation_loss"] > 0
    assert "samples" not in search


def test_answers_stand_side_by_side(client):
    answers = client.get("/v1/comparisons/small/answers?start=1&count=2").json()
    assert answers["data"] == [
        {"item": n, "prompt": f"{n}?", "reference": f"{n}!", "answers": [{"label": "LoRA", "prediction": f"a1 {n}"}]}
        for n in (1, 2)
    ]
    (first, *_) = client.get("/v1/comparisons/small/answers").json()["data"]
    assert {"label": "base", "prediction": "sample of b0"} in first["answers"], "a sample, where no answers are left"
    (first, *rest) = client.get("/v1/comparisons/demo/answers").json()["data"]
    assert len(rest) == 4
    assert len({answer["label"] for answer in first["answers"]}) == 6
    assert client.get("/v1/comparisons/demo/answers?start=1000").json()["data"] == []


def test_runs_of_other_settings_are_left_out(client, root):
    summary = json.loads((root / "small" / "summary.json").read_text())
    (root / "small" / "summary.json").write_text(json.dumps({**summary, "runs": ["a0", "b0"]}))
    assert len(client.get("/v1/comparisons/small").json()["runs"]) == 2
    (first,) = client.get("/v1/comparisons/small/answers?count=1").json()["data"]
    assert [answer["prediction"] for answer in first["answers"]] == ["a0 0", "sample of b0"]


def test_pages_are_bounded(client):
    for query in ("start=-1", "count=0", "count=101", "start=x", "count=1e3", f"start={10**20}"):
        assert client.get(f"/v1/comparisons/demo/answers?{query}").status_code == 400, query


def test_each_tenant_has_its_own(server):
    acme, globex = server.key("acme", "user"), server.key("globex", "admin")
    assert [entry["name"] for entry in server.client.get("/v1/comparisons", headers=acme).json()["data"]] == ["small"]
    assert server.client.get("/v1/comparisons/demo", headers=acme).status_code == 404
    assert server.client.get("/v1/comparisons/small/answers", headers=acme).status_code == 200
    assert server.client.get("/v1/comparisons", headers=globex).json()["data"] == []
    assert server.client.get("/v1/comparisons/small", headers=globex).status_code == 404


NOWHERE = ("..", ".", "%2e%2e", "..%2fdata", "demo%2fruns", "demo/runs", "%2fetc", "none", "a%00", ".hidden", "linked")


def test_no_name_leads_elsewhere(server, root):
    (root / ".hidden").mkdir()
    shutil.copy(root / "small" / "summary.json", root / ".hidden")
    (root / "linked").symlink_to(root / "small")
    for path in (f"/v1/comparisons/{name}{what}" for name in NOWHERE for what in ("", "/answers")):
        response = server.client.get(path)
        assert response.status_code in (404, 405) or response.request.url.path in ("/v1", "/v1/comparisons"), (
            path,
            response.text,
        )
    assert {entry["name"] for entry in server.client.get("/v1/comparisons").json()["data"]} == {"demo", "small"}


@pytest.mark.parametrize(
    "what", ["summary.json", "runs", "runs/a1.json", "work", "work/a1", "work/a1/predictions.jsonl"]
)
def test_no_link_is_followed(server, root, tmp_path, what):
    """What stands behind it was there, in a copy that looks the same."""
    shutil.copytree(root / "small", tmp_path / "secret")
    for path in (tmp_path / "secret").rglob("*"):
        if path.is_file():
            path.write_text(
                path.read_text().replace("a1", "secret").replace("small", "secret").replace("LoRA", "secret")
            )
    place = root / "small" / what
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    place.symlink_to(tmp_path / "secret" / what)
    paths = ("", "/small", "/small/answers")
    for path in paths:
        response = server.client.get(f"/v1/comparisons{path}")
        assert response.status_code == (404 if what == "summary.json" and path else 200)
        assert "secret" not in response.text


def test_no_folder_is_named(client, root, tmp_path):
    for path in ("", "/small"):
        assert str(tmp_path) not in client.get(f"/v1/comparisons{path}").text


@pytest.mark.parametrize("content", ["{", "[]", '{"rows": 1}', "[" * 100_000, "null", '{"rows": [], "base": NaN}'])
def test_a_damaged_one_says_so(client, root, content):
    (root / "small" / "summary.json").write_text(content)
    listed = {entry["name"]: entry for entry in client.get("/v1/comparisons").json()["data"]}
    assert "error" not in listed["demo"]
    assert ("error" in listed["small"]) == ("NaN" not in content)
    assert client.get("/v1/comparisons/small").status_code == 200


def test_runs_are_read_again_only_where_they_have_changed(client, root):
    (root / "small" / "runs" / "a0.json").write_text('{"train": {"steps": 3, "curve": [1, 2]}, "seed": 0}')
    before = runs_of.cache_info().misses
    first, again = (client.get("/v1/comparisons/small").json()["runs"] for _ in range(2))
    assert first == again
    assert first[0]["train"] == {"steps": 3}, "a curve is long"
    assert runs_of.cache_info().misses == before + 1
    (root / "small" / "runs" / "a0.json").write_text('{"train": {"steps": 4}}')
    assert client.get("/v1/comparisons/small").json()["runs"][0]["train"] == {"steps": 4}


def test_damaged_runs_and_answers_are_left_out(client, root):
    (root / "small" / "runs" / "a0.json").write_text("{")
    (root / "small" / "runs" / "b0.json").write_text('{"purpose": "final", "samples": 7, "seed": "x", "method": null}')
    (root / "small" / "work" / "a1" / "predictions.jsonl").write_text('no\n{"prompt": 7}\n[]\n')
    assert len(client.get("/v1/comparisons/small").json()["runs"]) == 2
    items = client.get("/v1/comparisons/small/answers").json()["data"]
    assert [(item["prompt"], item["answers"][0]["prediction"]) for item in items] == [("", ""), ("7", ""), ("", "")]

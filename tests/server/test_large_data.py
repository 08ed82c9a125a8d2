"""Data of jobs: small ones are read here, large ones by a process of its own, one at a time."""

from __future__ import annotations

import json

import pytest

from halka.server.jobs.data import SMALL
from halka.server.one_at_a_time import OneAtATime

ROW = {"prompt": "What is one and one?", "completion": "two"}


def lines(*rows: dict, times: int = 1) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows) * times


@pytest.mark.parametrize("times", [1, 9000], ids=["small", "large"])
def test_data_of_any_size_is_checked_alike(client, times):
    """What is large is read in a process of its own, whose memory is bounded."""
    good = lines(ROW, times=times)
    assert (len(good) > SMALL) == (times > 1)
    for content, job, reason, param in (
        (good, {"kind": "train", "name": "sums"}, None, None),
        (b'{"nothing": 1}\n' * times, {"kind": "train", "name": "sums"}, "data: no row has a known shape", "data"),
        (
            good + lines({**ROW, "adapter": "other"}),
            {"kind": "evaluate", "adapters": ["lora@1"]},
            f"a.jsonl:{times + 1} names 'other', which is not among adapters",
            "adapters",
        ),
    ):
        asked = client.post("/v1/jobs/upload", files={"data": ("a.jsonl", content)}, data={"job": json.dumps(job)})
        if reason is None:
            assert asked.status_code == 201, asked.text
        else:
            assert (asked.status_code, asked.json()["error"]["param"]) == (400, param), asked.text
            assert reason in asked.json()["error"]["message"]


def test_large_data_is_read_in_a_turn_beside_managers_threads(server):
    turns = []

    class Counted(OneAtATime):
        async def __call__(self, tenant, function, *arguments):
            turns.append(function.__name__)
            return await super().__call__(tenant, function, *arguments)

    server.service.reading = Counted()
    train = {"kind": "train", "name": "sums", "validation": 0.5}
    files = {"data": ("a.jsonl", lines(*({**ROW, "prompt": str(number)} for number in range(9000))))}
    training = server.client.post("/v1/jobs/upload", files=files, data={"job": json.dumps(train)})
    assert training.status_code == 201, training.text
    evaluate = {"kind": "evaluate", "adapters": ["lora@1"], "held_out_of": training.json()["id"]}
    asked = server.client.post("/v1/jobs", json=evaluate)
    assert asked.status_code == 201, asked.text
    folder = server.service.tenants.of("main").jobs / asked.json()["id"]
    assert len((folder / "data.jsonl").read_bytes().splitlines()) == 4500
    assert turns == ["check_data", "_check", "check_data"]

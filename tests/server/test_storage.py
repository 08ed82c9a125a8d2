"""What a tenant stores is within its limit, whoever adds at once: requests, jobs, and other processes."""

from __future__ import annotations

import asyncio
import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from guarded_for_tests import Guarded
from halka.server.storage import Reservation, Storage, StorageFullError

MULTIPART = {"content-type": "multipart/form-data; boundary=x"}
HOLDER = """
import sys
from halka.server.storage import Reservation, Storage
room = Reservation(Storage((), __import__("pathlib").Path(sys.argv[1])))
room.grow(60, None)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def storage(tmp_path) -> Storage:
    """With 40 bytes in it."""
    (tmp_path / "adapters" / "lora").mkdir(parents=True)
    (tmp_path / "adapters" / "lora" / "file").write_bytes(b" " * 40)
    return Storage((tmp_path / "adapters", tmp_path / "jobs"), tmp_path / "reserved")


def test_what_is_on_its_way_counts_beside_what_is_stored(storage):
    first, second = Reservation(storage), Reservation(storage)
    assert first.grow(50, 100) == 50
    assert storage.used() == 90
    with pytest.raises(StorageFullError, match="100 bytes of adapters, documents and jobs is the limit: 90 are taken"):
        second.grow(20, 100)
    assert second.grow(10, 100) == 10
    first.end()
    assert second.grow(20, 100) == 20
    assert second.grow(10**6, None) == 10**6, "a key without a limit"
    second.end()
    assert storage.used() == 40


def test_a_reservation_takes_more_where_there_is_as_much(storage):
    with Reservation(storage) as room:
        assert room.grow(10, 100, most=20) == 20
        assert room.grow(10, 100, most=30) == 30
        assert room.grow(10, 100, most=40) == 10
        assert (room.bytes, storage.used()) == (60, 100)
    assert storage.used() == 40


def test_what_is_moved_meanwhile_counts_at_least_once(storage):
    """Its reservation ends after it is there, and it is looked for after the reservations."""
    with Reservation(storage) as room:
        room.grow(50, 100)
        (storage.folders[1]).mkdir()
        (storage.folders[1] / "file").write_bytes(b" " * 50)
        assert storage.used() == 140
    assert storage.used() == 90


def test_another_process_holds_room_until_it_is_killed(storage):
    command = [sys.executable, "-c", HOLDER, str(storage.reserved)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert storage.used() == 100
        holder.kill()
    assert storage.used() == 40
    with Reservation(storage) as room:
        room.grow(0, None)
    assert [path.name for path in storage.reserved.iterdir()] == [".lock"]


def test_who_asks_what_is_used_removes_no_reservation_that_is_being_made(storage, monkeypatch):
    """Between its file and the file's lock it looks like that of a killed process."""
    flock, used = fcntl.flock, list[int]()

    def slow(file: int, kind: int) -> None:
        if kind == fcntl.LOCK_EX and Path(f"/proc/self/fd/{file}").resolve().name != ".lock":
            used.append(storage.used())
        flock(file, kind)

    with Reservation(storage) as room:
        with monkeypatch.context() as patch:
            patch.setattr(fcntl, "flock", slow)
            room.grow(50, None)
        assert (used, storage.used()) == ([40], 90)
        with Reservation(storage) as empty:
            empty.grow(0, 100)
            room.grow(1, 100)
            empty.grow(5, 100)
            assert storage.used() == 96


# ── uploads ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def pieces(count: int, size: int = 1000):
    for _ in range(count):
        yield b" " * size


@pytest.mark.parametrize("length", [True, False], ids=["a length", "no length"])
def test_an_upload_holds_room_while_it_comes(tmp_path, length):
    """Its files go to the disk before a route sees them."""
    guarded = Guarded(tmp_path)
    manager = guarded.key("manager", "acme", storage=10_000) | MULTIPART
    other = guarded.key("manager", "other", storage=10_000) | MULTIPART

    def sized(count: int, headers: dict[str, str]) -> dict[str, str]:
        return headers | ({"content-length": str(1000 * count)} if length else {})

    async def two(client):
        come, go_on = asyncio.Event(), asyncio.Event()

        async def slow():
            yield b" " * 4000
            come.set()
            await go_on.wait()
            yield b" " * 2000

        path = "/v1/adapters"
        first = asyncio.create_task(client.post(path, content=slow(), headers=sized(6, manager)))
        await come.wait()
        statuses = [
            (await client.post(path, content=pieces(count), headers=sized(count, headers))).status_code
            for count, headers in ((7, manager), (7, other), (3, manager))
        ]
        go_on.set()
        return [(await first).status_code, *statuses]

    assert guarded.run(two) == [200, 413, 200, 200]
    assert guarded.call("POST", "/v1/adapters", content=pieces(10), headers=sized(10, manager)).status_code == 200
    refused = guarded.call("POST", "/v1/adapters", content=pieces(11), headers=sized(11, manager))
    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "storage_full")
    assert not [*Path(tmp_path / "tenants" / "acme" / "reserved").glob("[!.]*")]


def test_uploads_at_once_get_no_more_than_one_alone(tmp_path):
    guarded = Guarded(tmp_path)
    headers = guarded.key("manager", "acme", storage=10_000) | MULTIPART
    events = []

    async def many(client):
        everybody = asyncio.Event()

        async def slow():
            yield b" " * 3000
            events.append("begun")
            await everybody.wait()

        tasks = [asyncio.create_task(client.post("/v1/adapters", content=slow(), headers=headers)) for _ in range(8)]
        while sum(task.done() for task in tasks) + len(events) < 8:
            await asyncio.sleep(0.01)
        everybody.set()
        return sorted(response.status_code for response in await asyncio.gather(*tasks))

    assert guarded.run(many) == [200] * 3 + [413] * 5

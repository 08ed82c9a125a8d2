"""Who waits for files, locks or documents keeps nobody from an answer or a search."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

from filelock import FileLock

from halka.rag.roots import SETTINGS
from halka.server.resources import adapter_files
from halka.server.resources.collection_access import new_collection
from halka.server.threads import MANAGERS, Threads, Workers
from halka.storage.adapter_store import LOCKS
from serving_for_tests import Running, until


def waiting(workers: Workers) -> int:
    """How many calls wait for a thread."""
    return workers.limiter.statistics().tasks_waiting


def test_removals_that_wait_for_a_store_keep_nobody_from_an_answer(base, store, tmp_path):
    """More than anyio has threads for all."""
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
    with Running(base, store, tmp_path / "data") as running, ThreadPoolExecutor(45) as managers:
        client = running.client
        manage = running.service.threads.manage
        with FileLock(store / LOCKS / "lora"):
            removals = [managers.submit(client.delete, "/v1/adapters/lora") for _ in range(45)]
            until(lambda: waiting(manage) == 45 - MANAGERS, "not all wait")
            assert client.post("/v1/chat/completions", json=chat, timeout=20).status_code == 200
            assert not any(removal.done() for removal in removals)
        assert {removal.result().status_code for removal in removals} <= {200, 404}


def test_users_look_at_what_they_may_while_managers_have_all_threads(server):
    async def full(*_):
        raise AssertionError("it would wait for managers")

    server.service.threads.manage = full
    for path in ("adapters", "adapters/lora", "comparisons", "usage"):
        assert server.client.get(f"/v1/{path}").status_code == 200, path


def test_an_adapter_is_hashed_once(server, store):
    first = server.client.get("/v1/adapters/lora").json()
    kept = adapter_files.hashed_id.cache_info
    before = kept().misses
    assert server.client.get("/v1/adapters/lora").json() == first
    assert kept().misses == before
    (weights,) = (store / "lora").rglob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert "error" in server.client.get("/v1/adapters/lora").json(), "its content is not what its Card says"


def test_searches_go_on_while_a_removal_waits_for_documents():
    threads, begun, taken_in = Threads().near, threading.Event(), threading.Event()

    def take_in() -> None:
        begun.set()
        taken_in.wait(60)

    async def all_at_once() -> None:
        ingesting = asyncio.create_task(threads.ingest(take_in))
        await asyncio.to_thread(begun.wait, 60)
        removal = asyncio.create_task(threads.exclusive(lambda: None))
        try:
            while not waiting(threads.ingest):
                await asyncio.sleep(0.005)
            assert await asyncio.wait_for(threads.search(lambda: "a passage"), 20) == "a passage"
            assert not removal.done()
        finally:
            taken_in.set()
        await asyncio.gather(ingesting, removal)

    asyncio.run(all_at_once())


def test_a_server_of_passages_that_does_not_answer_keeps_nobody_else_waiting(base, store, tmp_path):
    silent = socket.create_server(("127.0.0.1", 0))
    at = f"postgresql://nobody@127.0.0.1:{silent.getsockname()[1]}/nowhere?connect_timeout=600"
    with Running(base, store, tmp_path / "data") as running, ThreadPoolExecutor(3) as pool:
        service, client = running.service, running.client
        for name in ("here", "afar"):
            [*new_collection(service, "main", name).put([("a.md", "Parcels are sent on Monday.")])]
        settings = service.tenants.of("main").collections / "afar" / SETTINGS
        settings.write_text(json.dumps({**json.loads(settings.read_text()), "at": at}))
        query = {"query": "parcels"}
        afar = pool.submit(client.post, "/v1/collections/afar/search", json=query)
        asked, _ = silent.accept()
        uploaded = pool.submit(client.post, "/v1/collections/afar/documents", files={"files": ("b.md", b"b")})
        removed = pool.submit(client.delete, "/v1/collections/afar")
        try:
            until(lambda: waiting(service.threads.afar.search) == 2, "they do not wait")
            found = client.post("/v1/collections/here/search", json=query).json()["data"]
            assert found[0]["document"] == "a.md"
            assert client.post("/v1/embeddings", json={"model": "words", "input": "a"}).status_code == 200
            assert client.post("/v1/collections/here/documents", files={"files": ("c.md", b"c")}).status_code == 201
            assert client.delete("/v1/collections/here/documents/c.md").status_code == 200
            assert client.delete("/v1/collections/here").status_code == 200
            assert not afar.done()
        finally:
            silent.close()
            asked.close()
        assert afar.result().json()["error"]["code"] == "documents_away"
        assert {uploaded.result().status_code, removed.result().status_code} == {503}


def test_who_opens_a_collection_waits_for_its_removal(base, store, tmp_path):
    """Else an upload or an advice would make its table again, or read from files that are not there any more."""
    advice = {"kind": "advise", "data": [{"prompt": "a", "completion": "b"}] * 4, "collection": "faq"}
    with Running(base, store, tmp_path / "data") as running, ThreadPoolExecutor(3) as managers:
        client = running.client
        threads = running.service.threads.near
        collection = new_collection(running.service, "main", "faq")
        [*collection.put([("a.md", "a")])]
        with FileLock(collection.folder / ".lock"):
            removal = managers.submit(client.delete, "/v1/collections/faq")
            until(lambda: threads.search.limiter.borrowed_tokens == 1, "it is not alone")
            files = {"files": ("b.md", b"b")}
            uploaded = managers.submit(client.post, "/v1/collections/faq/documents", files=files)
            advised = managers.submit(client.post, "/v1/jobs", json=advice)
            until(lambda: waiting(threads.search) + waiting(threads.ingest) == 2, "they do not wait")
        assert [future.result().status_code for future in (removal, uploaded, advised)] == [200, 404, 404]
        assert client.post("/v1/collections", json={"name": "faq"}).status_code == 201

"""Managers who wait for files and locks take no thread from those who ask."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
from filelock import FileLock

from halka.server.managing import THREADS
from halka.storage.adapter_store import LOCKS
from serving_for_tests import Running, until


def test_removals_that_wait_for_a_store_keep_nobody_from_an_answer(base, store, tmp_path):
    """More than anyio has threads for all."""
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
    with (
        Running(base, store, tmp_path / "data") as running,
        httpx.Client(base_url=running.url, timeout=60) as client,
        ThreadPoolExecutor(45) as managers,
    ):
        managing = running.service.managing
        with FileLock(store / LOCKS / "lora"):
            removals = [managers.submit(client.delete, "/v1/adapters/lora") for _ in range(45)]
            until(lambda: managing.waiting == 45 - THREADS, "not all wait")
            assert client.post("/v1/chat/completions", json=chat, timeout=20).status_code == 200
            assert not any(removal.done() for removal in removals)
        assert {removal.result().status_code for removal in removals} <= {200, 404}

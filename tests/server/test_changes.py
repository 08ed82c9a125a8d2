"""Adapters and documents come and go beside requests: each is answered, or told that there is no such thing."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable

import pytest

from serving_for_tests import InProcess

CHAT = {"messages": [{"role": "user", "content": "When are parcels sent?"}], "max_tokens": 4}


@pytest.mark.slow
def test_what_comes_and_goes_makes_no_error_but_404(base, store, tmp_path):
    """With room for few adapters, so that they are loaded and evicted all the time."""
    families = ("lora", "prefix", "bottleneck")
    files = {name: [("files", (p.name, p.read_bytes())) for p in (store / name / "1").iterdir()] for name in families}
    statuses, ended = Counter[tuple[str, int]](), threading.Event()

    def note(what: str, response) -> None:
        statuses[what, response.status_code] += 1
        assert response.status_code < 500, response.text

    def adapters(client, draw: random.Random) -> None:
        name = draw.choice("xy")
        note("upload", client.post("/v1/adapters", data={"name": name}, files=files[draw.choice(families)]))
        note(draw.choice(["load", "unload", "pin", "unpin"]), client.post(f"/v1/adapters/{name}/load"))
        if draw.random() < 0.7:
            note("delete", client.delete(f"/v1/adapters/{name}"))
        note("list", client.get("/v1/adapters"))

    def documents(client, draw: random.Random) -> None:
        path = "/v1/collections/faq"
        note("create", client.post("/v1/collections", json={"name": "faq"}))
        text = b"Parcels are sent on Monday. " * draw.randrange(1, 9)
        note("document", client.post(f"{path}/documents", files=[("files", (f"{draw.randrange(4)}.md", text))]))
        note("remove", client.delete(f"{path}/documents/{draw.randrange(4)}.md"))
        if draw.random() < 0.2:
            note("drop", client.delete(path))

    def ask(client, draw: random.Random) -> None:
        model = draw.choice(["x", "y", *families, "tiny"])
        halka = draw.choice([None, {"collection": "faq"}])
        response = client.post("/v1/chat/completions", json={**CHAT, "model": model, "halka": halka})
        assert response.status_code in (200, 404), response.text
        note("ask", response)
        note("archive", client.get("/v1/adapters/x/archive"))

    failures = list[BaseException]()

    def repeat(work: Callable[..., None], seed: int, times: int | None) -> None:
        draw = random.Random(seed)
        try:
            for _ in iter(int, 1) if times is None else range(times):
                if ended.is_set():
                    break
                work(server.client, draw)
        except BaseException as error:
            failures.append(error)
            ended.set()

    with InProcess.open(base, store, tmp_path / "data", adapter_memory=0.0002) as server:
        changing = [threading.Thread(target=repeat, args=(work, 1, 25)) for work in (adapters, documents)]
        asking = [threading.Thread(target=repeat, args=(ask, seed, None)) for seed in range(4)]
        for thread in (*changing, *asking):
            thread.start()
        for thread in changing:
            thread.join()
        ended.set()
        for thread in asking:
            thread.join()
    assert not failures, failures[0]
    assert statuses["ask", 200] > 20
    assert statuses["upload", 201] == 25

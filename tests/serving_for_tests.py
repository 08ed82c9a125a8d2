"""Servers of tiny bases for tests: in this process, or a real uvicorn at a port of its own."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from starlette.testclient import TestClient

import halka
from engine_for_tests import filled
from halka.server import ServerSettings, create_app
from halka.server.service import Service
from tiny import tiny
from tokenizers_for_tests import chatml_tokenizer

FAMILIES = {"lora": halka.LoRA(rank=4), "prefix": halka.Prefix(length=4), "bottleneck": halka.Bottleneck(width=8)}


def make_base(folder: Path, tokenizer: Any = None) -> Path:
    """Write a tiny Llama with a tokenizer, ChatML's if not given."""
    tokenizer = chatml_tokenizer() if tokenizer is None else tokenizer
    base = tiny("llama", vocab_size=len(tokenizer), max_position_embeddings=512, eos_token_id=tokenizer.eos_token_id)
    base.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_store(folder: Path, base: Path, names: dict[str, Any] | None = None) -> Path:
    """Write a store with an adapter of every family, or with these methods by name."""
    model = halka.adapt(*halka.load_base(base, dtype="float32"))
    for seed, (name, method) in enumerate((FAMILIES if names is None else names).items()):
        filled(model, name, method, seed)
        halka.AdapterStore(folder).save(model, name)
    return folder


def settings(base: Path, store: Path | None, data: Path, **changes: Any) -> ServerSettings:
    return ServerSettings(**{"base": str(base), "store": store, "data": data, "dtype": "float32", "rows": 8, **changes})


@dataclass
class InProcess:
    """A server whose requests run in this process, without a network."""

    service: Service
    client: TestClient

    @classmethod
    @contextmanager
    def open(cls, base: Path, store: Path | None, data: Path, **changes: Any) -> Iterator[InProcess]:
        service = Service.open(settings(base, store, data, **changes))
        app = create_app(service)
        with TestClient(app, base_url="http://127.0.0.1:8000", client=("127.0.0.1", 50000)) as client:
            yield cls(service, client)


class Running:
    """A uvicorn in a thread, at a free loopback port."""

    def __init__(self, base: Path, store: Path | None, data: Path, **changes: Any):
        self.service = Service.open(settings(base, store, data, **changes))
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._server = uvicorn.Server(uvicorn.Config(create_app(self.service), log_level="warning"))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)

    def __enter__(self) -> Running:
        self._thread.start()
        begun = time.monotonic()
        while not self._server.started:
            assert self._thread.is_alive()
            assert time.monotonic() < begun + 60, "the server does not start"
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()

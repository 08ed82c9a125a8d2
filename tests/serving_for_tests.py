"""Servers of tiny bases for tests: in this process, or a real uvicorn at a port of its own."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import httpx
from starlette.testclient import TestClient

import halka
from commands import process
from embedder_for_tests import WordEmbedder
from engine_for_tests import filled
from halka.engine import Answer, AsyncEngine, Request
from halka.engine.logprobs import TokenLogprob
from halka.server import uvicorn_server
from halka.server.app import create_app
from halka.server.one_at_a_time import OneAtATime
from halka.server.previews.looks import Looks
from halka.server.previews.process import Look
from halka.server.previews.views import view_of_needs, view_of_preview
from halka.server.resources.embedders import Embedders
from halka.server.service import Service
from halka.server.settings import ServerSettings
from halka.server.wire import dumps
from halka.util.errors import HalkaError
from tiny import tiny
from tokenizers_for_tests import chatml_tokenizer

FAMILIES = {
    "lora": halka.LoRA(rank=4, alpha=8),
    "prefix": halka.Prefix(length=4),
    "bottleneck": halka.Bottleneck(width=8),
}

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Dhaka"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
PARIS = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
"""What a base says that calls that tool."""


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


def no_white_space(service: Service) -> dict[int, float]:
    """A bias against tokens of white space alone, which JSON may have any number of: a tiny base never ends there."""
    return {id: -100 for id in range(len(service.tokenizer)) if not service.token_texts.text(id).strip()}


def settings(base: Path, store: Path | None, data: Path, **changes: Any) -> ServerSettings:
    return ServerSettings(
        **{"base": str(base), "store": store, "data": data, "dtype": "float32", "rows": 8, "jobs": 0, **changes}
    )


def open_service(
    base: Path, store: Path | None, data: Path, says: Sequence[str | Exception] | None = None, **changes: Any
) -> Service:
    """A server's service. says: what its answers are, in the place of what the base would say."""
    service = Service.open(settings(base, store, data, **changes), embedders=Embedders(WordEmbedder()))
    if says is None:
        return service
    scripted = cast(AsyncEngine, Scripted(service.engine, says))
    return replace(service, engine=scripted, backend=scripted)


@dataclass
class InProcess:
    """A server whose requests run in this process, without a network."""

    service: Service
    client: TestClient

    def key(self, tenant: str, role: Any = "manager", **more: Any) -> dict[str, str]:
        """The headers of who has a new key. Once there is one, nobody calls without."""
        text, _ = self.service.guards.keys.add(tenant, role, **more)
        return {"authorization": f"Bearer {text}"}

    @classmethod
    @contextmanager
    def open(cls, base: Path, store: Path | None, data: Path, **more: Any) -> Iterator[InProcess]:
        """more: `says` of `open_service`, and settings."""
        service = open_service(base, store, data, **more)
        app = create_app(service)
        with TestClient(app, base_url="http://127.0.0.1:8000", client=("127.0.0.1", 50000)) as client:
            yield cls(service, client)


class Scripted:
    """An engine that answers with texts of a script, a few letters at a time: a stub of a base that says these.

    An exception in the place of a text is raised when the answer has begun.
    """

    def __init__(self, behind: AsyncEngine, texts: Sequence[str | Exception], pace: int = 3):
        self._behind, self._texts, self._pace = behind, texts, pace
        self.engine, self.asked = behind.engine, list[Request]()

    async def follow(self, request: Request, n: int = 1, *, pieces: bool = True) -> AsyncIterator[Answer]:
        self.asked.append(request)
        for number, text in enumerate(self._texts[:n]):
            answer, letters = Answer(request, number), "begun" if isinstance(text, Exception) else text
            for start in range(0, len(letters), self._pace):
                answer.text += letters[start : start + self._pace]
                answer.tokens.append(start)
                if request.logprobs is not None:
                    answer.logprobs.append(TokenLogprob(5, -float(start)))
                yield answer
            if isinstance(text, Exception):
                raise text
            answer.finish = "stop"
            yield answer

    async def call(self, function: Any) -> Any:
        return function()

    async def aclose(self) -> None:
        await self._behind.aclose()


class LooksHere(Looks):
    """Looks at drafts in this process, which has loaded all that it takes: one of its own needs seconds for that."""

    def __init__(self) -> None:
        self._here = OneAtATime()

    async def __call__(self, path: Path, tenant: str) -> dict[str, Any]:
        return await self._here(tenant, self._seen, path)

    def _seen(self, path: Path) -> dict[str, Any]:
        """What `halka.server.previews.process` prints of a file."""
        look = Look(**json.loads(path.read_bytes()))
        try:
            seen = view_of_preview(look.preview()) if look.what == "preview" else view_of_needs(look.needs())
        except HalkaError as error:
            seen = {"reason": str(error)}
        return json.loads(dumps(seen))


class Running:
    """The server as it runs, but in a thread, at a free loopback port; `client` waits for it on a busy machine, too."""

    def __init__(self, base: Path, store: Path | None, data: Path, **more: Any):
        self.service = open_service(base, store, data, **more)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self.client = httpx.Client(base_url=self.url, timeout=60)
        self._server = uvicorn_server.server(create_app(self.service), self.service.guards.drain, 5)
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
        self.client.close()
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()


def until(true: Callable[[], bool], what: str) -> None:
    """Wait until this is true; fails with what is not."""
    begun = time.monotonic()
    while not true():
        assert time.monotonic() < begun + 120, what
        time.sleep(0.005)


@contextmanager
def serving(arguments: str, folder: Path, **environment: str):
    """A server process with what it wrote until it was ready, at a free port."""
    with process(f"serve {arguments} --port 0", folder, **environment) as server:
        assert server.stderr is not None
        try:
            lines = []
            while not lines or "curl" not in lines[-1]:
                lines.append(server.stderr.readline())
                assert lines[-1], f"it ended: {lines}"
            yield server, "".join(lines)
        finally:
            server.kill()

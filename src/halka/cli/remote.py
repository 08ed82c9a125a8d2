"""A server of Halka's, or another that speaks OpenAI's API, as `halka chat` talks to it."""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from halka.cli.command import Failed
from halka.util.errors import HalkaError
from halka.util.text import fits_header, one_line

if TYPE_CHECKING:
    import httpx

HERE = "http://127.0.0.1:8000"
KEY = "HALKA_API_KEY"
TIMEOUT = 300.0  # seconds without a byte


class Aside(str):
    """What is shown with an answer and is no part of the conversation."""


@dataclass(frozen=True)
class Server:
    """Where a server is, and the key that it asks for, if there is one."""

    url: str
    key: str | None

    @classmethod
    def of(cls, url: str, key_env: str) -> Server:
        """Raises HalkaError for what is no URL, and for a variable without a key that somebody named."""
        try:
            parts = urlsplit(url)
            host = (parts.hostname or "").encode("idna")
        except ValueError:  # of an address within brackets, or a name
            host = b""
        if not host or parts.scheme not in ("http", "https"):
            raise HalkaError(f"--url: {url!r} is no URL of a server: write one like {HERE}")
        if parts.password or parts.username:
            raise HalkaError("--url: a URL must not have a password: put the API key into the variable of --key-env")
        key = os.environ.get(key_env, "").strip() or None
        if key is not None and not fits_header(key):
            raise HalkaError(f"--key-env: {key_env} has characters that no header can have: set it to the API key")
        if key is None and key_env != KEY:
            raise HalkaError(f"--key-env: there is no variable {key_env}: set it to the API key")
        return cls(url.rstrip("/").removesuffix("/v1"), key)

    def replies(self, model: str | None, tokens: int, options: dict[str, Any], collection: str | None) -> Any:
        """A function from a conversation to its answer in pieces, with its sources at the end where it has some."""
        model = self._base() if model is None else model
        retrieval = {} if collection is None else {"halka": {"collection": collection}}
        body = {"model": model, "max_tokens": tokens, "stream": True, **options, **retrieval}

        def reply(history: list[dict[str, str]]) -> Generator[str]:
            sources = None
            with self._asked("POST", "/v1/chat/completions", json={**body, "messages": history}) as response:
                for chunk in _events(response):
                    sources = chunk.get("halka") or sources
                    for choice in chunk.get("choices", ()):
                        yield choice["delta"].get("content") or ""
            if sources is not None and not sources["abstained"]:
                yield Aside(_listed(sources["sources"]))

        return reply

    def _base(self) -> str:
        with self._asked("GET", "/v1/models") as response:
            return json.loads(response.read())["data"][0]["id"]

    @contextmanager
    def _asked(self, method: str, path: str, **more: Any) -> Iterator[httpx.Response]:
        """A response that is no error.

        Raises HalkaError with the server's message, and where there is no server; Failed where the server fails.
        """
        import httpx

        headers = {} if self.key is None else {"authorization": f"Bearer {self.key}"}
        try:
            with httpx.stream(
                method, self.url + path, headers=headers, timeout=httpx.Timeout(TIMEOUT, connect=10), **more
            ) as response:
                if (status := response.status_code) >= 400:
                    kind = Failed if status == 429 or status >= 500 else HalkaError
                    raise kind(f"{self.url}: {_message(response)}")
                yield response
        except httpx.ConnectError:
            raise HalkaError(
                f"nobody answers at {self.url}: start a server with `halka serve`, name another with --url, or talk to "
                "a base here with --base"
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL, json.JSONDecodeError) as error:
            kind = Failed if isinstance(error, httpx.HTTPError) else HalkaError
            raise kind(f"{self.url}: {one_line(str(error)) or type(error).__name__}") from None
        except (LookupError, TypeError, AttributeError):
            raise HalkaError(
                f"{self.url}: what it answers at {path} is not as OpenAI's API has it: name another server with --url"
            ) from None


def _events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    """The chunks of a stream. Raises Failed for an error among them."""
    for line in response.iter_lines():
        if not line.startswith("data:") or (data := line.removeprefix("data:").strip()) == "[DONE]":
            continue
        chunk = json.loads(data)
        if error := chunk.get("error"):
            raise Failed(one_line(str(error.get("message"))))
        yield chunk


def _message(response: httpx.Response) -> str:
    try:
        message = str(json.loads(response.read())["error"]["message"])
    except (ValueError, LookupError, TypeError):
        message = f"the server answers with status {response.status_code}"
    hint = f" (the variable of --key-env, {KEY} by default, has the key)" if response.status_code == 401 else ""
    return one_line(message) + hint


def _listed(sources: list[dict[str, Any]]) -> str:
    """The sources that an answer cites, below it."""
    cited = [source for source in sources if source["cited"]]
    lines = [
        f"[{source['number']}] {one_line(source['document'])}" + (f", page {source['page']}" if source["page"] else "")
        for source in cited
    ]
    return "".join(f"\n{line}" for line in ("", "Sources:", *lines)) if lines else ""

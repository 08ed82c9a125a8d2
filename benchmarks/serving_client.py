"""Clients of an OpenAI-compatible server that cost little: they keep bytes as they come, and read them at the end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Streamed:
    """One streamed answer: its text, how many tokens it has, and why it ended; or its error."""

    text: str = ""
    tokens: int = 0
    finish: str | None = None
    error: str | None = None


async def sent(port: int, body: dict[str, Any]) -> bytes:
    """All that comes for one chat request."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with closing(writer):
        content = json.dumps({**body, "stream": True, "stream_options": {"include_usage": True}}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Connection: close\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content)
        return await reader.read()


def streamed(response: bytes) -> Streamed:
    """The answer in a response: a JSON error, or events."""
    head, _, content = response.partition(b"\r\n\r\n")
    if head.split(b" ", 2)[1] != b"200":
        return Streamed(error=content.decode(errors="replace"))
    text, tokens, finish = "", 0, None
    for line in content.splitlines():
        if line.startswith(b"data: {"):
            chunk = json.loads(line[6:])
            if "error" in chunk:
                return Streamed(text, error=chunk["error"]["message"])
            tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
            for choice in chunk["choices"]:
                text += choice["delta"].get("content") or ""
                finish = choice["finish_reason"] or finish
    return Streamed(text, tokens, finish)


async def clients(port: int, bodies: Sequence[dict[str, Any]], count: int) -> list[bytes]:
    """The responses to all of these, with so many requests under way at a time."""
    responses: dict[int, bytes] = {}
    waiting: Iterator[tuple[int, dict[str, Any]]] = iter(enumerate(bodies))

    async def client() -> None:
        for number, body in waiting:
            responses[number] = await sent(port, body)

    await asyncio.gather(*(client() for _ in range(count)))
    return [responses[number] for number in range(len(bodies))]

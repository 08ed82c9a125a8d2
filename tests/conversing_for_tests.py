"""Conversations of the Playground: what is asked, and streams in the place of a server's."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from playwright.sync_api import Page, Route

CHATS = "**/v1/chat/completions"


def ask(page: Page, text: str) -> None:
    message = page.get_by_role("textbox", name="Your message")
    message.fill(text)
    message.press("Enter")


def bodies_of(page: Page) -> list[dict[str, Any]]:
    """What the page asks models from now on."""
    bodies = list[dict[str, Any]]()
    page.on("request", lambda request: bodies.append(request.post_data_json or {}) if "/chat/" in request.url else None)
    return bodies


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def end_session_at_chat(page: Page, end: Callable[[], object], held: str | None = None) -> None:
    """Let the reader's session end as models are asked, whose answers alone can say so: what the page loads before
    would, too, and might before the message is sent. `held` is a model that never answers."""

    def asked(route: Route) -> None:
        end()
        if route.request.post_data_json["model"] != held:
            route.continue_()

    page.route(CHATS, asked)


def answer_with(page: Page, text: str, tokens: int = 7) -> None:
    """Let every model answer with this text, in one piece."""
    head = {"system_fingerprint": None, "usage": {"completion_tokens": tokens}}
    deltas = [({"content": text}, None), ({}, "stop")]
    chunks = [head | {"choices": [{"index": 0, "delta": delta, "finish_reason": end}]} for delta, end in deltas]
    body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    page.route(CHATS, lambda route: route.fulfill(body=body, content_type="text/event-stream"))

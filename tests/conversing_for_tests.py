"""Conversations of the Playground: what is asked, and streams in the place of a server's."""

from __future__ import annotations

import json
from typing import Any

from playwright.sync_api import Page

CHATS = "**/v1/chat/completions"


def ask(page: Page, text: str) -> None:
    page.get_by_role("textbox", name="Your message").fill(text)
    page.keyboard.press("Enter")


def bodies_of(page: Page) -> list[dict[str, Any]]:
    """What the page asks models from now on."""
    bodies = list[dict[str, Any]]()
    page.on("request", lambda request: bodies.append(request.post_data_json or {}) if "/chat/" in request.url else None)
    return bodies


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def answer_with(page: Page, text: str, tokens: int = 7) -> None:
    """Let every model answer with this text, in one piece."""
    head = {"system_fingerprint": None, "usage": {"completion_tokens": tokens}}
    deltas = [({"content": text}, None), ({}, "stop")]
    chunks = [head | {"choices": [{"index": 0, "delta": delta, "finish_reason": end}]} for delta, end in deltas]
    body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    page.route(CHATS, lambda route: route.fulfill(body=body, content_type="text/event-stream"))

"""`/v1/chat/completions`: an answer to a conversation, at once or as it is made."""

from __future__ import annotations

import time
import uuid
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from halka.engine import Answer, Request
from halka.server.access import Who
from halka.server.chat_request import ChatRequest
from halka.server.generation import adapter_of, chat_prompt, deltas, new_tokens
from halka.server.sending import Json, while_connected
from halka.server.service import Here, Service

router = APIRouter()


@router.post("/v1/chat/completions")
async def chat_completions(body: ChatRequest, http: HttpRequest, service: Here, caller: Who) -> Response:
    """Answer a conversation."""
    adapter = await adapter_of(service, caller, body.model)
    prompt = await chat_prompt(service, body.plain_messages())
    request = Request(
        prompt,
        adapter,
        sampling=body.sampling(service.settings.temperature),
        stopping=body.stopping(new_tokens(service, prompt, body.max_completion_tokens or body.max_tokens)),
        tenant=caller.tenant,
    )
    return Json(await while_connected(http, _whole(service, body, request)))


async def _whole(service: Service, body: ChatRequest, request: Request) -> dict[str, Any]:
    choices: dict[int, dict[str, Any]] = {}
    answers: dict[int, Answer] = {}
    async with aclosing(deltas(service, request, body.n or 1)) as parts:
        async for delta in parts:
            choice = choices.setdefault(
                delta.index,
                {
                    "index": delta.index,
                    "message": {"role": "assistant", "content": "", "refusal": None, "annotations": []},
                    "logprobs": None,
                    "finish_reason": None,
                },
            )
            choice["message"]["content"] += delta.text
            choice["finish_reason"] = delta.finish
            answers[delta.index] = delta.answer
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": body.model,
        "choices": [choices[index] for index in sorted(choices)],
        "usage": usage(request, [*answers.values()]),
        "system_fingerprint": None,
    }


def usage(request: Request, answers: list[Answer]) -> dict[str, Any]:
    """How many tokens were read and written."""
    written = sum(len(answer.tokens) for answer in answers)
    return {
        "prompt_tokens": len(request.prompt),
        "completion_tokens": written,
        "total_tokens": len(request.prompt) + written,
        "prompt_tokens_details": {"cached_tokens": 0},
    }

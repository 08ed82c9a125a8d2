"""How many tokens a prompt and its answer have room for."""

from __future__ import annotations

from collections.abc import Sequence

from halka.server.errors import ApiError
from halka.server.service import Service

NO_END = 2**20  # tokens of a prompt for a base that reads any number


async def answer_room(service: Service, adapter: str | None, prompt: Sequence[int]) -> int:
    """How many tokens an answer may have whose request does not say: as set, or what the prompt leaves."""
    usual, context = service.settings.new_tokens, service.context
    if context is None or len(prompt) + usual <= context // 2:  # no adapter's virtual tokens take that many
        return usual
    left = await service.holder.room(adapter)
    return usual if left is None else max(1, min(usual, left - len(prompt)))


async def prompt_room(service: Service, adapter: str | None, new_tokens: int | None) -> int:
    """How many tokens a prompt may have beside an answer of `new_tokens`, or of as many as is usual.

    Raises ApiError where no prompt has room beside it.
    """
    left = await service.holder.room(adapter)
    if left is None:
        return NO_END
    answer = min(service.settings.new_tokens, left // 2) if new_tokens is None else new_tokens
    if answer >= left:
        message = f"the answer may have {answer} tokens, and the base reads {left}: ask for fewer"
        raise ApiError(400, message, param="max_tokens")
    return left - answer

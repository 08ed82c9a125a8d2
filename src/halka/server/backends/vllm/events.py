"""The events of vLLM's stream, read strictly: whatever is at that address, no answer takes what is none."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

LONGEST = 1 << 24  # bytes of an event: every token of a long answer has its likeliest in it, and there is room

Token = Annotated[int, Field(ge=0, lt=10**9)]
NamedToken = Annotated[str, Field(pattern=r"^token_id:[0-9]{1,9}$")]


class Logprobs(BaseModel):
    token_logprobs: list[float]
    top_logprobs: list[dict[NamedToken, float] | None]


class Choice(BaseModel):
    index: Annotated[int, Field(ge=0)]
    token_ids: list[Token] | None = None
    logprobs: Logprobs | None = None
    finish_reason: str | None = None


class Cached(BaseModel):
    cached_tokens: Annotated[int, Field(ge=0)] | None = None


class Usage(BaseModel):
    prompt_tokens_details: Cached | None = None


class Event(BaseModel):
    """What vLLM says at once; `error` in the place of choices, where it breaks off."""

    choices: list[Choice] = []
    usage: Usage | None = None
    error: Any = None

    @property
    def cached(self) -> int:
        """Tokens of the prompt that vLLM's cache had, where it is started so that it says so."""
        details = self.usage and self.usage.prompt_tokens_details
        return (details and details.cached_tokens) or 0


def read_event(data: bytes, n: int) -> Event:
    """An event to a request for `n` answers. Raises ValueError for what is none, without a word of its texts."""
    try:
        event = Event.model_validate_json(data, strict=True)
    except ValidationError as error:
        first = error.errors(include_input=False, include_context=False)[0]
        raise ValueError(
            f"{'.'.join(map(str, first['loc']))} of an event is not as vLLM has it: {first['type']}"
        ) from None
    for choice in event.choices:
        if choice.index >= n:
            raise ValueError(f"an event has answer {choice.index} of {n}")
        logprobs, count = choice.logprobs, len(choice.token_ids or ())
        if logprobs and count and not count == len(logprobs.token_logprobs) == len(logprobs.top_logprobs):
            raise ValueError("an event has more tokens than log probabilities, or fewer")
    return event


async def data_of(chunks: AsyncIterator[bytes], longest: int = LONGEST) -> AsyncIterator[bytes]:
    """The data of each event. Raises ValueError for one that is longer than `longest` bytes.

    Lines end at line feeds alone: vLLM writes U+2028 and others, at which Python ends lines, as they are.
    """
    rest = b""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line.removeprefix(b"data:").strip()
        if len(rest) > longest:
            raise ValueError(f"an event is longer than {longest} bytes")

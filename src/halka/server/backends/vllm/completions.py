"""A request as vLLM's `/v1/completions` takes it, and the events that come back as tokens.

Token ids go both ways: the chat template, the passages, the text of tokens and its stop strings are ours.
"""

from __future__ import annotations

from typing import Any

from halka.engine import Request
from halka.engine.logprobs import TokenLogprob
from halka.server.backends.growing import Piece
from halka.server.backends.vllm.events import Choice, Event

COLDEST = 0.01  # vLLM's lowest temperature above 0
LEAST_SHARE = 1e-6  # vLLM takes no top_p of 0: both keep the likeliest token alone


def unlike_engine(request: Request, n: int) -> str | None:
    """Why vLLM would answer this request by other rules than the engine; None: by the same."""
    sampling = request.sampling
    if sampling.greedy and n > 1:
        return "vLLM refuses to make several greedy answers, which are equal"
    if not sampling.greedy and (sampling.temperature or 0) < COLDEST:
        return f"vLLM raises temperatures to {COLDEST}"
    if request.constraint is not None:
        return "the engine enforces schemas, whose white space and order of keys vLLM has otherwise"
    if not sampling.greedy and sampling.min_p and (sampling.top_k or sampling.top_p not in (None, 1)):
        return "vLLM applies min_p before top_k and top_p, and the engine after them"
    return None


def body_of(request: Request, n: int, model: str, ends: frozenset[int], salt: str, opening: str = "") -> dict[str, Any]:
    """The request's JSON. Every setting is named: vLLM has defaults of its own, from the base's generation config.

    model  what vLLM calls the base or the LoRA
    ends   tokens that end an answer
    salt   keeps what vLLM caches of a tenant's prompts from all others
    opening   what the chat template begins answers with, in which no stop string counts: vLLM does not know it, so that
              the text ends where they are read, and the request with it
    """
    sampling, stopping = request.sampling, request.stopping
    return {
        "model": model,
        "prompt": [*request.prompt],
        "n": n,
        "max_tokens": stopping.max_new_tokens,
        "temperature": sampling.temperature or 0.0,
        "top_k": sampling.top_k or 0,
        "top_p": 1.0 if sampling.top_p is None else max(sampling.top_p, LEAST_SHARE),
        "min_p": sampling.min_p or 0.0,
        "repetition_penalty": sampling.repetition_penalty or 1.0,
        "presence_penalty": sampling.presence_penalty or 0.0,
        "frequency_penalty": sampling.frequency_penalty or 0.0,
        "logit_bias": {str(token): bias for token, bias in sampling.bias.items()} or None,
        "seed": sampling.seed,
        "stop": [] if request.chat and opening else [*stopping.strings],
        "stop_token_ids": sorted(stopping.tokens if stopping.ignore_ends else stopping.tokens | ends),
        "ignore_eos": stopping.ignore_ends,
        "logprobs": request.logprobs,
        "cache_salt": salt,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }


def pieces_of(event: Event, top: int | None) -> list[Piece]:
    """What an event adds to answers; `top` is the request's `logprobs`."""
    return [
        Piece(
            choice.index,
            choice.token_ids or (),
            () if top is None else _logprobs(choice, top),
            choice.finish_reason,
        )
        for choice in event.choices
    ]


def _logprobs(choice: Choice, top: int) -> list[TokenLogprob]:
    """vLLM has the token itself among the likeliest, also where it is none of them."""
    entries, tokens, logprobs = choice.logprobs, choice.token_ids, list[TokenLogprob]()
    if not entries or not tokens:
        return logprobs
    for token, own, likeliest in zip(tokens, entries.token_logprobs, entries.top_logprobs, strict=True):
        others = [(int(key.removeprefix("token_id:")), value) for key, value in (likeliest or {}).items()]
        best = sorted(others, key=lambda pair: -pair[1])[:top]
        logprobs.append(TokenLogprob(token, own, tuple(best)))
    return logprobs

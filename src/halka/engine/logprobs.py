"""How likely the base with its adapter found the tokens of an answer, before any temperature, penalty or constraint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenLogprob:
    """A token of an answer, its log probability, and the likeliest tokens at its place with theirs, the best first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def token_logprobs(logits: Tensor, tokens: Sequence[int], tops: Sequence[int]) -> list[TokenLogprob]:
    """The log probability of each row's token, and as many of the likeliest as `tops` says: logits (R, V), R tokens."""
    sums = logits.logsumexp(-1, keepdim=True)
    chosen = torch.tensor(tokens, device=logits.device)[:, None]
    own = (logits.gather(1, chosen) - sums)[:, 0].tolist()
    likeliest = logits.topk(max(tops), -1)
    places, values = likeliest.indices.tolist(), (likeliest.values - sums).tolist()
    return [
        TokenLogprob(token, logprob, tuple(zip(ids[:top], logprobs[:top], strict=True)))
        for token, logprob, ids, logprobs, top in zip(tokens, own, places, values, tops, strict=True)
    ]

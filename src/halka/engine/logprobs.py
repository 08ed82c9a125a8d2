"""How likely the base with its adapter found the tokens of an answer, before any temperature, penalty or constraint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from halka.util.transfer import to_device


@dataclass(frozen=True)
class TokenLogprob:
    """A token of an answer, its log probability, and the likeliest tokens at its place with theirs, the best first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def token_logprobs(logits: Tensor, tokens: Sequence[int], tops: Sequence[int]) -> list[TokenLogprob]:
    """The log probability of each row's token, and as many of the likeliest as `tops` says: logits (R, V), R tokens.

    They come in one copy, for which the host waits.
    """
    sums, most = logits.logsumexp(-1, keepdim=True), max(tops)
    (chosen,) = to_device([torch.tensor(tokens, device="cpu")], logits.device)
    likeliest = logits.topk(most, -1)
    own, values = logits.gather(1, chosen[:, None]) - sums, likeliest.values - sums
    results = []
    for token, top, row in zip(
        tokens, tops, torch.cat([own, values, likeliest.indices.to(own.dtype)], -1).tolist(), strict=True
    ):
        logprobs, ids = row[1 : 1 + most], map(int, row[1 + most :])
        results.append(TokenLogprob(token, row[0], tuple(zip(ids, logprobs, strict=True))[:top]))
    return results

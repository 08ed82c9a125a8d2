"""Draw the tokens of many rows in one go, on the device that has their logits; on a CPU `sampling` draws row by row.

R rows   V tokens   all in float64, as there
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from halka.util.transfer import to_device

if TYPE_CHECKING:
    from halka.engine.sampling import Sampling


def drawn(logits_RV: Tensor, samplings: Sequence[Sampling], uniforms: Sequence[float]) -> tuple[list[int], list[float]]:
    """The token at each row's uniform number in its distribution, and its highest logit, which may be no number.

    In the order of `sampling.kept`: temperature, top_k, top_p, min_p. Both results come in one copy, for which the host
    waits. Biases and penalties are not looked at.
    """
    vocabulary = logits_RV.shape[-1]
    top_k = [min(it.top_k or vocabulary, vocabulary) for it in samplings]
    top_p = [1.0 if it.top_p is None else it.top_p for it in samplings]
    fields = [[it.temperature for it in samplings], top_k, top_p, [it.min_p or 0.0 for it in samplings], uniforms]
    (settings,) = to_device([torch.tensor(fields, dtype=torch.float64, device="cpu")], logits_RV.device)
    temperature, count, share, least, uniform = settings[:, :, None].unbind()  # (R, 1) each
    highest = logits_RV.amax(-1, keepdim=True)
    weights = ((logits_RV.double() - highest) / temperature).exp()
    if (most := max((k for k in top_k if k < vocabulary), default=0)) > 0:
        last = logits_RV.topk(most).values.gather(1, (count.long() - 1).clamp(max=most - 1))
        weights = weights.where((logits_RV >= last) | (count >= vocabulary), 0)
    if min(top_p) < 1:
        weights = weights.where(_within(weights, share), 0)
    weights = weights.where(weights >= least, 0)
    sums = (weights / weights.sum(-1, keepdim=True)).cumsum(-1)
    total = sums[:, -1:].contiguous()
    tokens = torch.searchsorted(sums, uniform * total, right=True)
    tokens = tokens.minimum(torch.searchsorted(sums, total))  # should rounding lead past the last
    places, logits = torch.stack([tokens[:, 0].double(), highest[:, 0].double()]).tolist()
    return [*map(int, places)], logits


def _within(weights: Tensor, share: Tensor) -> Tensor:
    """(R, V), true for the fewest likeliest tokens whose probabilities reach a row's share (R, 1); one at least."""
    ascending, order = weights.sort(dim=-1, stable=True)
    sums = (ascending / weights.sum(-1, keepdim=True)).cumsum(-1)
    kept = (sums + (1 - sums[:, -1:]) > 1 - share) | (share >= 1)
    kept[:, -1] = True
    return torch.zeros_like(kept).scatter(1, order, kept)

"""Cross entropy: over given logits, and for next tokens in chunks, so that a batch's full logits never exist.

With a vocabulary of 49,000 the head is a fifth of a small model's work and most of its activation memory, and most
positions of an instruction example carry no label.

    B rows   T tokens   D hidden width   N label positions
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from halka.data.batches import IGNORE_INDEX

Head = Callable[[Tensor], Tensor]
CHUNK = 256  # label positions whose logits exist at once


def summed_cross_entropy(logits: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, int]:
    """The summed loss of labels (…) over the first `classes` of the logits (…, C), and the number of labels."""
    logits, labels = logits[..., :classes].flatten(0, -2).float(), labels.flatten()
    loss = F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum")
    return loss, int((labels != IGNORE_INDEX).sum())


def next_token_loss(hidden_BTD: Tensor, labels_BT: Tensor, head: Head, *, head_trains: bool) -> tuple[Tensor, int]:
    """The summed loss over the N label positions, and N. Label t is predicted from hidden state t - 1.

    A frozen head's gradient is computed chunk by chunk during the forward pass; a trained head runs again in backward.
    """
    targets_BT = labels_BT[:, 1:]
    chosen = targets_BT != IGNORE_INDEX
    hidden_ND, targets_N = hidden_BTD[:, :-1][chosen], targets_BT[chosen]
    if not head_trains and hidden_ND.requires_grad:
        return _FrozenHeadLoss.apply(hidden_ND, targets_N, head), len(targets_N)  # type: ignore[return-value]
    total = hidden_ND.new_zeros((), dtype=torch.float32)
    for h, t in zip(hidden_ND.split(CHUNK), targets_N.split(CHUNK), strict=True):
        if torch.is_grad_enabled():
            total = total + checkpoint(_summed, h, t, head, use_reentrant=False)  # type: ignore[operator]
        else:
            total = total + _summed(h, t, head)
    return total, len(targets_N)


def plain_next_token_loss(hidden_BTD: Tensor, labels_BT: Tensor, head: Head) -> tuple[Tensor, int]:
    """The slow twin of `next_token_loss`, for tests: all logits at once."""
    logits = head(hidden_BTD[:, :-1])
    return summed_cross_entropy(logits, labels_BT[:, 1:], logits.shape[-1])


def _summed(hidden_ND: Tensor, targets_N: Tensor, head: Head) -> Tensor:
    return F.cross_entropy(head(hidden_ND).float(), targets_N, reduction="sum")


class _FrozenHeadLoss(torch.autograd.Function):
    """The loss and the hidden states' gradient in one pass over the head."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, targets_N: Tensor, head: Head) -> Tensor:
        total = hidden_ND.new_zeros((), dtype=torch.float32)
        gradients = []
        for h, t in zip(hidden_ND.split(CHUNK), targets_N.split(CHUNK), strict=True):
            with torch.enable_grad():
                h = h.detach().requires_grad_()
                loss = _summed(h, t, head)
                gradients += torch.autograd.grad(loss, h)
            total += loss.detach()
        ctx.save_for_backward(torch.cat(gradients))
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient.float() * outer[0]).to(gradient.dtype), None, None

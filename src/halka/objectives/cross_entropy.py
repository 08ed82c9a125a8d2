"""Cross entropy: over given logits, and for next tokens in chunks, so that a batch's full logits never exist.

With a vocabulary of 49,000 the head is a fifth of a small model's work and most of its activation memory, and most
positions of an instruction example carry no label.

    B rows   T tokens   D hidden width   N label positions   R runs
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from halka.data.batches import IGNORE_INDEX
from halka.data.packing import PackedBatch
from halka.util.machine import available, held
from halka.util.transfer import to_device

Head = Callable[[Tensor], Tensor]
CHUNK = 256  # label positions whose logits exist at once on a CPU, and at least elsewhere
CACHED = 2**19  # logits in fp32 at once on a CPU: what its cache holds is neither fetched nor asked of the system
FINER = 2**10  # what gradients of fp16 logits are multiplied by while fp16 holds them: below 6e-8 it has no numbers
LOGITS = 2**27  # logits that exist at once on a GPU, to which few large products are better than many small ones
BYTES = 8  # of a logit while its loss is computed: itself, in fp32, and its slope; up to twice that if the head trains
SHARE = 4  # of a GPU's free memory logits take one part in so many, at most


def summed_cross_entropy(logits: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The summed loss of labels (…), on the CPU, over the first `classes` of the logits (…, C)."""
    logits = logits[..., :classes].flatten(0, -2).float()
    (there,) = to_device([labels.flatten()], logits.device)
    return F.cross_entropy(logits, there, ignore_index=IGNORE_INDEX, reduction="sum")


def chunk_for(device: torch.device, vocabulary: int) -> int:
    """How many label positions' logits exist at once on a device.

    Within `deterministic` that depends on no free memory, nor does it in an estimate.
    """
    if device.type == "cpu":
        return CHUNK
    varies = device.type == "cuda" and not torch.are_deterministic_algorithms_enabled()
    logits = logits_within(available(device) - held(device)) if varies else LOGITS
    return max(CHUNK, logits // vocabulary)


def logits_within(free: int) -> int:
    """How many logits exist at once on a GPU that has so many bytes free: LOGITS, or a half, a quarter … of it.

    So that most steps take pieces of one size from the allocator.
    """
    fit = max(1, free // (SHARE * BYTES))
    return min(LOGITS, 1 << (fit.bit_length() - 1))


def next_token_losses(
    hidden_BTD: Tensor, labels_BT: Tensor, head: Head, *, head_trains: bool, chunk: int = CHUNK
) -> Tensor:
    """The loss of each of a padded batch's N labels (N,), row by row. Label t is predicted from hidden state t - 1.

    Labels are on the CPU, so that which they are need not be asked of a GPU.
    """
    flat = labels_BT.flatten()
    places_N = F.pad(labels_BT[:, 1:] != IGNORE_INDEX, (0, 1)).flatten().nonzero()[:, 0]
    states_N, labels_N = to_device([places_N, flat[places_N + 1]], hidden_BTD.device)
    chosen_ND = hidden_BTD.flatten(0, 1)[states_N]
    return label_losses(chosen_ND, labels_N, head, head_trains=head_trains, chunk=chunk)


def summed_by_run(losses_N: Tensor, batch: PackedBatch) -> Tensor:
    """A packed batch's summed loss by run (R,). A label counts for each of the examples that have it."""
    return torch.stack([own.sum() for own in (losses_N * batch.counts.to(losses_N.device)).split(batch.labels_of_run)])


def label_losses(hidden_ND: Tensor, labels_N: Tensor, head: Head, *, head_trains: bool, chunk: int = CHUNK) -> Tensor:
    """The loss of each label (N,), in fp32, from the hidden state that predicts it, `chunk` labels at a time.

    A frozen head's gradient is computed chunk by chunk during the forward pass; a trained head runs again in backward.
    """
    if not head_trains and hidden_ND.requires_grad:
        return _FrozenHeadLosses.apply(hidden_ND, labels_N, head, chunk)  # type: ignore[return-value]
    losses: list[Tensor] = []
    for h, t in zip(hidden_ND.split(chunk), labels_N.split(chunk), strict=True):
        if torch.is_grad_enabled():
            losses.append(checkpoint(_losses, h, t, head, use_reentrant=False))  # type: ignore[arg-type]
        else:
            losses.append(_losses(h, t, head))
    return torch.cat(losses)


def plain_next_token_loss(hidden_BTD: Tensor, labels_BT: Tensor, head: Head) -> Tensor:
    """The slow twin of `next_token_losses`, summed, for tests: all logits at once."""
    logits = head(hidden_BTD[:, :-1])
    return summed_cross_entropy(logits, labels_BT[:, 1:], logits.shape[-1])


def _losses(hidden_ND: Tensor, labels_N: Tensor, head: Head) -> Tensor:
    logits = head(hidden_ND).float()
    return F.cross_entropy(logits, labels_N.to(logits.device), reduction="none")


def _losses_and_slopes(logits_NV: Tensor, labels_N: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """The losses (N,), in fp32, and their gradients for the logits times a factor, in the logits' precision."""
    if logits_NV.device.type != "cpu":
        losses_N, exact_NV = _of_rows(logits_NV, labels_N, factor)
        return losses_N, exact_NV.to(logits_NV.dtype)
    rows = max(1, CACHED // logits_NV.shape[-1])
    slopes_NV, losses = torch.empty_like(logits_NV), list[Tensor]()
    parts = zip(logits_NV.split(rows), labels_N.split(rows), slopes_NV.split(rows), strict=True)
    for logits, labels, slopes in parts:
        losses_n, slopes_n = _of_rows(logits, labels, factor)
        losses.append(losses_n)
        slopes.copy_(slopes_n)
    return torch.cat(losses), slopes_NV


def _of_rows(logits_NV: Tensor, labels_N: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """As `_losses_and_slopes`, the gradients in fp32.

    In one fp32 copy of the logits: autograd would hold four of them, which are most of a chunk's memory and time.
    """
    exact = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32), copy=True)
    exact -= exact.amax(-1, keepdim=True)
    of_label_N = exact.gather(1, labels_N[:, None])[:, 0]
    sums_N = exact.exp_().sum(-1)
    exact /= sums_N[:, None]
    exact.scatter_add_(1, labels_N[:, None], exact.new_full((len(labels_N), 1), -1.0))
    return sums_N.log() - of_label_N, exact if factor == 1 else exact.mul_(factor)


class _FrozenHeadLosses(torch.autograd.Function):
    """The losses and the hidden states' gradients in one pass over the head. A state acts on its own loss alone, so
    what backward receives for a loss scales the gradient of its state."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, labels_N: Tensor, head: Head, chunk: int) -> Tensor:
        ctx.factor = FINER if hidden_ND.dtype == torch.float16 else 1.0  # the loss's own comes in backward, too late
        losses: list[Tensor] = []
        gradients: list[Tensor] = []
        for h, t in zip(hidden_ND.split(chunk), labels_N.split(chunk), strict=True):
            with torch.enable_grad():
                h = h.detach().requires_grad_()
                logits = head(h)
            losses_n, slopes = _losses_and_slopes(logits.detach(), t.to(logits.device), ctx.factor)
            losses.append(losses_n.to(h.device))
            gradients += torch.autograd.grad(logits, h, slopes)
        ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient_ND,) = ctx.saved_tensors
        return (gradient_ND.float() * (outer[0] / ctx.factor)[:, None]).to(gradient_ND.dtype), None, None, None

"""The chunked loss at label positions equals the plain one over all logits, in value and in every gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from halka.data.batches import IGNORE_INDEX
from halka.data.packing import PackedBatch, pack
from halka.data.tokens import Tokens
from halka.objectives.cross_entropy import (
    CHUNK,
    LOGITS,
    chunk_for,
    label_losses,
    logits_within,
    next_token_losses,
    plain_next_token_loss,
    summed_by_run,
)
from numbers_for_tests import close

B, T, D, V = 3, 11, 16, 37
MANY = 600  # tokens a row, whose labels take several chunks, the last one smaller
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}


def inputs(dtype: torch.dtype, labelled: float = 0.5, tokens: int = T) -> tuple[torch.Tensor, torch.Tensor, nn.Linear]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(B, tokens, D, generator=generator).to(dtype).requires_grad_()
    labels = torch.randint(V, (B, tokens), generator=generator)
    labels = labels.masked_fill(torch.rand(B, tokens, generator=generator) >= labelled, IGNORE_INDEX)
    head = nn.Linear(D, V)
    with torch.no_grad():
        head.weight.copy_(torch.randn(V, D, generator=generator) * 0.3)
        head.bias.copy_(torch.randn(V, generator=generator) * 0.1)
    return hidden, labels, head.to(dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("head_trains", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize("tokens", [T, MANY])
def test_value_and_gradients_equal_the_plain_loss(dtype, head_trains, tokens):
    hidden, labels, head = inputs(dtype, tokens=tokens)
    head.requires_grad_(head_trains)
    expected = plain_next_token_loss(hidden, labels, head)
    (expected * 0.25).backward()
    gradients = [hidden.grad, head.weight.grad, head.bias.grad]
    hidden.grad = head.weight.grad = head.bias.grad = None
    losses = next_token_losses(hidden, labels, head, head_trains=head_trains)
    loss = losses.sum()
    (loss * 0.25).backward()
    assert len(losses) == int((labels[:, 1:] != IGNORE_INDEX).sum()) > 4
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=TOLERANCE[dtype])
    for ours, plain in zip([hidden.grad, head.weight.grad, head.bias.grad], gradients, strict=True):
        assert (ours is None) == (plain is None)
        if plain is not None:
            assert plain.abs().max() > 0.1
            close(ours, plain, within=2 * TOLERANCE[dtype])


def test_a_frozen_heads_gradient_is_scaled_before_it_is_rounded():
    """A mean over 129 labels: in bf16 that factor itself would be off by 0.4 %."""
    hidden, labels, head = inputs(torch.bfloat16)
    head.requires_grad_(False)
    gradients = []
    for scale in (1.0, 1 / 129):
        hidden.grad = None
        (next_token_losses(hidden, labels, head, head_trains=False).sum() * scale).backward()
        gradients.append(hidden.grad)
    assert torch.equal(gradients[1], (gradients[0].float() * (1 / 129)).bfloat16())


def test_in_fp16_a_sure_labels_gradient_is_that_of_a_loss_scaled_before_it():
    """As in training, where the loss is multiplied by so much; weights are as small as a wide base's."""
    head, labels = inputs(torch.float16)[2], torch.arange(V)
    head.requires_grad_(False).weight.div_(16)
    hidden = (14 * 16 * 16 * head.weight).requires_grad_()
    (label_losses(hidden, labels, head, head_trains=False) * 2.0**16).sum().backward()
    ours, hidden.grad = hidden.grad.float(), None
    losses = nn.functional.cross_entropy(head(hidden).float(), labels, reduction="none")
    (losses * 2.0**16).sum().backward()
    sure = (losses > 1e-5) & (losses < 1e-3)
    assert sure.sum() > 4
    errors = (ours - hidden.grad.float())[sure].norm(dim=1) / hidden.grad.float()[sure].norm(dim=1)
    assert errors.max() < 0.02


@pytest.mark.parametrize("head_trains", [False, True])
def test_without_gradients_it_is_the_same_value(head_trains):
    hidden, labels, head = inputs(torch.float32)
    with torch.no_grad():
        loss = next_token_losses(hidden, labels, head, head_trains=head_trains).sum()
        expected = plain_next_token_loss(hidden, labels, head)
    torch.testing.assert_close(loss, expected)
    assert not loss.requires_grad


@pytest.mark.parametrize("head_trains", [False, True])
def test_no_labels_at_all_is_zero_with_zero_gradients(head_trains):
    hidden, labels, head = inputs(torch.float32, labelled=0.0)
    head.requires_grad_(head_trains)
    losses = next_token_losses(hidden, labels, head, head_trains=head_trains)
    loss = losses.sum()
    loss.backward()
    assert (float(loss.detach()), len(losses)) == (0.0, 0)
    assert hidden.grad is not None
    assert not hidden.grad.any()


def test_the_label_of_the_first_token_counts_for_nothing():
    hidden, labels, head = inputs(torch.float32)
    first = labels.clone()
    first[:, 0] = 5
    with_it = next_token_losses(hidden, first, head, head_trains=False).sum()
    assert torch.equal(with_it, next_token_losses(hidden, labels, head, head_trains=False).sum())


def test_a_label_is_predicted_from_the_token_before_it():
    hidden, _, head = inputs(torch.float32)
    labels = torch.full((B, T), IGNORE_INDEX)
    labels[1, 4] = 7
    losses = next_token_losses(hidden, labels, head, head_trains=False)
    loss = losses.sum()
    loss.backward()
    torch.testing.assert_close(loss, -head(hidden[1, 3]).log_softmax(-1)[7])
    assert len(losses) == 1
    assert hidden.grad[1, 3].any()
    hidden.grad[1, 3] = 0
    assert not hidden.grad.any()


@pytest.mark.parametrize("head_trains", [False, True], ids=["frozen", "trained"])
def test_the_head_runs_on_some_labelled_positions_at_a_time(head_trains):
    """A frozen head once on each position; a trained one again in backward."""
    hidden, labels, head = inputs(torch.float32, tokens=MANY)
    seen = []

    def counted(h):
        seen.append(len(h))
        return head(h)

    losses = next_token_losses(hidden, labels, counted, head_trains=head_trains)
    losses.sum().backward()
    assert sum(seen) == len(losses) * (2 if head_trains else 1)
    assert max(seen) < len(losses) / 3
    assert min(seen) < max(seen)


def packed(tokens: int) -> PackedBatch:
    """Three runs: examples with a common beginning, twice the same one, and one without any label."""
    generator = torch.Generator().manual_seed(0)
    beginning, *answers, own = (torch.randint(V, (tokens,), generator=generator).tolist() for _ in range(4))
    asked = [Tokens(beginning + answer, [False] * tokens + [True] * tokens) for answer in answers]
    return pack([asked, [Tokens(own, [False] * 3 + [True] * (tokens - 3))] * 2, [Tokens([1, 2], [True, False])]])


def plain_packed_loss(hidden: torch.Tensor, batch: PackedBatch, head: nn.Module) -> torch.Tensor:
    """The slow twin of `packed_loss`: all logits at once, then label by label."""
    logits = head(hidden[0])[batch.states].float().log_softmax(-1)
    runs = [run for run, labels in enumerate(batch.labels_of_run) for _ in range(labels)]
    losses = [torch.zeros(()) for _ in batch.labels_of_run]
    for run, own, label, count in zip(runs, logits, batch.labels, batch.counts, strict=True):
        losses[run] = losses[run] - count * own[label]
    return torch.stack(losses)


def packed_loss(hidden: torch.Tensor, batch: PackedBatch, head: nn.Module, *, head_trains: bool) -> torch.Tensor:
    losses = label_losses(hidden[0, batch.states], batch.labels, head, head_trains=head_trains)
    return summed_by_run(losses, batch)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("head_trains", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize("tokens", [T, MANY])
def test_a_packed_batchs_loss_by_run_equals_that_of_its_labels_alone(dtype, head_trains, tokens):
    batch, head = packed(tokens), inputs(dtype)[2].requires_grad_(head_trains)
    assert max(batch.counts) == 2
    assert len(batch.states.unique()) < len(batch.states)  # one state that predicts two labels
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(1, batch.input_ids.shape[1], D, generator=generator).to(dtype).requires_grad_()
    weights = torch.tensor([0.25, 0.5, 1.0])
    results = []
    for losses in (plain_packed_loss(hidden, batch, head), packed_loss(hidden, batch, head, head_trains=head_trains)):
        (losses * weights).sum().backward()
        results.append([losses.detach(), hidden.grad, head.weight.grad])
        hidden.grad = head.weight.grad = None
    (plain, plain_hidden, plain_weight), (ours, ours_hidden, ours_weight) = results
    assert ours.dtype == torch.float32
    assert ours[2] == 0
    close(ours, plain, within=TOLERANCE[dtype])
    close(ours_hidden, plain_hidden, within=2 * TOLERANCE[dtype])
    assert (ours_weight is None) == (not head_trains)
    if head_trains:
        close(ours_weight, plain_weight, within=2 * TOLERANCE[dtype])


def test_the_counts_of_a_packed_batch_are_the_labels_of_its_items():
    items = [Tokens([1, 2, 3, 4], [True, False, True, True]), Tokens([1, 2, 3], [False, True, True])]
    assert pack([items]).counts.sum() == sum(item.labels for item in items)


@pytest.mark.parametrize(
    ("free", "logits"),
    [(80 * 2**30, LOGITS), (4 * 2**30, LOGITS), (3 * 2**30, LOGITS // 2), (2**30, LOGITS // 4), (2**20, 2**15), (0, 1)],
)
def test_a_gpu_that_is_nearly_full_computes_fewer_logits_at_once(free, logits):
    assert logits_within(free) == logits


def test_labels_computed_at_once_are_few_on_a_cpu_and_many_where_no_memory_is_asked_for():
    """As on an estimate's GPU; with a vocabulary that leaves few, as many as on a CPU."""
    devices = [torch.device("cpu"), torch.device("xpu")]
    assert [chunk_for(device, 50_000) for device in devices] == [CHUNK, LOGITS // 50_000]
    assert chunk_for(devices[1], LOGITS) == CHUNK

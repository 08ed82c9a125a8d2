"""Measure what merging an adapter changes, beside what the adapter itself changes and what rounding alone changes.

A merged weight is rounded to the base's precision, which loses part of a small update. `merge_error` compares five
models on the same probes: unmerged and merged, each in the base's precision and exactly (in the next wider one), and
the bare base.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from halka.core import AdaptedModel
from halka.data.tokens import Tokens
from halka.merging.precision import in_precision
from halka.merging.probes import Probes, logits_of, probe_rows
from halka.util.dtypes import dtype_name
from halka.util.errors import HalkaError

WIDER = {
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
    torch.float32: torch.float64,
    torch.float64: torch.float64,  # the widest
}
LIMIT = 0.05
LOGITS = 2**27
"""Of probes that are compared at once, of each model: half a GB of them in float32."""
PARTS = ("error", "effect", "noise", "merged", "rounding")


@dataclass(frozen=True)
class Difference:
    """How far two models differ on the same probes: in logits, and in distributions (nats a token)."""

    max: float
    mean: float
    kl: float  # of the first to the second
    same_token: float  # the share of positions with the same most likely token

    def __str__(self) -> str:
        return f"KL {self.kl:.2g}, logits {self.max:.3g} at most and {self.mean:.2g} on average"


@dataclass(frozen=True)
class MergeError:
    """What merging adapter `adapter` changes, over `tokens` positions of the probes.

    dtype      the precision of the merged weights: the base's, or the file's

    error      between merged and unmerged, both computed in the base's precision
    effect     between the bare base and the adapter, both exact: the adapter's effect
    noise      between the unmerged adapter exact and in the base's precision: rounding without merging
    merged     between the exact adapter and the merged model in the base's precision
    rounding   between the exact adapter with exact and with rounded weights: the loss that stays in the weights

    For weights written in another precision than the base's, no unmerged adapter computes in that precision: `error`
    and `merged` are both between the exact adapter and the written weights, `noise` between the exact bare base and the
    bare base written the same way.
    """

    adapter: str
    dtype: str
    tokens: int
    error: Difference
    effect: Difference
    noise: Difference
    merged: Difference
    rounding: Difference

    @property
    def relative(self) -> float:
        """The error's KL as a share of the effect's."""
        return self.error.kl / self.effect.kl if self.effect.kl else (float("inf") if self.error.kl else 0.0)

    def check(self, limit: float = LIMIT) -> None:
        """Raises HalkaError where the error's KL is more than `limit` times the effect's."""
        if not self.relative <= limit:  # true for NaN too
            raise HalkaError(
                f"merging {self.adapter!r} would change it by {self.relative:.1%} of its effect (KL "
                f"{self.error.kl:.2g} of {self.effect.kl:.2g}), past the limit of {limit:.1%}; rounding to "
                f"{self.dtype} without merging has {self.noise.kl:.2g}: use a wider precision (load the base in "
                "float32, or write float32), use the adapter unmerged, or force it"
            )

    def __str__(self) -> str:
        return (
            f"merging {self.adapter!r} ({self.dtype}, {self.tokens} positions): {self.error}; "
            f"{self.relative:.2%} of the adapter's effect ({self.effect}); "
            f"rounding without any merging: {self.noise}; lost in the weights: {self.rounding}"
        )


def merge_error(model: AdaptedModel, name: str, probes: Probes | None = None, *, at_once: int = LOGITS) -> MergeError:
    """Measure what `model.merge(name)` would change on `probes` (default: a neutral text); the base stays as it is.

    `merge_error(model, name).check()` raises where that is too much. Takes five passes over the probes, and memory for
    copies of the weights in the next wider precision; so many probes at once as have `at_once` logits.
    Raises HalkaError for an adapter that cannot be merged, logits that are not finite, and a model with an adapter
    merged or in use.
    """

    def compared(rows: Sequence[Tokens]) -> MergeError:
        with _merged(model, name):  # first, since it may refuse the adapter
            merged = list(logits_of(model, rows))
            with in_precision(model, wider):
                rounded = list(logits_of(model, rows))
        with model.use(name):
            unmerged = list(logits_of(model, rows))
        with in_precision(model, wider):
            with model.use(name):
                exact = list(logits_of(model, rows))
            with model.use(None):
                effect = difference(logits_of(model, rows), exact, subject)
        return MergeError(
            adapter=name,
            dtype=precision,
            tokens=sum(len(row) for row in exact),
            error=difference(unmerged, merged, subject),
            effect=effect,
            noise=difference(exact, unmerged, subject),
            merged=difference(exact, merged, subject),
            rounding=difference(exact, rounded, subject),
        )

    rows = probe_rows(model, probes)
    with model.lock:  # in which no other thread has the base in another precision
        _check_idle(model)
        precision, wider = dtype_name(next(model.base.parameters()).dtype, "float64"), _wider(model)
        subject = f"the logits of {name!r} on a base in {precision}"
        return _together([compared(chunk) for chunk in _chunks(model, rows, at_once)])


def written_error(
    model: AdaptedModel,
    name: str,
    as_written: Callable[[str | None], Mapping[str, Tensor]],
    dtype: torch.dtype,
    kind: str,
    probes: Probes | None = None,
) -> MergeError:
    """Measure `merge_error` for weights in another precision than the base's.

    as_written    returns all weights with that adapter merged (None: the bare base), as read back from the file
    dtype         the precision in which the reader computes
    kind          the type of tensors in the file

    Takes five passes over the probes, and memory for both sets of weights.
    Raises HalkaError as `merge_error` does.
    """
    subject = f"the logits of {name!r} written as {kind}"

    def compared(rows: Sequence[Tokens], own: Mapping[str, Tensor], of_bare: Mapping[str, Tensor]) -> MergeError:
        def logits(weights: Mapping[str, Tensor], computed: torch.dtype) -> list[Tensor]:
            with in_precision(model, computed, weights):
                return list(logits_of(model, rows))

        written, rounded = logits(own, dtype), logits(own, wider)
        bare_written, bare = logits(of_bare, dtype), logits({}, wider)
        with in_precision(model, wider), model.use(name):
            exact = list(logits_of(model, rows))
        error = difference(exact, written, subject)
        return MergeError(
            adapter=name,
            dtype=kind,
            tokens=sum(len(row) for row in exact),
            error=error,
            effect=difference(bare, exact, subject),
            noise=difference(bare, bare_written, subject),
            merged=error,
            rounding=difference(exact, rounded, subject),
        )

    rows = probe_rows(model, probes)
    with model.lock:
        _check_idle(model)
        wider, own, of_bare = _wider(model), as_written(name), as_written(None)
        return _together([compared(chunk, own, of_bare) for chunk in _chunks(model, rows, LOGITS)])


def _chunks(model: AdaptedModel, rows: Sequence[Tokens], logits: int) -> list[list[Tokens]]:
    """The rows, in chunks of at most so many logits each, or of one row."""
    base: Any = model.base
    most = logits // base.config.get_text_config().vocab_size
    chunks: list[list[Tokens]] = []
    left = 0
    for row in rows:
        if row.labels > left:
            chunks.append([])
            left = most
        chunks[-1].append(row)
        left -= row.labels
    return chunks


def _together(errors: Sequence[MergeError]) -> MergeError:
    """The error over the positions of all of these, which are of one adapter."""
    tokens = sum(error.tokens for error in errors)

    def joined(name: str) -> Difference:
        shares = [(getattr(error, name), error.tokens / tokens) for error in errors]
        return Difference(
            max=max(part.max for part, _ in shares),
            **{
                field: sum(getattr(part, field) * share for part, share in shares)
                for field in ("mean", "kl", "same_token")
            },
        )

    return replace(errors[0], tokens=tokens, **{part: joined(part) for part in PARTS})


def _wider(model: AdaptedModel) -> torch.dtype:
    """The precision that counts as exact beside the base's own: on an Apple GPU float32, the widest that it has."""
    weight = next(model.base.parameters())
    return torch.float32 if weight.device.type == "mps" else WIDER[weight.dtype]


def _check_idle(model: AdaptedModel) -> None:
    if model.merged is not None or model.in_use:
        raise HalkaError("the error of merging needs an idle base: leave `use`, or call `unmerge` first")


def difference(one: Iterable[Tensor], other: Iterable[Tensor], subject: str = "these logits") -> Difference:
    """Compare rows of logits (N, V) in fp64. Raises HalkaError, naming `subject`, where they are not finite."""
    largest, total, count, divergence, same, positions = 0.0, 0.0, 0, 0.0, 0, 0
    for first, second in zip(one, other, strict=True):
        a, b = (rows.to("cpu" if rows.device.type == "mps" else rows.device).double() for rows in (first, second))
        gap = (a - b).abs()
        if not gap.isfinite().all():
            raise HalkaError(
                f"{subject} are not finite, so the error of merging cannot be measured: load the base in bfloat16 or "
                "float32, or train the adapter again, more gently"
            )
        largest, total, count = max(largest, gap.max().item()), total + gap.sum().item(), count + gap.numel()
        p, q = a.log_softmax(-1), b.log_softmax(-1)
        divergence += (p.exp() * (p - q)).sum().item()
        same += int((a.argmax(-1) == b.argmax(-1)).sum())
        positions += len(a)
    return Difference(largest, total / count, max(0.0, divergence / positions), same / positions)


@contextmanager
def _merged(model: AdaptedModel, name: str) -> Iterator[None]:
    model.merge(name)
    try:
        yield
    finally:
        model.unmerge()

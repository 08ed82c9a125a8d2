"""What merging an adapter changes, beside what the adapter itself changes and what rounding does anyway.

A merged weight is rounded to the base's precision, and a small update is partly lost there. Five things are compared on
the same probes: the adapter as it is used (unmerged) and merged, each in the base's precision and exactly (in the next
wider one), and the bare base.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from halka.core import AdaptedModel
from halka.merging.probes import Probes, logits_of, probe_rows
from halka.util.errors import HalkaError

WIDER = {
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
    torch.float32: torch.float64,
    torch.float64: torch.float64,  # there is none
}
LIMIT = 0.05


@dataclass(frozen=True)
class Difference:
    """Two forms of a model on the same probes: over logits, and over the distributions they give (nats a token)."""

    max: float
    mean: float
    kl: float  # of the first to the second
    same_token: float  # the share of places whose likeliest token is the same

    def __str__(self) -> str:
        return f"KL {self.kl:.2g}, logits {self.max:.3g} at most and {self.mean:.2g} on average"


@dataclass(frozen=True)
class MergeError:
    """What merging adapter `adapter` changes, over `tokens` places of the probes.

    dtype      the precision of the merged weights: the base's, or what they are written in

    error      merged and unmerged, as they compute in the base's precision
    effect     the bare base and the adapter, exactly: what the adapter is for
    noise      unmerged, exactly and in the base's precision: what rounding does without any merging
    merged     the adapter exactly, and merged in the base's precision: how far from it a merged model is
    rounding   the adapter exactly, and with weights that were rounded as merging does: what is lost for good

    Where weights are written in another precision than the base's, no unmerged adapter computes as they do: `error`
    and `merged` are both between the adapter exactly and what was written, `noise` between the bare base exactly and
    written the same way.
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

    def __str__(self) -> str:
        return (
            f"merging {self.adapter!r} ({self.dtype}, {self.tokens} places): {self.error}; "
            f"{self.relative:.2%} of the adapter's effect ({self.effect}); "
            f"rounding without any merging: {self.noise}; lost in the weights: {self.rounding}"
        )


def merge_error(model: AdaptedModel, name: str, probes: Probes | None = None) -> MergeError:
    """Measure what `model.merge(name)` changes on `probes` (a neutral text if not given), and leave all as it was.

    Takes six passes over the probes, and for a while copies of the weights in the next wider precision. Raises
    ValueError for an adapter that cannot be merged, logits that are not finite, and where one is merged or in use.
    """
    rows = probe_rows(model, probes)
    with model.lock:
        _check_idle(model)
        dtype = next(model.base.parameters()).dtype
        wider = WIDER[dtype]
        told = f"the logits of {name!r} on a base in {_plain(dtype)}"
        with _merged(model, name):  # refused before anything is measured
            merged = list(logits_of(model, rows))
            with model.in_precision(wider):
                rounded = list(logits_of(model, rows))
        with model.use(name):
            unmerged = list(logits_of(model, rows))
        with model.in_precision(wider):
            with model.use(name):
                exact = list(logits_of(model, rows))
            with model.use(None):
                effect = difference(logits_of(model, rows), exact, told)
    return MergeError(
        adapter=name,
        dtype=_plain(dtype),
        tokens=sum(len(each) for each in exact),
        error=difference(unmerged, merged, told),
        effect=effect,
        noise=difference(exact, unmerged, told),
        merged=difference(exact, merged, told),
        rounding=difference(exact, rounded, told),
    )


def written_error(
    model: AdaptedModel,
    name: str,
    as_written: Callable[[str | None], Mapping[str, Tensor]],
    dtype: torch.dtype,
    kind: str,
    probes: Probes | None = None,
) -> MergeError:
    """`merge_error` of weights in another precision than the base's.

    as_written    an adapter's name (None: the bare base) to all weights, with the values that a reader will find
    dtype, kind   what the reader computes in; what the weights are written as

    Takes five passes over the probes. Raises ValueError as `merge_error` does.
    """
    rows = probe_rows(model, probes)
    with model.lock:
        _check_idle(model)
        wider = WIDER[next(model.base.parameters()).dtype]
        told = f"the logits of {name!r} written as {kind}"

        def logits(weights: Mapping[str, Tensor], computed: torch.dtype) -> list[Tensor]:
            with model.in_precision(computed, weights):
                return list(logits_of(model, rows))

        weights = as_written(name)
        written, rounded = logits(weights, dtype), logits(weights, wider)
        weights = as_written(None)
        bare_written = logits(weights, dtype)
        del weights
        bare = logits({}, wider)
        with model.in_precision(wider), model.use(name):
            exact = list(logits_of(model, rows))
    error = difference(exact, written, told)
    return MergeError(
        adapter=name,
        dtype=kind,
        tokens=sum(len(each) for each in exact),
        error=error,
        effect=difference(bare, exact, told),
        noise=difference(bare, bare_written, told),
        merged=error,
        rounding=difference(exact, rounded, told),
    )


def merge(
    model: AdaptedModel, name: str, *, probes: Probes | None = None, limit: float = LIMIT, force: bool = False
) -> MergeError:
    """`model.merge(name)`, unless it changes too much: the error's KL may be `limit` times the effect's. Returns it.

    Raises ValueError past that limit, unless forced.
    """
    with model.lock:
        found = merge_error(model, name, probes)
        if not force:
            refuse_past(limit, found)
        model.merge(name)
    return found


def refuse_past(limit: float, found: MergeError) -> None:
    """Raises ValueError for an error whose KL is more than `limit` times the effect's."""
    if not found.relative <= limit:  # nor where one of them is no number
        raise HalkaError(
            f"merging {found.adapter!r} would change it by {found.relative:.1%} of its effect (KL {found.error.kl:.2g} "
            f"of {found.effect.kl:.2g}), past the limit of {limit:.1%}; rounding to {found.dtype} without merging "
            f"already makes {found.noise.kl:.2g}: take a wider precision (load the base in float32, or write float32), "
            "use the adapter unmerged, or force it"
        )


def _check_idle(model: AdaptedModel) -> None:
    if model.merged is not None or model.in_use:
        raise HalkaError("the error of merging needs an idle base: leave `use`, or `unmerge` what is merged")


def difference(one: Iterable[Tensor], other: Iterable[Tensor], told: str = "these logits") -> Difference:
    """Of rows of logits (N, V), in fp64. Raises ValueError, with the name `told`, where they are not finite."""
    most, total, count, divergence, same, places = 0.0, 0.0, 0, 0.0, 0, 0
    for first, second in zip(one, other, strict=True):
        a, b = first.double(), second.double()
        gap = (a - b).abs()
        if not gap.isfinite().all():
            raise HalkaError(
                f"{told} are not finite, so what merging changes cannot be measured: load the base in bfloat16 or "
                "float32, or train the adapter again, more gently"
            )
        most, total, count = max(most, gap.max().item()), total + gap.sum().item(), count + gap.numel()
        p, q = a.log_softmax(-1), b.log_softmax(-1)
        divergence += (p.exp() * (p - q)).sum().item()
        same += int((a.argmax(-1) == b.argmax(-1)).sum())
        places += len(a)
    return Difference(most, total / count, max(0.0, divergence / places), same / places)


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@contextmanager
def _merged(model: AdaptedModel, name: str) -> Iterator[None]:
    model.merge(name)
    try:
        yield
    finally:
        model.unmerge()

"""The fingerprint of a base, which adapters keep to refuse another base."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from halka.core import AdaptedModel
from halka.models.heads import head_of
from halka.models.quantised.linear import QuantizedLinear, samples

_SHARDED_SAMPLES = "_halka_samples"
_BEFORE_FP16 = "_halka_stored_samples"


def fingerprint(base: Any, *, head: bool = False) -> dict[str, Any]:
    """A base's architecture, its sizes, and a hash over samples of every weight.

    A classifier's head and other new modules, which adapters train whole, count only with `head`: for adapters that use
    the base's head. Samples are rounded to bf16, so that a base has one fingerprint in bf16 and in fp32; those of
    quantised layers were taken before they were quantised, and `keep_stored_samples` is for fp16.
    """
    new = () if head else tuple(f"{path}." for path in head_of(base))
    named = [sample for sample in _sampled(base) if not sample[0].startswith(new)]
    rows = torch.stack([row.cpu() for _, _, row in named]).numpy()
    digest = hashlib.sha256()
    for (name, shape, _), row in zip(named, rows, strict=True):
        digest.update(f"{name} {tuple(shape)}".encode())
        digest.update(row.tobytes())
    config = base.config
    sizes = {key: getattr(config, key, None) for key in ("num_hidden_layers", "hidden_size", "vocab_size")}
    return {"architecture": config.model_type, **sizes, "weights": digest.hexdigest()[:16]}


def keep_samples(base: Any) -> None:
    """Keep what `fingerprint` reads, for a base whose weights will be in parts."""
    setattr(base, _SHARDED_SAMPLES, [*_sampled(base)])


def keep_stored_samples(base: Any, stored: Any) -> None:
    """Keep the samples of a base as it is stored that its rounding to float16 has changed: of small values fp16 keeps
    fewer bits than bf16. `fingerprint` reads them for as long as the base's own stay what they were rounded to."""
    pairs = zip(_sampled(base), _sampled(stored), strict=True)
    setattr(base, _BEFORE_FP16, {name: ((own.cpu(),), before) for (name, _, own), (_, _, before) in pairs})


def keep_samples_for_fp16(base: Any) -> None:
    """As `keep_stored_samples`, for a base in fp32 or bf16 that may be cast to fp16 later, perhaps by way of bf16."""
    kept = {}
    for name, weight in base.named_parameters():
        if weight.is_floating_point():
            casts = samples(weight, torch.float16), samples(weight, torch.bfloat16, torch.float16)
            kept[name] = tuple(rounded.cpu() for rounded in casts), samples(weight)
    setattr(base, _BEFORE_FP16, kept)


def _sampled(base: Any) -> Iterator[tuple[str, Sequence[int], Tensor]]:
    """Name, shape and samples of every parameter and quantised weight, in the order of `named_parameters`."""
    if _SHARDED_SAMPLES in vars(base):
        yield from vars(base)[_SHARDED_SAMPLES]
        return
    stored = vars(base).get(_BEFORE_FP16, {})
    for name, shape, own in _own_samples(base):
        casts, before = stored.get(name, ((), None))
        yield name, shape, before if any(torch.equal(own.cpu(), rounded) for rounded in casts) else own


def _own_samples(base: Any) -> Iterator[tuple[str, Sequence[int], Tensor]]:
    seen: set[nn.Parameter] = set()
    for path, module in base.named_modules():
        prefix = f"{path}." if path else ""
        if isinstance(module, QuantizedLinear):
            yield f"{prefix}weight", module.stored_shape(), module.samples
        for key, parameter in module.named_parameters(recurse=False):
            if parameter not in seen:
                seen.add(parameter)
                yield f"{prefix}{key}", parameter.shape, samples(parameter)


def own_fingerprint(model: AdaptedModel, *, head: bool = False) -> dict[str, Any]:
    """The fingerprint of the base's own weights, whatever is merged or in use."""
    with model.own_weights(computing=False):
        return fingerprint(model.base, head=head)

"""Combine several adapters into one: a weighted sum, for which some methods first drop values or elect signs.

LoRAs: `linear` sums their factors (A with A, B with B), whose product has cross terms; `cat` concatenates the factors
and is the exact weighted sum; `svd` is the best approximation of that sum at a lower rank. `magnitude_prune` sums only
the largest values, `ties` only those of the winning sign among the largest (Yadav et al. 2023, arXiv:2306.01708),
`dare_linear` and `dare_ties` a random share, rescaled (Yu et al. 2024, arXiv:2311.03099). With the suffix `_svd` they
act on the products B·A instead of the factors.

Other families sum tensors of equal shape. Methods whose parameters start at a fixed point (IA3's factors at one, copies
of the base's weights) sum the differences from that point, so that weights need not sum to one, and may drop values.

Adapters of several methods, such as a classifier's LoRA with its head, combine method by method.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from halka.core import AdaptedModel, Adapter, Method, Part
from halka.merging.pieces import is_lora, kind, pieces
from halka.methods import IA3, BitFit, Full, Joint, LoRA, Modules, Prefix, Prompt, Tokens
from halka.methods.lora import FACTORS, LoRAPart
from halka.storage.tensors import check_finite
from halka.util.errors import HalkaError

DENSITY = 0.5  # the share of values to keep, by default
FROM_START = (BitFit, Full, IA3, Modules, Tokens)  # methods whose parameters start at a fixed point


@dataclass(frozen=True)
class Way:
    """How to sum tensors: `keep` selects values of each (None: all); `elect` sums only those of the winning sign."""

    keep: Callable[[Tensor, float, torch.Generator], Tensor] | None = None
    elect: bool = False

    def __call__(self, tensors: Sequence[Tensor], weights: Sequence[float], density: float, draw: Any) -> Tensor:
        """Sum tensors of one shape, fp32, by their weights."""
        kept = torch.stack([tensor if self.keep is None else self.keep(tensor, density, draw) for tensor in tensors])
        factors = torch.tensor(weights, device=kept.device).view(-1, *(1 for _ in kept.shape[1:]))
        if not self.elect:
            return (kept * factors).sum(0)
        winning = torch.where(kept.sum(0) >= 0, 1.0, -1.0)  # zeros have no sign, and are not counted
        agrees = kept.sign() == winning
        return (kept * factors * agrees).sum(0) / agrees.sum(0).clamp_min(1)


def largest(tensor: Tensor, density: float, draw: torch.Generator) -> Tensor:
    """Keep the share `density` of values that are largest, at least one; zeros elsewhere."""
    flat, kept = tensor.flatten(), torch.zeros_like(tensor).flatten()
    places = flat.abs().topk(max(1, int(density * flat.numel()))).indices
    kept[places] = flat[places]
    return kept.view_as(tensor)


def random_share(tensor: Tensor, density: float, draw: torch.Generator) -> Tensor:
    """Keep each value with probability `density`, rescaled so that the expectation stays; zeros elsewhere."""
    probabilities = torch.full(tensor.shape, density, device="cpu")
    return tensor * torch.bernoulli(probabilities, generator=draw).to(tensor.device) / density


WAYS = {
    "linear": Way(),
    "ties": Way(largest, elect=True),
    "dare_linear": Way(random_share),
    "dare_ties": Way(random_share, elect=True),
    "magnitude_prune": Way(largest),
}
OF_PRODUCTS = {"svd": "linear", **{f"{way}_svd": way for way in WAYS if way != "linear"}}
COMBINATIONS = (*WAYS, "cat", *OF_PRODUCTS)


def combine(
    model: AdaptedModel,
    adapters: Mapping[str, float],
    method: str = "linear",
    *,
    name: str = "combined",
    density: float | None = None,
    seed: int = 0,
    rank: int | None = None,
) -> Adapter:
    """Add the adapter `name`, a combination of others by their weights, which may be negative; the others stay.

    density     the share of values that ties, dare and magnitude_prune keep [0.5]; `seed` is for dare's draws
    rank        of the result, for svd and the methods ending in _svd; by default the sources' highest

    Raises UnknownAdapterError for a name that the model does not have; HalkaError for fewer than two adapters,
    weights and values that are not finite, an unknown method, families that do not combine, ranks, shapes or
    labels that differ where they must not, and density or rank where the method takes none.
    """
    way = check_combination(method, adapters, density, rank)
    with model.lock, torch.no_grad():
        if name in model.adapters:  # `add` would say so after all the work
            raise HalkaError(f"there is an adapter {name!r} already: remove it first, or choose another name")
        sources = [model.adapter(adapter) for adapter in adapters]
        weights = [float(weight) for weight in adapters.values()]
        draw = torch.Generator().manual_seed(seed)

        def joined(tensors: Sequence[Tensor], factors: Sequence[float]) -> Tensor:
            return way(tensors, factors, DENSITY if density is None else density, draw)

        for adapter, source in zip(adapters, sources, strict=True):
            check_finite(adapter, source.state_dict())
        labels = _labels(model, [*adapters])
        split = [pieces(source) for source in sources]
        if len(kinds := dict.fromkeys(" with ".join(map(kind, own)) for own in split)) > 1:
            raise HalkaError(f"{' and '.join(kinds)} do not combine: name adapters of the same methods")
        for_others = OF_PRODUCTS.get(method, "linear") if any(map(is_lora, split[0])) and method not in WAYS else method
        methods: list[Method] = []
        state: dict[str, Tensor] = {}
        for alike in zip(*split, strict=True):
            if is_lora(alike[0]):
                combined, tensors = _loras(alike, weights, method, rank, joined)
            else:
                combined, tensors = _others(model, alike, weights, for_others, joined)
            methods.append(combined)
            state.update({key: tensor.float() for key, tensor in tensors.items()})
        whole = methods[0] if len(methods) == 1 else Joint(tuple(methods))
        return model.add(name, whole, seed=seed, state=state, labels=labels)


def check_combination(method: str, adapters: Mapping[str, float], density: float | None, rank: int | None) -> Way:
    """The method's `Way`. Raises HalkaError for what `combine` refuses whatever the adapters hold."""
    if method not in COMBINATIONS:
        raise HalkaError(f"there is no combination {method!r}: choose one of {', '.join(COMBINATIONS)}")
    if len(adapters) < 2:
        raise HalkaError(f"to combine, name two or more adapters with their weights, not {len(adapters)}")
    if wrong := [adapter for adapter, weight in adapters.items() if not math.isfinite(weight)]:
        raise HalkaError(f"the weight of {wrong[0]!r} is {adapters[wrong[0]]}: give each adapter a finite number")
    way = WAYS.get(OF_PRODUCTS.get(method, method), Way())
    if density is not None and way.keep is None:
        raise HalkaError(f"{method} keeps all values: leave density out, or choose ties, dare or magnitude_prune")
    if density is not None and not 0 < density <= 1:
        raise HalkaError(f"density is the share of values that are kept: above 0 and at most 1, not {density}")
    if rank is not None and (method not in OF_PRODUCTS or rank < 1):
        raise HalkaError(f"the rank of {method} follows from its sources: give one, above 0, with svd, or leave it out")
    return way


Join = Callable[[Sequence[Tensor], Sequence[float]], Tensor]


def _labels(model: AdaptedModel, names: Sequence[str]) -> tuple[str, ...]:
    """The labels that all these adapters have. Raises HalkaError where two differ."""
    first, own = names[0], model.labels_of(names[0])
    for other in names[1:]:
        if (labels := model.labels_of(other)) != own:
            raise HalkaError(
                f"{first!r} has the labels {', '.join(own)} and {other!r} {', '.join(labels)}, so their heads' outputs "
                "do not mean the same: combine adapters that have the same labels in the same order"
            )
    return model.adapter(first).labels


# ── LoRAs ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class Factors(NamedTuple):
    """One source's product at one target, weight · scale · B·A: A (R, I), B (O, R)."""

    A: Tensor
    B: Tensor
    weight: float
    scale: float

    @classmethod
    def of(cls, part: Part, weight: float) -> Factors:
        scale = part.scale
        assert isinstance(scale, float | int)
        A, B = (part.get_parameter(key) for key in FACTORS[type(part)])
        return cls(A, B, weight, float(scale))


def _loras(
    sources: Sequence[Adapter], weights: Sequence[float], method: str, rank: int | None, joined: Join
) -> tuple[Method, dict[str, Tensor]]:
    """A LoRA of scale one at every target that a source has, and its state."""
    kinds = {path: type(part) for source in sources for path, part in source.parts.items()}
    factors_at = {
        path: [
            Factors.of(source.parts[path], weight)
            for source, weight in zip(sources, weights, strict=True)
            if path in source.parts
        ]
        for path in kinds
    }
    wanted = rank or max(factor.A.shape[-2] for factors in factors_at.values() for factor in factors)
    combined: dict[str, tuple[Tensor, Tensor]] = {}
    for path, factors in factors_at.items():
        if method == "cat":
            combined[path] = side_by_side(factors)
        elif method == "svd":
            combined[path] = nearest_of_factors(*side_by_side(factors), wanted)
        elif method in OF_PRODUCTS:
            products = [factor.scale * factor.B @ factor.A for factor in factors]
            combined[path] = nearest(joined(products, [factor.weight for factor in factors]), wanted)
        else:
            combined[path] = _of_factors(factors, path, method, joined)
    full = max(A.shape[-2] for A, _ in combined.values())
    state = {}
    for path, (A, B) in combined.items():
        at_A, at_B = FACTORS[kinds[path]]
        missing = full - A.shape[-2]
        state[f"{path}.{at_A}"] = torch.nn.functional.pad(A, (0, 0, 0, missing)).contiguous()
        state[f"{path}.{at_B}"] = torch.nn.functional.pad(B, (0, missing)).contiguous()
    roles = tuple(dict.fromkeys(role for source in sources for role in source.method.roles()))
    return LoRA(rank=full, alpha=float(full), targets=roles), state


def _of_factors(factors: Sequence[Factors], path: str, method: str, joined: Join) -> tuple[Tensor, Tensor]:
    """Sum A with A and B with B, each weighted by the square root of weight · scale, its sign at A."""
    if len(ranks := {factor.A.shape[-2] for factor in factors}) > 1:
        raise HalkaError(
            f"{method} sums factors, which need equal ranks; at {path} they are {', '.join(map(str, sorted(ranks)))}: "
            "use cat (the exact sum), or svd"
        )
    scaled = [factor.weight * factor.scale for factor in factors]
    roots = [abs(scale) ** 0.5 for scale in scaled]
    signed = [root if scale >= 0 else -root for root, scale in zip(roots, scaled, strict=True)]
    return joined([factor.A for factor in factors], signed), joined([factor.B for factor in factors], roots)


def side_by_side(factors: Sequence[Factors]) -> tuple[Tensor, Tensor]:
    """Concatenated factors (ΣR, I) and (O, ΣR), whose product is exactly the weighted sum of products."""
    A = torch.cat([factor.A * (factor.weight * factor.scale) for factor in factors], dim=-2)
    return A, torch.cat([factor.B for factor in factors], dim=-1)


def nearest_of_factors(A: Tensor, B: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """`nearest(B @ A, rank)` without forming the product: QR of both factors, and the SVD of their small core."""
    left, upper = torch.linalg.qr(B)
    right, lower = torch.linalg.qr(A.mT)
    small_A, small_B = nearest(upper @ lower.mT, rank)
    return small_A @ right.mT, left @ small_B


def nearest(product: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors A (R, I), with orthonormal rows, and B (O, R) of the best approximation of (O, I) at that rank."""
    U, S, V = torch.linalg.svd(product, full_matrices=False)
    return V[..., :rank, :], U[..., :rank] * S[..., None, :rank]


# ── other families ──────────────────────────────────────────────────────────────────────────────────────────────────


def _others(
    model: AdaptedModel, sources: Sequence[Adapter], weights: Sequence[float], method: str, joined: Join
) -> tuple[Method, dict[str, Tensor]]:
    """The method that all sources share, and the sum of their tensors."""
    first, states = sources[0].method, [source.state_dict() for source in sources]
    forms = [
        (
            _trained(source.method, first),
            {key: tensor.shape for key, tensor in state.items()},
            {path: type(part) for path, part in source.parts.items()},
        )
        for source, state in zip(sources, states, strict=True)
    ]
    if any(form != forms[0] for form in forms):
        raise HalkaError(
            f"these {first.name} adapters differ in their hyper-parameters ({first} and others), so their tensors "
            "cannot be summed: train them with equal hyper-parameters"
        )
    if isinstance(first, Prefix) and first.hidden is not None:
        raise HalkaError("prefixes behind a network do not combine: save and load them, which keeps the prefix alone")
    if any(isinstance(part, LoRAPart) for part in sources[0].parts.values()):
        raise HalkaError(
            f"{first.name} is no sum of products, so its tensors cannot be summed: combine LoRAs, or merge one"
        )
    if method not in WAYS or (method != "linear" and not isinstance(first, FROM_START)):
        able = "linear" if not isinstance(first, FROM_START) else ", ".join(WAYS)
        raise HalkaError(f"{method} is not defined for {first.name}: choose {able}")
    start = _start(model, sources[0]) if isinstance(first, FROM_START) else {}
    summed = {}
    for key, tensor in states[0].items():
        origin = start.get(key, torch.zeros((), device=tensor.device))
        summed[key] = origin + joined([state[key] - origin for state in states], weights)
    return first, summed


PLACES = ("targets", "feedforward", "layers")


def _trained(method: Method, first: Method) -> Method:
    """The method without what matters until it is trained, its dropout and what virtual tokens start as.

    It has the first one's places: an adapter may name them by groups, and another, read from its files, one by one.
    """
    plain: Any = method
    past: dict[str, Any] = {"dropout": 0.0, **{key: vars(first)[key] for key in PLACES if key in vars(first)}} | (
        {"start": "random", "tokens": ()} if isinstance(method, Prefix | Prompt) else {}
    )
    return replace(plain, **{key: value for key, value in past.items() if key in method.__dataclass_fields__})


def _start(model: AdaptedModel, adapter: Adapter) -> dict[str, Tensor]:
    """The initial state of an adapter of this method and these targets."""
    state: dict[str, Tensor] = {}
    with model.own_weights(), torch.device("cpu"):
        for path, target in adapter.targets.items():
            part = adapter.method.build(target)
            assert part is not None
            for own in islice(adapter.parts[path].parameters(), 1):  # a part that is tied to another has none
                state.update(part.to(own.device).state_dict(prefix=f"{path}."))
    return state

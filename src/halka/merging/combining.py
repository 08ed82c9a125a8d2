"""Several adapters combined into one: their weighted sum, or the part of it in which they agree.

LoRAs: `linear` sums their factors (A with A, B with B), whose product has cross terms; `cat` puts the factors side by
side and is the exact weighted sum; `svd` is the nearest to that sum of a lower rank. Some methods drop values before
summing: all but the largest (`magnitude_prune`), all but those of the winning sign among the largest (`ties`, Yadav et
al. 2023, arXiv:2306.01708), a random share, the rest scaled up (`dare_linear`, `dare_ties`, Yu et al. 2024,
arXiv:2311.03099). With the suffix `_svd` they act on products instead of factors.

Other families: tensors of equal shape are summed. Of those that start at a fixed point (factors at one, copies of the
base's weights) the differences from it are, so that weights need not sum to one; there, too, values may be dropped.

Adapters of several methods, such as a classifier's LoRA with its head, combine method by method.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from halka.core import AdaptedModel, Adapter, Joint, Method, Part
from halka.merging.pieces import is_lora, kind, pieces
from halka.methods import IA3, BitFit, Full, LoRA, Modules, Prefix
from halka.methods.lora import FACTORS, LoRAPart
from halka.storage.tensors import check_finite
from halka.util.errors import HalkaError

DENSITY = 0.5  # the share of values that is kept, if not given
FROM_START = (BitFit, Full, IA3, Modules)  # methods whose parameters start at a fixed point


@dataclass(frozen=True)
class Way:
    """What of each tensor is kept (all of it, if None), and whether only values of the winning sign are summed."""

    keep: Callable[[Tensor, float, torch.Generator], Tensor] | None = None
    elect: bool = False

    def __call__(self, tensors: Sequence[Tensor], weights: Sequence[float], density: float, draw: Any) -> Tensor:
        """One tensor of several that have its shape, fp32."""
        kept = torch.stack([each if self.keep is None else self.keep(each, density, draw) for each in tensors])
        factors = torch.tensor(weights, device=kept.device).view(-1, *(1 for _ in kept.shape[1:]))
        if not self.elect:
            return (kept * factors).sum(0)
        winning = torch.where(kept.sum(0) >= 0, 1.0, -1.0)  # zeros have no sign, and are not counted
        agrees = kept.sign() == winning
        return (kept * factors * agrees).sum(0) / agrees.sum(0).clamp_min(1)


def largest(tensor: Tensor, density: float, draw: torch.Generator) -> Tensor:
    """The share `density` of its values that are largest; zeros elsewhere."""
    flat, kept = tensor.flatten(), torch.zeros_like(tensor).flatten()
    places = flat.abs().topk(int(density * flat.numel())).indices
    kept[places] = flat[places]
    return kept.view_as(tensor)


def drawn(tensor: Tensor, density: float, draw: torch.Generator) -> Tensor:
    """Each value with the chance `density`, scaled up so that their expectation stays; zeros elsewhere."""
    chances = torch.full(tensor.shape, density)
    return tensor * torch.bernoulli(chances, generator=draw).to(tensor.device) / density


WAYS = {
    "linear": Way(),
    "ties": Way(largest, elect=True),
    "dare_linear": Way(drawn),
    "dare_ties": Way(drawn, elect=True),
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
    """Add the adapter `name`, combined from others by their weights, which may be negative; the others stay.

    density     the share of values that ties, dare and magnitude_prune keep [0.5]; `seed` is for dare's draws
    rank        of the result, for svd and its like; the highest of the sources' if not given

    Raises UnknownAdapterError for a name that the model does not have; HalkaError for fewer than two adapters,
    weights and values that are not finite, an unknown method, families that do not combine, ranks, shapes or
    labels that differ where they must not, and density or rank where the method takes none.
    """
    if method not in COMBINATIONS:
        raise HalkaError(f"there is no combination {method!r}: choose one of {', '.join(COMBINATIONS)}")
    if len(adapters) < 2:
        raise HalkaError(f"to combine, name two or more adapters with their weights, not {len(adapters)}")
    if wrong := [each for each, weight in adapters.items() if not math.isfinite(weight)]:
        raise HalkaError(f"the weight of {wrong[0]!r} is {adapters[wrong[0]]}: give each adapter a finite number")
    way = WAYS.get(OF_PRODUCTS.get(method, method), Way())
    if density is not None and way.keep is None:
        raise HalkaError(f"{method} keeps all values: leave density out, or choose ties, dare or magnitude_prune")
    if density is not None and not 0 < density <= 1:
        raise HalkaError(f"density is the share of values that are kept: above 0 and at most 1, not {density}")
    if rank is not None and (method not in OF_PRODUCTS or rank < 1):
        raise HalkaError(f"the rank of {method} follows from its sources: give one, above 0, for svd and its like")
    with model.lock, torch.no_grad():
        sources = [model.adapter(each) for each in adapters]
        weights = [float(weight) for weight in adapters.values()]
        draw = torch.Generator().manual_seed(seed)

        def joined(tensors: Sequence[Tensor], factors: Sequence[float]) -> Tensor:
            return way(tensors, factors, DENSITY if density is None else density, draw)

        for each, source in zip(adapters, sources, strict=True):
            check_finite(each, source.state_dict())
        labels = _labels(model, [*adapters])
        of_each = [pieces(each) for each in sources]
        if len(kinds := dict.fromkeys(" with ".join(map(kind, each)) for each in of_each)) > 1:
            raise HalkaError(f"{' and '.join(kinds)} do not combine: adapters of the same methods do")
        besides = OF_PRODUCTS.get(method, "linear") if any(map(is_lora, of_each[0])) and method not in WAYS else method
        methods: list[Method] = []
        state: dict[str, Tensor] = {}
        for of_one in zip(*of_each, strict=True):
            if is_lora(of_one[0]):
                combined, tensors = _loras(of_one, weights, method, rank, joined)
            else:
                combined, tensors = _others(model, of_one, weights, besides, joined)
            methods.append(combined)
            state.update({key: tensor.float() for key, tensor in tensors.items()})
        whole = methods[0] if len(methods) == 1 else Joint(tuple(methods))
        return model.add(name, whole, seed=seed, state=state, labels=labels)


Join = Callable[[Sequence[Tensor], Sequence[float]], Tensor]


def _labels(model: AdaptedModel, names: Sequence[str]) -> tuple[str, ...]:
    """The labels that all of these have. Raises HalkaError where two differ."""
    first, own = names[0], model.labels_of(names[0])
    for other in names[1:]:
        if (labels := model.labels_of(other)) != own:
            raise HalkaError(
                f"{first!r} tells {', '.join(own)} apart and {other!r} {', '.join(labels)}, so that the places of "
                "their heads do not mean the same: combine adapters of the same labels in the same order"
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
    kinds = {path: type(part) for each in sources for path, part in each.parts.items()}
    having = {
        path: [
            Factors.of(each.parts[path], weight)
            for each, weight in zip(sources, weights, strict=True)
            if path in each.parts
        ]
        for path in kinds
    }
    wanted = rank or max(each.A.shape[-2] for found in having.values() for each in found)
    made: dict[str, tuple[Tensor, Tensor]] = {}
    for path, found in having.items():
        if method == "cat":
            made[path] = side_by_side(found)
        elif method == "svd":
            made[path] = nearest_of_factors(*side_by_side(found), wanted)
        elif method in OF_PRODUCTS:
            products = [each.scale * each.B @ each.A for each in found]
            made[path] = nearest(joined(products, [each.weight for each in found]), wanted)
        else:
            made[path] = _of_factors(found, path, method, joined)
    full = max(A.shape[-2] for A, _ in made.values())
    state = {}
    for path, (A, B) in made.items():
        at_A, at_B = FACTORS[kinds[path]]
        missing = full - A.shape[-2]
        state[f"{path}.{at_A}"] = torch.nn.functional.pad(A, (0, 0, 0, missing)).contiguous()
        state[f"{path}.{at_B}"] = torch.nn.functional.pad(B, (0, missing)).contiguous()
    roles = tuple(dict.fromkeys(role for each in sources for role in each.method.roles()))
    return LoRA(rank=full, alpha=float(full), targets=roles), state


def _of_factors(having: Sequence[Factors], path: str, method: str, joined: Join) -> tuple[Tensor, Tensor]:
    """A's with A's and B's with B's, each weighted by the root of weight times scale, its sign at A."""
    if len(ranks := {each.A.shape[-2] for each in having}) > 1:
        raise HalkaError(
            f"{method} sums factors, which need equal ranks; at {path} they are {', '.join(map(str, sorted(ranks)))}: "
            "use cat (the exact sum), or svd"
        )
    scaled = [each.weight * each.scale for each in having]
    roots = [abs(each) ** 0.5 for each in scaled]
    signed = [root if each >= 0 else -root for root, each in zip(roots, scaled, strict=True)]
    return joined([each.A for each in having], signed), joined([each.B for each in having], roots)


def side_by_side(having: Sequence[Factors]) -> tuple[Tensor, Tensor]:
    """Factors (ΣR, I) and (O, ΣR) of the weighted sum of products, exactly."""
    A = torch.cat([each.A * (each.weight * each.scale) for each in having], dim=-2)
    return A, torch.cat([each.B for each in having], dim=-1)


def nearest_of_factors(A: Tensor, B: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """`nearest(B @ A, rank)` without forming the product: QR of both, and the SVD of what is between."""
    left, upper = torch.linalg.qr(B)
    right, lower = torch.linalg.qr(A.mT)
    small_A, small_B = nearest(upper @ lower.mT, rank)
    return small_A @ right.mT, left @ small_B


def nearest(product: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors A (R, I), of orthonormal rows, and B (O, R) of the product of that rank that is nearest to (O, I)."""
    U, S, V = torch.linalg.svd(product, full_matrices=False)
    return V[..., :rank, :], U[..., :rank] * S[..., None, :rank]


# ── other families ──────────────────────────────────────────────────────────────────────────────────────────────────


def _others(
    model: AdaptedModel, sources: Sequence[Adapter], weights: Sequence[float], method: str, joined: Join
) -> tuple[Method, dict[str, Tensor]]:
    """The method that all sources share, and the sum of their tensors."""
    first = sources[0].method
    if any(_plain(each.method) != _plain(first) for each in sources):
        raise HalkaError(
            f"these {first.name} adapters differ in their fields ({first} and others): tensors of equal shape and "
            "meaning are summed, so train them with equal fields"
        )
    if isinstance(first, Prefix) and first.hidden is not None:
        raise HalkaError("prefixes behind a network do not combine: save and load them, which keeps the prefix alone")
    if any(isinstance(part, LoRAPart) for part in sources[0].parts.values()):
        raise HalkaError(
            f"{first.name} is no sum of products, so its tensors do not add up: combine LoRAs, or merge one"
        )
    if method not in WAYS or (method != "linear" and not isinstance(first, FROM_START)):
        able = "linear" if not isinstance(first, FROM_START) else ", ".join(WAYS)
        raise HalkaError(f"{method} is not defined for {first.name}: choose {able}")
    states = [each.state_dict() for each in sources]
    start = _start(model, sources[0]) if isinstance(first, FROM_START) else {}
    summed = {}
    for key, tensor in states[0].items():
        origin = start.get(key, torch.zeros((), device=tensor.device))
        summed[key] = origin + joined([state[key] - origin for state in states], weights)
    return first, summed


def _plain(method: Method) -> Method:
    """Without what matters for training alone."""
    dropless: Any = method
    return replace(dropless, dropout=0.0) if "dropout" in method.__dataclass_fields__ else method


def _start(model: AdaptedModel, adapter: Adapter) -> dict[str, Tensor]:
    """The state that such an adapter begins with."""
    state: dict[str, Tensor] = {}
    with model.own_weights():
        for path, target in adapter.targets.items():
            part = adapter.method.build(target)
            assert part is not None
            state.update(part.state_dict(prefix=f"{path}."))
    return state

"""The next token of each row: the likeliest, or one drawn by transformers' rules, of the row's own logits.

A drawn token depends on its row's logits, its request's seed and the number of tokens drawn before it, on nothing else:
neither the other rows of the step nor a preemption in between changes it.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from halka.engine.checked import checked
from halka.engine.sampling_on_gpu import drawn
from halka.util.errors import HalkaError
from halka.util.transfer import numbers

SEEDS = 2**63
LARGEST = 3e38  # of fp32, in which logits are
FINITE = (Real, -LARGEST, LARGEST, f"a number from {-LARGEST:g} to {LARGEST:g}")


@dataclass(frozen=True)
class Sampling:
    """How a request's tokens are chosen; the names and their meaning are those of transformers' generation config.

    temperature  divides the logits; 0 or None is greedy: the likeliest token, whatever the other fields say
    top_k        keep the k likeliest tokens and those as likely as the last of them; 0 or None keeps all
    top_p        of these, keep the fewest likeliest whose probabilities reach top_p; 1 or None keeps all
    min_p        of these, keep those at least min_p times as likely as the likeliest; 0 or None keeps all
    seed         of the draws; None: whoever submits the request draws one (`new_seed`)
    bias         is added to the logits of these tokens

    repetition_penalty  divides the logits of all tokens that the prompt or the answer has, and multiplies those below
                        0; 1 changes nothing; None: that of the base's generation config

    presence_penalty and frequency_penalty are subtracted, as OpenAI's API has them, from the logit of every token that
    the answer has already: the one once, the other as often as the answer has it. Greedy rows obey all three
    and the bias.

    Raises HalkaError for a value outside its range.
    """

    temperature: float | None = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None
    presence_penalty: float | None = 0.0
    frequency_penalty: float | None = 0.0
    repetition_penalty: float | None = None
    bias: Mapping[int, float] = field(default_factory=dict[int, float], hash=False)

    def __post_init__(self) -> None:
        limits: dict[str, tuple[type, float, float, str]] = {
            "temperature": (Real, 0, LARGEST, f"a number from 0 (greedy) to {LARGEST:g}"),
            "top_k": (Integral, 0, math.inf, "a whole number, 0 (all tokens) or above"),
            "top_p": (Real, 0, 1, "a number from 0 to 1"),
            "min_p": (Real, 0, 1, "a number from 0 to 1"),
            "seed": (Integral, 0, SEEDS - 1, f"a whole number from 0 to {SEEDS - 1}"),
            "presence_penalty": FINITE,
            "frequency_penalty": FINITE,
            "repetition_penalty": (Real, math.ulp(0.0), LARGEST, "a number above 0"),
        }
        for name, (kind, low, high, allowed) in limits.items():
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, checked(name, value, kind, low, high, f"{allowed}, or None"))
        bias = {
            checked("bias", token, Integral, 0, math.inf, "the ids of tokens, with numbers"): checked(
                f"bias of token {token}", value, *FINITE
            )
            for token, value in self.bias.items()
        }
        object.__setattr__(self, "bias", bias)

    @property
    def greedy(self) -> bool:
        return not self.temperature

    @property
    def free(self) -> bool:
        """Whether the next token is the likeliest of the logits as they are."""
        return self.greedy and not self._adjusts

    @property
    def drawn_as_is(self) -> bool:
        """Whether the next token is drawn, of the logits as they are."""
        return not self.greedy and not self._adjusts

    @property
    def _adjusts(self) -> bool:
        return bool(self.bias or self.presence_penalty or self.frequency_penalty or self.penalises_repetition)

    @property
    def penalises_repetition(self) -> bool:
        """Whether tokens of the prompt matter."""
        return self.repetition_penalty not in (None, 1)


def new_seed() -> int:
    """A seed for a request that has none."""
    return secrets.randbelow(SEEDS)


class Draw(NamedTuple):
    """A row of logits: how its token is chosen, the request's seed, how many tokens the answer has, and which.

    prompt: the tokens before the answer, each at least once; empty where they do not matter.
    """

    sampling: Sampling
    seed: int
    count: int
    answer: Sequence[int] = ()
    prompt: Sequence[int] | np.ndarray = ()


def likeliest(logits: Tensor) -> list[int]:
    """The token of each row's highest logit (R, V); where one is no number, that one."""
    if logits.device.type == "cpu":
        return logits.numpy().argmax(-1).tolist()  # torch takes nine times as long for 32 rows
    return logits.argmax(-1).tolist()


def likeliest_with_logits(logits: Tensor) -> tuple[list[int], list[float]]:
    """`likeliest`, and these logits; of a GPU both come in one copy, for which the host waits once."""
    if logits.device.type == "cpu":
        tokens = likeliest(logits)
        return tokens, logits[range(len(tokens)), tokens].tolist()
    values, places = logits.max(-1)
    highest, numbers = torch.stack([values.float(), places.float()]).tolist()  # whole numbers to 2^24, no float64: MPS
    return [*map(int, numbers)], highest


def choose(
    logits: Tensor,
    rows: Sequence[Draw],
    allowed: Sequence[Tensor | None] | None = None,
    greedy: Sequence[int] | None = None,
) -> list[int | Exception]:
    """The next token of each row: the likeliest for all that are greedy and free, a look at each other row by itself.

    On a GPU rows that are drawn of their logits as they are, are drawn there in one go. A row that has no token gets
    the error that says why not, alone.

    logits   (R, V) fp32, on any device; they are not changed
    rows     R draws
    allowed  for each row the tokens it may have, (V,) bool, or None for all
    greedy   `likeliest(logits)`, if that is known already
    """
    masks = [None] * len(rows) if allowed is None else allowed
    own = [index for index, row in enumerate(rows) if masks[index] is not None or not row.sampling.free]
    tokens: list[int | Exception] = [*(likeliest(logits) if greedy is None else greedy)]
    together: list[int] = []
    in_float64 = logits.device.type not in ("cpu", "mps")
    if in_float64 and not torch.are_deterministic_algorithms_enabled():  # CUDA's sums differ each time
        together = [index for index in own if masks[index] is None and rows[index].sampling.drawn_as_is]
    if together:
        draws = [rows[index] for index in together]
        uniforms = [uniform(row.seed, row.count) for row in draws]
        places, highest = drawn(rows_of(logits, together).float(), [row.sampling for row in draws], uniforms)
        for index, place, logit in zip(together, places, highest, strict=True):
            tokens[index] = place if math.isfinite(logit) else _no_token(logit)
    if alone := [index for index in own if index not in together]:
        for index, logits_V in zip(alone, rows_of(logits, alone).float().cpu().numpy(), strict=True):
            try:
                tokens[index] = _choose(logits_V, rows[index], masks[index])
            except Exception as error:
                tokens[index] = error
    return tokens


def rows_of(logits: Tensor, rows: Sequence[int]) -> Tensor:
    """A copy of these rows, for which the host does not wait."""
    return logits.index_select(0, numbers(tuple(rows), logits.device))


def _choose(logits_V: np.ndarray, row: Draw, allowed: Tensor | None) -> int:
    """The next token of a row, whose logits are changed. Raises HalkaError if it has none."""
    with np.errstate(over="ignore"):  # what is too large is no number then, which is seen below
        _adjust(logits_V, row)
    if allowed is not None:
        logits_V[~allowed.cpu().numpy()] = -math.inf
    _highest(logits_V)
    return int(logits_V.argmax()) if row.sampling.greedy else _draw(logits_V, *row[:3])


def _highest(logits_V: np.ndarray) -> float:
    highest = logits_V.max()
    if not math.isfinite(highest):
        raise _no_token(highest)
    return highest


def _no_token(highest: float) -> HalkaError:
    return HalkaError(
        f"a row's largest logit is {highest}: it has no token to draw; are all weights finite, biases and "
        "penalties small, and tokens with finite logits allowed?"
    )


def _adjust(logits_V: np.ndarray, row: Draw) -> None:
    """Add the bias, and apply the penalties, in place; the order is vLLM's."""
    sampling = row.sampling
    for token, value in sampling.bias.items():
        logits_V[token] += float(value)
    if sampling.penalises_repetition:
        penalty = float(sampling.repetition_penalty or 1)
        tokens = np.concatenate([row.prompt, row.answer]).astype(int)
        before = logits_V[tokens]  # a copy: a token that is there twice changes once
        logits_V[tokens] = np.where(before < 0, before * penalty, before / penalty)
    if row.answer and (sampling.presence_penalty or sampling.frequency_penalty):
        tokens, counts = np.unique(row.answer, return_counts=True)
        logits_V[tokens] -= float(sampling.presence_penalty or 0) + float(sampling.frequency_penalty or 0) * counts


def _draw(logits_V: np.ndarray, sampling: Sampling, seed: int, count: int) -> int:
    """The token at a uniform number's place in the kept tokens' distribution, in the order of their ids."""
    tokens_K, probabilities_K = kept(logits_V, sampling)
    sums = probabilities_K.cumsum(out=probabilities_K)
    place = np.searchsorted(sums, uniform(seed, count) * sums[-1], side="right")
    return int(tokens_K[min(place, np.searchsorted(sums, sums[-1]))])  # should rounding lead past the last


def uniform(seed: int, count: int) -> float:
    """Number `count` of the seed's uniform numbers in [0, 1): Philox of the two, so that none needs those before it."""
    raw = int(np.random.Philox(key=seed, counter=count).random_raw())
    return (raw >> 11) * 2.0**-53


def kept(logits_V: np.ndarray, sampling: Sampling) -> tuple[np.ndarray, np.ndarray]:
    """The tokens (K,) that a sampled row may draw, in the order of their ids, and their probabilities (K,) in float64.

    In transformers' order: temperature, top_k, top_p, min_p. Tokens of a masked row may stay with a probability of 0.
    """
    highest = _highest(logits_V)
    tokens = np.arange(len(logits_V))
    if sampling.top_k and sampling.top_k < len(logits_V):
        least = torch.from_numpy(logits_V).topk(sampling.top_k, sorted=False).values.min().item()
        tokens = np.flatnonzero(logits_V >= least)
        logits_V = logits_V[tokens]
    assert sampling.temperature
    weights = np.subtract(logits_V, highest, dtype=np.float64)  # in place from here: large new arrays cost page faults
    with np.errstate(over="ignore"):  # of a tiny temperature: minus infinity is right
        weights /= sampling.temperature
    np.exp(weights, out=weights)
    if sampling.top_p is not None and sampling.top_p < 1:
        keep = _within_top_p(weights / weights.sum(), sampling.top_p)
        tokens, weights = tokens[keep], weights[keep]
    if sampling.min_p:
        keep = np.flatnonzero(weights >= sampling.min_p)  # the likeliest has a weight of 1
        tokens, weights = tokens[keep], weights[keep]
    weights /= weights.sum()
    return tokens, weights


def _within_top_p(probabilities: np.ndarray, top_p: float) -> np.ndarray:
    """The places, in order, of the fewest likeliest tokens whose probabilities reach `top_p`; one at least.

    n tokens of at most (1 - top_p)/n each make up no more than 1 - top_p, so none of them is kept: they are not sorted.
    """
    candidates = np.flatnonzero(probabilities > (1 - top_p) / (len(probabilities) + 1))
    order = candidates[np.argsort(probabilities[candidates], kind="stable")]
    sums = probabilities[order].cumsum()
    sums += 1 - sums[-1]
    first = min(int(np.searchsorted(sums, 1 - top_p, side="right")), len(order) - 1)
    return np.sort(order[first:])

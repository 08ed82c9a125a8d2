"""Tokens are kept and weighed as transformers' warpers do, and a row's draws depend on that row alone."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from halka.engine.sampling import SEEDS, Draw, Sampling, choose, kept, new_seed, uniform
from halka.engine.sampling_on_gpu import drawn
from halka.util.errors import HalkaError

SAMPLINGS = [
    Sampling(temperature=1.0),
    Sampling(temperature=0.7),
    Sampling(temperature=1.0, top_k=5),
    Sampling(temperature=2.0, top_k=0),
    Sampling(temperature=1.3, top_k=10**6),
    Sampling(temperature=1.0, top_p=0.9),
    Sampling(temperature=0.5, top_p=0.1),
    Sampling(temperature=1.0, top_p=0.0),
    Sampling(temperature=1.0, top_p=1.0),
    Sampling(temperature=1.0, min_p=0.05),
    Sampling(temperature=1.5, min_p=1.0),
    Sampling(temperature=0.8, top_k=50, top_p=0.95, min_p=0.02),
    Sampling(temperature=3.0, top_k=40, top_p=0.5),
]


def warped(logits_V: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """The distribution (V,) that transformers samples from."""
    warpers = [TemperatureLogitsWarper(float(sampling.temperature or 0))]
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p is not None and sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p is not None:
        warpers.append(MinPLogitsWarper(sampling.min_p))
    scores = logits_V[None]
    for warper in warpers:
        scores = warper(torch.zeros(1, 1, dtype=torch.long), scores)
    return scores.softmax(-1)[0]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@pytest.mark.parametrize("tokens", [97, 5000])
@pytest.mark.parametrize("spread", [0.5, 4.0])
def test_the_kept_tokens_and_their_probabilities_are_transformers(sampling, tokens, spread):
    logits = torch.randn(tokens) * spread
    places, probabilities = kept(logits.numpy(), sampling)
    expected = warped(logits, sampling)
    assert places.tolist() == expected.nonzero()[:, 0].tolist()
    assert torch.allclose(torch.tensor(probabilities), expected[places].double(), rtol=1e-4, atol=1e-9)


def test_tokens_as_likely_as_the_last_of_top_k_are_kept():
    logits = torch.tensor([1.0, 3.0, 2.0, 2.0, 0.0])
    places, _ = kept(logits.numpy(), Sampling(temperature=1.0, top_k=2))
    assert places.tolist() == warped(logits, Sampling(temperature=1.0, top_k=2)).nonzero()[:, 0].tolist() == [1, 2, 3]


def test_draws_follow_the_distribution():
    logits = torch.randn(1, 20)
    sampling = Sampling(temperature=1.2, top_k=8)
    tokens = choose(logits.expand(20_000, 20), [Draw(sampling, 7, count) for count in range(20_000)])
    frequencies = torch.bincount(torch.tensor(tokens), minlength=20) / 20_000
    assert torch.allclose(frequencies, warped(logits[0], sampling), atol=0.015)


def test_a_row_is_the_same_in_any_company():
    logits = torch.randn(32, 500)
    rows = [Draw(SAMPLINGS[index % len(SAMPLINGS)], index, 3 * index) for index in range(30)]
    rows += [Draw(Sampling(), 0, 0)] * 2
    together = choose(logits, rows)
    alone = [choose(logits[index : index + 1], [row])[0] for index, row in enumerate(rows)]
    order = torch.randperm(32).tolist()
    shuffled = choose(logits[order], [rows[index] for index in order])
    assert together == alone == [shuffled[order.index(index)] for index in range(32)]
    assert together[30:] == logits[30:].argmax(-1).tolist()


@pytest.mark.parametrize("spread", [0.5, 4.0])
def test_rows_that_are_drawn_in_one_go_are_drawn_as_alone(spread):
    logits = torch.randn(20 * len(SAMPLINGS), 300) * spread
    logits[7, 3:90] = logits[7, 2]  # as likely as each other
    draws = [Draw(SAMPLINGS[row % len(SAMPLINGS)], row, 3 * row) for row in range(len(logits))]
    uniforms = [uniform(draw.seed, draw.count) for draw in draws]
    tokens, highest = drawn(logits, [draw.sampling for draw in draws], uniforms)
    assert tokens == choose(logits, draws)
    assert highest == logits.amax(-1).tolist()


def test_seed_and_count_make_the_number_and_nothing_else():
    """The first numbers stand here: requests with a seed are the same in every version."""
    numbers = [uniform(1, count) for count in range(3)]
    assert numbers == [0.3035680343067586, 0.9002684531124185, 0.4082618259872465]
    assert len({uniform(seed, count) for seed in range(30) for count in range(30)}) == 900
    assert uniform(SEEDS - 1, 2**40) == 0.37638615923026186
    many = np.array([uniform(5, count) for count in range(5000)])
    assert abs(many.mean() - 0.5) < 0.02
    assert abs(np.corrcoef(many[1:], many[:-1])[0, 1]) < 0.05


def test_masked_rows_have_only_what_is_allowed_and_logits_stay():
    logits = torch.randn(4, 50)
    before = logits.clone()
    mask = torch.zeros(50, dtype=torch.bool)
    mask[[3, 4]] = True
    sampled = Sampling(temperature=1.0, top_k=10)
    rows = [Draw(Sampling(), 0, 0), Draw(sampled, 1, 0), Draw(Sampling(), 0, 0), Draw(sampled, 1, 0)]
    tokens = choose(logits, rows, [mask, mask, None, None])
    assert tokens[0] == (3 if logits[0, 3] > logits[0, 4] else 4)
    assert tokens[1] in (3, 4)
    assert tokens[2:] == choose(logits[2:], rows[2:])
    assert torch.equal(logits, before)


def test_a_single_allowed_token_is_drawn_and_unlikely_ones_never():
    logits = torch.full((1, 10), -math.inf)
    logits[0, 6] = -80.0
    assert choose(logits, [Draw(Sampling(temperature=1e-300), 0, 0)]) == [6]
    logits[0, 2] = -90.0
    assert choose(logits, [Draw(Sampling(temperature=1e-300), 0, 0)]) == [6]


def test_numbers_that_are_none_are_no_draw():
    for bad in (math.nan, -math.inf, math.inf):
        logits = torch.stack([torch.full((5,), bad), torch.arange(5.0)])
        error, other = choose(logits, [Draw(Sampling(temperature=1.0), 0, 0), Draw(Sampling(), 0, 0)])
        assert isinstance(error, HalkaError)
        assert "no token to draw" in str(error)
        assert other == 4


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_without_a_token_fails_alone(temperature):
    """Penalties that add up to more than fp32 holds; a mask that allows only tokens which the base never has."""
    logits = torch.randn(3, 9)
    logits[1, 4] = -math.inf
    mask = torch.zeros(9, dtype=torch.bool)
    mask[4] = True
    twice = Sampling(temperature, presence_penalty=-2e38, frequency_penalty=-2 * 10**38)
    rows = [Draw(twice, 0, 1, [3]), Draw(Sampling(temperature), 0, 0), Draw(Sampling(1.0), 5, 0)]
    *errors, token = choose(logits, rows, [None, mask, None])
    assert all(isinstance(error, HalkaError) and "no token to draw" in str(error) for error in errors)
    assert [token] == choose(logits[2:], rows[2:])


def test_biases_may_be_whole_numbers_as_large_as_fp32_s():
    for large in (10**20, 10**38, 3e38):
        assert choose(torch.randn(1, 9), [Draw(Sampling(1.0, bias={3: large}), 0, 0)]) == [3]


def test_penalties_and_bias_move_the_logits_of_their_tokens_alone():
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]])
    before = logits.clone()

    def chosen(answer=(), prompt=(), **fields):
        return choose(logits, [Draw(Sampling(**fields), 0, len(answer), answer, prompt)])[0]

    assert chosen() == chosen(presence_penalty=1.5, frequency_penalty=1.0) == 0
    assert chosen([0], presence_penalty=0.9) == 0
    assert chosen([0], presence_penalty=1.1) == chosen([0, 0], frequency_penalty=0.6) == 1
    assert chosen([0, 0, 1], presence_penalty=-0.5, frequency_penalty=1.2) == 1
    assert chosen([0], repetition_penalty=1.4) == 0
    assert chosen([0], repetition_penalty=1.6) == chosen(prompt=[0], repetition_penalty=1.6) == 1
    assert chosen([0, 0], prompt=[0, 0], repetition_penalty=1.4) == 0, "each token counts once"
    assert chosen([0], bias={0: -3.5, 1: -2.1, 2: -1.2}, repetition_penalty=0.01) == 3, "behind the bias"
    assert chosen(bias={3: 3.5}) == 3
    assert chosen(bias={0: -100.0, 1: -100.0}) == 2
    drawn = Sampling(temperature=1.0, bias={2: 100.0})
    assert choose(logits, [Draw(drawn, seed, 0) for seed in range(1)]) == [2]
    assert torch.equal(logits, before)


def test_a_row_with_penalties_is_drawn_from_the_adjusted_distribution():
    logits = torch.randn(1, 12)
    answer, sampling = [3, 3, 5], Sampling(temperature=1.1, presence_penalty=0.7, frequency_penalty=0.4, bias={1: 0.9})
    adjusted = logits[0].clone()
    adjusted[3] -= 0.7 + 2 * 0.4
    adjusted[5] -= 0.7 + 0.4
    adjusted[1] += 0.9
    tokens = choose(logits.expand(20_000, 12), [Draw(sampling, 7, count, answer) for count in range(20_000)])
    frequencies = torch.bincount(torch.tensor(tokens), minlength=12) / 20_000
    assert torch.allclose(frequencies, (adjusted / 1.1).softmax(-1), atol=0.015)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", "1"),
        ("temperature", True),
        ("temperature", 10**400),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_p", 1.1),
        ("top_p", -0.1),
        ("min_p", 2),
        ("seed", -1),
        ("seed", 2**63),
        ("seed", 1.0),
        ("presence_penalty", math.inf),
        ("frequency_penalty", "0"),
        ("frequency_penalty", 10**39),
        ("repetition_penalty", 0),
        ("repetition_penalty", -1.5),
        ("repetition_penalty", math.nan),
    ],
)
def test_values_out_of_range_are_named(field, value):
    with pytest.raises(HalkaError, match=f"{field} is {value!r}: it is a"):
        Sampling(**{field: value})


def test_no_temperature_is_greedy():
    assert Sampling().greedy
    assert Sampling(temperature=None).greedy
    assert not Sampling(temperature=0.1).greedy
    assert 0 <= new_seed() < SEEDS


def test_whole_numbers_may_be_larger_than_any_float():
    assert Sampling(top_k=10**400, bias={10**400: 1.0}).top_k == 10**400


def test_numbers_of_numpy_are_python_s():
    numpy_s = Sampling(temperature=np.float32(0.5), seed=np.int64(3), bias={np.int64(9): np.float64(2)})
    assert json.dumps(vars(numpy_s)) == json.dumps(vars(Sampling(temperature=0.5, seed=3, bias={9: 2.0})))


def test_a_bias_is_a_finite_number_of_a_token():
    for bias, message in (
        ({-1: 1.0}, "bias is -1: it is the ids"),
        ({None: 1.0}, "bias is None: it is the ids"),
        ({3: math.nan}, "bias of token 3 is nan"),
        ({3: 1e39}, r"bias of token 3 is 1e\+39: it is a number from -3e\+38 to 3e\+38"),
        ({3: -(10**400)}, "bias of token 3 is -1000"),
    ):
        with pytest.raises(HalkaError, match=message):
            Sampling(bias=bias)

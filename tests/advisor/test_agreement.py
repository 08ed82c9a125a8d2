"""Cohen's kappa against values by hand, and when it is asked for at all."""

from __future__ import annotations

import random

import pytest

from halka.advisor.statistics import are_labels, kappa


def test_a_table_by_hand():
    """20 yes/yes, 5 yes/no, 10 no/yes, 15 no/no: 0.7 seen, 0.5·0.6 + 0.5·0.4 = 0.5 by chance, so 0.4."""
    first = ["yes"] * 25 + ["no"] * 25
    second = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    assert kappa(first, second) == pytest.approx(0.4)
    assert kappa(second, first) == pytest.approx(0.4)


def test_three_classes_by_hand():
    """2 of 4 seen; by chance (2·1 + 1·2 + 1·1) / 16 = 5/16; so (8 - 5) / (16 - 5)."""
    assert kappa(["a", "a", "b", "c"], ["a", "b", "b", "d"]) == pytest.approx((8 - 4) / (16 - 4))
    assert kappa(["a", "a", "b", "c"], ["a", "b", "b", "a"]) == pytest.approx((8 - 6) / (16 - 6))


def test_the_ends():
    assert kappa(["a", "b"], ["a", "b"]) == 1.0
    assert kappa(["a", "b"], ["b", "a"]) == -1.0


def test_chance_is_about_nothing_however_often_it_agrees():
    rng = random.Random(0)
    first, second = (rng.choices(["a", "b"], [9, 1], k=5000) for _ in range(2))
    assert sum(a == b for a, b in zip(first, second, strict=True)) > 4000
    assert abs(kappa(first, second)) < 0.05


def test_always_the_same_shows_nothing():
    assert kappa(["a"] * 5, ["a"] * 5) == 0.0
    assert kappa(["a"] * 5, ["a", "b", "a", "b", "b"]) == 0.0
    assert kappa(["a"] * 5, ["b"] * 5) == 0.0


def test_spelling_is_no_disagreement():
    assert kappa(["Yes.", " no", "card  lost"], ["yes", "'No'", "Card lost!"]) == 1.0


@pytest.mark.parametrize(("first", "second"), [([], []), (["a"], []), (["a"], ["a", "b"])])
def test_lists_that_do_not_match_are_refused(first, second):
    with pytest.raises(ValueError, match="same questions"):
        kappa(first, second)


def test_labels_are_few_and_short():
    assert are_labels(["yes", "no", "Yes.", "No", "yes", "no"])
    assert are_labels(["balance_not_updated_after_cheque_or_cash_deposit", "refund"] * 3)
    assert not are_labels(["yes", "no", "yes", "no", "maybe", "no"]), "each stands twice on average"
    assert not are_labels(["yes"] * 9), "one kind"
    assert not are_labels([])
    assert not are_labels(["a sentence that goes on for long " * 3, "another one"] * 10)

"""The verdict: what the evidence says to do, by its rules; how sure that is; what would change it; what to run next."""

from __future__ import annotations

import re
import shlex
from dataclasses import asdict, replace
from typing import Any

import pytest

from advice_for_tests import full_evidence
from halka.advisor import CHOICES, advise_from
from halka.advisor.advice import commands, settings
from halka.advisor.evidence import (
    Evidence,
    Fit,
    Knowledge,
    Learnability,
    Option,
    Strength,
    Subject,
    Trial,
    from_json,
)
from halka.advisor.reasons import Reason
from halka.advisor.statistics import HORIZON
from halka.advisor.verdict import DATA_GAIN, GAP, TOLERANCE, USEFUL_GAIN, Criteria, choose, minimum_score
from halka.evaluation.metrics import Score

SUBJECT = Subject(
    "smollm2-135m", 134_000_000, "train.jsonl", 200, 40, "exact_match", 80, flags=("--data", "train.jsonl")
)


def score(value: float, half: float = 0.1) -> Score:
    return Score(value, max(0.0, value - half), min(1.0, value + half), 40)


def loss(value: float, half: float = 0.05) -> Score:
    return Score(value, value - half, value + half, 40)


def trial(name: str, end: float, worth: float, **further: Any) -> Trial:
    made = Trial(name, "lora", {"rank": 16}, 4e-3, 200, False, 24, 4_000_000, ((12, end + 0.2), (24, end)), loss(end))
    return replace(made, score=score(worth), values=(worth,), **further)


def strength(closed: float, examples: float, trivial: float = 0.0) -> Strength:
    return Strength(
        4,
        {"closed": loss(3.0), "examples": loss(2.0)},
        6.0,
        {"closed": score(closed), "examples": score(examples)},
        {"closed": (closed,), "examples": (examples,)},
        {"majority": score(trivial), "copy": score(0.0)},
    )


def knowledge(documents: float, both: float) -> Knowledge:
    told = {"all": loss(1.0), "form": loss(0.5), "content": loss(1.5)}
    losses = dict.fromkeys(("closed", "examples", "documents", "both"), told)
    return Knowledge(losses, {"all": 9}, 0.9, {"documents": score(documents), "both": score(both)})


def learned(*trials: Trial, **further: Any) -> Learnability:
    return Learnability(8, 100.0, trials, **further)


def evidence(**found: Any) -> Evidence:
    return Evidence(SUBJECT, **found)


# ── which ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("scores", "choice"),
    [
        ({"prompt": 0.9, "peft": 0.92}, "prompt"),  # as good, and cheaper
        ({"prompt": 0.4, "peft": 0.9, "data": 0.92}, "peft"),
        ({"prompt": 0.2, "rag": 0.8, "peft": 0.3, "peft+rag": 0.85}, "rag"),
        ({"prompt": 0.2, "rag": 0.4, "peft": 0.3, "peft+rag": 0.85}, "peft+rag"),
        ({"prompt": 0.2, "peft": 0.5, "full": 0.8}, "full"),
        ({"prompt": 0.2, "peft": 0.4, "data": 0.8}, "data"),
        ({"prompt": 0.01, "peft": 0.05, "data": 0.08}, "base"),
        ({"prompt": 0.01, "peft": 0.06, "data": 0.3}, "data"),  # of no use as it is
        ({"prompt": 0.0}, "peft"),  # what was not tried may be of use
    ],
)
def test_the_cheapest_that_is_as_good_as_any(scores, choice):
    assert choose(scores, Criteria(USEFUL_GAIN))[0] == choice


@pytest.mark.parametrize(("end", "moved"), [(2.0, "lower"), (4.0, "raise")])
def test_whether_training_lowers_the_loss_is_told(end, moved):
    advice = advise_from(evidence(strength=strength(0.0, 0.2), learnability=learned(trial("LoRA", end, 0.9))))
    texts = [reason.text for reason in advice.reasons]
    assert any(f"{moved} the held-out loss from 3.00 to {end:.2f}" in text for text in texts)


def test_an_adapter_is_advised_beside_what_full_fine_tuning_might_change():
    """Unless it was tried, or the hardware cannot train it."""
    tried = learned(trial("LoRA", 0.5, 0.9))
    option = Option("full", None, True, 9 * 10**9, False, 0, 10**8, None, 10**8, 10**9)
    small = Fit("a GPU", 4 * 10**9, 0, 80, 8, 1, (option,), {})
    full = replace(tried, trials=(*tried.trials, replace(trial("full fine-tuning", 0.9, 0.5), method="full")))
    open_full = []
    for found in ({"learnability": tried}, {"learnability": full}, {"learnability": tried, "fit": small}):
        advice = advise_from(evidence(strength=strength(0.0, 0.2), **found))
        assert advice.choice == "peft"
        open_full.append([each.text for each in advice.change if each.rule == "full"])
    [text] = open_full[0]
    assert "docs/evidence.md" in text
    assert open_full[1:] == [[], []]


@pytest.mark.parametrize(
    ("parameters", "trainable", "base"),
    [
        (134_000_000, True, "HuggingFaceTB/SmolLM2-360M-Instruct"),
        (20_000_000_000, True, None),  # there is none of twice as many
        (32_764_000_000, True, None),
        (8_000_000_000, False, "Qwen/Qwen2.5-7B-Instruct"),
        (134_000_000, False, None),  # there is no smaller one
    ],
)
def test_another_base_is_another_one(parameters, trainable, base):
    option = Option("lora", None, True, 9 * 10**10, False, 0, 10**7, None, 10**7, 10**10)
    fit = None if trainable else Fit("a GPU", 24 * 10**9, 0, 80, 8, 1, (option,), {})
    asked = replace(evidence(fit=fit), subject=replace(SUBJECT, parameters=parameters))
    lines = commands(asked, "base")
    assert [line.split()[3] for line in lines] == ([] if base is None else [base])


def test_a_score_that_is_as_good_by_luck_has_twice_the_loss():
    bar, scores = Criteria(0.1), {"rag": 0.42, "peft+rag": 0.40}
    assert choose(scores, bar, {"rag": 0.5, "peft+rag": 0.3}) == ("rag", "best")
    assert choose(scores, bar, {"rag": 0.5, "peft+rag": 0.24}) == ("peft+rag", "loss")
    assert choose({"rag": 0.42, "peft+rag": 0.2}, bar, {"rag": 0.5, "peft+rag": 0.24}) == ("rag", "best")
    assert choose({"prompt": 1.0, "peft": 1.0}, bar, {"prompt": 0.1, "peft": 0.01}) == ("prompt", "best")


def test_where_nothing_is_of_use_a_curve_that_falls_with_data_asks_for_more():
    strong = strength(0.0, 0.0)
    parts = (trial("half", 2.4, 0.0, examples=100), trial("LoRA", 2.0, 0.0))
    assert advise_from(evidence(strength=strong, learnability=learned(*parts, more=loss(1.5)))).choice == "data"
    assert advise_from(evidence(strength=strong, learnability=learned(*parts, more=loss(1.95)))).choice == "base"


def test_a_trial_that_was_too_short_goes_on():
    strong = strength(0.0, 0.0)
    short = advise_from(evidence(strength=strong, learnability=learned(trial("LoRA", 0.9, 0.05, expected=loss(0.4)))))
    assert (short.choice, short.reasons[0].rule) == ("peft", "learning")
    flat = advise_from(evidence(strength=strong, learnability=learned(trial("LoRA", 0.9, 0.05, expected=loss(0.8)))))
    assert (flat.choice, flat.reasons[0].rule) == ("base", "useless")


def test_of_few_examples_to_train_on_more_come_first():
    found = {"strength": strength(0.1, 0.2), "learnability": learned(trial("LoRA", 1.5, 0.5))}
    few = replace(evidence(**found), subject=replace(SUBJECT, train=6))
    advice = advise_from(few)
    assert (advice.choice, advice.reasons[0].rule, advice.sure) == ("data", "few", "low")
    assert advise_from(evidence(**found)).choice == "peft"
    enough = replace(few, learnability=learned(trial("LoRA", 1.5, 0.95)))
    assert advise_from(enough).choice == "peft"
    told = replace(few, subject=replace(few.subject, target=0.4))
    assert advise_from(told).choice == "peft"
    useless = replace(few, strength=strength(0.0, 0.0), learnability=learned(trial("LoRA", 2.5, 0.0)))
    assert (advise_from(useless).choice, advise_from(useless).sure) == ("data", "low")


def test_what_needs_no_examples_is_taken_with_few():
    few = replace(SUBJECT, train=20)
    tuned = learned(trial("LoRA", 2.5, 0.2))
    retrieved = Evidence(few, strength=strength(0.1, 0.2), knowledge=knowledge(0.85, 0.85), learnability=tuned)
    assert advise_from(retrieved).choice == "rag"
    assert advise_from(Evidence(few, strength=strength(0.1, 0.6), learnability=tuned)).choice == "data"


def test_a_base_is_weak_only_where_it_was_trained():
    """Without a trial tuning may be of use yet, and a trial is what would tell."""
    strong, lacking = strength(0.0, 0.0), {"learnability": "skipped"}
    untried = advise_from(evidence(strength=strong, missing=lacking))
    assert (untried.choice, untried.reasons[0].rule, untried.sure) == ("peft", "untried", "low")
    assert any(each.text.startswith("a pilot (skipped)") for each in untried.change)
    few = advise_from(Evidence(replace(SUBJECT, train=8), strength=strong, missing=lacking))
    assert (few.choice, few.sure) == ("data", "low")
    assert any(each.text.startswith("a pilot (skipped)") for each in few.change)


def test_something_can_be_of_use_beside_a_good_trivial_answer():
    assert minimum_score(0.2) == pytest.approx(0.2 + USEFUL_GAIN)
    assert minimum_score(0.93) == pytest.approx(0.965)
    tuned = learned(trial("LoRA", 0.1, 1.0))
    advice = advise_from(evidence(strength=strength(0.5, 0.93, trivial=0.93), learnability=tuned))
    assert advice.choice == "peft"


# ── on what hardware ────────────────────────────────────────────────────────────────────────────────────────────────


def hardware(**largest: int) -> Fit:
    option = Option("lora", None, False, 5 * 10**9, True, 8, 10**7, None, 10**7, 10**10)
    options = tuple(
        replace(option, method=method, fits=most >= 8, largest_batch=most) for method, most in largest.items()
    )
    return Fit("rtx4090", 24 * 10**9, 5 * 10**8, 256, 8, 1, options, {})


def test_what_the_hardware_cannot_train_is_not_advised():
    tuned, none = learned(trial("LoRA", 0.5, 0.9)), hardware(lora=0, full=0)
    weak = advise_from(evidence(strength=strength(0.0, 0.0), learnability=tuned, fit=none))
    assert (weak.choice, weak.reasons[0].rule, weak.sure) == ("base", "hardware", "low")
    assert "smaller base" in weak.reasons[0].text
    assert any("cannot train lora" in each.text and "90 %" in each.text for each in weak.reasons)
    prompted = advise_from(evidence(strength=strength(0.3, 0.6), learnability=tuned, fit=none))
    assert prompted.choice == "prompt"
    assert [each.choice for each in prompted.prospects] == ["prompt"]
    few = replace(SUBJECT, train=6)
    assert advise_from(replace(evidence(strength=strength(0.3, 0.6), fit=none), subject=few)).choice == "prompt"
    assert (
        advise_from(replace(evidence(strength=strength(0.3, 0.6), fit=hardware(lora=1)), subject=few)).choice == "data"
    )
    assert advise_from(evidence(learnability=tuned, fit=none)).choice == "base"
    some = advise_from(evidence(strength=strength(0.0, 0.0), learnability=tuned, fit=hardware(lora=1, full=0)))
    assert some.choice == "peft"


def test_of_the_methods_those_that_fit_are_advised():
    full = replace(trial("full fine-tuning", 0.2, 0.95), method="full", fields={}, lr=1e-5)
    other = replace(trial("bottleneck", 0.9, 0.6), method="bottleneck", fields={}, lr=1e-3)
    trials = learned(trial("LoRA", 0.5, 0.7), other, full)
    found = evidence(strength=strength(0.0, 0.0), learnability=trials)
    assert advise_from(found).choice == "full"
    without = advise_from(replace(found, fit=hardware(lora=8, bottleneck=8, full=0)))
    assert (without.choice, without.settings["method"]) == ("peft", "lora")
    least = advise_from(replace(found, fit=hardware(lora=0, bottleneck=8, full=0)))
    assert (least.choice, least.settings["method"]) == ("peft", "bottleneck")
    untried = advise_from(evidence(strength=strength(0.0, 0.0), fit=hardware(lora=0, prompt=8, full=0)))
    assert (untried.choice, untried.settings["method"]) == ("peft", "prompt")


# ── by what bar ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_target_is_enough():
    scores = {"prompt": 0.55, "peft": 0.9}
    assert choose(scores, Criteria(0.5, target=0.5)) == ("prompt", "target")
    assert choose(scores, Criteria(0.8, target=0.8)) == ("peft", "target")
    assert choose(scores, Criteria(0.95, target=0.95)) == ("base", "useless")
    assert choose({"prompt": 0.6, "data": 0.8}, Criteria(0.5, target=0.5)) == ("prompt", "target")
    assert choose({"prompt": 0.6, "data": 0.8}, Criteria(0.7, target=0.7)) == ("data", "data")


def test_a_target_changes_the_advice_where_it_is_lower_than_the_one_that_was_set():
    tuned = evidence(strength=strength(0.1, 0.2), learnability=learned(trial("LoRA", 0.5, 0.9)))
    for target, words in ((None, "a score that suffices (--target)"), (0.8, "a lower score that suffices (--target)")):
        advice = advise_from(replace(tuned, subject=replace(tuned.subject, target=target)))
        assert advice.choice == "peft"
        assert [reason.text.split(":")[0] for reason in advice.change if reason.rule == "target"] == [words]


def test_thresholds_are_where_they_are_said_to_be():
    best, bar = 0.8, Criteria(0.1)
    assert choose({"prompt": best - TOLERANCE + 0.001, "peft": best}, bar) == ("prompt", "cheapest")
    assert choose({"prompt": best - TOLERANCE - 0.001, "peft": best}, bar) == ("peft", "best")
    assert choose({"peft": 0.5, "data": 0.5 + DATA_GAIN - 0.001}, bar) == ("peft", "best")
    assert choose({"peft": 0.5, "data": 0.5 + DATA_GAIN + 0.001}, bar) == ("data", "data")


@pytest.mark.parametrize(
    ("found", "rule", "said"),
    [
        ({"strength": strength(0.1, 0.9)}, "best", "it has the highest expected score"),
        (
            {"strength": strength(0.05, 0.05), "learnability": learned(trial("LoRA", 2.0, 0.05))},
            "useless",
            "10 %, the least that is useful (trivial answers: 0 %)",
        ),
        ({"strength": strength(0.05, 0.05)}, "untried", "but training was not tried"),
        (
            {"strength": strength(0.1, 0.85), "learnability": learned(trial("LoRA", 1.5, 0.9))},
            "cheapest",
            "the best is PEFT with 90 %",
        ),
        (
            {"strength": strength(0.1, 0.5), "learnability": learned(trial("LoRA", 0.5, 0.49))},
            "loss",
            "its loss is 2.00 and this one's 0.50",
        ),
    ],
)
def test_the_first_reason_is_the_rule_that_decided(found, rule, said):
    first = advise_from(evidence(**found)).reasons[0]
    assert first.rule == rule
    assert said in first.text


def test_where_trivial_answers_are_all_right_nothing_can_be_better():
    advice = advise_from(evidence(strength=strength(1.0, 1.0, trivial=1.0)))
    assert (advice.choice, advice.reasons[0].rule) == ("data", "trivial")
    assert "most frequent answer scores 100 %" in advice.reasons[0].text
    assert choose({"prompt": 1.0}, Criteria(1.0, trivial=1.0, target=1.0)) == ("prompt", "target")


def test_a_trivial_answer_is_what_has_to_be_beaten():
    tuned = learned(trial("LoRA", 1.0, 0.55))
    assert advise_from(evidence(strength=strength(0.1, 0.2, trivial=0.2), learnability=tuned)).choice == "peft"
    assert advise_from(evidence(strength=strength(0.1, 0.2, trivial=0.5), learnability=tuned)).choice == "base"


def test_wrong_labels_are_seen_by_what_trials_agree_on():
    trials = (trial("LoRA", 1.4, 0.4), trial("bottleneck", 1.45, 0.4))
    strong = strength(0.1, 0.2)
    wrong = learned(*trials, agreement=(0.8, 0.3), suspects=("labels.csv:7", "labels.csv:9"))
    noisy = advise_from(evidence(strength=strong, learnability=wrong))
    assert noisy.choice == "data"
    said = next(reason.text for reason in noisy.reasons if reason.rule == "noise")
    assert said.endswith("suspects: labels.csv:7, labels.csv:9")
    clean = advise_from(evidence(strength=strong, learnability=learned(*trials, agreement=(0.45, 0.35))))
    assert clean.choice == "peft"
    guessing = learned(trial("LoRA", 2.9, 0.2), trial("bottleneck", 2.9, 0.2), agreement=(0.9, 0.0))
    assert advise_from(evidence(strength=strength(0.1, 0.2, trivial=0.2), learnability=guessing)).choice == "base"


def test_a_curve_that_still_falls_is_followed():
    still = trial("LoRA", 1.0, 0.5, expected=loss(0.5))
    (peft,) = (
        each
        for each in advise_from(evidence(strength=strength(0.0, 0.1), learnability=learned(still))).prospects
        if each.choice == "peft"
    )
    assert peft.score.value == pytest.approx(0.5 + 0.25 * 0.5)  # 0.5 of score came with 2 nats, 0.5 nats more will come
    assert peft.score.low < peft.score.value < peft.score.high


def test_less_data_tells_what_more_would_bring():
    parts = (trial("half", 1.6, 0.3, examples=100), trial("LoRA", 1.2, 0.5))
    strong = strength(0.0, 0.1)
    assert advise_from(evidence(strength=strong, learnability=learned(*parts, more=loss(0.4)))).choice == "data"
    assert advise_from(evidence(strength=strong, learnability=learned(*parts, more=loss(1.15)))).choice == "peft"


def test_what_the_user_has_is_no_more_data():
    """A pilot saw a part of the examples: its curve goes to all of them for tuning, and on from there for more."""
    parts = (trial("half", 1.6, 0.3, examples=100, seen=100), trial("LoRA", 1.2, 0.5, seen=200))
    many = evidence(strength=strength(0.0, 0.1), learnability=learned(*parts, more=loss(0.4), owned=loss(0.5)))
    advice = advise_from(many)
    assert advice.choice == "peft"
    by = {each.choice: each.score.value for each in advice.prospects}
    assert by["peft"] == pytest.approx(0.5 + (1.2 - 0.5) * 0.2586, abs=0.01)  # what a nat brought in these trials
    assert 0 < by["data"] - by["peft"] < 0.05
    weak = replace(many, strength=strength(0.0, 0.0, trivial=0.95))
    assert advise_from(weak).choice == "data"
    assert advise_from(replace(weak, learnability=learned(*parts, more=loss(0.48), owned=loss(0.5)))).choice == "base"


def test_a_curve_over_the_data_that_is_not_there_is_told():
    found = evidence(strength=strength(0.0, 0.1), learnability=learned(trial("LoRA", 1.2, 0.5)))
    advice = advise_from(found)
    assert any("no learning curve over data size" in each.text for each in advice.missing)
    told = advise_from(replace(found, learnability=learned(trial("LoRA", 1.2, 0.5), more=loss(1.19))))
    assert told.confidence > advice.confidence
    assert not told.missing


# ── how sure ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_wide_intervals_and_what_was_not_seen_make_it_less_sure():
    def sure(half: float, **further: Any) -> float:
        strong = strength(0.3, 0.3)
        strong = replace(strong, scores={"closed": score(0.3, half), "examples": score(0.3, half)})
        tuned = learned(replace(trial("LoRA", 1.6, 0.6), score=score(0.6, half)))
        return advise_from(replace(evidence(strength=strong, learnability=tuned), **further)).confidence

    assert sure(0.02) > sure(0.15) > sure(0.4)
    assert sure(0.02, missing={"knowledge": "skipped"}) < sure(0.02)
    assert sure(0.02, subject=replace(SUBJECT, held_out=10)) < sure(0.02)


def test_answers_too_few_for_a_score_make_it_less_sure_and_it_says_so():
    full = full_evidence()
    asked = strength(0.1, 0.2)
    hurried = replace(asked, scores={"closed": asked.scores["closed"]})
    knows = replace(full.knowledge, scores={}, values={})  # those with both examples and passages count no second time
    found = evidence(strength=hurried, learnability=learned(trial("LoRA", 1.5, 0.5), more=loss(1.45)))
    found = replace(found, subject=replace(SUBJECT, documents=9))
    advice, whole = advise_from(replace(found, knowledge=knows)), advise_from(replace(found, strength=asked))
    assert [each.rule for each in advice.missing] == ["examples", "documents"]
    assert advice.missing[0].text == "too few answers with examples for a score: give more time (--minutes)"
    assert advice.confidence == pytest.approx(GAP**2 * whole.confidence, abs=0.05)
    assert not any("--documents" in each.text for each in advice.change)  # which there are


def test_a_score_of_few_answers_makes_it_less_sure_where_more_are_held_out():
    asked, tried = strength(0.1, 0.2), learned(trial("LoRA", 1.5, 0.5), more=loss(1.45))
    few = replace(score(0.5, 0.2), n=7)
    hurried = replace(tried, trials=tuple(replace(each, score=few) for each in tried.trials))
    found = evidence(strength=replace(asked, scores={**asked.scores, "closed": few}), learnability=hurried)
    advice = advise_from(found)
    assert [each.rule for each in advice.missing] == ["closed", "answers"]
    assert advice.missing[0].text.startswith("too few answers to the question alone for a score: ")
    assert advice.missing[1].text.startswith("too few answers of the pilot's adapters for a score: ")
    seven = advise_from(replace(found, subject=replace(SUBJECT, held_out=7)))  # then these are all
    assert not {"closed", "answers"} & {each.rule for each in seven.missing}


def test_without_documents_it_is_less_sure_and_says_so():
    told = {"all": loss(1.0), "form": loss(0.5)}
    closed = Knowledge({"closed": told, "examples": told}, {"all": 9})
    found = evidence(strength=strength(0.1, 0.2), learnability=learned(trial("LoRA", 1.5, 0.5), more=loss(1.45)))
    advice, unasked = advise_from(replace(found, knowledge=closed)), advise_from(found)
    assert advice.missing == (Reason("documents", "no documents: whether retrieval helps was not measured"),)
    assert advice.confidence == pytest.approx(GAP * unasked.confidence, abs=1e-3)
    assert any("--documents" in each.text for each in advice.change)
    assert not any("not measured" in each.text for each in advice.change)
    blank = advise_from(replace(found, knowledge=closed, missing={"documents": "docs: no document can be read"}))
    assert blank.missing == (Reason("documents", "documents: docs: no document can be read"),)
    asked = advise_from(replace(found, knowledge=knowledge(0.2, 0.2)))
    assert not asked.missing


def test_what_is_better_on_every_question_is_better_by_no_luck():
    """The same scores and intervals, of answers that were right for the same questions and for others."""
    right = (1.0,) * 12 + (0.0,) * 28
    strong, tuned = strength(0.3, 0.3), trial("LoRA", 2.0, 0.45)

    def sure(values: tuple[float, ...]) -> float:
        asked = replace(strong, values=dict.fromkeys(("closed", "examples"), right))
        return advise_from(evidence(strength=asked, learnability=learned(replace(tuned, values=values)))).confidence

    assert sure((1.0,) * 18 + (0.0,) * 22) > sure((0.0,) * 22 + (1.0,) * 18)


def test_the_same_evidence_gives_the_same_advice():
    assert advise_from(full_evidence()) == advise_from(full_evidence())


def test_evidence_comes_back_from_json():
    import json

    there = full_evidence()
    assert from_json(Evidence, json.loads(json.dumps(asdict(there)))) == there
    with pytest.raises(ValueError, match="unheard"):
        from_json(Evidence, {**asdict(there), "unheard": 1})


# ── without much ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_without_asking_the_hardware_still_answers():
    fits = Option("lora", "nf4", True, 5 * 10**9, True, 2, 10**7, None, 10**7, 10**10)
    fit = Fit("rtx4090", 24 * 10**9, 5 * 10**8, 256, 8, 1, (fits,), {})
    lacking = dict.fromkeys(("strength", "knowledge", "learnability"), "the base does not fit here")
    advice = advise_from(evidence(fit=fit, missing=lacking))
    assert advice.choice == "peft"
    assert advice.sure == "low"
    assert "--checkpointing --quantize nf4" in advice.commands[0]
    assert len(advice.missing) >= 3
    few = replace(fits, fits=False, largest_batch=3)
    less = advise_from(evidence(fit=replace(fit, options=(few,)), missing=lacking))
    assert less.choice == "peft"
    assert "--batch-size 3 --accumulate 3" in less.commands[0]
    none = advise_from(evidence(fit=replace(fit, options=(replace(few, largest_batch=0),)), missing=lacking))
    assert none.choice == "base"
    assert "smaller base" in none.reasons[0].text


def test_retrieval_is_asked_as_it_was_measured():
    alone, examples = (evidence(knowledge=knowledge(*each)) for each in ((0.3, 0.3), (0.3, 0.4)))
    judged, ask = commands(alone, "rag")
    assert "--data advice/prompted-with-passages.jsonl" in judged
    assert ask.startswith("halka ask ")
    assert "--max-new-tokens 64" in ask
    assert commands(examples, "rag") == (judged,)  # `halka ask` shows no worked examples


def test_answers_that_stand_nowhere_are_no_fault_where_passages_help():
    told = replace(knowledge(0.3, 0.3), found=0.0)
    assert "retrieval" in {each.rule for each in advise_from(evidence(knowledge=told)).reasons}
    helped = {**told.losses, "both": {**told.losses["both"], "content": loss(0.3)}}
    with_help = advise_from(evidence(knowledge=replace(told, losses=helped)))
    assert "retrieval" not in {each.rule for each in with_help.reasons}


def test_with_nothing_at_all_there_is_no_advice():
    with pytest.raises(ValueError, match="nothing to advise from"):
        advise_from(evidence())


# ── what next ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("choice", CHOICES)
def test_every_command_is_one_that_halka_takes(choice):
    """Each is read by the command line itself, values and all."""
    import typer

    from halka.cli import app
    from halka.cli.train import Deferred

    subject = replace(
        full_evidence().subject,
        flags=("--data", "train.jsonl", "--validation", "0.1"),
        again=("--data", "train.jsonl", "--target", "0.5", "--documents", "handbook"),
        dtype="float32",
        quantize="nf4",
    )
    lines = commands(replace(full_evidence(), subject=subject), choice)
    assert lines
    for line in lines:
        words = shlex.split(line)
        assert words.pop(0) == "halka"
        command: Any = typer.main.get_command(app)
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        if isinstance(command, Deferred):
            command = command.whole()
        command.make_context("halka", words)
    loaded = [line for line in lines if line.split()[1] in ("train", "evaluate", "ask")]
    assert all("--dtype float32 --quantize nf4" in line for line in loaded)


@pytest.mark.parametrize(
    ("parameters", "memory", "larger"),
    [
        (135 * 10**6, None, "HuggingFaceTB/SmolLM2-360M-Instruct"),
        (1711 * 10**6, 24 * 10**9, "Qwen/Qwen2.5-7B-Instruct"),
        (1711 * 10**6, 12 * 10**9, "Qwen/Qwen2.5-7B-Instruct --quantize nf4"),
        (7616 * 10**6, 12 * 10**9, None),  # none fits
    ],
)
def test_a_better_base_is_named_that_the_hardware_holds(parameters, memory, larger):
    """Quantised where it fits only so, and then without full fine-tuning, which cannot train it."""
    weak = strength(0.0, 0.0)
    fit = None if memory is None else Fit("a GPU", memory, 0, 80, 8, 1, (), {})
    subject = replace(SUBJECT, parameters=parameters, again=("--quantize", "int8", "--full"))
    advice = advise_from(Evidence(subject, strength=weak, learnability=learned(trial("a", 2, 0)), fit=fit))
    assert advice.choice == "base"
    rest = "" if larger and "nf4" in larger else " --quantize int8 --full"
    assert advice.commands == (() if larger is None else (f"halka advise --base {larger}{rest}",))


def test_what_does_not_fit_is_given_the_smallest_batch():
    tuned = learned(trial("LoRA", 0.4, 0.9), trial("LoRA with passages", 0.3, 0.9, passages=True))
    large = Option("lora", "nf4", True, 10**10, False, 0, 10**6, None, 10**7, 10**9)
    fit = Fit("a GPU", 10**9, 0, 80, 8, 1, (large,), {})
    found = evidence(strength=strength(0.0, 0.2), learnability=tuned, fit=fit)
    told = settings(found, "peft")
    assert (told["batch_size"], told["accumulate"], told["quantize"]) == (1, 8, "nf4")
    shown = replace(large, quantize=None, checkpointing=False, fits=True, largest_batch=3)
    longer = replace(found, fit=replace(fit, options=(replace(shown, largest_batch=64),), shown=(shown,)))
    assert settings(longer, "peft")["batch_size"] == 8
    assert settings(longer, "peft+rag")["batch_size"] == 3
    hump = replace(fit, options=(replace(large, largest_batch=10),))  # on a CPU more may fit where fewer do not
    assert settings(replace(found, fit=hump), "peft")["batch_size"] == 10


def test_data_are_looked_at_as_they_are_read():
    subject = replace(SUBJECT, again=("--data", "a.csv", "--data", "b.csv", "--shape", "x -> y"))
    look = commands(replace(evidence(), subject=subject), "data")[0]
    assert look == "halka data preview a.csv b.csv --base smollm2-135m --shape 'x -> y'"


def test_an_adapter_is_judged_by_what_was_held_out_of_a_task_too():
    subject = replace(SUBJECT, flags=("--task", "mine"), again=("--task", "mine"))
    train, judged = commands(replace(evidence(), subject=subject), "peft")
    assert "--task mine" in train
    assert "--data advice/held-out.jsonl" in judged


def test_what_is_trained_is_what_the_pilot_chose():
    tuned = learned(replace(trial("LoRA, higher rate", 0.4, 0.9), lr=4e-3))
    advice = advise_from(evidence(strength=strength(0.0, 0.2), learnability=tuned))
    assert advice.settings == {"method": "lora", "rank": 16, "lr": 4e-3, "steps": 96, "batch_size": 8}
    command, judged = advice.commands
    assert command.startswith("halka train --base smollm2-135m --method lora --rank 16 --lr 0.004 --steps 96")
    run = command.rpartition(" ")[2]
    assert re.fullmatch("advice/run-lora-[0-9a-f]{6}", run)
    assert command.endswith(f"--batch-size 8 --data train.jsonl -o {run}")
    assert f"--adapter {run}/adapter --data advice/held-out.jsonl --metrics exact_match" in judged
    many = evidence(strength=strength(0.0, 0.2), learnability=tuned)
    many = replace(many, subject=replace(many.subject, train=10_001))
    assert settings(many, "peft")["steps"] == 1251  # of 8 examples: each is seen once
    long = replace(tuned.trials[0], rows=2)  # the pilot's tokens a step had no room for more
    long_examples = evidence(strength=strength(0.0, 0.2), learnability=learned(long))
    assert settings(long_examples, "peft") == {**advice.settings, "batch_size": 2, "steps": 100}
    small = Option("lora", None, False, 10**9, False, 4, 10**6, None, 10**7, 10**9)  # 8 do not fit, 4 do
    fit = Fit("a GPU", 10**9, 0, 80, 8, 1, (small,), {})
    assert settings(replace(long_examples, fit=fit), "peft") == settings(long_examples, "peft")
    over = replace(tuned.trials[0], curve=((12, 0.4), (24, 0.6)))
    assert advise_from(evidence(strength=strength(0.0, 0.2), learnability=learned(over))).settings["steps"] == 12


@pytest.mark.parametrize(
    ("curve", "steps"),
    [
        (((10, 1.2), (12, 1.2003)), HORIZON * 12),
        (((10, 1.2), (12, 1.4)), 10),
        (((2, 2.0), (4, 1.6), (6, 1.45), (8, 1.36), (10, 1.3), (12, 1.31)), HORIZON * 12),
        (((2, 2.0), (4, 1.6), (6, 1.45), (8, 1.5), (10, 1.6), (12, 1.8)), 6),
        (((12, 1.2),), HORIZON * 12),
    ],
)
def test_training_stops_early_only_where_the_curve_rises_by_more_than_noise(curve, steps):
    noisy = learned(replace(trial("LoRA", 1.2, 0.9), steps=12, curve=curve))
    assert settings(evidence(strength=strength(0.0, 0.2), learnability=noisy), "peft")["steps"] == steps


def test_another_question_is_trained_in_a_folder_of_its_own():
    found = evidence(strength=strength(0.0, 0.2), learnability=learned(trial("LoRA", 0.4, 0.9)))

    def folders(key: str, choice: str = "peft", **further: Any) -> set[str]:
        asked = replace(found, subject=replace(SUBJECT, key=key), **further)
        return {place for line in commands(asked, choice) for place in re.findall(r"advice/run-lora-\w+", line)}

    (first,) = folders("first")
    assert folders("first") == {first}
    assert folders("second").isdisjoint({first})
    assert folders("first", "peft+rag").isdisjoint({first})
    longer = learned(replace(trial("LoRA", 0.4, 0.9), steps=48))
    assert folders("first", learnability=longer).isdisjoint({first})


def test_where_nothing_was_tried_rank_and_places_are_the_usual_ones():
    told = settings(evidence(), "peft")
    assert (told["method"], told["rank"], told["targets"]) == ("lora", 16, ["linear"])
    (train, _) = commands(evidence(), "peft")
    assert "--method lora --rank 16 --targets linear" in train

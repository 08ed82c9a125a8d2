"""The score by which a training may choose its best evaluation."""

from __future__ import annotations

import math

import pytest

import halka
from halka.data.examples import as_examples
from halka.data.metric import Metric
from halka.data.task import Task
from halka.evaluation.validation_score import ValidationScore, answer_room, primary_metric
from halka.util.errors import DataError, HalkaError
from tiny import tiny
from tokenizers_for_tests import chatml_tokenizer


def task(*answers: str, metrics: tuple[str, ...] = (), primary: str = "", **more) -> Task:
    examples = tuple(as_examples([{"prompt": "Say it.", "completion": answer} for answer in answers]))
    return Task("own", examples, examples, (), metrics, primary, **more)


def test_the_primary_metric_is_the_tasks_own_or_the_first_that_fits():
    assert (
        primary_metric(task("a", metrics=("token_f1", "exact_match"), primary="exact_match"), None).name
        == "exact_match"
    )
    assert primary_metric(task("a"), "causal-lm").name == "exact_match"
    assert primary_metric(task('{"a": 1}'), "causal-lm").name == "json_exact"
    assert primary_metric(task("a"), "sequence-classification").name == "accuracy"
    with pytest.raises(HalkaError, match="unknown metric 'magic'"):
        primary_metric(task("a", metrics=("magic",), primary="magic"), None)


def model_of(*answers: str):
    tokenizer = chatml_tokenizer()
    model = halka.adapt(tiny("llama", vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id), tokenizer)
    model.add("a", halka.LoRA(rank=2))
    return model


def test_more_is_better_whichever_way_a_metric_counts():
    model, length = model_of(), lambda prediction, _: len(prediction)
    values = {}
    for better in (True, False):
        metric = Metric.mean("length", "characters", length, (0, math.inf), higher_is_better=better)
        of = ValidationScore(model, "a", task("yes", metrics=(metric,), primary=metric))
        values[better] = of()
        assert of.value() == abs(of())
        assert of.name == "score (length)"
    assert values[True] == -values[False] > 0


def test_a_score_says_how_many_examples_are_answered():
    counts: list[int] = []
    ValidationScore(model_of(), "a", task("yes", "no", "perhaps"), counts.append).value()
    assert counts == sorted(counts)
    assert counts[-1] == 3


def test_what_cannot_be_scored_is_refused_before_anything_is():
    model = model_of()
    with pytest.raises(DataError, match=r"leaves no room for an answer of .* best_by loss"):
        ValidationScore(model, "a", task("yes", "and so on " * 60))
    with pytest.raises(HalkaError, match="json_exact"):
        ValidationScore(model, "a", task("yes", metrics=("json_exact",), primary="json_exact"))


def test_answers_have_the_room_that_the_task_or_its_longest_answer_says():
    tokenizer = chatml_tokenizer()
    long = "yes and no " * 100
    assert answer_room(task("yes", long), tokenizer) == len(tokenizer.encode(long, add_special_tokens=False)) + 1 > 65
    assert answer_room(task("yes", long, metrics=("exact_match",), primary="exact_match"), tokenizer) == 64

"""The score by which a training may choose its best evaluation."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

import halka
from halka.data.examples import as_examples
from halka.data.metric import Metric
from halka.data.task import Task
from halka.evaluation.validation_score import ValidationScore, primary_metric
from halka.util.errors import DataError, HalkaError
from tiny import tiny
from tokenizers_for_tests import chatml_tokenizer, thoughts_tokenizer

LONG = "Dear customer, your parcel left us on Monday. Kind regards, Jonaki Lamps of Sylhet."


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
    with pytest.raises(DataError, match=r"examples\[1\]: .* leaves no room for an answer of .* best_by loss"):
        ValidationScore(model, "a", task("yes", "and so on " * 60))
    with pytest.raises(HalkaError, match="json_exact"):
        ValidationScore(model, "a", task("yes", metrics=("json_exact",), primary="json_exact"))


def test_a_long_prompt_has_no_room_for_the_longest_answer_of_others():
    model = model_of()
    rows = [
        {"prompt": f"{'and so on ' * 12}Say it.", "completion": "yes"},
        {"prompt": "Say it.", "completion": "and so on " * 12},
    ]
    mixed = replace(task("yes"), validation=tuple(as_examples(rows)))
    assert ValidationScore(model, "a", mixed).value() == 0
    with pytest.raises(DataError, match=r"examples\[0\]: .* \(the task's max_new_tokens\)"):
        ValidationScore(model, "a", replace(mixed, max_new_tokens=100))


def test_a_training_that_is_scored_by_answers_is_warned_once_of_those_that_have_no_room():
    model, short = model_of(), task("yes", "and so on " * 20, metrics=("exact_match",), primary="exact_match")
    with pytest.warns(UserWarning, match="1 of 2 accepted answers are longer than 4 tokens"):
        of = ValidationScore(model, "a", replace(short, max_new_tokens=4))
    of.value()


@pytest.mark.parametrize("metrics", [(), ("exact_match",)])
def test_what_training_teaches_has_room_in_its_score(metrics):
    """The template writes an empty thought before the answer, and the answer is longer than 64 tokens."""
    tokenizer = thoughts_tokenizer()
    model = halka.adapt(tiny(vocab_size=len(tokenizer), max_position_embeddings=256), tokenizer)
    model.add("a", halka.Full())
    learned = task(LONG, metrics=metrics, primary="".join(metrics))
    assert len(tokenizer.encode(LONG)) > 64
    halka.fit(model, "a", learned.train, {"steps": 80, "lr": 1e-2, "batch_size": 1})
    assert ValidationScore(model, "a", learned).value() == 1

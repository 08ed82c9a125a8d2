"""The demo task: the same for everyone, learnable by rule, and out of reach of memory."""

import hashlib
import re

import pytest

from halka.data import demo_task
from halka.evaluation.metrics import score

TASK = demo_task.task()
SPLITS = {"train": TASK.train, "validation": TASK.validation, "test": TASK.test}


def message(example):
    return example.prompt[-1].content


def field(example, line):
    return example.answers[0].splitlines()[line]


def test_sizes_and_shape():
    assert {name: len(split) for name, split in SPLITS.items()} == {"train": 500, "validation": 60, "test": 100}
    assert TASK.primary in TASK.metrics
    for example in TASK.train + TASK.validation + TASK.test:
        assert [m.role for m in example.messages] == ["system", "user", "assistant"]
        assert len(example.answers[0].splitlines()) == 5
        assert len(message(example)) < 240  # at most 80 tokens with the template, as counted with SmolLM2's tokenizer
        assert len(example.answers[0]) < 180  # at most 47
        assert "{" not in message(example) + example.answers[0]
        assert "  " not in message(example)


def test_the_seed_fixes_every_letter_whatever_the_version_of_python():
    texts = "\n".join(m.content for split in SPLITS.values() for example in split for m in example.messages)
    assert hashlib.sha256(texts.encode()).hexdigest()[:16] == "6407014f7b3fa459"
    assert demo_task.task(0) == TASK
    assert demo_task.task(1).train != TASK.train


@pytest.mark.parametrize("seed", range(5))
def test_no_message_and_no_order_stands_twice(seed):
    task = demo_task.task(seed)
    every = task.train + task.validation + task.test
    assert len({message(example) for example in every}) == len(every)
    orders = [field(example, 1) for example in every if "JL-" in field(example, 1)]
    assert len(set(orders)) == len(orders)
    assert 0.7 < len(orders) / len(every) < 0.9


def test_the_test_has_words_of_its_own():
    train, test = demo_task.vocabulary("train"), demo_task.vocabulary("test")
    for words in ("names", "models", "greetings", "greetings_with_name", "closings", "closings_with_name"):
        assert not set(getattr(train, words)) & set(getattr(test, words)), words
    for words in ("orders", "again", "asides"):
        assert not set(getattr(train, words)) & set(getattr(test, words)), words
    for issue in demo_task.POLICY:
        assert not set(train.problems[issue]) & set(test.problems[issue])
    patterns = [re.compile(re.escape(p).replace(r"\{product\}", ".*")) for ps in test.problems.values() for p in ps]
    for example in TASK.train + TASK.validation:
        said = message(example)
        assert not any(pattern.search(said) for pattern in patterns)
        assert not any(f"{model} " in said for model in test.models)
        assert not set(re.findall(r"\w+", said)) & set(test.names)


def test_the_test_pairs_issues_with_kinds_of_lamp_as_training_never_does():
    def pairs(split):
        return {tuple(field(example, 2).removeprefix("Issue: ").split(", ")) for example in split}

    def kinds(split):
        return {(issue, product.split(" ", 1)[1]) for issue, product in pairs(split)}

    assert not kinds(TASK.train + TASK.validation) & kinds(TASK.test)
    assert len(kinds(TASK.train)) == 8 * 4
    assert len(kinds(TASK.test)) == 8 * 2
    # yet every step of the policy was seen in training, many times
    for split, least in ((TASK.train, 20), (TASK.test, 2)):
        steps = [field(example, 3) for example in split]
        assert all(steps.count(step) >= least for both in demo_task.POLICY.values() for step in both)


def test_every_answer_follows_from_its_message():
    for words, split in (
        (demo_task.vocabulary("train"), TASK.train + TASK.validation),
        (demo_task.vocabulary("test"), TASK.test),
    ):
        for example in split:
            said, (greeting, order, issue, step, end) = message(example), example.answers[0].splitlines()
            name = greeting.removeprefix("Dear ").removesuffix(",")
            assert (name in said) if name != "customer" else not any(n in said.split() for n in words.names)
            number = order.removeprefix("Order: ")
            assert (number in said) if number != "not given" else ("JL-" not in said)
            issue, product = issue.removeprefix("Issue: ").split(", ")
            assert any(problem.format(product=product) in said for problem in words.problems[issue])
            assert step == demo_task.POLICY[issue][product.endswith(demo_task.BATTERY)]
            again = any(sentence in said for sentence in words.again)
            priority = "urgent" if issue == "overheating" else "high" if again else "normal"
            assert end == f"Jonaki Lamps, priority {priority}"


def test_memory_scores_nothing():
    """The answer of the training message that shares most words is never right, and half of its lines are wrong."""

    def words(example):
        return set(message(example).lower().split())

    nearest = [max(TASK.train, key=lambda e: len(words(e) & words(t)) / len(words(e) | words(t))) for t in TASK.test]
    scores = score([e.answers[0] for e in nearest], [t.answers for t in TASK.test], TASK.metrics)
    assert scores["exact_match"].value == 0
    assert scores["line_accuracy"].value < 0.5


def test_the_right_answers_score_full_and_a_chatty_one_nothing():
    references = [example.answers for example in TASK.test]
    right = score([answers[0] for answers in references], references, TASK.metrics)
    assert {name: s.value for name, s in right.items()} == {"exact_match": 1, "line_accuracy": 1}
    chatty = "I'm sorry to hear about your lamp. Could you tell me more?"
    assert score([chatty] * 100, references, TASK.metrics)["line_accuracy"].value == 0

"""What training teaches of accepted answers: the room that they need."""

from __future__ import annotations

import pytest

import halka
from classifiers import LABELS, TEXTS, classifier
from halka.data.examples import Example, Message, as_examples
from halka.data.task import Task
from halka.data.tokens import encode, encode_prompt
from halka.evaluation.accepted import accepted_answers, longest_answer, texts_of, too_long
from halka.evaluation.validation_score import ValidationScore
from tiny import tiny
from tokenizers_for_tests import (
    CHATML,
    HARMONY,
    HARMONY_TOKENS,
    PROMPTED_THOUGHT,
    THOUGHTS,
    chatml_tokenizer,
    plain_tokenizer,
    thoughts_tokenizer,
)
from tokenizers_for_tests import tokenizer as tokenizer_of

LONG = "Dear customer, your parcel left us on Monday. Kind regards, Jonaki Lamps of Sylhet."
REFUSES = "{% for m in messages %}{{ m['content'].split('</think>')[-1] }}<|im_end|>{% endfor %}"


def model_of(tokenizer, positions=256):
    model = halka.adapt(tiny(vocab_size=len(tokenizer), max_position_embeddings=positions), tokenizer)
    model.add("a", halka.Full())
    return model


@pytest.mark.parametrize("make", [chatml_tokenizer, plain_tokenizer, thoughts_tokenizer])
def test_an_answer_has_the_tokens_that_training_teaches(make):
    tokenizer = make()
    model, (example,) = model_of(tokenizer), as_examples([{"prompt": "Who?", "completion": "Ada."}])
    [[accepted]] = accepted_answers(model, [example])
    end = {} if make is plain_tokenizer else {"\n"}  # what follows the token that ends the answer
    taught = encode(example, tokenizer).ids[len(encode_prompt(example, tokenizer)) :]
    assert accepted.tokens == len(taught) - len(end) > 1
    assert accepted.fits


def test_every_accepted_answer_counts_and_earlier_ones_of_the_conversation_do_not():
    tokenizer = chatml_tokenizer()
    turns = Message("user", "One?"), Message("assistant", LONG), Message("user", "Two?")
    accepted = accepted_answers(model_of(tokenizer), [Example(turns, ("Ada", LONG)), Example(turns, ("Ada",))])
    long, short = (1 + len(tokenizer.encode(text)) for text in (LONG, "Ada"))
    assert [[answer.tokens for answer in own] for own in accepted] == [[short, long], [short]]
    assert longest_answer(accepted) == long
    assert [too_long(accepted, room) for room in (short - 2, short - 1)] == [2, 0]


def test_what_the_context_does_not_hold_needs_no_room():
    tokenizer = chatml_tokenizer()
    model = model_of(tokenizer, positions=128)
    rows = [{"prompt": "Who?", "completion": text} for text in ("Ada", LONG * 4)]
    accepted = accepted_answers(model, as_examples(rows))
    assert longest_answer(accepted) == accepted[0][0].tokens == 1 + len(tokenizer.encode("Ada"))
    assert longest_answer(accepted[1:]) == 1 + len(tokenizer.encode(LONG * 4))
    with pytest.warns(UserWarning, match="1 of 2 accepted answers do not fit the base's context beside their prompts"):
        halka.evaluate(model, None, rows)


def test_an_answer_that_the_template_refuses_has_its_own_tokens():
    tokenizer, thought = tokenizer_of(REFUSES), "<think>Of whom?</think>Ada"
    model = model_of(tokenizer)
    for answers in ([thought], [thought, "Ada"]):
        accepted = accepted_answers(model, as_examples([{"prompt": "Who?", "completion": text} for text in answers]))
        assert accepted[0][0].tokens == 1 + len(tokenizer.encode(thought))


def test_a_class_is_one_token():
    examples = as_examples([{"text": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=False)])
    assert longest_answer(accepted_answers(classifier(), examples)) == 1


CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")


@pytest.mark.parametrize(
    ("template", "special", "answer", "text"),
    [
        (CHATML, CHATML_TOKENS, "  Ada.\n", "Ada."),
        (THOUGHTS, CHATML_TOKENS, "<think>plan</think>Ada.", "<think>\nplan\n</think>\n\nAda."),
        (THOUGHTS, CHATML_TOKENS, "Ada.", "Ada."),
        (PROMPTED_THOUGHT, CHATML_TOKENS, "<think>\nplan\n</think>\n\nAda.", "plan\n</think>\n\nAda."),
        (PROMPTED_THOUGHT, CHATML_TOKENS, "Ada.", "Ada."),
        (HARMONY, HARMONY_TOKENS, "Ada.", "Ada."),
    ],
)
def test_an_answer_is_compared_as_the_template_writes_it(template, special, answer, text):
    tokenizer = tokenizer_of(template, special, eos=special[-1])
    model = halka.adapt(tiny(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id), tokenizer)
    [example] = as_examples([{"prompt": "Who?", "completion": answer, "references": [answer, "Nobody."]}])
    assert texts_of(accepted_answers(model, [example])) == [(text, "Nobody.")]


def test_a_thought_that_the_prompt_begins_is_scored_right():
    thought = "<think>\nplan\n</think>\n\nAda."
    examples = as_examples([{"prompt": "Who?", "completion": thought}])
    model = model_of(tokenizer_of(PROMPTED_THOUGHT))
    halka.fit(model, "a", examples, {"steps": 60, "lr": 1e-2, "batch_size": 1})
    evaluation = halka.evaluate(model, "a", examples, ["exact_match"])
    assert evaluation.scores["exact_match"].value == 1
    assert evaluation.accepted == (("plan\n</think>\n\nAda.",),)
    assert evaluation.predictions[0].references == (thought,), "as the data has it"
    score = ValidationScore(model, "a", Task("own", tuple(examples), tuple(examples), (), (), ""))
    assert score.value() == 1


def test_an_answer_of_more_than_64_tokens_is_scored_right_and_a_smaller_room_is_reported():
    rows = [{"prompt": "Who?", "completion": LONG}]
    model = model_of(chatml_tokenizer())
    halka.fit(model, "a", rows, {"steps": 80, "lr": 1e-2, "batch_size": 1})
    assert len(model.tokenizer.encode(LONG)) > 64
    assert halka.evaluate(model, "a", rows, ["exact_match"]).scores["exact_match"].value == 1
    with pytest.warns(UserWarning, match="1 of 1 accepted answers are longer than 64 tokens"):
        cut = halka.evaluate(model, "a", rows, ["exact_match"], max_new_tokens=64)
    assert cut.scores["exact_match"].value == 0

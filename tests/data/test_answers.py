"""What is an answer in what a model writes, where its chat template begins and closes it with more."""

from __future__ import annotations

from dataclasses import replace

import pytest

import halka
from halka.data.answers import Spoken, opening, spoken
from halka.engine import Request, Stopping
from tiny import tiny
from tokenizers_for_tests import (
    CHATML,
    HARMONY,
    HARMONY_TOKENS,
    UNPROMPTED,
    chatml_tokenizer,
    plain_tokenizer,
    thoughts_tokenizer,
    tokenizer,
)

THOUGHT = "<think>\n\n</think>"


def test_what_a_template_writes_before_an_answer_is_its_opening():
    assert opening(thoughts_tokenizer()) == THOUGHT
    assert opening(chatml_tokenizer()) == opening(plain_tokenizer()) == ""


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (f"{THOUGHT}\n\nAda.", "Ada."),
        (f"\n{THOUGHT}Ada. {THOUGHT}", f"Ada. {THOUGHT}"),
        ("Ada.", "Ada."),
        ("<think>\nOf whom?\n</think>\n\nAda.", "<think>\nOf whom?\n</think>\n\nAda."),
        (THOUGHT, ""),
        (THOUGHT[:9], THOUGHT[:9]),
        ("", ""),
    ],
)
def test_an_answer_is_what_follows_its_opening(text, answer):
    assert spoken(text, THOUGHT) == answer.strip()
    for size in (1, 2, 5, 100):
        pieces = [text[start : start + size] for start in range(0, len(text), size)]
        text_of = Spoken(THOUGHT)
        assert "".join([*map(text_of.push, pieces), text_of.end()]).strip() == answer.strip()
    for begin in ("", THOUGHT):
        assert [*map(Spoken(begin).push, ("A", "da"))] == ["A", "da"], "as soon as it is certain"


ADA = [{"prompt": "Who?", "completion": "Ada."}]


def that_learned_ada(tokenizer):
    """A model that has, and answers so by the engine and by transformers' `generate`."""
    model = halka.adapt(tiny(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id), tokenizer)
    model.add("a", halka.Full())
    halka.fit(model, "a", ADA, {"steps": 40, "lr": 1e-2, "batch_size": 1})
    for options in ({}, {"num_beams": 1}):
        assert halka.generate(model, ["Who?"], "a", max_new_tokens=40, **options) == ["Ada."]
    return model


@pytest.mark.parametrize(
    ("template", "special", "begin"),
    [(UNPROMPTED, ("<|im_start|>", "<|im_end|>"), "assistant"), (HARMONY, HARMONY_TOKENS, "final")],
)
def test_special_tokens_of_an_opening_are_no_part_of_what_is_answered(template, special, begin):
    made = tokenizer(template, special, eos=special[-1])
    assert opening(made) == begin
    model = that_learned_ada(made)
    with halka.Engine(model) as engine:
        (answer,) = engine.submit(Request.of("Who?", made, adapter="a", stopping=Stopping(40)))
        while answer.finish is None:
            engine.step()
    assert answer.text == "Ada."


def test_an_end_token_that_is_not_special_is_no_part_of_what_is_answered():
    """As added tokens may be that close answers."""
    made = tokenizer(CHATML.replace("<|im_end|>", "<|stop|>"), ("<|im_start|>",), eos="</s>")
    made.add_tokens(["<|stop|>"])
    assert not made.added_tokens_decoder[made.convert_tokens_to_ids("<|stop|>")].special
    model = that_learned_ada(made)
    assert halka.evaluate(model, "a", ADA, ["exact_match"]).scores["exact_match"].value == 1
    (longer,) = halka.generate(model, ["Who?"], "a", max_new_tokens=40, num_beams=1, eos_token_id=made.eos_token_id)
    assert longer.startswith("Ada.<|stop|>"), "who names other end tokens gets what comes before these"


def test_what_training_teaches_is_what_is_answered():
    """The template puts an empty thought before an answer, which is learned with it."""
    tokenizer = thoughts_tokenizer()
    model = halka.adapt(tiny(vocab_size=len(tokenizer)), tokenizer)
    model.add("a", halka.Full())
    halka.fit(model, "a", [{"prompt": "Who?", "completion": "Ada."}], {"steps": 40, "lr": 1e-2, "batch_size": 1})
    for options in ({}, {"num_beams": 1}):  # by the engine, and by transformers' `generate`
        assert halka.generate(model, ["Who?"], "a", max_new_tokens=40, **options) == ["Ada."]
    with halka.Engine(model) as engine:
        (chat,) = engine.submit(Request.of("Who?", tokenizer, adapter="a", stopping=Stopping(40, ("\n\n",))))
        (text,) = engine.submit(replace(chat.request, chat=False))
        while text.finish is None or chat.finish is None:
            engine.step()
    assert chat.text == "Ada.", "a stop string within the opening ends nothing"
    assert text.text == THOUGHT.split("\n\n")[0]

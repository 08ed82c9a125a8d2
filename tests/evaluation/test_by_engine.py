"""What the engine is asked by `generate`, and what is refused because the engine would not answer."""

from __future__ import annotations

import json
import re

import pytest

import halka
from halka.evaluation.by_engine import form_of
from halka.util.errors import HalkaError
from tiny import tiny
from tokenizers_for_tests import chatml_tokenizer


@pytest.fixture
def model():
    tokenizer = chatml_tokenizer()
    return halka.adapt(tiny(vocab_size=len(tokenizer)), tokenizer)


SCHEMA = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}


@pytest.mark.parametrize("penalty", [1.3, 0.7])
def test_repetitions_are_penalised_as_generate_does(model, penalty):
    """By the base's generation config or by the option, in an engine of one's own, too."""
    (plain,) = halka.generate(model, ["One?"], max_new_tokens=24)
    by_option = halka.generate(model, ["One?"], max_new_tokens=24, repetition_penalty=penalty)
    (by_transformers,) = halka.generate(model, ["One?"], max_new_tokens=24, repetition_penalty=penalty, num_beams=1)
    model.base.generation_config.repetition_penalty = penalty
    with halka.Engine(model) as engine:
        (answer,) = engine.submit(halka.Request.of("One?", model.tokenizer, stopping=halka.Stopping(24)))
        while engine.step():
            pass
    assert by_option == halka.generate(model, ["One?"], max_new_tokens=24) == [answer.text.strip()] == [by_transformers]
    assert by_transformers != plain
    assert halka.generate(model, ["One?"], max_new_tokens=24, repetition_penalty=1.0) == [plain]


@pytest.mark.parametrize("drawn", [{}, {"temperature": 1.0}])
def test_answers_keep_to_a_constraint(model, drawn):
    constraint = halka.Constraint(schema=SCHEMA)
    answers = halka.generate(model, ["One?", "Two?"], max_new_tokens=40, constraint=constraint, **drawn)
    assert all(json.loads(answer) in ({"a": 1}, {"a": 2}) for answer in answers)
    assert halka.generate(model, ["One?"], max_new_tokens=9, constraint=halka.Constraint(regex="yes")) == ["yes"]


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}], ids=["engine", "generate"])
def test_an_answer_has_one_new_token_or_more(model, options):
    with pytest.raises(HalkaError, match="max_new_tokens is 0"):
        halka.generate(model, ["One?"], max_new_tokens=0, **options)


def test_a_constraint_that_nobody_would_keep_is_refused(model):
    constraint = halka.Constraint(regex="yes")
    with pytest.raises(HalkaError, match="num_beams is for transformers' `generate`"):
        halka.generate(model, ["One?"], constraint=constraint, num_beams=2)
    model.base.generation_config.no_repeat_ngram_size = 3
    with pytest.raises(HalkaError, match="generation config sets no_repeat_ngram_size"):
        halka.generate(model, ["One?"], constraint=constraint)
    base = tiny("llama", kind="sequence-classification", vocab_size=model.base.config.vocab_size)
    classifier = halka.adapt(base, model.tokenizer)
    with pytest.raises(HalkaError, match="makes no text token by token"):
        halka.generate(classifier, ["One?"], constraint=constraint)


@pytest.mark.parametrize(
    ("option", "value", "neutral"),
    [("min_new_tokens", 1, 0), ("no_repeat_ngram_size", 1, 0), ("forced_eos_token_id", 0, None), ("num_beams", 2, 1)],
)
def test_what_the_engine_has_not_is_left_to_transformers(model, option, value, neutral):
    """A 1 asks for nothing where it counts beams, and for something where it counts tokens."""
    config = model.base.generation_config
    setattr(config, option, neutral)
    assert form_of(model, {}, 9, None) is not None
    setattr(config, option, value)
    assert form_of(model, {}, 9, None) is None


@pytest.mark.parametrize("arch", ["llama", "t5"])
def test_stop_strings_end_an_answer_as_in_transformers(arch):
    """Of the base's generation config or as an option; transformers needs the tokenizer for them."""
    tokenizer = chatml_tokenizer()
    kind = "seq2seq-lm" if arch == "t5" else "causal-lm"
    model = halka.adapt(tiny(arch, kind=kind, vocab_size=len(tokenizer)), tokenizer)
    (plain,) = halka.generate(model, ["One?"], max_new_tokens=24)
    stop = re.findall("[!-~]+", plain)[0]
    (ended,) = halka.generate(model, ["One?"], max_new_tokens=24, stop_strings=[stop])
    assert stop in ended != plain
    assert plain.startswith(ended)
    model.base.generation_config.stop_strings = [stop]
    assert halka.generate(model, ["One?"], max_new_tokens=24) == [ended]

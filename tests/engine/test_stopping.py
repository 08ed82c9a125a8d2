"""Texts end where they are asked to, and no part of a stop string is passed on."""

from __future__ import annotations

import random

import pytest

import halka
from halka.data.answers import end_tokens
from halka.engine.stopping import StoppedText, Stopping
from halka.util.errors import HalkaError
from tiny import tiny
from tokenizers_for_tests import chatml_tokenizer, plain_tokenizer
from vocabularies_for_tests import TEXTS

TOKENIZER = chatml_tokenizer()
END = TOKENIZER.eos_token_id


def tokens_of(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def run(ids: list[int], **fields) -> tuple[list[str], str | None, int]:
    """The pieces, the reason, and how many tokens were taken."""
    text = StoppedText(TOKENIZER, Stopping(**fields), frozenset([END]))
    pieces = []
    for token in ids:
        pieces.append(text.push(token))
        if text.reason is not None:
            break
    return pieces, text.reason, text.tokens


def test_the_end_token_ends_the_text():
    tokens = tokens_of("The capital is Paris.")
    pieces, reason, count = run([*tokens, END, *tokens])
    assert ("".join(pieces), reason, count) == ("The capital is Paris.", "stop", len(tokens) + 1)


def test_the_most_tokens_end_the_text():
    tokens = tokens_of("The capital is Paris.")
    pieces, reason, count = run([*tokens, END], max_new_tokens=3)
    assert ("".join(pieces), reason, count) == (TOKENIZER.decode(tokens[:3]), "length", 3)
    assert run([*tokens, END], max_new_tokens=len(tokens) + 1)[1] == "stop"
    assert run([*tokens, END], max_new_tokens=len(tokens))[1] == "length"


def test_an_end_token_that_is_ignored_ends_nothing():
    tokens = tokens_of("Paris.")
    pieces, reason, count = run([*tokens, END, *tokens], ignore_ends=True, max_new_tokens=2 * len(tokens) + 1)
    assert ("".join(pieces), reason) == ("Paris.Paris.", "length")
    assert count == 2 * len(tokens) + 1
    assert run([*tokens, END, *tokens], ignore_ends=True, tokens=frozenset([END]))[1] == "stop"


def test_a_stop_token_is_no_part_of_the_text():
    tokens = tokens_of("The capital is Paris.")
    pieces, reason, _ = run(tokens, tokens=frozenset([tokens[2]]))
    assert ("".join(pieces), reason) == (TOKENIZER.decode(tokens[:2]), "stop")


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("one\n\ntwo", ("\n\n",), "one"),
        ("one\ntwo\n\nthree", ("\n\n",), "one\ntwo"),
        ("a</s", ("</s>",), "a</s"),
        ("aaab", ("aab",), "a"),
        ("abcd", ("abcd", "bc"), "a"),
        ("xabc", ("bc", "abc"), "x"),
        ("a😀b", ("😀",), "a"),
        ("a👍b", ("😀",), "a👍b"),
        ("stop", ("stop",), ""),
        ("nothing", ("!",), "nothing"),
    ],
)
def test_the_text_ends_before_the_first_complete_stop_string(text, stops, expected):
    """However the text is cut into tokens: by the tokenizer, and byte by byte."""
    bytes_of = [token for character in text for byte in [character] for token in tokens_of(byte)]
    for tokens in (tokens_of(text), bytes_of):
        pieces, reason, _ = run([*tokens, END], strings=stops)
        assert ("".join(pieces), reason) == (expected, "stop")
        assert run(tokens, strings=stops, max_new_tokens=len(tokens))[1] == ("stop" if expected != text else "length")


@pytest.mark.parametrize("seed", range(60))
def test_whatever_is_passed_on_is_the_beginning_of_the_text(seed):
    """And only what may become a stop string is held back."""
    dice = random.Random(seed)
    text = "".join(dice.choice("aab ") for _ in range(60)) + dice.choice(TEXTS)
    stops = tuple("".join(dice.choice("ab ") for _ in range(dice.randint(3, 7))) for _ in range(2))
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    expected = text[: min(ends)[1]] if ends else text
    pieces, _, _ = run([*tokens_of(text), END], strings=stops)
    assert "".join(pieces) == expected
    passed = ""
    for piece, token in zip(pieces, tokens_of(text), strict=False):
        passed += piece
        assert not TOKENIZER.decode(token).endswith("c") or piece  # no stop string has a c


def test_whoever_closes_gives_the_reason():
    text = StoppedText(TOKENIZER, Stopping(strings=("ab",)), frozenset())
    (a,) = tokens_of("a")
    assert text.push(a) == ""
    assert text.close("stop") == "a"
    assert text.reason == "stop"
    assert text.close("length") == ""
    assert text.reason == "stop"
    with pytest.raises(AssertionError, match="has ended"):
        text.push(a)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_new_tokens": True}, "max_new_tokens is True"),
        ({"max_new_tokens": 2.5}, "max_new_tokens is 2.5"),
        ({"strings": ("a", "")}, "none of them empty"),
        ({"strings": "abc"}, "it is a tuple of texts"),
        ({"tokens": frozenset([-1])}, "set of token ids"),
        ({"tokens": [1.5]}, "set of token ids"),
    ],
)
def test_what_no_text_can_end_at_is_refused(fields, why):
    with pytest.raises(HalkaError, match=why):
        Stopping(**fields)


def test_tokens_may_be_a_list():
    assert Stopping(tokens=[9, 10, 9]) == Stopping(tokens=frozenset([9, 10]))


def test_end_tokens_are_those_of_generate_and_of_training():
    model = halka.adapt(tiny(), plain_tokenizer())
    config = model.base.generation_config
    own = model.tokenizer.eos_token_id  # by which training closes answers, for want of a chat template
    for value, expected in ((2, {2, own}), ([2, 5], {2, 5, own}), (None, {own})):
        config.eos_token_id = value
        assert end_tokens(config, model.tokenizer) == frozenset(expected)
    config.eos_token_id = None
    assert end_tokens(config, None) == frozenset()


def test_what_the_template_closes_an_answer_with_ends_it_too():
    """As in a base whose generation ends at <|endoftext|>, and whose template closes turns otherwise."""
    model = halka.adapt(tiny(vocab_size=len(TOKENIZER)), TOKENIZER)
    closing = TOKENIZER.convert_tokens_to_ids("<|im_end|>")
    other = closing + 1
    model.base.generation_config.eos_token_id = other
    assert end_tokens(model.base.generation_config, TOKENIZER) == {other, closing}
    with halka.Engine(model) as engine:
        assert engine.ends == {other, closing}
    biased = {"sequence_bias": {(closing,): 1e4}}  # transformers' `generate` answers where it is asked for more
    assert halka.generate(model, ["Who?"], max_new_tokens=5, **biased) == [""]

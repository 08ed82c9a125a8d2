"""Pieces of text joined are the text, with every kind of vocabulary, whatever tokens come."""

from __future__ import annotations

import random
from functools import cache

import pytest
from transformers import PreTrainedTokenizerFast

from halka.engine.text_stream import CONTEXT, WINDOW, TextStream
from halka.models import load_base
from vocabularies_for_tests import TEXTS, VOCABULARIES

tokenizer_of = cache(lambda name: VOCABULARIES[name]())


def streamed(tokenizer, tokens: list[int]) -> list[str]:
    stream = TextStream(tokenizer)
    return [*(stream.push(token) for token in tokens), stream.end()]


def check(tokenizer, tokens: list[int]) -> None:
    assert "".join(streamed(tokenizer, tokens)) == tokenizer.decode(tokens, skip_special_tokens=True)


@pytest.mark.parametrize("name", VOCABULARIES)
@pytest.mark.parametrize("text", TEXTS)
def test_pieces_of_a_text_are_the_text(name, text):
    tokenizer = tokenizer_of(name)
    tokens = tokenizer(text * 3, add_special_tokens=False)["input_ids"]
    check(tokenizer, tokens)
    check(tokenizer, [tokenizer.eos_token_id, *tokens, tokenizer.eos_token_id, *tokens, len(tokenizer) + 3])


@pytest.mark.parametrize("name", VOCABULARIES)
@pytest.mark.parametrize("seed", range(40))
def test_pieces_of_tokens_without_sense_are_their_text(name, seed):
    """Broken characters, special tokens, ids without a token, many of one kind in a row."""
    tokenizer = tokenizer_of(name)
    dice = random.Random(seed)
    few = dice.sample(range(len(tokenizer) + 5), 6)
    tokens = [dice.choice(few) if dice.random() < 0.7 else dice.randrange(len(tokenizer) + 5) for _ in range(120)]
    check(tokenizer, tokens)


def test_a_character_comes_when_it_is_complete():
    tokenizer = tokenizer_of("byte-level")
    tokens = tokenizer("a😀b", add_special_tokens=False)["input_ids"]
    assert len(tokens) == 6
    assert streamed(tokenizer, tokens) == ["a", "", "", "", "😀", "b", ""]
    assert streamed(tokenizer, tokens[:3]) == ["a", "", "", "\ufffd"]


def test_text_comes_with_its_token():
    tokenizer = tokenizer_of("sentencepiece")
    tokens = tokenizer("The capital of France", add_special_tokens=False)["input_ids"]
    pieces = streamed(tokenizer, tokens)
    assert all(pieces[1:-1])
    assert (pieces[0], pieces[-1]) == ("", "")  # the space before the text is taken off


def test_a_run_of_bytes_comes_as_a_whole():
    """Its beginning may still turn out to be broken: the decoder takes the run or none of it."""
    tokenizer = tokenizer_of("sentencepiece")
    you = [tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in "你".encode()]
    (a,) = tokenizer.convert_tokens_to_ids(["a"])
    assert streamed(tokenizer, [a, *you, a]) == ["a", "", "", "", "你a", ""]
    assert "".join(streamed(tokenizer, [a, *you, you[0], a])) == "a" + "\ufffd" * 4 + "a"


def test_the_work_for_a_token_does_not_grow():
    tokenizer = VOCABULARIES["byte-level"]()
    lengths, whole = [], tokenizer.decode

    def decode(tokens, **options):
        lengths.append(len(tokens))
        return whole(tokens, **options)

    tokenizer.decode = decode
    broken = tokenizer("😀", add_special_tokens=False)["input_ids"][0]
    text = tokenizer(TEXTS[0] * 20, add_special_tokens=False)["input_ids"]
    for tokens in (text, [broken] * 500):
        lengths.clear()
        check_stream = TextStream(tokenizer)
        for token in tokens:
            check_stream.push(token)
        assert max(lengths) <= WINDOW + 1
        assert len(lengths) <= len(tokens) * (1 + 1 / (WINDOW - CONTEXT)) + 1


def test_a_tokenizer_s_special_tokens_are_read_for_all_texts_at_once():
    """Gemma's has six thousand."""

    class Counting(PreTrainedTokenizerFast):
        reads = 0

        @property
        def added_tokens_decoder(self):
            Counting.reads += 1
            return super().added_tokens_decoder

    tokenizer = Counting(tokenizer_object=tokenizer_of("byte-level").backend_tokenizer)
    Counting.reads = 0
    for _ in range(3):
        TextStream(tokenizer)
    assert Counting.reads == 1
    tokenizer.add_special_tokens({"additional_special_tokens": ["<tool>"]})
    assert TextStream(tokenizer).push(len(tokenizer) - 1) == ""
    assert Counting.reads == 2


@pytest.mark.slow
def test_smollm2():
    _, tokenizer = load_base("smollm2-135m", device="cpu")
    for text in TEXTS:
        tokens = tokenizer(text * 5, add_special_tokens=False)["input_ids"]
        check(tokenizer, [*tokens, tokenizer.eos_token_id])
    dice = random.Random(0)
    for _ in range(50):
        check(tokenizer, [dice.randrange(len(tokenizer)) for _ in range(100)])

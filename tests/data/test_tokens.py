"""Tokens are the chat template's, loss is on the assistant's words alone, inference sees what training saw."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken

from halka.data.examples import Example, Message
from halka.data.tokens import Tokens, _in_chunks, encode, encode_all, encode_prompt, start_ids
from halka.data.truncation import TooLongError
from halka.util.errors import DataError
from halka.util.text import chat_template_fingerprint
from tokenizers_for_tests import (
    CHATML,
    GPT2_SPLIT,
    LLAMA3,
    LLAMA3_SPLIT,
    OPENED_THOUGHT,
    QWEN,
    UNMARKED,
    UNPROMPTED,
    chatml_tokenizer,
    gemma_tokenizer,
    llama3_tokenizer,
    mistral_tokenizer,
    phi_tokenizer,
    plain_tokenizer,
    thoughts_tokenizer,
    tokenizer,
)

CHATS = {
    "chatml": chatml_tokenizer(),
    "llama3": llama3_tokenizer(),
    "gemma": gemma_tokenizer(),
    "mistral": mistral_tokenizer(),
    "phi": phi_tokenizer(),
    "thoughts": thoughts_tokenizer(),
    "unmarked": tokenizer(UNMARKED),
}
PLAIN = plain_tokenizer()


def chat(*contents: str, system: str | None = None, where: str = "") -> Example:
    turns = [Message(("user", "assistant")[i % 2], content) for i, content in enumerate(contents)]
    return Example(tuple([Message("system", system)] if system else []) + tuple(turns), where=where)


def dicts(messages) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def learned(tokens: Tokens, tokenizer) -> list[str]:
    """The texts of the runs of tokens that carry loss."""
    runs, before = [], False
    for token, loss in zip(tokens.ids, tokens.loss, strict=True):
        if loss:
            runs = runs if before else [*runs, []]
            runs[-1].append(token)
        before = loss
    return [tokenizer.decode(run) for run in runs]


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("chatml", "Paris.<|im_end|>", "Perhaps, 42<|im_end|>"),
        ("llama3", "Paris.<|eot_id|>", "Perhaps, 42<|eot_id|>"),
        ("gemma", "Paris.<end_of_turn>", "Perhaps, 42<end_of_turn>"),
        ("mistral", " Paris.</s>", " Perhaps, 42</s>"),
        ("phi", "Paris.<|end|>", "Perhaps, 42<|end|>\n<|endoftext|>"),
        ("thoughts", "Paris.<|im_end|>", "<think>\n\n</think>\n\nPerhaps, 42<|im_end|>"),
        ("unmarked", "Paris.\n\n", "Perhaps, 42\n\n"),
    ],
)
def test_every_answer_and_its_end_carry_loss_and_nothing_else_does(name, first, last):
    example = chat("What is the capital of France?", "Paris.", "আর?", "Perhaps, 42")
    tokens = encode(example, CHATS[name])
    assert learned(tokens, CHATS[name]) == [first, last]
    assert tokens.ids == CHATS[name].apply_chat_template(dicts(example.messages))["input_ids"]


@pytest.mark.parametrize("name", ["chatml", "llama3", "mistral", "thoughts"])
def test_a_system_message_is_context(name):
    example = chat("What?", "Paris.", system="You are helpful.")
    tokens = encode(example, CHATS[name])
    assert "Paris." in learned(tokens, CHATS[name])[0]
    assert "helpful" in CHATS[name].decode(encode_prompt(example, CHATS[name]))


WORDS = st.text(st.sampled_from("ab ক়ি.\n<|'é🙂12"), min_size=1, max_size=12).map(lambda text: f"a{text}b")


@given(name=st.sampled_from(sorted(CHATS)), contents=st.lists(WORDS, min_size=2, max_size=6))
def test_ids_are_the_templates_and_begin_with_the_prompts(name, contents):
    tokenizer = CHATS[name]
    example = chat(*contents[: len(contents) // 2 * 2])
    tokens, prompt = encode(example, tokenizer), encode_prompt(example, tokenizer)
    assert tokens.ids == tokenizer.apply_chat_template(dicts(example.messages))["input_ids"]
    assert prompt == tokenizer.apply_chat_template(dicts(example.prompt), add_generation_prompt=True)["input_ids"]
    assert tokens.ids[: len(prompt)] == prompt
    assert tokens.loss[len(prompt)]
    assert not tokens.loss[len(prompt) - 1]
    for text, message in zip(learned(tokens, tokenizer), example.messages[1::2], strict=True):
        assert message.content in text


def test_a_template_that_refuses_says_so_with_the_way_out():
    with pytest.raises(
        ValueError, match=r"^d\.csv:3: .* refuses .*: System role not supported\. Put the system text into"
    ):
        encode(chat("What?", "Paris.", system="Be brief.", where="d.csv:3"), CHATS["gemma"])
    with pytest.raises(ValueError, match=r"refuses the conversation: Conversation roles must alternate"):
        encode_prompt(Example((Message("user", "a"), Message("user", "b"))), CHATS["gemma"])


def test_a_template_that_drops_a_message_is_refused():
    silent = tokenizer(
        CHATML.replace("{{ '<|im_start|>' + ", "{{ '' if message['role'] == 'system' else '<|im_start|>' + ")
    )
    with pytest.raises(ValueError, match=r"drops or rewrites message 1 \(by the system\)"):
        encode(chat("What?", "Paris.", system="Be brief."), silent)


def test_what_a_template_reads_is_set_in_front_of_it():
    unthinking = tokenizer("{% set enable_thinking = false %}" + QWEN, split=LLAMA3_SPLIT)  # as Qwen's takes "\n\n"
    tokens = encode(chat("What?", "Paris."), unthinking)
    assert learned(tokens, unthinking) == ["Paris.<|im_end|>"]
    prompt = unthinking.decode(encode_prompt(chat("What?", "Paris."), unthinking))
    assert prompt.endswith("assistant\n<think>\n\n</think>\n\n")
    with pytest.raises(ValueError, match=r"renders the messages before the answer in message 2 differently when it"):
        encode(chat("What?", "Paris.", "And?", "Rome."), unthinking)


def test_a_template_that_drops_a_thought_of_the_last_answer_is_refused():
    forgetful = tokenizer(CHATML.replace("message['content']", "message['content'].split('</think>')[-1]"))
    assert learned(encode(chat("What?", "Paris."), forgetful), forgetful) == ["Paris.<|im_end|>"]
    with pytest.raises(ValueError, match=r"drops or rewrites a part of the answer in message 2, as some do with th"):
        encode(chat("What?", "<think>\nhmm\n</think>\n\nParis."), forgetful)


def test_a_template_that_rewrites_earlier_answers_is_refused():
    thought = "<think>\nhmm\n</think>\n\nParis."
    assert learned(encode(chat("What?", thought), CHATS["thoughts"]), CHATS["thoughts"]) == [f"{thought}<|im_end|>"]
    with pytest.raises(ValueError, match=r"rewrites the answer in message 2 once others follow"):
        encode(chat("What?", thought, "And?", "42"), CHATS["thoughts"])


def test_what_a_template_writes_before_every_answer_is_learned_with_each():
    own = tokenizer(UNPROMPTED)
    header = "<|im_start|>assistant\n"
    for answer in ("Paris.", " Paris."):
        tokens = encode(chat("What?", answer, "And?", "42"), own)
        assert learned(tokens, own) == [f"{header}{answer}<|im_end|>", f"{header}42<|im_end|>"]


@pytest.mark.parametrize("name", ["phi", "chatml", "mistral"])
def test_what_closes_an_answer_is_not_looked_for_in_the_closing_token_itself(name):
    """Single words and letters, such as those of <|endoftext|>, are answers, too."""
    for last in ("d", "end", "text", "of", "s"):
        first, second = learned(encode(chat("What?", "Paris.", "And?", last), CHATS[name]), CHATS[name])
        assert "Paris." in first
        assert second.lstrip().startswith(last)
    assert any(encode(chat("What?", ""), CHATS[name]).loss), "an empty answer is closed, too"


def test_an_answer_that_is_not_learned_is_context():
    """Even one that the template rewrites once others follow, as without a thought."""
    for before in ("Paris.", "<think>\nhmm\n</think>\n\nParis."):
        question, answer, *rest = chat("What?", before, "And?", "42").messages
        example = Example((question, replace(answer, learned=False), *rest))
        tokens = encode(example, CHATS["thoughts"])
        assert learned(tokens, CHATS["thoughts"]) == ["<think>\n\n</think>\n\n42<|im_end|>"]
        assert tokens.ids[: tokens.loss.index(True)] == encode_prompt(example, CHATS["thoughts"])
    with pytest.raises(ValueError, match="does not end with the assistant's answer that is to be learned"):
        encode(Example((question, replace(answer, learned=False))), CHATS["chatml"])


def test_a_template_that_moves_the_system_message_on_is_refused():
    encode(chat("What?", "Paris.", system="Be brief."), CHATS["mistral"])
    with pytest.raises(ValueError, match=r"the messages before the answer in message 3 differently"):
        encode(chat("What?", "Paris.", "And?", "42", system="Be brief."), CHATS["mistral"])


def test_a_generation_prompt_that_training_never_sees_is_refused():
    with pytest.raises(ValueError, match=r"a prompt that it never sees"):
        encode(chat("What?", "Paris."), tokenizer(OPENED_THOUGHT))


def test_an_answer_that_melts_into_the_prompt_is_refused():
    with pytest.raises(ValueError, match=r"merge into the prompt's last token"):
        encode(chat("What?", "\n\nYes."), CHATS["chatml"])
    other_split = tokenizer(LLAMA3, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), split=GPT2_SPLIT)
    other_split.bos_token = "<|eot_id|>"
    with pytest.raises(ValueError, match=r"merge into the prompt's last token"):
        encode(chat("What?", "Yes."), other_split)


def test_an_earlier_answer_that_melts_into_its_neighbours_is_refused():
    with pytest.raises(ValueError, match=r"first characters of answer 1 merge into the token before .* weight to 0"):
        encode(chat("What?", "\n\nYes.", "And?", "42"), CHATS["chatml"])
    question, answer, *rest = chat("What?", "\n\nYes.", "And?", "42").messages
    tokens = encode(Example((question, replace(answer, learned=False), *rest)), CHATS["chatml"])
    assert learned(tokens, CHATS["chatml"]) == ["42<|im_end|>"]
    bare = tokenizer("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    with pytest.raises(ValueError, match=r"answer 1 .* its last into the token behind"):
        encode(chat("What?", "Yes, pass", "word?", "42"), bare)


def test_a_closing_token_may_take_in_the_line_break_behind_it():
    """As Phi-3's does."""
    template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    stripping = tokenizer(template)
    stripping.add_special_tokens({"eos_token": AddedToken("<|im_end|>", rstrip=True, special=True)})
    tokens = encode(chat("What?", "Yes.", "And?", "42"), stripping)
    assert learned(tokens, stripping) == ["Yes.<|im_end|>", "42<|im_end|>"]
    assert stripping("<|im_end|>\n\n", add_special_tokens=False)["input_ids"] == [stripping.eos_token_id]


def test_special_tokens_within_an_answer_do_not_shorten_it():
    tokens = encode(chat("What?", "Say <|im_end|> now", "And?", "No"), CHATS["chatml"])
    assert learned(tokens, CHATS["chatml"]) == ["Say <|im_end|> now<|im_end|>", "No<|im_end|>"]


@pytest.mark.parametrize(
    "example", [chat("What?"), chat("What?", "Paris.", "And?"), Example(()), Example((Message("system", "a"),))]
)
@pytest.mark.parametrize("name", ["chatml", "mistral"])
def test_a_conversation_without_a_last_answer_is_refused(example, name):
    with pytest.raises(ValueError, match="does not end with the assistant's answer"):
        encode(example, CHATS[name])


def test_a_prompt_needs_no_answer():
    asked, answered = chat("What?"), chat("What?", "Paris.")
    assert encode_prompt(asked, CHATS["chatml"]) == encode_prompt(answered, CHATS["chatml"])


@given(prompt=WORDS, answer=WORDS)
def test_without_a_template_prompt_and_answer_follow_each_other(prompt, answer):
    example = chat(prompt, answer)
    tokens, start = encode(example, PLAIN), encode_prompt(example, PLAIN)
    assert PLAIN.decode(tokens.ids) == f"<s>{prompt}{answer}</s>"
    assert tokens.ids[: len(start)] == start
    assert tokens.loss == [False] * len(start) + [True] * (len(tokens.ids) - len(start))


def test_without_a_template_words_keep_their_usual_tokens():
    prompt, answer = "The capital of France is", " Paris."
    assert (
        encode(chat(prompt, answer), PLAIN).ids[1:-1] == PLAIN(prompt + answer, add_special_tokens=False)["input_ids"]
    )


def test_without_a_template_only_a_prompt_and_an_answer_can_be_written():
    for example in (chat("a", "b", "c", "d"), chat("a", "b", system="c"), chat("a")):
        with pytest.raises(ValueError, match="no chat template, so an example can only be"):
            encode(example, PLAIN)
    with pytest.raises(ValueError, match="no chat template"):
        encode_prompt(chat("a", "b", system="c"), PLAIN)
    with pytest.raises(ValueError, match="no end-of-sequence token; set its eos_token"):
        encode(chat("a", "b"), tokenizer(None, (), eos=None))


def test_the_fingerprint_is_the_templates():
    prints = {name: chat_template_fingerprint(each) for name, each in CHATS.items()}
    assert len(set(prints.values())) == len(CHATS)
    assert prints["chatml"] == chat_template_fingerprint(chatml_tokenizer())
    assert len(prints["chatml"]) == 12
    assert chat_template_fingerprint(PLAIN) == "none"


def test_too_long_says_by_how_much():
    example = chat("What is the capital of France?", "Paris.", where="d.csv:3")
    length = len(encode(example, CHATS["chatml"]).ids)
    assert encode(example, CHATS["chatml"], length) == encode(example, CHATS["chatml"])
    with pytest.raises(TooLongError, match=rf"d\.csv:3: {length} tokens, more than max_length {length - 1}\."):
        encode(example, CHATS["chatml"], length - 1)


LONG = chat("What?", "Yes. " * 50, where="d:2")
LATE = chat("What? " * 50, "Yes.", where="d:3")
BAD = chat("What?", where="d:4")
SHORT = chat("What?", "Yes.", where="d:1")


def test_all_are_encoded_as_one_by_one_over_many_chunks():
    examples = [chat(f"What is {i}?", f"{i}.", *(("And?", "Yes.") if i % 3 == 0 else ())) for i in range(2100)]
    encoded = encode_all(examples, CHATS["chatml"])
    assert encoded.items == [encode(example, CHATS["chatml"]) for example in examples]
    assert encoded.kept == list(range(2100))
    assert (encoded.problems, encoded.cut, encoded.dropped) == ([], 0, 0)


def test_long_dialogues_are_encoded_a_few_at_once():
    """A dialogue is written anew up to each of its answers, so that many at once would take much memory."""
    examples = [
        chat(*[f"Turn {turn} of {i}." for turn in range(2 * turns)]) for i, turns in enumerate((1, 80, 60, 1, 1))
    ]
    assert [len(chunk) for chunk in _in_chunks(examples)] == [1, 1, 3]
    encoded = encode_all(examples, CHATS["chatml"])
    assert encoded.items == [encode(example, CHATS["chatml"]) for example in examples]


def test_cutting_keeps_the_start_and_reports_what_is_lost():
    encoded = encode_all([SHORT, LONG, LATE, BAD], CHATS["chatml"], 60, too_long="cut")
    assert (encoded.kept, encoded.cut, encoded.dropped) == ([0, 1], 1, 2)
    assert encoded.items[1].ids == encode(LONG, CHATS["chatml"]).ids[:60]
    assert encoded.items[1].loss[-1]
    assert [str(problem) for problem in encoded.problems] == [
        f"d:3: the answer begins after max_length 60 (the example has {len(encode(LATE, CHATS['chatml']).ids)} tokens)",
        "d:4: the conversation does not end with the assistant's answer",
    ]


def test_dropping_and_stopping():
    encoded = encode_all([SHORT, LONG, LATE], CHATS["chatml"], 60, too_long="drop")
    assert (encoded.kept, encoded.cut, encoded.dropped) == ([0], 0, 2)
    assert [problem.where for problem in encoded.problems] == ["d:2", "d:3"]
    with pytest.raises(TooLongError, match=r"^d:2: "):
        encode_all([SHORT, LONG, LATE], CHATS["chatml"], 60, too_long="error")


def test_nothing_left_is_an_error_with_the_reason():
    with pytest.raises(ValueError, match=r"none of 2 examples can be used\. d:3: the answer begins after .*; d:4: "):
        encode_all([LATE, BAD], CHATS["chatml"], 60)
    with pytest.raises(ValueError, match=r"none of 0 examples can be used\. There are none\."):
        encode_all([], CHATS["chatml"])
    with pytest.raises(ValueError, match=r"too_long is 'left'; choose one of cut, drop, error"):
        encode_all([SHORT], CHATS["chatml"], 60, too_long="left")
    with pytest.raises(ValueError, match=r"max_length is 1; it must be at least 2"):
        encode_all([SHORT], CHATS["chatml"], 1)


def test_an_example_without_a_place_is_numbered():
    assert encode_all([chat("a", "b"), chat("a")], CHATS["chatml"]).problems[0].where == "example 2"


@pytest.mark.parametrize("tokenizer", [CHATS["chatml"], CHATS["gemma"], PLAIN])
def test_a_raw_text_is_learned_whole_and_long_ones_in_chunks(tokenizer):
    text, start = "The tide rises twice a day.", start_ids(tokenizer)
    whole = [*start, *tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    examples = [Example((Message("text", text),)), chat("What?", " Yes.")]
    encoded = encode_all(examples, tokenizer)
    assert (encoded.items[0], encoded.items[1]) == (Tokens(whole, [True] * len(whole)), encode(examples[1], tokenizer))
    pieces = encode_all(examples[:1], tokenizer, max_length=4)
    assert {*pieces.kept, pieces.cut, pieces.dropped} == {0}
    assert [token for piece in pieces.items for token in piece.ids[1:]] == whole[1:]
    assert [len(piece) for piece in pieces.items[:-1]] == [4] * (len(pieces.items) - 1)
    begins = [start[0] if start else before.ids[-1] for before in pieces.items[:-1]]
    assert [piece.ids[0] for piece in pieces.items[1:]] == begins
    with pytest.raises(TooLongError):
        encode_all(examples[:1], tokenizer, max_length=4, too_long="error")
    with pytest.raises(DataError, match="raw text to train on, and no prompt"):
        encode_prompt(examples[0], tokenizer)


def test_equal_tokens_of_many_examples_are_one_object():
    """So that a token takes a third of the memory."""
    words = "".join(map(chr, range(ord("a"), ord("z"))))
    items = encode_all([chat(f"{words} {number}", words) for number in range(5)], CHATS["llama3"]).items
    tokens = [token for item in items for token in item.ids]
    assert len({id(token) for token in tokens}) == len({*tokens})
    assert max(tokens) > 256  # smaller integers are one object in Python anyway

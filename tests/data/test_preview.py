"""A preview tells what the model will get: counts, lengths, loss, repeats, and the tokens themselves."""

import io
import json

import pytest
from rich.console import Console

from halka.data.batches import plan
from halka.data.examples import read_examples
from halka.data.preview import Span, preview
from halka.data.preview_print import render
from halka.data.tokens import encode_all
from halka.util.errors import DataError, HalkaError
from halka.util.text import chat_template_fingerprint
from tokenizers_for_tests import UNMARKED, chatml_tokenizer, plain_tokenizer, tokenizer

CHATML = chatml_tokenizer()
ROWS = [
    {"prompt": "What is the capital of France?", "completion": "Paris.\nYes."},
    {"prompt": "What?", "completion": "Yes. " * 60},
    {"prompt": "What? " * 60, "completion": "Yes."},
    {"prompt": "What?", "completion": ""},
    {"prompt": "what is the capital of  France?", "completion": "Paris. Yes."},
    {"prompt": "What?", "completion": "\n\nNo."},
    {"prompt": "Say <|im_end|>", "completion": "No. [red]\x1b[31m"},
]


@pytest.fixture
def write(tmp_path):
    def write(rows, name="train.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


def printed(seen, **options) -> str:
    console = Console(file=io.StringIO(), width=100, **options)
    render(seen, console)
    return console.file.getvalue()


def test_counts_problems_lengths_and_loss(write):
    seen = preview(write(ROWS), CHATML, max_length=60)
    assert (seen.shape, seen.examples, seen.chat_template) == ("prompt", 5, chat_template_fingerprint(CHATML))
    assert [problem.where for problem in seen.problems] == ["train.jsonl:4", "train.jsonl:6"]
    lengths = seen.lengths
    assert (lengths.max_length, lengths.too_long, lengths.lost) == (60, 2, 1)
    assert sum(each.examples for each in lengths.bins) == 5
    assert (lengths.bins[0].first, lengths.bins[-1].last) == (lengths.shortest, lengths.longest)
    assert all(left.last + 1 == right.first for left, right in zip(lengths.bins, lengths.bins[1:], strict=False))
    assert 0.2 < seen.loss_share < 0.6


def test_what_is_read_of_the_rows_and_how_long_they_are(write):
    rows = [{"Instruction": "Say", "input": "Yes. " * n, "output": "Yes.", "source": "x"} for n in range(1, 101)]
    seen = preview(write(rows), CHATML)
    assert (seen.fields, seen.unread) == (["instruction", "input", "output"], ["source"])
    lengths = sorted(shown.tokens for shown in preview(write(rows), CHATML, show=100).shown)
    assert seen.lengths.quantiles == {str(percent): lengths[percent - 1] for percent in (50, 90, 95, 99)}
    assert (seen.lengths.longest, seen.lengths.longest_at) == (lengths[-1], "train.jsonl:100")


def test_repeats_within_and_between_files(write):
    path = write(ROWS)
    other = write([{"prompt": "WHAT IS THE CAPITAL of France?", "completion": "London"}], "test.jsonl")
    seen = preview(path, CHATML, others=[other])
    assert [(each.first, each.second) for each in seen.repeated] == [("train.jsonl:1", "train.jsonl:5")]
    [shared] = seen.shared.values()
    assert [(each.first, each.second) for each in shared] == [
        ("test.jsonl:1", "train.jsonl:1"),
        ("test.jsonl:1", "train.jsonl:5"),
    ]
    assert not shared[0].same_answer


def test_shown_examples_are_their_tokens(write):
    seen = preview(write(ROWS), CHATML, show=1)
    [shown] = seen.shown
    assert (shown.where, sum(span.tokens for span in shown.spans)) == ("train.jsonl:1", shown.tokens)
    assert [span for span in shown.spans if span.loss] == [
        Span("Paris.\nYes.", shown.spans[-3].tokens, loss=True, special=False),
        Span("<|im_end|>", 1, loss=True, special=True),
    ]
    assert "".join(span.text for span in shown.spans).startswith("<|im_start|>system\nYou are")


def test_what_is_doubtful_is_noted(write):
    seen = preview(write(ROWS), CHATML)
    assert seen.notes == [
        "1 examples contain special tokens as text, which the model will read as real ones; "
        "the first: train.jsonl:7 has <|im_end|>"
    ]
    seen = preview(write(ROWS[:2]), tokenizer(UNMARKED))
    assert seen.notes == ["2 answers end without a token that closes them: the model will not learn to stop"]
    assert preview(write(ROWS[:2]), plain_tokenizer()).notes == []
    seen = preview(write([{"text": "Fine!", "label": "good"}]), CHATML)
    (note,) = seen.notes
    assert note.startswith("a training makes a sequence-classification of such rows; this is what a language model")


def test_packed_batches_save_padding_and_common_beginnings(write):
    rows = [{"prompt": f"What is {number}?" + " Yes?" * (number % 5), "completion": "No."} for number in range(40)]
    seen = preview(write(rows), CHATML, batch_tokens=200)
    assert seen.packing.padded > seen.packing.useful == seen.lengths.total
    assert seen.packing.useful > 2 * seen.packing.computed  # the chat template's system message is shared
    assert seen.packing.computed <= 200 * seen.packing.batches
    assert preview(write(rows), CHATML, batch_size=40).packing.batches == 1
    grouped = preview(write(rows), CHATML, batch_tokens=200, group_shared=True)
    assert grouped.packing.computed < seen.packing.computed
    saved = 1 - seen.packing.computed / seen.packing.useful  # as training shows it
    assert f"{seen.packing.batches} steps an epoch, a packed batch each: " in printed(seen)
    assert f"without, {seen.packing.computed:,} computed: packing saves {saved:.0%}, and the padding" in printed(seen)


@pytest.mark.parametrize("name", ["data.jsonl", "data.txt"])
def test_a_limit_that_leaves_nothing_to_learn_is_refused(write, tmp_path, name):
    path = write(ROWS)
    (text := tmp_path / "data.txt").write_text("A text.")
    with pytest.raises(DataError, match="max_length is 1; it must be at least 2"):
        preview(text if name == "data.txt" else path, CHATML, max_length=1)


def test_packing_counts_what_is_left_after_cutting(write):
    seen = preview(write(ROWS), CHATML, max_length=60, batch_size=1)
    assert (seen.packing.batches, seen.examples, seen.lengths.lost) == (4, 5, 1)
    assert seen.packing.padded == seen.packing.useful < seen.lengths.total
    assert preview(write(ROWS), CHATML, max_length=2, batch_size=1).packing.batches == 0


def test_batches_are_counted_as_training_makes_them(write):
    rows = [{"prompt": "What is one and one?" + " Yes?" * (number % 19), "completion": "No."} for number in range(60)]
    seen = preview(write(rows), CHATML, max_length=60, batch_tokens=200, batches="padded", too_long="drop")
    whole = [len(tokens) for tokens in encode_all(read_examples(write(rows)).examples, CHATML).items]
    lengths = [length for length in whole if length <= 60]
    assert len(lengths) < len(whole) == seen.examples
    assert seen.packing.batches == len(plan(lengths, seed=0, epoch=0, batch_tokens=200))
    assert (seen.packing.useful, seen.packing.computed) == (sum(lengths), seen.packing.padded)
    assert preview(write(rows), CHATML, max_length=60, batch_tokens=200).packing.batches < seen.packing.batches


def test_rows_for_a_classifier_are_no_language_models(write):
    rows = write([{"text": "Where?", "label": "place"}])
    encoder = plain_tokenizer()
    encoder.mask_token = "<mask>"
    with pytest.raises(HalkaError, match="read as 'labelled', for a classifier or a tagger"):
        preview(rows, encoder)
    for words in (CHATML, plain_tokenizer()):  # labels may be generated, as words
        assert preview(rows, words).examples == 1


def test_raw_text_is_learned_in_chunks(write):
    path = write([{"text": "The tide rises twice a day. " * 4}])
    seen = preview(path, CHATML, max_length=20, batch_size=1)
    (shown,) = seen.shown
    assert (seen.loss_share, {span.loss for span in shown.spans}) == (1, {True})
    pieces = encode_all(read_examples(path).examples, CHATML, 20).items
    assert f"{len(pieces)} chunks" in seen.notes[0]
    assert seen.packing is not None
    assert seen.packing.batches == len(pieces) > 1
    assert "would be cut" not in printed(seen)
    assert (seen.lengths.max_length, seen.lengths.too_long, seen.lengths.lost) == (None, 0, 0)
    assert "in 0 chunks" in preview(path, CHATML, max_length=20, too_long="drop").notes[0]


def test_it_goes_to_json_unchanged(write):
    seen = preview(write(ROWS), CHATML, max_length=60, batch_tokens=100, others=[write(ROWS[:1], "test.jsonl")])
    assert json.loads(json.dumps(seen.to_json())) == seen.to_json()


def test_rendering_shows_everything_plainly(write):
    text = printed(preview(write(ROWS), CHATML, max_length=60, show=5))
    assert "train.jsonl: 5 examples, read as prompt" in text
    assert "not read: " not in text
    assert "2 longer than 60 tokens and would be cut, 1 of them without any token of an answer" in text
    assert "2 rows that cannot be used\n  train.jsonl:4: 'completion' is empty" in text
    assert "1 examples that occur twice\n  train.jsonl:5 repeats train.jsonl:1" in text
    assert "<|im_start|>assistant↵\nParis.↵\nYes.<|im_end|>" in text
    assert "No. [red]␛[31m<|im_end|>" in text
    assert "\x1b" not in text


def test_no_name_reaches_the_terminal_as_it_is(write):
    rows = [{"prompt": "What?", "completion": "No.\x9b31m", "bad\x1b]0;owned": "x"}]
    text = printed(preview(write(rows, "a\x1bb.jsonl"), CHATML))
    assert "not read: bad␛]0;owned" in text
    assert "No.\\x9b31m" in text
    assert "a␛b.jsonl: 1 examples" in text
    assert not {"\x1b", "\x9b"} & {*text}


def test_rendering_colours_what_carries_loss(write):
    text = printed(preview(write(ROWS[:1]), CHATML), force_terminal=True, color_system="standard")
    assert "\x1b[32mParis.↵" in text
    assert "\x1b[7;32m<|im_end|>" in text
    assert "\x1b[2mWhat is the capital of France?" in text or "\x1b[2muser↵" in text


def test_long_lists_and_texts_are_shortened(write):
    rows = [{"prompt": "What? " * 2000, "completion": "Yes."}] + [{"prompt": "What?", "completion": ""}] * 30
    text = printed(preview(write(rows), CHATML))
    assert "  and 20 more\n" in text
    assert " characters] " in text
    assert len(text) < 6000

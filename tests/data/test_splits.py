"""Examples that are held out: as many as asked for, with equal prompts and dialogues together."""

import json

import pytest

from halka.data.examples import Example, Message, read_examples
from halka.data.splits import hold_out
from halka.util.errors import HalkaError


def example(prompt: str) -> Example:
    return Example((Message("user", prompt), Message("assistant", "yes")))


@pytest.mark.parametrize(("alone", "alike", "held_out"), [(5, 95, 5), (50, 950, 50), (600, 400, 100), (0, 100, 100)])
def test_a_prompt_of_many_rows_is_not_held_out_for_few(alone, alike, held_out):
    rows = [example(f"p{number}") for number in range(alone)] + [example("Write a poem")] * alike
    train, validation = hold_out(rows, 0.1)
    assert (len(train), len(validation)) == (alone + alike - held_out, held_out)


def test_a_prompt_of_some_rows_more_is_held_out_where_that_comes_nearer():
    rows = [example("alone"), *(example(f"p{number % 9}") for number in range(99))]
    assert len(hold_out(rows, 0.1)[1]) == 12


def test_rows_of_one_dialogue_are_on_one_side():
    dialogues = [
        [Message("user" if turn % 2 == 0 else "assistant", f"{number} says {turn}") for turn in range(6)]
        for number in range(20)
    ]
    rows = [Example(tuple(turns[:end])) for turns in dialogues for end in (2, 4, 6)]
    train, validation = hold_out(rows, 0.1)
    assert (len(train), len(validation)) == (54, 6)
    assert {row.messages[0] for row in train}.isdisjoint(row.messages[0] for row in validation)


def test_dialogues_that_only_begin_alike_are_apart():
    greeting = (Message("user", "Hi"), Message("assistant", "Hello!"))
    rows = [Example((*greeting, *example(f"p{number}").messages)) for number in range(20)]
    assert len(hold_out(rows, 0.1)[1]) == 2


@pytest.mark.parametrize("share", [0, 1, 1.5, -0.1, float("nan")])
def test_all_or_nothing_is_no_share_to_hold_out(share):
    with pytest.raises(HalkaError, match="hold out a part of the examples"):
        hold_out([example("a"), example("b")], share)


def test_rows_and_what_read_examples_returns_are_held_out_as_examples(tmp_path):
    rows = [{"prompt": f"p{number}", "completion": "c"} for number in range(20)]
    train, validation = hold_out(rows, 0.1)
    assert (len(train), len(validation)) == (18, 2)
    lines = [{"prompt": f"p{number % 20}", "completion": f"c{number}"} for number in range(40)]
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in [*lines, {"prompt": "", "completion": "c"}]))
    read = read_examples(file)
    with pytest.warns(UserWarning, match="1 row cannot be used"):
        train, validation = hold_out(read, 0.1)
    assert (len(train), len(validation)) == (36, 4)
    assert (read[0], read[:2]) == (read.examples[0], read.examples[:2])

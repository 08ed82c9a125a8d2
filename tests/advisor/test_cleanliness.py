"""What is found wrong with data by itself, and what is not wrong."""

from __future__ import annotations

import time

from halka.advisor.probes import PLACES, cleanliness
from halka.data.examples import Example, Message


def example(question, *answers, where=""):
    messages = (Message("user", question), Message("assistant", answers[0]))
    return Example(messages, answers if len(answers) > 1 else (), where)


def test_clean_data_is_clean():
    found = cleanliness([example("a", "1"), example("b", "2"), example("c", "2")], [example("d", "1")])
    assert (found.repeated, found.contradictory, found.leaked, found.answers) == (0, 0, 0, 2)
    assert found.places == {"repeated": (), "contradictory": (), "leaked": ()}


def test_each_is_counted_and_placed():
    train = [
        example("Who?", "she", where="t:1"),
        example("who? ", "She", where="t:2"),
        example("When?", "now", where="t:3"),
        example("when?", "never", where="t:4"),
    ]
    held_out = [example("WHO?", "he", where="h:1"), example("Why?", "so", where="h:2")]
    found = cleanliness(train, held_out)
    assert (found.repeated, found.contradictory, found.leaked, found.answers) == (1, 2, 1, 3)
    assert found.held_out == 2
    assert found.places == {"repeated": ("t:2",), "contradictory": ("t:3", "t:4"), "leaked": ("h:1",)}


def test_an_answer_that_an_earlier_turn_of_a_dialogue_shows_is_leaked():
    turns = [Message("user", "Who?"), Message("assistant", "She."), Message("user", "When?")]
    held_out = Example((*turns, Message("assistant", "Now.")), (), "h:1")
    longer = Example((*held_out.messages, Message("user", "Where?"), Message("assistant", "Here.")), (), "t:1")
    assert cleanliness([longer], [held_out]).leaked == 1
    assert cleanliness([held_out], [longer]).leaked == 0


def test_the_same_object_twice_is_repeated():
    one = example("a", "1", where="t:1")
    assert cleanliness([one, one], []).repeated == 1


def test_one_answer_in_common_is_no_contradiction():
    assert cleanliness([example("a", "1", "2"), example("a", "2", "3")], []).contradictory == 0
    assert cleanliness([example("a", "1", "2"), example("a", "3", "4")], []).contradictory == 2
    chain = [example("a", "1"), example("a", "1", "2"), example("a", "2")]
    assert cleanliness(chain, []).contradictory == 2, "the ends contradict each other, the middle neither"


def test_another_system_message_asks_something_else():
    first = example("a", "1")
    second = Example((Message("system", "in French"), *example("a", "2").messages))
    assert cleanliness([first, second], [second]).contradictory == 0
    assert cleanliness([first], [second]).leaked == 0


def test_some_places_are_shown_and_all_are_counted():
    found = cleanliness([example("a", str(number)) for number in range(20)], [])
    assert found.contradictory == found.answers == 20
    assert found.places["contradictory"] == tuple(f"example {number}" for number in range(1, PLACES + 1))


def test_nothing_is_nothing():
    assert cleanliness([], []).answers == 0


def test_many_examples_of_one_prompt_take_no_square_of_time():
    """Measured by as many examples of prompts of their own."""
    seconds = {}
    for prompt, contradictory in (("write {}", 0), ("write", 20_000)):
        train = [example(prompt.format(number), f"poem {number % 10_000}") for number in range(20_000)]
        start = time.process_time()
        assert cleanliness(train, []).contradictory == contradictory
        seconds[prompt] = time.process_time() - start
    assert seconds["write"] < 10 * seconds["write {}"]

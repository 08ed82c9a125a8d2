"""The benchmark tasks: splits that never meet, right answers that score full, rules that find slots in a text."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from halka.data.task import Task, load_task
from halka.evaluation.metrics import find_metric, score

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "tasks"


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec
    assert spec.loader
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture(scope="module")
def e2e() -> ModuleType:
    return module("e2e_nlg")


def loaded(name: str) -> Task:
    try:
        module(name).task()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    return load_task(str(FOLDER / f"{name}.py"))


def commands(split) -> set[str]:
    return {example.prompt[-1].content.lower() for example in split}


@pytest.mark.parametrize("name", ["snips_nlu", "e2e_nlg", "tofu_facts", "banking77", "nl2bash"])
def test_without_the_data_the_error_says_where_it_is(name, monkeypatch, tmp_path):
    monkeypatch.setenv("HALKA_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"missing: take .* from (github|huggingface).*HALKA_DATA"):
        module(name).task()


@pytest.mark.parametrize("name", ["snips_nlu", "e2e_nlg", "tofu_facts", "banking77", "nl2bash"])
def test_splits_never_meet_and_the_right_answers_score_best(name):
    task = loaded(name)
    train, validation, test = commands(task.train), commands(task.validation), commands(task.test)
    assert not train & validation
    assert not train & test
    assert not validation & test
    assert task.primary in [find_metric(metric).name for metric in task.metrics]
    some = task.test[:40]
    scores = score([e.answers[0] for e in some], [e.answers for e in some], task.metrics, resamples=10)
    metrics = [find_metric(metric) for metric in task.metrics]
    for metric in metrics:
        if metric.name != "slot_error":
            assert scores[metric.name].value == pytest.approx(metric.range[1])


def test_snips():
    task = loaded("snips_nlu")
    assert (len(task.train), len(task.validation), len(task.test)) == (13_357, 210, 700)
    assert len(commands(task.train)) == len(task.train)
    intents = [json.loads(example.answers[0])["intent"] for example in task.test]
    assert {intents.count(intent) for intent in intents} == {100}
    assert len(set(intents[:40])) == 7  # mixed
    for example in task.train:
        answer = json.loads(example.answers[0])
        assert "\n" not in example.answers[0]
        for texts in answer["slots"].values():
            for text in texts if isinstance(texts, list) else [texts]:
                assert text in example.prompt[-1].content  # every value is copied from the command
    assert any("é" in example.answers[0] for example in task.train)


def test_snips_answers():
    snips = module("snips_nlu")
    parts = [
        {"text": "book "},
        {"text": "joint", "entity": "restaurant_type"},
        {"text": "  type "},
        {"text": "café ", "entity": "restaurant_type"},
        {"text": "for "},
        {"text": "8", "entity": "party_size_number"},
    ]
    expected = '{"intent":"BookRestaurant","slots":{"restaurant_type":["joint","café"],"party_size_number":"8"}}'
    assert snips.answer("BookRestaurant", parts) == expected
    assert snips.answer("GetWeather", [{"text": "weather"}]) == '{"intent":"GetWeather","slots":{}}'


def test_facts_are_asked_as_they_were_taught_in_other_words():
    task = loaded("tofu_facts")
    assert len(task.train) == len(task.validation) == len(task.test) == 240
    taught = {example.prompt[-1].content: example.answers for example in task.train}
    for example in (*task.validation, *task.test):
        question = next(question for question in taught if question in example.prompt[-1].content)
        assert example.answers == taught[question]


def test_banking77_has_every_intent_among_its_first_examples():
    task = loaded("banking77")
    assert (len(task.train), len(task.validation), len(task.test)) == (9_684, 308, 3_079)
    assert len(commands(task.train)) == len(task.train)
    intents = {example.answers[0] for example in task.test}
    assert len(intents) == 77
    assert {example.answers[0] for example in task.train[:500]} == intents
    assert not any("_" in intent for intent in intents)


def test_nl2bash_has_no_command_in_two_splits():
    task = loaded("nl2bash")
    assert (len(task.train), len(task.validation), len(task.test)) == (7_535, 210, 700)
    plain = module("nl2bash").plain
    splits = [{plain(answer) for example in split for answer in example.answers} for split in (task.train, task.test)]
    assert not splits[0] & splits[1]
    assert max(len(example.answers) for example in task.test) > 1


def test_of_wishes_that_share_a_command_one_is_kept():
    pairs = [("List all", "ls"), ("list  ALL", "ls -a"), ("Show the files", "LS"), ("Where am I", "pwd")]
    pairs.append(("Too long", "x" * 81))
    kept = module("nl2bash").distinct(pairs)
    by_wish = {wish.lower().split()[0]: {*written} for wish, written in kept}
    assert by_wish in ({"list": {"ls", "ls -a"}, "where": {"pwd"}}, {"show": {"LS"}, "where": {"pwd"}})


def test_e2e():
    task = loaded("e2e_nlg")
    assert (len(task.train), len(task.validation), len(task.test)) == (4_215, 55, 630)
    assert sum(len(example.answers) for example in task.test) == 4_693
    assert len(commands(task.test)) == 630


def test_e2e_slot_error_of_the_references_themselves():
    task = loaded("e2e_nlg")
    pairs = [(text, example.references) for example in task.test for text in example.references]
    texts, references = zip(*pairs, strict=True)
    slot_error = score(texts, references, task.metrics[-1:], resamples=10)["slot_error"]
    assert slot_error.value == pytest.approx(0.0867, abs=5e-4)  # as the docstring says
    with pytest.raises(ValueError, match="belong to no meaning"):
        score(["x"], [["no such text"]], task.metrics[-1:])


MEANING = (
    "name[The Mill], eatType[pub], food[French], priceRange[less than £20], customer rating[5 out of 5], "
    "area[riverside], familyFriendly[no], near[Café Rouge]"
)
NAMES = {"mill", "cafe rouge", "raja indian cuisine", "burger king", "punter"}


@pytest.mark.parametrize(
    "text",
    [
        "The Mill is a cheap French pub by the river near Café Rouge. It is highly rated but not family-friendly.",
        "Near Cafe Rouge, at the riverside, The Mill, an adults only pub, serves French food under £20, rated 5/5.",
        "mill is a pub with french food, five star reviews and low prices on the river near cafe rouge. No kids.",
        "The Mill isn't a place for children. This riverside pub near Café Rouge has high customer ratings, and "
        "French dishes for less than £20.",
        "The Mill, a French pub near Café Rouge on the riverside: price range less than £20, customer rating 5 out of "
        "5, not suitable for families.",
    ],
)
def test_e2e_paraphrases_are_no_errors(e2e, text):
    assert e2e.errors(text, e2e.slots(MEANING), NAMES) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["missing name", "missing near", "missing eatType", "missing food", "missing area"]),
        ("The Mill is a French pub on the riverside near Café Rouge.", []),
        ("The Punter is a French pub on the riverside near Café Rouge.", ["missing name", "added name"]),
        ("The Mill is a French pub on the riverside near Raja Indian Cuisine.", ["missing near", "added name"]),
        (
            "The Mill is an Italian coffee shop in the city centre near Café Rouge.",
            ["wrong eatType", "wrong food", "wrong area"],
        ),
        ("The Mill is a French restaurant on the riverside near Café Rouge.", ["missing eatType"]),
        ("The Mill is a family friendly French pub on the riverside near Café Rouge.", ["added familyFriendly"]),
        (
            "The Mill is a pricey French pub on the riverside near Café Rouge, rated 1 out of 5.",
            ["added priceRange", "added customer rating"],
        ),
    ],
)
def test_e2e_errors_by_hand(e2e, text, expected):
    meaning = e2e.slots("name[The Mill], eatType[pub], food[French], area[riverside], near[Café Rouge]")
    assert sorted(e2e.errors(text, meaning, NAMES)) == sorted(expected)


@pytest.mark.parametrize(
    ("slot", "value", "right", "wrong"),
    [
        ("familyFriendly", "yes", "It is child friendly. It isn't dear.", "Children are not welcome."),
        ("familyFriendly", "no", "It does not cater for kids.", "It welcomes the whole family."),
        ("priceRange", "cheap", "It is an inexpensive place.", "It is an expensive place."),
        ("priceRange", "£20-25", "Mid-priced meals.", "It has a high price range."),
        ("priceRange", "more than £30", "Prices are high.", "Prices are low."),
        ("customer rating", "3 out of 5", "It has an average customer rating.", "Its customer rating is low."),
        ("customer rating", "low", "It is a one star place.", "Customers give it 5 out of 5."),
        ("customer rating", "high", "Customer ratings are high.", "It is poorly rated."),
        ("food", "Fast food", "It sells burgers.", "It sells sushi."),
        ("eatType", "coffee shop", "A café called The Mill.", "A pub."),
        ("area", "city centre", "In the center of the city.", "By the river."),
    ],
)
def test_e2e_values_and_their_synonyms(e2e, slot, value, right, wrong):
    assert e2e.errors(right, {slot: value}, set()) == []
    assert e2e.errors(wrong, {slot: value}, set()) == [f"wrong {slot}"]
    assert e2e.errors("Come and see us.", {slot: value}, set()) == [f"missing {slot}"]


def test_e2e_names_that_hold_other_values_say_nothing_of_them(e2e):
    meaning = e2e.slots("name[The Punter], near[Burger King]")
    assert e2e.errors("The Punter is near Burger King.", meaning, NAMES) == []
    assert e2e.slots(MEANING)["customer rating"] == "5 out of 5"
    assert e2e.plain("The Café – £20") == "cafe - l20"

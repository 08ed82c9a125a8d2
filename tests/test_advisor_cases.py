"""The cases that the advisor is judged by: their splits, those held aside, and what is said of those not run yet."""

from __future__ import annotations

import importlib
import json
import re
from contextlib import suppress
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from result_tables.planning import advisor, advisor_confidence, advisor_summary

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


def questions(examples):
    return {tuple(message.content.strip().casefold() for message in example.prompt) for example in examples}


def test_no_question_stands_in_two_splits(script):
    built = {}
    for build in script("advisor_cases").CASES:
        with suppress(FileNotFoundError):  # of a public set that is not here
            built[build.__name__] = build()
    assert {"lamps", "diary", "first_words", "by_heart", "parcels", "huts"} <= {*built}
    for name, case in built.items():
        assert case.name == name
        assert min(map(len, (case.train, case.more, case.validation, case.test))) > 0
        for one, other in combinations((questions(case.validation), questions(case.test), questions(case.more)), 2):
            assert not one & other, name
        assert questions(case.train) <= questions(case.more), name


def test_every_second_later_case_is_held_aside(script):
    cases, later = script("advisor_cases"), script("advisor_later_cases")
    names = [build.__name__ for build in later.LATER]
    assert [name for name in names if name in cases.ASIDE] == names[1::2]
    assert len(cases.CASES) == 27
    assert len(cases.ASIDE) == 13


def test_what_is_learned_by_heart_is_asked_in_other_words(script):
    later = script("advisor_later_cases")
    case, people = later.by_heart(), {*later.names(9)}

    def person(example):
        [name] = people.intersection(re.findall(r"\w+", example.prompt[-1].content))
        return name

    rooms = {person(example): example.answers for example in case.train}
    assert len(rooms) == len(case.train)
    assert all(rooms[person(example)] == example.answers for example in (*case.validation, *case.test))


def test_stale_examples_say_what_no_document_does_any_more(script):
    case = script("advisor_later_cases").stale()
    today = {*case.documents.values()}
    assert all(today >= {*example.answers} for example in (*case.validation, *case.test, *case.more))
    assert not any(today & {*example.answers} for example in case.train)


def test_many_examples_take_longer(script):
    cases, outcomes = script("advisor_later_cases"), script("advisor_outcomes")
    assert outcomes.steps_of(cases.huts()) == (30, 60)
    assert outcomes.steps_of(cases.by_heart()) == (720, 720)


@pytest.mark.parametrize(
    ("scores", "right"),
    [
        ({"prompt": 0.1, "peft": 0.4, "full": 0.9, "data": 0.5}, "full"),
        ({"prompt": 0.1, "peft": 0.9, "full": 0.9, "data": 0.9}, "peft"),
        ({"prompt": 0.1, "rag": 0.5, "peft": 0.1, "peft+rag": 0.5, "full": 0.1, "data": 0.1}, "rag"),
        ({"prompt": 0.1, "peft": 0.2, "full": 0.2, "data": 0.8}, "data"),
        ({"prompt": 0.0, "peft": 0.05, "full": 0.0, "data": 0.05}, "base"),
    ],
)
def test_the_truth_is_the_cheapest_within_noise_of_the_best(script, scores, right):
    answers = {option: (np.arange(64) < 64 * score).astype(float) for option, score in scores.items()}
    assert script("advisor").truth(answers, floor=0.0) == right


def test_a_case_waits_for_all_outcomes_and_the_evidence(script, tmp_path):
    lacking = script("advisor").lacking
    assert lacking("huts", tmp_path) == ("outcomes", "evidence")
    options = {"prompt": {}, "rag": {}, "peft+rag": {}, "peft": {}, "data": {}}
    for kind, content in (("outcomes", {"options": options}), ("evidence", {})):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "huts.json").write_text(json.dumps(content))
    assert lacking("huts", tmp_path) == ("outcomes",)
    (tmp_path / "outcomes" / "huts.json").write_text(json.dumps({"options": {**options, "full": {}}}))
    assert lacking("huts", tmp_path) == ()


def test_the_tables_list_cases_that_wait():
    none = {"agrees": 0, "cases": 0, "mean_regret": 0.0, "worst_regret": 0.0}
    waiting = [{"case": "by_heart", "aside": True, "lacks": ["outcomes", "evidence"]}]
    results = {"cases": [], "waiting": waiting, "summary": dict.fromkeys(("all", "seen", "aside", "aside_later"), none)}
    assert advisor(results)[-1] == ["by heart (aside)", *["–"] * 5, "not judged: no outcomes and no evidence yet"]
    assert advisor_summary(results)[-1] == ["not judged yet", "– of 1", "–", "–"]
    assert len(advisor_summary({**results, "waiting": []})) == 4


def test_confidence_stands_beside_agreement(script):
    advised = [(0.3, False), (0.36, True), (0.5, True), (1.0, True)]
    rows = [{"confidence": confidence, "agrees": agrees} for confidence, agrees in advised]
    found = script("advisor").confidences(rows)
    table = advisor_confidence({"summary": {"confidence": found}})
    assert table[1:] == [
        ["0 to 0.4", "2", "0.33", "1 (50 %)"],
        ["0.4 to 0.6", "1", "0.50", "1 (100 %)"],
        ["0.6 to 1", "1", "1.00", "1 (100 %)"],
        ["all", "4", "0.54", "3 (75 %)"],
    ]

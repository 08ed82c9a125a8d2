"""`halka advise`, the whole way on a tiny base; each probe by itself; what was stopped, left out, or cannot be used."""

from __future__ import annotations

import json
import math
import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import halka
from halka.advisor import commands as advised
from halka.advisor import opening, probing, sizing, verdict
from halka.advisor import pilot as learning
from halka.advisor import questions as asking
from halka.advisor import request as needs
from halka.advisor.conditions import CONDITIONS, conditioned
from halka.advisor.knowledge import knowledge
from halka.advisor.pilot import Plan, learnability
from halka.advisor.probes import strength
from halka.advisor.probing import probe
from halka.advisor.questions import Questions, token_losses
from halka.advisor.request import Need, keys, sample
from halka.advisor.verdict import advise_from
from halka.advisor.worth import usual_metric, worth
from halka.cli import main
from halka.data.examples import Example, Message
from halka.data.tokens import encode, encode_prompt
from halka.estimating.devices import Device
from halka.estimating.hardware import Hardware
from halka.rag.answer import Answerer
from halka.rag.passages import Passage
from halka.rag.prompt import prompted
from halka.util.errors import TrainingError
from tiny import tiny
from tokenizers_for_tests import chatml_tokenizer

COLOURS = ("red", "green", "blue")


def example(number: int) -> Example:
    asked = Message("user", f"Item {number}?")
    return Example((asked, Message("assistant", COLOURS[number % 3])), where=f"data:{number}")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tokenizer = chatml_tokenizer()
    tiny(vocab_size=len(tokenizer), max_position_embeddings=512).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def questions(base) -> Questions:
    model = halka.adapt(*halka.load_base(str(base), dtype="float32"))
    return Questions(model, tuple(map(example, range(24))), tuple(map(example, range(24, 33))), "accuracy", 4)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(learning, "LEAST_STEPS", 3)
    for module in (probing, sizing):
        monkeypatch.setattr(module, "PLANS", learning.PLANS[:3])


def passage(text: str) -> Passage:
    return Passage("a.md", 0, text, 0, len(text), None, "")


def ran(words: list[str]) -> Any:
    """The exit code of a command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["halka", *words])
        with pytest.raises(SystemExit) as ended:
            main()
    return ended.value.code


def need(base: Path, **changes) -> Need:
    made = Need(str(base), tuple(map(example, range(20))), tuple(map(example, range(20, 28))), None, 4, dtype="float32")
    return replace(made, **changes)


# ── how it is asked ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_condition_adds_examples_before_and_passages_within(questions):
    one = Example((Message("system", "Be brief."), *example(7).messages), ("green", "Green"), "here")
    both = conditioned(questions.model, one, [example(1), example(2)], lambda asked: [passage(f"About {asked}")])
    assert [message.role for message in both.messages] == ["system", *("user", "assistant") * 3]
    assert "About Item 1?" in both.messages[1].content
    assert "About Item 7?" in both.messages[-2].content
    assert both.messages[2].content == "green"
    assert both.references == ("green", "Green")
    assert conditioned(questions.model, one) is not None
    assert conditioned(questions.model, one).messages == one.messages


def test_a_base_without_a_chat_template_reads_examples_as_one_text(questions):
    questions.model.tokenizer.chat_template = None
    asked = conditioned(questions.model, example(7), [example(1), example(2)])
    assert [message.role for message in asked.messages] == ["user", "assistant"]
    assert asked.messages[0].content == "Item 1?\ngreen\n\nItem 2?\nblue\n\nItem 7?\n"
    assert encode(asked, questions.model.tokenizer).labels > 0


def test_no_more_examples_than_the_context_holds(questions):
    long = replace(questions, train=(Example((Message("user", "long " * 150), Message("assistant", "red"))),) * 4)
    fits = len(encode_prompt(long.put(example(30), "examples"), questions.model.tokenizer))
    assert fits + long.max_new_tokens <= 512
    assert len(long.put(example(30), "examples").messages) in (2, 4, 6)


def test_no_more_passages_than_the_context_holds(questions):
    found = [passage(f"long {number} " * 60) for number in range(9)]
    many = replace(questions, find=lambda asked: found)
    for condition in ("documents", "both"):
        asked = many.put(example(30), condition)
        assert many.fits(asked)
        assert "[1]" in asked.messages[-2].content
        assert "[9]" not in asked.messages[-2].content


def test_held_out_examples_over_the_context_are_left_out_and_told(base, tmp_path):
    long = Example((Message("user", "long " * 600), Message("assistant", "red")), where="data:99")
    given = need(base, held_out=(*map(example, range(20, 24)), long))
    found = probe(given, tmp_path, minutes=0.01, skip=("fit", "learnability"))
    assert found.subject.held_out == 4
    assert found.missing["examples"].startswith("1 of 5 examples cannot be used with this base, the first: data:99")
    with pytest.raises(ValueError, match="none of 1 examples can be used"):
        probe(replace(given, held_out=(long,)), tmp_path, minutes=0.01)


def test_token_losses_are_those_of_the_whole_logits(questions):
    asked = [questions.put(each, "examples") for each in questions.held_out[:3]]
    for each, (ids, losses) in zip(asked, questions.losses(None, asked), strict=True):
        tokens = encode(each, questions.model.tokenizer)
        start = len(encode_prompt(each, questions.model.tokenizer))
        with torch.no_grad():
            logits = questions.model.base(torch.tensor([tokens.ids])).logits[0]
        own = [place for place in range(start, len(tokens.ids)) if tokens.loss[place]]
        assert ids == [tokens.ids[place] for place in own]
        slow = F.cross_entropy(logits[[place - 1 for place in own]], torch.tensor(ids), reduction="none")
        np.testing.assert_allclose(losses, slow.numpy(), atol=1e-4)
    assert token_losses(questions.model, None, []) == []


# ── the probes ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_strength_is_told_beside_what_needs_no_model(questions):
    found = strength(questions)
    assert found.trivial["majority"].value == pytest.approx(1 / 3)
    assert found.trivial["copy"].value == 0
    told = [questions.answer_ids(each) for each in questions.held_out]  # with what ends an answer, as losses have it
    seen = Counter(token for each in questions.train for token in questions.answer_ids(each))
    total = seen.total() + len(questions.model.tokenizer)
    losses = [-math.log((seen[token] + 1) / total) for each in told for token in each]
    assert found.unigram == pytest.approx(sum(losses) / len(losses))
    assert all(each[-1] == told[0][-1] for each in told)
    assert set(found.losses) == set(found.scores) == {"closed", "examples"}
    assert len(found.values["closed"]) == len(questions.held_out)


def test_documents_lower_the_loss_of_what_only_they_hold(questions, monkeypatch):
    monkeypatch.setattr(
        Questions,
        "losses",
        lambda self, name, asked: [
            (
                [*self.answer_ids(each)],
                np.full(len(self.answer_ids(each)), 0.5 if "Passage" in each.messages[-2].content else 2.0),
            )
            for each in asked
        ],
    )
    alone = knowledge(questions)
    assert set(alone.losses) == {"closed", "examples"}
    assert alone.found is None
    found = knowledge(replace(questions, find=lambda asked: [passage(f"Passage: {asked} is green")]))
    assert set(found.losses) == set(CONDITIONS)
    assert found.losses["closed"]["all"].value == 2.0
    assert found.losses["both"]["all"].value == 0.5
    assert found.found == pytest.approx(1 / 3)
    assert found.tokens["all"] == found.tokens["form"] + found.tokens.get("content", 0)


def test_the_pilot_learns_what_can_be_learned(questions, monkeypatch):
    """One answer to everything: any adapter of any size learns it, and none is left in the model."""
    same = Example((Message("user", "What?"), Message("assistant", "red red")))
    alike = replace(questions, train=(same,) * 12, held_out=(same,) * 4)
    monkeypatch.setattr(learning, "LEAST_STEPS", 48)
    plans = (Plan("LoRA", "lora", {"rank": 4}, rate=20), Plan("part", "lora", {"rank": 4}, rate=20, share=0.5))
    found = learnability(alike, 0.0, batch_size=4, plans=plans)
    assert [each.name for each in found.trials] == ["LoRA", "part"]
    assert [each.examples for each in found.trials] == [12, 6]
    for each in found.trials:
        assert each.steps == 48
        assert each.curve[-1][1] < each.curve[0][1] - 0.5
        assert each.loss.value == pytest.approx(min(loss for _, loss in each.curve), rel=0.05)
        assert each.score is not None
    assert found.more is not None
    assert questions.model.adapters == {}


def test_what_was_not_seen_once_tells_nothing_of_more_data(questions, monkeypatch):
    monkeypatch.setattr(learning, "MOST_STEPS", 3)
    plans = (Plan("LoRA", "lora", {"rank": 2}), Plan("part", "lora", {"rank": 2}, share=0.5))
    assert learnability(questions, 0.0, batch_size=8, plans=plans).more is not None  # 24 examples, 12 of them, in 3 × 8
    assert learnability(questions, 0.0, batch_size=4, plans=plans).more is None
    monkeypatch.setattr(learning, "BATCH_TOKENS", 40)  # two or three examples
    found = learnability(questions, 0.0, batch_size=8, plans=plans)
    assert found.more is None
    assert {each.seen for each in found.trials} <= {3, 4, 5, 6, 7, 8, 9}


def test_the_curve_goes_on_from_what_was_seen_to_what_there_is(questions, monkeypatch):
    monkeypatch.setattr(learning, "MOST_STEPS", 3)
    parts = (0.25, 0.5, 1.0)
    plans = tuple(Plan(f"LoRA {share}", "lora", {"rank": 2}, share=share) for share in parts)
    all_seen = learnability(questions, 0.0, batch_size=8, plans=plans)
    assert [each.seen for each in all_seen.trials] == [6, 12, 24]
    assert (all_seen.examples, all_seen.owned) == (24, None)
    many = learnability(questions, 0.0, batch_size=4, plans=plans, owned=1000)  # the whole is not seen whole
    assert [(each.examples, each.seen) for each in many.trials] == [(6, 6), (12, 12), (24, 12)]
    assert many.examples == 1000
    assert many.owned is not None
    assert many.more is not None
    assert many.more.value <= many.owned.value


def test_trials_that_fail_are_left_out(questions):
    plans = (
        Plan("LoRA", "lora", {"rank": 4}),
        Plan("too fast", "lora", {"rank": 4}, rate=1e30),
        Plan("nowhere", "lora", {"targets": "experts"}),
    )
    found = learnability(questions, 0.0, batch_size=4, plans=plans)
    assert [each.name for each in found.trials] == ["LoRA"]
    with pytest.raises(TrainingError):
        learnability(questions, 0.0, batch_size=4, plans=plans[1:])
    assert questions.model.adapters == {}


@pytest.mark.parametrize(
    ("metric", "texts", "references", "values"),
    [
        ("accuracy", ["Red.", "blue"], [["red"], ["red"]], (1.0, 0.0)),
        ("exact_match", ["X-1 [2]", "X-1"], [["X-1"], ["X-1"]], (0.0, 1.0)),
        (
            "exact_match",
            ["[3]", '{"ids": [12]}', "see arr[0]"],
            [["[3]"], ['{"ids": [12]}'], ["see arr[0]"]],
            (1.0,) * 3,
        ),
        ("chrf", ["a cat", ""], [["a cat"], ["a cat"]], (1.0, 0.0)),
        ("json_field_f1:slots", ['{"slots": {"a": "1"}}'], [['{"slots": {"a": "1"}}']], (1.0,)),
    ],
)
def test_answers_are_worth_a_share_of_the_metrics_range(metric, texts, references, values):
    assert worth(metric, texts, references) == pytest.approx(values)


@pytest.mark.parametrize(
    ("said", "accepted", "value"),
    [
        ("X-1 [2]", "X-1", 1.0),
        ("It is X-1 [1][2].", "It is X-1.", 1.0),
        ("It is X-1. [1] [2]", "It is X-1.", 1.0),
        ("row [2] of 9", "row of 9", 0.0),
        ("see arr[0]", "see arr[0]", 1.0),
        ('{"ids": [12]}', '{"ids": [12]}', 1.0),
    ],
)
def test_where_passages_were_shown_a_citation_at_the_end_is_no_part_of_the_answer(said, accepted, value):
    assert worth("exact_match", [said], [[accepted]], passages=True) == (value,)


def test_answers_are_made_in_batches_of_so_many_tokens(questions, monkeypatch):
    asked = [*questions.held_out, *(Example((Message("user", "long " * count),)) for count in (40, 50, 60))]
    alone = [questions.answers(None, [each])[0] for each in asked]
    monkeypatch.setattr(asking, "BATCH_TOKENS", 150)
    sizes: list[int] = []
    made = asking.generate

    def counted(model, names, rows, **options):
        sizes.append(len(rows))
        assert (
            len(rows) == 1
            or len(rows) * max(len(encode_prompt(each, model.tokenizer)) + questions.max_new_tokens for each in rows)
            <= 150
        )
        return made(model, names, rows, **options)

    monkeypatch.setattr(asking, "generate", counted)
    assert questions.answers(None, asked) == alone
    assert max(sizes) > 1
    assert sizes.count(1) >= 3


@pytest.mark.parametrize(
    ("answers", "metric"),
    [
        (["red", "blue", "red"] * 9, "accuracy"),
        (['{"a": 1}', '{"a": 2}'], "exact_match"),
        ([f"word{n}" for n in range(9)], "squad_exact"),
        ([f"a whole sentence about the number {n}" for n in range(9)], "token_f1"),
    ],
)
def test_the_metric_follows_from_how_answers_look(answers, metric):
    assert usual_metric(answers) == metric


# ── all of it ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_done_is_not_done_again(base, tmp_path, monkeypatch):
    said: list[str] = []
    long = Example((Message("user", "long " * 600), Message("assistant", "red")), where="data:99")
    (tmp_path / "blank.md").write_text(" \n")
    asked = need(base, train=(*map(example, range(19)), long), documents=(str(tmp_path / "blank.md"),))
    folder = tmp_path / "out"
    first = probe(asked, folder, minutes=0.01, progress=lambda name, doing: said.append(name))
    assert {"fit", "cleanliness", "strength", "knowledge", "learnability"} <= {*said}
    assert {*first.missing} == {"examples", "documents"}
    assert not (tmp_path / "pilot").exists()

    def never(*_: object, **__: object) -> None:
        raise AssertionError("it is there")

    for name in ("strength", "knowledge", "learnability", "fit", "cleanliness", "opened"):
        monkeypatch.setattr(probing, name, never)
    assert probe(asked, folder, minutes=0.01) == first
    with pytest.raises(AssertionError, match="it is there"):  # other data are another question
        probe(need(base), folder, minutes=0.01)


def test_hardware_is_looked_at_anew_when_the_length_is_known(base, tmp_path):
    """By its characters text of another script is short; by its tokens it is not."""
    told = tuple(
        Example((Message("user", f"हिंदी में {number} " * 6), Message("assistant", COLOURS[number % 3])))
        for number in range(20)
    )
    asked, rest = need(base, train=told), ("strength", "learnability")
    guessed = probe(asked, tmp_path, minutes=0.01, skip=(*rest, "knowledge"))
    found = probe(asked, tmp_path, minutes=0.01, skip=rest)
    assert guessed.fit is not None
    assert found.fit is not None
    assert guessed.fit.length == guessed.subject.length < found.fit.length == found.subject.length
    assert probe(asked, tmp_path, minutes=0.01, skip=(*rest, "knowledge")).fit == found.fit


def test_another_pilot_has_its_time_and_takes_the_place_of_what_an_earlier_one_left(base, tmp_path, monkeypatch):
    probe(need(base), tmp_path, minutes=10, skip=("fit", "learnability"))
    plan = json.loads((tmp_path / "plan.json").read_text())
    plan["spent"]["learnability"] = 1e6
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    (tmp_path / "pilot" / "of-another").mkdir(parents=True)
    given: list[float] = []

    def stopped(questions, seconds, **how):
        given.append(seconds)
        raise TrainingError("stopped")

    monkeypatch.setattr(probing, "learnability", stopped)
    found = probe(need(base, full=True), tmp_path, minutes=10, skip=("fit",))
    assert found.missing["learnability"] == "training failed: stopped"
    assert given[0] > 400
    assert not (tmp_path / "pilot" / "of-another").exists()


def taking(monkeypatch, **told: int) -> None:
    """What each method takes, with a process of nothing; half of it with checkpointing."""

    def rehearsed(config, method, setup, *, gpu):
        total = told.get(method.name, 0) // (2 if setup.checkpointing else 1)
        return SimpleNamespace(memory=SimpleNamespace(total=total))

    monkeypatch.setattr(sizing, "rehearse", rehearsed)
    monkeypatch.setattr(sizing, "PROCESS", 0)


def test_a_pilot_leaves_memory_to_others(base, monkeypatch):
    config, asked = opening.decoder_config(str(base)), need(base, full=True)
    taking(monkeypatch, lora=300, full=800)
    rooms = []
    for free in (2000, 1000, 300):
        monkeypatch.setattr(sizing, "available", lambda place=None, free=free: free)
        rooms.append(sizing.pilot_room(asked, config, [64, 200]))
    assert [each.checkpointing for each in rooms] == [False, True, True]
    assert [each.without_full is None for each in rooms] == [True, True, False]
    assert "are free here" in rooms[-1].without_full
    assert sizing.pilot_room(need(base), config, [64]).without_full is None


def test_a_pilot_that_does_not_fit_is_told_until_it_does(base, tmp_path, monkeypatch):
    taking(monkeypatch, lora=10**15)
    found = probe(need(base), tmp_path, minutes=0.01, skip=("fit", "strength"))
    assert found.knowledge is not None
    assert found.learnability is None
    assert found.missing["learnability"].startswith("the pilot takes 500 TB where ")
    taking(monkeypatch, lora=1000)
    assert probe(need(base), tmp_path, minutes=0.01, skip=("fit", "strength")).learnability is not None


def test_the_room_is_that_of_the_device_that_the_base_is_loaded_to(base, monkeypatch):
    config, gpus = opening.decoder_config(str(base)), []

    def rehearsed(config, method, setup, *, gpu):
        gpus.append(gpu)
        return SimpleNamespace(memory=SimpleNamespace(total=7 * 10**9))

    def free(place=None):
        return (8 if place is not None and place.type == "cuda" else 64) * 10**9

    monkeypatch.setattr(sizing, "rehearse", rehearsed)
    monkeypatch.setattr(sizing, "available", free)
    assert not sizing.pilot_room(need(base), config, [64]).checkpointing
    assert sizing.base_lacks(15 * 10**9) is None
    monkeypatch.setattr(sizing, "place_of", lambda: torch.device("cuda"))
    assert sizing.pilot_room(need(base), config, [64]).checkpointing
    assert sizing.base_lacks(15 * 10**9) == "the base takes 15.0 GB where 8.0 GB are free here"
    assert {*gpus} == {False, True}


def test_memory_that_runs_out_within_a_probe_is_told(base, tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore.")

    monkeypatch.setattr(probing, "knowledge", full)
    found = probe(need(base), tmp_path, minutes=0.01, skip=("fit", "learnability"))
    assert found.strength is not None
    assert found.missing["knowledge"] == "CUDA out of memory. Tried to allocate 2.00 GiB."
    monkeypatch.setattr(opening, "load_base", full)
    other = probe(need(base, max_new_tokens=5), tmp_path, minutes=0.01, skip=("fit",))
    assert "CUDA out of memory" in other.missing["strength"]


def test_full_fine_tuning_that_does_not_fit_is_told_each_time(base, tmp_path, monkeypatch):
    taking(monkeypatch, full=10**15)
    skip = ("fit", "strength", "knowledge")
    found = probe(need(base, full=True), tmp_path, minutes=0.01, skip=skip)
    assert found.learnability is not None
    assert "full" not in {each.method for each in found.learnability.trials}
    assert "are free here" in found.missing["full fine-tuning"]
    taking(monkeypatch)
    assert probe(need(base, full=True), tmp_path, minutes=0.01, skip=skip) == found
    assert "full fine-tuning" not in probe(need(base), tmp_path, minutes=0.01, skip=(*skip, "learnability")).missing


def test_only_what_a_change_touches_is_done_anew(base, tmp_path, monkeypatch):
    probe(need(base), tmp_path, minutes=0.01)
    done: list[str] = []
    probe(need(base, tasks=9), tmp_path, minutes=0.01, progress=lambda name, doing: done.append(name))
    assert {*done} == {"fit"}
    weights = next(base.glob("*.safetensors"))
    before = weights.stat()
    import os

    try:
        os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns + 1))  # as if other weights were put there
        probe(need(base, tasks=9), tmp_path, minutes=0.01, progress=lambda name, doing: done.append(name))
    finally:
        os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert {"strength", "knowledge", "learnability"} <= {*done}


def test_the_same_is_asked_where_all_that_it_depends_on_is_the_same(base, tmp_path, monkeypatch):
    for name in ("one", "other"):
        (tmp_path / f"{name}.md").write_text(f"{name} text")

    def asked(machine: object = "machine", **changes: Any) -> dict[str, str]:
        given = need(base, **changes)
        return keys(given, sample(given), 60.0, None, machine, tmp_path / "out")

    def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
        return {name for name in before if before[name] != after[name]}

    one, other = (asked(documents=(str(tmp_path / f"{name}.md"),)) for name in ("one", "other"))
    assert changed(one, other) == {"strength", "knowledge", "learnability", "question"}
    assert changed(asked(), asked("another machine")) == {"fit"}
    assert changed(asked(device="here"), asked("another machine", device="here")) == {"fit"}
    assert changed(asked(device="t4"), asked("another machine", device="t4")) == set()
    before = asked()
    monkeypatch.setattr(needs, "SCHEMA", needs.SCHEMA + 1)
    assert changed(before, asked()) == {*before}


def test_another_gpu_is_looked_at_anew(base, tmp_path, monkeypatch):
    skip = ("cleanliness", "strength", "knowledge", "learnability")
    first = probe(need(base), tmp_path, minutes=0.01, skip=skip[::-1])
    assert [*first.missing] == [*skip[::-1]]  # in the order that was given
    monkeypatch.setattr(probing, "gpu_here", lambda: Hardware("RTX 9", True, 9 * 10**9, None))
    done: list[str] = []
    probe(need(base), tmp_path, minutes=0.01, skip=skip, progress=lambda name, doing: done.append(name))
    assert {*done} == {"fit"}


def test_a_folder_of_something_else_is_left_alone(base, tmp_path):
    (tmp_path / "pilot").mkdir()
    (tmp_path / "pilot" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="holds something, and no advice"):
        probe(need(base), tmp_path, minutes=0.01)
    assert (tmp_path / "pilot" / "thesis.txt").read_text() == "years of work"


def test_a_file_that_was_spoilt_counts_as_not_there(base, tmp_path):
    skip = ("learnability", "knowledge")
    first = probe(need(base), tmp_path, minutes=0.01, skip=skip)
    (tmp_path / "strength.json").write_text("")
    (tmp_path / "cleanliness.json").write_text("[]")
    again = probe(need(base), tmp_path, minutes=0.01, skip=skip)
    assert (again.strength, again.cleanliness) == (first.strength, first.cleanliness)
    told = json.loads((tmp_path / "cleanliness.json").read_text())
    told["found"]["unheard"] = 1  # as another version of ours might write it
    (tmp_path / "cleanliness.json").write_text(json.dumps(told))
    assert probe(need(base), tmp_path, minutes=0.01, skip=skip).cleanliness == first.cleanliness


def test_sorted_files_are_mixed_and_what_is_held_out_is_not_learned(base):
    ordered = tuple(sorted(map(example, range(600)), key=lambda each: each.answers))
    found = sample(need(base, train=ordered, held_out=ordered[::2]))
    assert len({each.answers for each in found.held_out}) == 3
    assert len({each.answers for each in found.train[:12]}) > 1
    assert {each.where for each in found.train}.isdisjoint(each.where for each in found.held_out)
    assert (len(found.train), len(found.held_out)) == (512, 48)


def test_rows_that_a_base_cannot_read_are_left_out_and_told(base, tmp_path, monkeypatch):
    loaded = halka.load_base(str(base), dtype="float32")
    loaded[1].chat_template = None  # then a system message cannot be read
    monkeypatch.setattr(opening, "load_base", lambda *_, **__: loaded)
    odd = Example((Message("system", "Be brief."), *example(99).messages), where="data:99")
    given = need(base, train=(*map(example, range(20)), odd))
    found = probe(given, tmp_path, minutes=0.01, skip=("fit", "learnability"))
    assert found.strength is not None
    assert "data:99" in found.missing["examples"]


def test_long_examples_do_not_end_the_advice(base, tmp_path):
    long = tuple(Example((Message("user", f"long {n} " * 300), Message("assistant", "red"))) for n in range(4))
    found = probe(need(base, train=(*map(example, range(8)), *long)), tmp_path, minutes=0.01)
    assert found.subject.length <= 512
    assert found.fit is not None
    assert found.learnability is not None


@pytest.mark.filterwarnings("ignore:of .* are cut to 512 tokens")
def test_long_answers_with_passages_do_not_end_the_advice(base, tmp_path, monkeypatch):
    measured, told = [], []

    def processor(dtype):
        measured.append(dtype)
        return Device("here", {dtype: 1e9}, 1e9)

    monkeypatch.setattr("halka.estimating.hardware.processor_here", processor)
    (tmp_path / "items.md").write_text("Item 3 is red. Item 4 is green.")
    long = tuple(Example((Message("user", f"Item {n}?"), Message("assistant", f"red {n} " * 300))) for n in range(8))
    given = need(base, train=(*map(example, range(8)), *long), documents=(str(tmp_path / "items.md"),))
    found = probe(given, tmp_path / "out", minutes=0.01, progress=lambda name, doing: told.append((name, doing)))
    assert found.subject.length == 512
    assert found.fit is not None
    assert found.fit.shown
    assert found.learnability is not None
    assert measured == ["float32"]
    fits = [doing for name, doing in told if name == "fit"]
    assert any(", a batch of " in each for each in fits)
    assert "lora, with passages" in fits


def test_a_row_in_which_nobody_asks_is_left_out_and_told(base, tmp_path):
    silent = Example((Message("system", "Name a colour."), Message("assistant", "red")), where="data:99")
    given = need(base, train=(*map(example, range(20)), silent))
    found = probe(given, tmp_path, minutes=0.01, skip=("fit", "learnability"))
    assert found.strength is not None
    told = "1 of 21 examples cannot be used with this base, the first: data:99: no message by the user"
    assert found.missing["examples"].startswith(told)
    with pytest.raises(ValueError, match=r"none of 2 examples can be used\. data:99: no message by the user"):
        probe(replace(given, train=(silent, silent)), tmp_path, minutes=0.01)


def test_documents_that_hold_nothing_are_told(base, tmp_path):
    (tmp_path / "blank.md").write_text(" \n")
    given = need(base, documents=(str(tmp_path / "blank.md"),))
    found = probe(given, tmp_path / "out", minutes=0.01, skip=("fit", "learnability"))
    assert found.knowledge is not None
    assert found.knowledge.scores == {}
    assert "none that can be read" in found.missing["documents"]


def test_a_pilot_that_was_stopped_goes_on(base, tmp_path, monkeypatch):
    class Stopped(Exception):
        pass

    def stop(name: str, doing: str) -> None:
        if "step 2 of" in doing:
            raise Stopped

    with pytest.raises(Stopped):
        probe(need(base), tmp_path, minutes=0.01, skip=("fit",), progress=stop)
    assert (tmp_path / "strength.json").exists()
    assert list(tmp_path.glob("pilot/*/steps.json"))
    done: list[str] = []
    found = probe(need(base), tmp_path, minutes=0.01, skip=("fit",), progress=lambda name, doing: done.append(doing))
    assert not any("step 1 of" in doing for doing in done)
    assert found.learnability is not None
    for each in found.learnability.trials:
        steps = [step for step, _ in each.curve]
        every = max(1, each.steps // 6)
        assert steps == sorted({*range(every, each.steps + 1, every), each.steps})


def test_ten_examples_no_test_split_no_documents(base, tmp_path):
    found = probe(need(base, train=tuple(map(example, range(10))), held_out=()), tmp_path, minutes=0.01, skip=("fit",))
    assert found.subject.split_off
    assert found.subject.train + found.subject.held_out == 10
    advice = advise_from(found)
    assert advice.confidence < 0.7
    assert any("held-out" in each for each in advice.missing)
    assert any("held out" in each for each in advice.missing)
    assert any("--documents" in each for each in advice.change)
    assert any(each.startswith("no documents") for each in advice.missing)


def test_a_base_that_does_not_fit_is_told(base, tmp_path, monkeypatch):
    monkeypatch.setattr(sizing, "available", lambda place=None: 1000)
    monkeypatch.setattr(opening, "load_base", lambda *_, **__: pytest.fail("it would not fit"))
    found = probe(need(base, device="t4"), tmp_path)
    assert found.strength is found.knowledge is found.learnability is None
    assert "free here" in found.missing["strength"]
    assert found.fit is not None
    assert found.fit.device == "t4"
    assert advise_from(found).sure == "low"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": ()}, "0 examples tell nothing"),
        ({"train": (example(1), Example((Message("user", "What?"),), (), "data:9"))}, "data:9 has no answer"),
        ({"train": (example(1),) * 5, "held_out": ()}, "all examples ask what is held out"),
        ({"full": True, "quantize": "int8"}, "leave one of both out"),
        ({"metric": "fluency"}, "unknown metric 'fluency'"),
        ({"device": "abacus"}, "abacus"),
        ({"metric": "json_field_f1:x"}, "json_field_f1:x, item 0"),
    ],
)
def test_what_cannot_be_used_is_named_before_anything_is_loaded(base, tmp_path, monkeypatch, changes, message):
    monkeypatch.setattr(opening, "load_base", lambda *_, **__: pytest.fail("it was loaded"))
    with pytest.raises(ValueError, match=message):
        probe(need(base, **changes), tmp_path, minutes=0.01)


@pytest.mark.parametrize(
    ("model_type", "architecture"),
    [
        *(("t5", "T5ForConditionalGeneration"), ("bert", "BertForMaskedLM"), ("bert", "BertModel")),
        ("llama", "LlamaForSequenceClassification"),
    ],
)
def test_a_base_that_is_no_decoder_is_refused(tmp_path, model_type, architecture):
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, "architectures": [architecture]}))
    with pytest.raises(
        ValueError, match="base does not make texts from left to right: the advisor asks language models"
    ):
        probe(need(folder), tmp_path / "out")


@pytest.mark.parametrize(("given", "message"), [({"skip": ("luck",)}, "no probe luck"), ({"minutes": 0}, "minutes")])
def test_settings_that_make_no_sense(base, tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        probe(need(base), tmp_path, **given)


def test_the_command_to_its_report(base, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = [{"question": f"Item {number}?", "answer": COLOURS[number % 3]} for number in range(24)]
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("docs").mkdir()
    Path("docs/items.md").write_text("Item 3 is red. Item 4 is green.")
    asked = ["advise", "--base", str(base), "--data", "train.jsonl", "--documents", "docs", "--dtype", "float32"]
    asked += ["--minutes", "0.01", "--max-new-tokens", "4", "--tasks", "5", "-o", "out"]
    assert ran([*asked, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["evidence"]["subject"]["documents"] == 1
    assert told["evidence"]["knowledge"]["losses"].keys() == {*CONDITIONS}
    (shown,) = told["evidence"]["fit"]["shown"]  # with passages prompts are longer
    (lora,) = (each for each in told["evidence"]["fit"]["options"] if each["method"] == "lora")
    assert shown["method"] == "lora"
    assert shown["memory"] > lora["memory"]
    assert told["advice"]["choice"] in ("prompt", "rag", "peft", "peft+rag", "data", "base")
    assert json.loads(Path("out/advice.json").read_text()) == {key: told[key] for key in ("advice", "evidence")}
    assert Path(told["report"]).read_text().startswith("<!doctype html>")
    left = {"prompted.jsonl", "prompted-with-passages.jsonl", "train.jsonl", "held-out.jsonl"}
    assert left <= {path.name for path in Path("out").glob("*.jsonl")}
    assert len(Path("out/prompted.jsonl").read_text().splitlines()) == told["evidence"]["subject"]["held_out"]
    assert ran(asked) == 0
    shown = capsys.readouterr().out
    assert told["advice"]["title"].lower() in shown.lower()


def test_the_advisors_own_folder_is_none_of_the_documents(base, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("train.jsonl").write_text("".join(f'{{"question": "Item {n}?", "answer": "{n}"}}\n' for n in range(24)))
    Path("items.md").write_text("Item 3 is red.")
    Path(".git").mkdir()
    Path(".git/notes.md").write_text("hidden")
    asked = ["advise", "--base", str(base), "--data", "train.jsonl", "--documents", ".", "--dtype", "float32"]
    asked += ["--minutes", "0.01", "--max-new-tokens", "4", "--skip", "fit", "--skip", "learnability", "--json"]
    assert ran(asked) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["evidence"]["subject"]["documents"] == 1
    monkeypatch.setattr(opening, "load_base", lambda *_, **__: pytest.fail("nothing is new"))
    assert ran(asked) == 0
    assert json.loads(capsys.readouterr().out) == first


@pytest.mark.parametrize("choice", ["prompt", "peft", "peft+rag"])
def test_what_is_advised_can_be_run(base, tmp_path, monkeypatch, capsys, choice):
    """Of a task without test examples, with answers that no document has word by word, and system messages."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(verdict, "chosen", lambda *_: (choice, "best"))
    monkeypatch.setattr(advised, "FARTHER", 1)
    monkeypatch.setattr(probing, "PLANS", learning.PLANS[:2])
    for name, numbers in (("train", range(24)), ("validation", range(24, 30))):
        asked = [[Message("system", "Be brief."), *example(number).messages] for number in numbers]
        Path(f"{name}.jsonl").write_text(
            "".join(json.dumps({"messages": list(map(asdict, each))}) + "\n" for each in asked)
        )
    Path("mine.yaml").write_text(
        "name: mine\ntrain: train.jsonl\nvalidation: validation.jsonl\nmetrics: [exact_match]\n"
    )
    Path("docs").mkdir()
    Path("docs/items.md").write_text("Item 3 is like blood. Item 4 is like grass.")
    words = ["advise", "--base", str(base), "--task", "mine.yaml", "--dtype", "float32", "--minutes", "0.01"]
    documents = ["--documents", "docs"] if choice == "peft+rag" else []
    assert ran([*words, "--max-new-tokens", "4", "--skip", "fit", "-o", "out", "--json", *documents]) == 0
    told = json.loads(capsys.readouterr().out)
    rows = Path("out/train-with-passages.jsonl")
    shown = list(map(json.loads, rows.read_text().splitlines())) if choice == "peft+rag" else []
    assert rows.exists() == (len(shown) == 24)
    for each in shown:
        assert [message["role"] for message in each["messages"]] == ["system", "user", "assistant"]
        assert "Item 3 is like blood" in each["messages"][1]["content"]
    sent: list[str] = []

    def answer(self: Answerer, question: str, scope: object) -> Iterator[str]:
        sent.append(prompted(question, self.passages_for(question, scope)))  # type: ignore[arg-type]
        yield from stream(self, question, scope)  # type: ignore[misc,arg-type]

    stream = Answerer.stream
    monkeypatch.setattr(Answerer, "stream", answer)
    assert told["advice"]["commands"]
    for command in told["advice"]["commands"]:
        words = shlex.split(command.replace("your question", "Item 0?"))
        assert ran(words[1:]) == 0, f"{command}\n{capsys.readouterr().err}"
    assert sent == [each["messages"][1]["content"] for each in shown[:1]]  # asked as it was trained


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--task NAME or by --data FILE"),
        (["--data", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--data", "train.jsonl", "--documents", "nowhere"], "--documents: there is no nowhere"),
        (["--data", "train.jsonl", "--gpu-memory", "much"], "--gpu-memory"),
        (["--task", "support", "--validation", "train.jsonl"], "its own validation examples"),
    ],
)
def test_bad_words_are_answered_in_a_line(base, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    Path("train.jsonl").write_text('{"question": "a?", "answer": "b"}\n' * 3)
    assert ran(["advise", "--base", str(base), *words]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not Path("advice/plan.json").exists()


def test_full_fine_tuning_is_tried_where_it_is_asked_for(base, tmp_path):
    found = probe(need(base, full=True), tmp_path, minutes=0.01, skip=("fit", "strength", "knowledge"))
    assert found.learnability is not None
    assert [each.method for each in found.learnability.trials if each.name == "full fine-tuning"] == ["full"]
    assert "full" in {each.choice for each in advise_from(found).prospects}

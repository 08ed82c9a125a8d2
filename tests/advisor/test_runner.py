"""`halka advise`, the whole way on a tiny base; each probe by itself; what was stopped, left out, or cannot be used."""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.nn.modules.module import register_module_forward_pre_hook

import halka
from halka.advisor import Evidence, Request, advise_from, probe, words
from halka.advisor.advice import commands
from halka.advisor.advice_folder import SCHEMA, result_keys
from halka.advisor.budget import TRIALS, Budget, PilotConfig, TrialPlan
from halka.advisor.evidence import CONDITIONS
from halka.advisor.on_ray import probe_on
from halka.advisor.pilot import learnability
from halka.advisor.probed_base import ProbedBase, Progress, build_prompt, decoder_config, open_base, token_losses
from halka.advisor.probes import knowledge, strength
from halka.advisor.request import sample, usual_metric
from halka.advisor.resources import Available, Machine, base_too_large, pilot_room
from halka.advisor.statistics import answer_values
from halka.cli import main
from halka.data.examples import Example, Message
from halka.data.task import load_task
from halka.data.tokens import encode, encode_prompt
from halka.data.tools import ToolCall
from halka.estimating import Setup, dry_run
from halka.estimating.devices import Device
from halka.estimating.hardware import CONTEXT, PROCESS, Hardware
from halka.methods import build_method
from halka.rag.passages import Passage
from halka.util.errors import HalkaError, OutOfMemoryError, TrainingError
from halka.util.files import locked
from tiny import tiny
from tokenizers_for_tests import HERMES, THOUGHTS, chatml_tokenizer

COLOURS = ("red", "green", "blue")


def example(number: int) -> Example:
    asked = Message("user", f"Item {number}?")
    return Example((asked, Message("assistant", COLOURS[number % 3])), where=f"data:{number}")


QUICK = PilotConfig(TRIALS[:3], steps=3)


def save_base(folder: Path, **tokenizer_changes: Any) -> Path:
    tokenizer = chatml_tokenizer()
    for name, value in tokenizer_changes.items():
        setattr(tokenizer, name, value)
    tiny(vocab_size=len(tokenizer), num_hidden_layers=1, max_position_embeddings=512).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def probed(base) -> ProbedBase:
    model = halka.adapt(*halka.load_base(str(base), dtype="float32"))
    return ProbedBase(model, tuple(map(example, range(24))), tuple(map(example, range(24, 33))), "accuracy", 4)


def request_for(base: Path, **changes) -> Request:
    """Trained on a small GPU: nothing is timed, and the largest batch is soon found."""
    train, held_out = tuple(map(example, range(20))), tuple(map(example, range(20, 28)))
    return replace(Request(str(base), train, held_out, None, 4, dtype="float32", memory=CONTEXT + 10**8), **changes)


def run(request: Request, folder: Path, **options: Any) -> Evidence:
    """Without a hurry: the machine's clock stands still unless it is another."""
    machine = replace(options.pop("machine", Machine()), clock=options.pop("clock", lambda: 0.0))
    return probe(request, folder, **{"minutes": 0.01, "pilot": QUICK, "machine": machine, **options})


class Stopped(Exception):
    pass


def stages(request: Request, folder: Path, stop: str = "", **options: Any) -> set[str]:
    """What is done for a request, as far as the first `stop`."""
    done: set[str] = set()

    def progress(stage: str, text: str) -> None:
        done.add(stage)
        if stage == stop:
            raise Stopped

    with suppress(Stopped):
        run(request, folder, progress=progress, **options)
    return done


@pytest.fixture(scope="module")
def first(base, tmp_path_factory) -> tuple[Path, Evidence]:
    """An advice folder with all probes of `request_for(base)`, and the evidence."""
    folder = tmp_path_factory.mktemp("advised") / "advice"
    return folder, run(request_for(base), folder)


@pytest.fixture
def advised(first, tmp_path) -> tuple[Path, Evidence]:
    """A copy of it."""
    return Path(shutil.copytree(first[0], tmp_path / "advice")), replace(
        first[1], subject=replace(first[1].subject, out=str(tmp_path / "advice"))
    )


def passage(text: str) -> Passage:
    return Passage("a.md", 0, text, 0, len(text), None, "")


def ran(words: list[str]) -> Any:
    """The exit code of a command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["halka", *words])
        with pytest.raises(SystemExit) as ended:
            main()
    return ended.value.code


# ── how it is asked ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_condition_adds_examples_before_and_passages_within(probed):
    one = Example((Message("system", "Be brief."), *example(7).messages), ("green", "Green"), "here")
    both = build_prompt(probed.model, one, [example(1), example(2)], lambda asked: [passage(f"About {asked}")])
    assert [message.role for message in both.messages] == ["system", *("user", "assistant") * 3]
    assert "About Item 1?" in both.messages[1].content
    assert "About Item 7?" in both.messages[-2].content
    assert both.messages[2].content == "green"
    assert both.references == ("green", "Green")
    assert build_prompt(probed.model, one) is not None
    assert build_prompt(probed.model, one).messages == one.messages


def test_a_base_without_a_chat_template_reads_examples_as_one_text(probed):
    probed.model.tokenizer.chat_template = None
    asked = build_prompt(probed.model, example(7), [example(1), example(2)])
    assert [message.role for message in asked.messages] == ["user", "assistant"]
    assert asked.messages[0].content == "Item 1?\ngreen\n\nItem 2?\nblue\n\nItem 7?\n"
    assert encode(asked, probed.model.tokenizer).labels > 0


def test_no_more_examples_than_the_context_holds(probed):
    long = replace(probed, train=(Example((Message("user", "long " * 150), Message("assistant", "red"))),) * 4)
    fits = len(encode_prompt(long.prompt(example(30), "examples"), probed.model.tokenizer))
    assert fits + long.max_new_tokens <= 512
    assert len(long.prompt(example(30), "examples").messages) in (2, 4, 6)


def test_no_more_examples_than_leave_room_for_the_whole_answer(probed):
    """Though answers that are generated may be shorter."""
    long = Example((Message("user", "Which?"), Message("assistant", "red " * 100)))
    brief = replace(probed, max_new_tokens=1, train=(long,) * 4)
    fit, more = (build_prompt(probed.model, long, brief.train[:count]) for count in (1, 2))
    assert (brief.fits(fit), brief.fits(more)) == (True, False)
    assert brief.prompt(long, "examples") == fit
    assert len(encode_prompt(more, probed.model.tokenizer)) < 512 < len(encode(more, probed.model.tokenizer))


def test_no_more_passages_than_the_context_holds(probed):
    found = [passage(f"long {number} " * 60) for number in range(9)]
    many = replace(probed, retrieve=lambda asked: found)
    for condition in ("documents", "both"):
        asked = many.prompt(example(30), condition)
        assert many.fits(asked)
        assert "[1]" in asked.messages[-2].content
        assert "[9]" not in asked.messages[-2].content


def test_held_out_examples_over_the_context_are_left_out_and_told(base, tmp_path):
    long = Example((Message("user", "long " * 600), Message("assistant", "red")), where="data:99")
    given = request_for(base, held_out=(*map(example, range(20, 24)), long))
    found = run(given, tmp_path, skip=("fit", "learnability"))
    assert found.subject.held_out == 4
    assert found.missing["examples"].startswith("1 of 5 examples cannot be used with this base, the first: data:99")
    with pytest.raises(HalkaError, match="none of 1 examples can be used"):
        run(replace(given, held_out=(long,)), tmp_path)


def test_token_losses_are_those_of_the_whole_logits(probed):
    asked = [probed.prompt(each, "examples") for each in probed.held_out[:3]]
    for each, (ids, losses) in zip(asked, probed.losses(None, asked), strict=True):
        tokens = encode(each, probed.model.tokenizer)
        start = len(encode_prompt(each, probed.model.tokenizer))
        with torch.no_grad():
            logits = probed.model.base(torch.tensor([tokens.ids])).logits[0]
        own = [place for place in range(start, len(tokens.ids)) if tokens.loss[place]]
        assert ids == [tokens.ids[place] for place in own]
        slow = F.cross_entropy(logits[[place - 1 for place in own]], torch.tensor(ids), reduction="none")
        np.testing.assert_allclose(losses, slow.numpy(), atol=1e-4)
    assert token_losses(probed.model, None, []) == []


# ── the probes ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_strength_is_told_beside_what_needs_no_model(probed):
    found = strength(probed, Budget())
    assert found.trivial["majority"].value == pytest.approx(1 / 3)
    assert found.trivial["copy"].value == 0
    told = [probed.answer_ids(each) for each in probed.held_out]  # with what ends an answer, as losses have it
    seen = Counter(token for each in probed.train for token in probed.answer_ids(each))
    total = seen.total() + len(probed.model.tokenizer)
    losses = [-math.log((seen[token] + 1) / total) for each in told for token in each]
    assert found.unigram == pytest.approx(sum(losses) / len(losses))
    assert all(each[-1] == told[0][-1] for each in told)
    assert set(found.losses) == set(found.scores) == {"closed", "examples"}
    assert len(found.values["closed"]) == len(probed.held_out)


def test_a_few_answers_of_many_are_no_score(probed):
    """But of the question alone, without which there is nothing to compare with."""

    class Hurried(ProbedBase):
        """A base with time for two answers."""

        def base_answers(self, condition, budget, progress=lambda _: None):
            return super().base_answers(condition, budget, progress)[:2]

    def hurried(held_out):
        about = probed.train, held_out, probed.metric, probed.max_new_tokens
        return Hurried(probed.model, *about, lambda asked: [passage(f"Passage: {asked} is green")], 1)

    few, all_of_them = hurried(probed.held_out * 3), hurried(probed.held_out[:2])
    assert set(strength(few, Budget()).losses) == {"closed", "examples"}
    assert set(strength(few, Budget()).scores) == {"closed"}
    assert not knowledge(few, Budget()).scores
    assert set(strength(all_of_them, Budget()).scores) == {"closed", "examples"}
    assert set(knowledge(all_of_them, Budget()).scores) == {"documents", "both"}


def test_documents_lower_the_loss_of_what_only_they_hold(probed):
    class Told(ProbedBase):
        """A base whose loss is low where it reads a passage."""

        def losses(self, adapter, prompts):
            ids = [self.answer_ids(prompt) for prompt in prompts]
            values = [0.5 if "Passage" in prompt.messages[-2].content else 2.0 for prompt in prompts]
            return [(own, np.full(len(own), value)) for own, value in zip(ids, values, strict=True)]

    def told(retrieve=None):
        return Told(probed.model, probed.train, probed.held_out, probed.metric, probed.max_new_tokens, retrieve)

    alone = knowledge(told(), Budget())
    assert set(alone.losses) == {"closed", "examples"}
    assert alone.found is None
    found = knowledge(told(lambda asked: [passage(f"Passage: {asked} is green")]), Budget())
    assert set(found.losses) == set(CONDITIONS)
    assert found.losses["closed"]["all"].value == 2.0
    assert found.losses["both"]["all"].value == 0.5
    assert found.found == pytest.approx(1 / 3)
    assert found.tokens["all"] == found.tokens["form"] + found.tokens.get("content", 0)


def test_the_pilot_learns_what_can_be_learned(probed):
    """One answer to everything: any adapter of any size learns it, and none is left in the model."""
    same = Example((Message("user", "What?"), Message("assistant", "red red")))
    alike = replace(probed, train=(same,) * 12, held_out=(same,) * 4)
    plans = (
        TrialPlan("LoRA", "lora", {"rank": 4, "alpha": 8}, rate=10),
        TrialPlan("part", "lora", {"rank": 4, "alpha": 8}, rate=10, share=0.5),
    )
    found = learnability(alike, Budget(), batch_size=4, config=PilotConfig(plans, steps=48))
    assert [each.name for each in found.trials] == ["LoRA", "part"]
    assert [each.examples for each in found.trials] == [12, 6]
    for each in found.trials:
        assert each.steps == 48
        assert each.curve[-1][1] < each.curve[0][1] - 0.5
        assert each.loss.value == pytest.approx(min(loss for _, loss in each.curve), rel=0.05)
        assert each.score is not None
    assert found.more is not None
    assert probed.model.adapters == {}


def test_what_was_not_seen_once_tells_nothing_of_more_data(probed):
    plans = (TrialPlan("LoRA", "lora", {"rank": 2}), TrialPlan("part", "lora", {"rank": 2}, share=0.5))
    config = PilotConfig(plans, steps=3)
    assert (
        learnability(probed, Budget(), batch_size=8, config=config).more is not None
    )  # 24 examples, 12 of them, in 3 × 8
    assert learnability(probed, Budget(), batch_size=4, config=config).more is None
    few = replace(config, batch_tokens=40)  # two or three examples
    found = learnability(probed, Budget(), batch_size=8, config=few)
    assert found.more is None
    assert {each.seen for each in found.trials} <= {3, 4, 5, 6, 7, 8, 9}
    assert {each.rows for each in found.trials} <= {1, 2, 3}


def test_the_curve_goes_on_from_what_was_seen_to_what_there_is(probed):
    plans = tuple(TrialPlan(f"LoRA {share}", "lora", {"rank": 2}, share=share) for share in (0.25, 0.5, 1.0))
    config = PilotConfig(plans, steps=3)
    all_seen = learnability(probed, Budget(), batch_size=8, config=config)
    assert [each.seen for each in all_seen.trials] == [6, 12, 24]
    assert [each.rows for each in all_seen.trials] == [8, 8, 8]
    assert (all_seen.examples, all_seen.owned) == (24, None)
    many = learnability(probed, Budget(), batch_size=4, config=config, owned=1000)  # the whole is not seen whole
    assert [(each.examples, each.seen) for each in many.trials] == [(6, 6), (12, 12), (24, 12)]
    assert many.examples == 1000
    assert many.owned is not None
    assert many.more is not None
    assert many.more.value <= many.owned.value


def test_trials_that_fail_are_left_out(probed):
    plans = (
        TrialPlan("LoRA", "lora", {"rank": 4}),
        TrialPlan("too fast", "lora", {"rank": 4}, rate=1e30),
        TrialPlan("nowhere", "lora", {"targets": "experts"}),
    )
    found = learnability(probed, Budget(), batch_size=4, config=PilotConfig(plans, steps=3))
    assert [each.name for each in found.trials] == ["LoRA"]
    assert {reason.partition(": ")[0] for reason in found.failed} == {"too fast", "nowhere"}
    assert words.failures(found).startswith("Left out: nowhere: ")
    with pytest.raises(TrainingError):
        learnability(probed, Budget(), batch_size=4, config=PilotConfig(plans[1:], steps=3))
    assert probed.model.adapters == {}


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
    assert answer_values(metric, texts, references) == pytest.approx(values)


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
    assert answer_values("exact_match", [said], [[accepted]], passages=True) == (value,)


def test_answers_to_many_prompts_are_those_to_each_alone(probed):
    asked = [
        *probed.held_out,
        *(Example((Message("user", "long " * count),)) for count in (60, 70, 80, 90) for _ in range(4)),
    ]
    assert probed.answers(None, asked) == [probed.answers(None, [each])[0] for each in asked]


def test_calls_of_tools_are_compared_in_the_form_that_the_base_writes_them(probed):
    call = Message("assistant", "", calls=(ToolCall("clock", '{"at": "noon"}'),))
    probed.model.tokenizer.chat_template = HERMES.replace("tool_call>", "call>")
    base = replace(probed, held_out=(Example((Message("user", "What time?"), call)),), metric="exact_match")
    text = '<call>\n{"name": "clock", "arguments": {"at": "noon"}}\n</call>'
    assert base.values([text]) == (1,)
    assert base.values([call.written]) == (0,)


@pytest.mark.parametrize(
    ("answers", "metric"),
    [
        (["red", "blue", "red"] * 9, "accuracy"),
        (['{"a": 1}', '{"a": 2}'], "exact_match"),
        ([ToolCall("clock", f'{{"n": {n}}}').written for n in range(9)], "exact_match"),
        ([f"word{n}" for n in range(9)], "squad_exact"),
        ([f"a whole sentence about the number {n}" for n in range(9)], "token_f1"),
        ([f"第{n}号包裹" for n in range(9)], "squad_exact"),
        ([f"第{n}号包裹已经在昨天下午送到您家门口的邮箱里了。" for n in range(9)], "chrf"),
    ],
)
def test_the_metric_follows_from_how_answers_look(answers, metric):
    assert usual_metric(answers) == metric


# ── all of it ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_done_is_not_done_again(base, advised):
    folder, evidence = advised
    assert not evidence.missing
    assert not (folder / "pilot").exists()
    assert stages(request_for(base), folder) == set()
    assert run(request_for(base), folder) == evidence

    other = request_for(base, train=tuple(map(example, range(19))))
    assert stages(other, folder, stop="strength") == {"cleanliness", "base", "strength"}


def test_what_could_not_be_used_is_told_again(base, tmp_path):
    long = Example((Message("user", "long " * 600), Message("assistant", "red")), where="data:99")
    (tmp_path / "blank.md").write_text(" \n")
    asked = request_for(base, train=(*map(example, range(19)), long), documents=(str(tmp_path / "blank.md"),))
    skip = ("fit", "learnability", "strength")
    found = run(asked, tmp_path / "out", skip=skip)
    assert {*found.missing} == {"examples", "documents", *skip}
    assert stages(asked, tmp_path / "out", skip=skip) == set()
    assert run(asked, tmp_path / "out", skip=skip) == found


def test_hardware_is_looked_at_anew_when_the_length_is_known(base, tmp_path):
    """By its characters text of another script is short; by its tokens it is not."""
    told = tuple(
        Example((Message("user", f"हिंदी में {number} " * 6), Message("assistant", COLOURS[number % 3])))
        for number in range(20)
    )
    asked, rest = request_for(base, train=told, memory=10**10), ("strength", "learnability")
    guessed = run(asked, tmp_path, skip=(*rest, "knowledge"))
    found = run(asked, tmp_path, skip=rest)
    assert guessed.fit is not None
    assert found.fit is not None
    assert guessed.fit.length == guessed.subject.length < found.fit.length == found.subject.length
    assert run(asked, tmp_path, skip=(*rest, "knowledge")).fit == found.fit


def test_another_pilot_takes_the_place_of_what_an_earlier_one_left(base, advised):
    folder, _ = advised
    (folder / "pilot" / "of-another").mkdir(parents=True)
    diverging = PilotConfig((replace(TRIALS[0], rate=1e30),), steps=12)
    found = run(request_for(base), folder, pilot=diverging, skip=("fit",), minutes=0.02)
    assert found.missing["learnability"].startswith("training failed: the loss became ")
    assert not (folder / "pilot" / "of-another").exists()


GPU_FREE = 64 * 10**9


def gpu(free: int) -> Available:
    return Available(GPU_FREE, free, gpu=True)


def test_a_pilot_leaves_memory_to_others(base):
    config, asked = decoder_config(str(base)), request_for(base, full=True)

    def needs(method: str, rows: int, length: int, checkpointing: bool) -> int:
        setup = Setup(rows=rows, length=length, dtype="float32", checkpointing=checkpointing)
        return dry_run(config, build_method(method, {}), setup, gpu=True).memory.total

    def room(request: Request, free: int):
        return pilot_room(request, config, [64, 200], gpu(free), PilotConfig())

    lora, less = (max(needs("lora", 40, 64, each), needs("lora", 8, 200, each)) for each in (False, True))
    assert not room(request_for(base), 2 * lora + 1).checkpointing
    assert room(request_for(base), 2 * lora - 1).checkpointing  # half of the memory is for others
    with pytest.raises(OutOfMemoryError, match="the pilot takes"):
        room(request_for(base), less - 1)
    assert room(request_for(base), less + 1).checkpointing
    full = needs("full", 8, 64, True)
    assert room(asked, max(full, less) + 1).without_full is None
    if full > less:
        assert "are free" in room(asked, full - 1).without_full


def test_a_pilot_that_does_not_fit_is_told_until_it_does(base, tmp_path):
    skip = ("fit", "strength")
    found = run(request_for(base), tmp_path, skip=skip, machine=Machine(free=lambda: gpu(10**6)))
    assert found.knowledge is not None
    assert found.learnability is None
    assert found.missing["learnability"].startswith("the pilot takes ")
    larger = Machine(free=lambda: gpu(10**9))
    assert run(request_for(base), tmp_path, skip=skip, machine=larger).learnability is not None


def test_the_base_passes_main_memory_on_its_way_to_a_gpu():
    fifteen = 15 * 10**9
    assert base_too_large(fifteen, Available(64 * 10**9, 24 * 10**9, gpu=True)) is None
    assert base_too_large(fifteen, Available(64 * 10**9, 8 * 10**9, gpu=True)) == (
        "the base takes 15.0 GB and 8.0 GB are free on the GPU"
    )
    little = Available(8 * 10**9, 24 * 10**9, gpu=True)
    assert base_too_large(fifteen, little) == "the base takes 15.0 GB and 8.0 GB are free in main memory"
    assert base_too_large(fifteen, little, direct=True) is None
    assert base_too_large(fifteen, Available(fifteen, fifteen, gpu=False)) is not None  # beside it is the process
    assert base_too_large(fifteen, Available(fifteen + PROCESS, fifteen + PROCESS, gpu=False)) is None


def test_memory_that_runs_out_within_a_probe_is_told(base, tmp_path):
    def in_stage(wanted: str) -> Progress:
        def progress(stage: str, text: str) -> None:
            if stage == wanted:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore.")

        return progress

    found = run(request_for(base), tmp_path, skip=("fit", "learnability"), progress=in_stage("knowledge"))
    assert found.strength is not None
    assert found.missing["knowledge"] == "CUDA out of memory. Tried to allocate 2.00 GiB."
    other = run(request_for(base, max_new_tokens=5), tmp_path, skip=("fit",), progress=in_stage("base"))
    assert "CUDA out of memory" in other.missing["strength"]


def test_results_stay_where_memory_is_short_afterwards(base, first):
    folder, evidence = first
    short = Machine(free=lambda: Available(10**6, 10**6, gpu=False))
    again = run(request_for(base), folder, machine=short)
    results = ("strength", "knowledge", "learnability")
    assert [getattr(again, name) for name in results] == [getattr(evidence, name) for name in results]
    assert not again.missing.keys() & {*results}
    other = run(request_for(base, max_new_tokens=3), folder.with_name("short"), machine=short)
    assert {*results} <= other.missing.keys()


def test_a_folder_is_one_process_s(base, advised):
    folder, _ = advised
    with locked(folder, "mine"), pytest.raises(HalkaError, match=r"another process advises in .*name another folder"):
        run(request_for(base), folder)


def test_a_folder_is_one_process_s_where_the_probes_run_on_a_cluster_too(base, advised):
    folder, _ = advised
    with locked(folder, "mine"), pytest.raises(HalkaError, match=r"another process advises in .*name another folder"):
        probe_on("no cluster", request_for(base), folder)
    with pytest.raises(HalkaError, match="'no cluster' is no cluster"):
        probe_on("no cluster", request_for(base), folder)


def test_full_fine_tuning_that_does_not_fit_is_told_each_time(base, advised):
    folder, _ = advised
    length = json.loads((folder / "plan.json").read_text())["length"]
    asked, one = request_for(base, full=True), PilotConfig(TRIALS[:1], steps=3)
    setup = Setup(rows=asked.batch_size, length=length, dtype="float32", checkpointing=True)
    free = dry_run(decoder_config(str(base)), build_method("full", {}), setup, gpu=True).memory.total - 1
    skip = ("fit", "strength", "knowledge")
    found = run(asked, folder, skip=skip, pilot=one, machine=Machine(free=lambda: gpu(free)))
    assert found.learnability is not None
    assert "full" not in {each.method for each in found.learnability.trials}
    assert "are free" in found.missing["full fine-tuning"]
    assert run(asked, folder, skip=skip, pilot=one) == found
    assert "full fine-tuning" not in run(request_for(base), folder, skip=(*skip, "learnability")).missing


def test_only_what_a_change_touches_is_done_anew(base, advised):
    folder, _ = advised
    assert stages(request_for(base, tasks=9), folder, stop="fit") == {"fit"}
    weights = next(base.glob("*.safetensors"))
    before = weights.stat()
    try:
        os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns + 1))  # as if other weights were put there
        done = stages(request_for(base), folder, stop="learnability")
    finally:
        os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert {"strength", "knowledge", "learnability"} <= done


def test_the_same_is_asked_where_all_that_it_depends_on_is_the_same(base, tmp_path):
    for name in ("one", "other"):
        (tmp_path / f"{name}.md").write_text(f"{name} text")

    def asked(
        machine: object = "machine", schema: int = SCHEMA, pilot: PilotConfig | None = None, **changes: Any
    ) -> dict[str, str]:
        request = request_for(base, **{"memory": None, **changes})
        return result_keys(request, sample(request), 60.0, None, machine, tmp_path / "out", pilot, schema)

    def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
        return {name for name in before if before[name] != after[name]}

    one, other = (asked(documents=(str(tmp_path / f"{name}.md"),)) for name in ("one", "other"))
    assert changed(one, other) == {"strength", "knowledge", "learnability", "question"}
    assert changed(asked(), asked("another machine")) == {"fit"}
    assert changed(asked(device="here"), asked("another machine", device="here")) == {"fit"}
    assert changed(asked(device="t4"), asked("another machine", device="t4")) == set()
    assert changed(asked(), asked(pilot=PilotConfig(steps=6))) == {"learnability", "question"}
    assert changed(asked(), asked(schema=SCHEMA)) == set()
    assert changed(asked(), asked(schema=SCHEMA - 1)) == {*asked()}


def test_another_gpu_is_looked_at_anew(base, tmp_path):
    def with_gpu(memory: int) -> Machine:
        return Machine(gpu=lambda: Hardware("RTX 9", True, memory, None))

    skip, asked = ("learnability", "knowledge", "strength", "cleanliness"), request_for(base, memory=None)
    first = run(asked, tmp_path, skip=skip, machine=with_gpu(8 * 10**9))
    assert [*first.missing] == [*skip]  # in the order that was given
    assert stages(asked, tmp_path, stop="fit", skip=skip, machine=with_gpu(9 * 10**9)) == {"fit"}


def test_a_processor_is_timed_once(base, tmp_path):
    """For prompts with and without passages."""
    timed: list[str] = []

    def processor(dtype: str) -> Device:
        timed.append(dtype)
        return Device("here", {dtype: 1e9}, 1e9)

    (tmp_path / "items.md").write_text("Item 3 is red. Item 4 is green.")
    asked = request_for(base, memory=None, documents=(str(tmp_path / "items.md"),))
    machine = Machine(gpu=lambda: None, processor=processor)
    found = run(asked, tmp_path / "out", skip=("strength", "learnability"), machine=machine)
    assert found.fit is not None
    assert found.fit.shown
    assert timed == ["float32"]


def test_a_folder_of_something_else_is_left_alone(base, tmp_path):
    (tmp_path / "pilot").mkdir()
    (tmp_path / "pilot" / "thesis.txt").write_text("years of work")
    with pytest.raises(HalkaError, match="is not empty and holds no advice"):
        run(request_for(base), tmp_path)
    assert (tmp_path / "pilot" / "thesis.txt").read_text() == "years of work"
    with pytest.raises(HalkaError, match=r"thesis\.txt is a file: name a folder"):
        run(request_for(base), tmp_path / "pilot" / "thesis.txt")


def test_a_file_that_was_spoilt_counts_as_not_there(base, advised):
    folder, first = advised
    (folder / "strength.json").write_text("")
    (folder / "cleanliness.json").write_text("[]")
    again = run(request_for(base), folder)
    assert (again.strength, again.cleanliness) == (first.strength, first.cleanliness)
    saved = json.loads((folder / "cleanliness.json").read_text())
    saved["found"]["unheard"] = 1  # as another version of ours might write it
    (folder / "cleanliness.json").write_text(json.dumps(saved))
    assert run(request_for(base), folder).cleanliness == first.cleanliness


def test_sorted_files_are_mixed_and_what_is_held_out_is_not_learned(base):
    ordered = tuple(sorted(map(example, range(600)), key=lambda each: each.answers))
    found = sample(request_for(base, train=ordered, held_out=ordered[::2]))
    assert len({each.answers for each in found.held_out}) == 3
    assert len({each.answers for each in found.train[:12]}) > 1
    assert {each.where for each in found.train}.isdisjoint(each.where for each in found.held_out)
    assert (len(found.train), len(found.held_out)) == (512, 48)


def test_some_of_each_label_are_held_out_with_their_prompt(base):
    asked = [Message("user", f"Item {number}?") for number in range(60)]
    labels = ["yes"] * 52 + ["no"] * 6 + ["rare"] + ["no"]
    examples = [Example((one, Message("assistant", label))) for one, label in zip(asked, labels, strict=True)]
    examples.append(Example((asked[0], Message("assistant", "no"))))  # contradicts the first
    taken = sample(request_for(base, train=tuple(examples), held_out=()))
    assert Counter(one.answers[0] for one in taken.held_out if one.prompt[0] != asked[0]).keys() == {"yes", "no"}
    assert {one.prompt for one in taken.held_out}.isdisjoint(one.prompt for one in taken.all_train)
    assert len(taken.held_out) + len(taken.all_train) == len(examples)


def test_no_dialogue_is_held_out_in_part(base):
    turns = [[*example(number).messages, *example(number + 100).messages] for number in range(40)]
    rows = tuple(Example(tuple(dialogue[:end])) for dialogue in turns for end in (2, 4))
    taken = sample(request_for(base, train=rows, held_out=()))
    assert {one.messages[0] for one in taken.held_out}.isdisjoint(one.messages[0] for one in taken.train)
    assert len(taken.held_out) + len(taken.all_train) == len(rows)


def test_what_shows_a_held_out_answer_in_an_earlier_turn_is_not_learned(base):
    dialogues = [(*example(number).messages, *example(number + 100).messages) for number in range(12)]
    request = request_for(base, train=tuple(map(Example, dialogues)), held_out=(Example(dialogues[0][:2]),))
    assert {one.messages for one in sample(request).train} == {*dialogues[1:]}


def test_held_out_answers_of_which_the_metric_says_nothing_are_left_out(base, tmp_path):
    def answered(number: int, text: str) -> Example:
        return replace(example(number), messages=(*example(number).prompt, Message("assistant", text)))

    with_city = [answered(number, '{"city": "Paris"}') for number in range(24)]
    without = [answered(number, "{}") for number in range(24, 28)]
    request = request_for(base, train=tuple(with_city[:20]), held_out=(*with_city[20:], *without))
    found = sample(replace(request, metric="json_field:city"))
    assert ({*found.held_out}, found.unscored) == ({*with_city[20:]}, 4)
    assert sample(replace(request, metric="exact_match")).unscored == 0
    with pytest.raises(HalkaError, match="json_field:city is undefined here"):
        sample(replace(request, metric="json_field:city", held_out=tuple(without)))
    advised = run(replace(request, metric="json_field:city"), tmp_path / "out", skip=("fit", "learnability"))
    assert advised.missing["examples without a score"].startswith("4 held-out ones")


def test_answers_have_room_for_the_longest_that_is_held_out_and_a_shorter_room_is_reported(base, tmp_path):
    def answered(number: int, words: int) -> Example:
        return replace(example(number), messages=(*example(number).prompt, Message("assistant", "red " * words)))

    held_out = (answered(20, 1), answered(21, 9), answered(22, 800))  # the last is longer than the context
    skip = ("fit", "knowledge", "learnability")
    request = request_for(base, held_out=held_out, max_new_tokens=None)
    measured = run(request, tmp_path / "out", skip=skip)
    tokens = len(chatml_tokenizer().encode("red " * 9, add_special_tokens=False))
    assert measured.subject.max_new_tokens == tokens + 1
    assert "answers" not in measured.missing
    assert run(request, tmp_path / "out", skip=skip).subject == measured.subject
    short = replace(request, max_new_tokens=tokens - 1)
    opened, _, missing = open_base(short, sample(short), tmp_path / "short", lambda *_: None)
    assert opened.max_new_tokens == tokens - 1
    assert missing["answers"].startswith(f"2 of 3 held-out answers are longer than {tokens - 1} tokens")


def test_a_tasks_metric_that_is_a_function_is_refused_by_name(base, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import replace\n"
        "from halka.data.demo_task import task as support\n"
        "from halka.data.metric import Metric\n"
        "def task():\n"
        "    own = Metric.mean('facts', 'facts that are right', lambda text, references: 1.0)\n"
        "    return replace(support(), metrics=(own,), primary='facts')\n"
    )
    assert ran(["advise", "--base", str(base), "--task", str(tmp_path / "mine.py")]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "a function of its own, 'facts', which the advisor cannot hand on" in error


def test_rows_that_a_base_cannot_read_are_left_out_and_told(tmp_path):
    base = save_base(tmp_path / "base", chat_template=None)  # then a system message cannot be read
    odd = Example((Message("system", "Be brief."), *example(99).messages), where="data:99")
    given = request_for(base, train=(*map(example, range(20)), odd))
    found = run(given, tmp_path / "out", skip=("fit", "learnability"))
    assert found.strength is not None
    assert "data:99" in found.missing["examples"]


def test_long_examples_do_not_end_the_advice(base, tmp_path):
    long = tuple(Example((Message("user", f"long {n} " * 300), Message("assistant", "red"))) for n in range(4))
    found = run(request_for(base, train=(*map(example, range(8)), *long)), tmp_path)
    assert found.subject.length <= 512
    assert found.fit is not None
    assert found.learnability is not None


@pytest.mark.filterwarnings("ignore:of .* are cut to 512 tokens")
def test_long_answers_with_passages_do_not_end_the_advice(base, tmp_path):
    told = []
    (tmp_path / "items.md").write_text("Item 3 is red. Item 4 is green.")
    long = tuple(Example((Message("user", f"Item {n}?"), Message("assistant", f"red {n} " * 300))) for n in range(8))
    asked = request_for(base, train=(*map(example, range(8)), *long), documents=(str(tmp_path / "items.md"),))
    found = run(asked, tmp_path / "out", progress=lambda name, doing: told.append((name, doing)))
    assert found.subject.length == 512
    assert found.fit is not None
    assert found.fit.shown
    assert found.learnability is not None
    fits = [doing for name, doing in told if name == "fit"]
    assert any(", a batch of " in each for each in fits)
    assert "lora, with passages" in fits


def test_a_row_in_which_nobody_asks_is_left_out_and_told(base, tmp_path):
    silent = Example((Message("system", "Name a colour."), Message("assistant", "red")), where="data:99")
    given = request_for(base, train=(*map(example, range(20)), silent))
    found = run(given, tmp_path, skip=("fit", "learnability"))
    assert found.strength is not None
    told = "1 of 21 examples cannot be used with this base, the first: data:99: no user message"
    assert found.missing["examples"].startswith(told)
    with pytest.raises(HalkaError, match=r"none of 2 examples can be used\. data:99: no user message"):
        run(replace(given, train=(silent, silent)), tmp_path)


@pytest.mark.parametrize("answer", ["<think>Let me see.</think>It is {}", "{}"])
def test_worked_examples_that_the_template_rewrites_do_not_end_the_advice(tmp_path, answer):
    base = save_base(tmp_path / "base", chat_template=THOUGHTS)
    rows = tuple(
        Example((Message("user", f"{n}?"), Message("assistant", answer.format(COLOURS[n % 3]))), where=f"data:{n}")
        for n in range(16)
    )
    evidence = run(request_for(base, train=rows), tmp_path / "out", skip=("fit", "learnability"))
    assert evidence.strength is not None
    rewritten = evidence.missing.get("worked examples", "")
    assert rewritten.startswith("the base's chat template rewrites them as earlier answers: ") == ("think" in answer)


def test_documents_that_hold_nothing_are_told(base, tmp_path):
    (tmp_path / "blank.md").write_text(" \n")
    given = request_for(base, documents=(str(tmp_path / "blank.md"),))
    found = run(given, tmp_path / "out", skip=("fit", "learnability"))
    assert found.knowledge is not None
    assert found.knowledge.scores == {}
    assert "no document can be read" in found.missing["documents"]


def test_a_pilot_that_was_stopped_goes_on(base, tmp_path):
    def stop(name: str, doing: str) -> None:
        if "step 2 of" in doing:
            raise Stopped

    with pytest.raises(Stopped):
        run(request_for(base), tmp_path, skip=("fit",), progress=stop)
    assert (tmp_path / "strength.json").exists()
    assert list(tmp_path.glob("pilot/*/steps.json"))
    done: list[str] = []
    found = run(request_for(base), tmp_path, skip=("fit",), progress=lambda name, doing: done.append(doing))
    assert not any("step 1 of" in doing for doing in done)
    assert found.learnability is not None
    for each in found.learnability.trials:
        steps = [step for step, _ in each.curve]
        every = max(1, each.steps // 6)
        assert steps == sorted({*range(every, each.steps + 1, every), each.steps})


class WorkClock:
    """A clock on which every token that the base computes takes as long."""

    def __init__(self, seconds: float):
        self.seconds, self.now = seconds, 0.0

    def __call__(self) -> float:
        return self.now

    @contextmanager
    def running(self) -> Iterator[None]:
        vocabulary = len(chatml_tokenizer())

        def computed(module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
            if isinstance(module, torch.nn.Embedding) and module.num_embeddings == vocabulary:
                self.now += self.seconds * inputs[0].numel()

        handle = register_module_forward_pre_hook(computed)
        try:
            yield
        finally:
            handle.remove()


@pytest.fixture(scope="module")
def generating(base, tmp_path_factory) -> Path:
    """The base as it is answered by its own `generate`, whose tokens `WorkClock` counts."""
    folder = Path(shutil.copytree(base, tmp_path_factory.mktemp("generating") / "base"))
    config = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**config, "no_repeat_ngram_size": 64}))
    return folder


@pytest.mark.parametrize("length", [1, 40], ids=["short", "long"])
@pytest.mark.parametrize("with_documents", [False, True], ids=["alone", "documents"])
@pytest.mark.parametrize("token", [4e-3, 0.1], ids=["slow", "slowest"])
def test_the_minutes_are_kept_on_any_machine(generating, tmp_path, token, with_documents, length):
    documents = ()
    if with_documents:
        (tmp_path / "items.md").write_text("\n\n".join(f"Item {number} is red. " * 12 for number in range(9)))
        documents = (str(tmp_path / "items.md"),)
    rows = [
        Example((Message("user", f"{'word ' * length}Item {number}?"), Message("assistant", COLOURS[number % 3])))
        for number in range(44)
    ]
    asked = request_for(generating, train=tuple(rows[:20]), held_out=tuple(rows[20:]), documents=documents)
    clock, pilot = WorkClock(token), PilotConfig(TRIALS[:3], steps=12)
    with clock.running():
        found = run(asked, tmp_path / "out", skip=("fit",), minutes=1, clock=clock, pilot=pilot)
    assert found.time is not None
    assert found.time.budget == 1
    assert sum(found.time.minutes.values()) <= 1.25
    assert not {f"no prompts {words.CONDITIONS[condition]}" for condition in found.losses} & {*found.time.cuts}
    whole = found.learnability is not None and found.missing == {"fit": "skipped"} and not found.time.cuts
    assert whole or token > 1e-6, (found.missing, found.time)
    assert not whole or token < 4e-3
    if found.learnability is None:
        assert "are left" in found.missing["learnability"]
    for trial in found.learnability.trials if found.learnability else ():
        assert trial.curve[-1][0] == trial.steps
    again = run(asked, tmp_path / "out", skip=("fit",), minutes=1, pilot=pilot)
    assert again == found


def test_what_was_cut_before_an_interruption_is_reported_after_it(generating, tmp_path):
    clock, skip = WorkClock(0.1), ("fit", "knowledge", "learnability")
    asked = request_for(generating, held_out=tuple(map(example, range(20, 44))))

    def stop(stage: str, text: str) -> None:
        if stage == "strength":
            raise Stopped

    with clock.running(), pytest.raises(Stopped):
        run(asked, tmp_path, skip=skip, minutes=1, clock=clock, progress=stop)
    resumed = run(asked, tmp_path, skip=skip, minutes=1)
    assert resumed.subject.held_out < 24
    assert any(cut.endswith("of 24 held-out examples") for cut in resumed.time.cuts)


def test_a_pilot_that_becomes_slow_ends_early_and_is_told(generating, tmp_path):
    clock = WorkClock(1e-3)

    def progress(stage: str, text: str) -> None:
        if "step 3 of" in text:
            clock.seconds = 0.1  # others use the machine now

    with clock.running():
        found = run(
            request_for(generating),
            tmp_path,
            skip=("fit",),
            minutes=1,
            clock=clock,
            pilot=PilotConfig(TRIALS[:2]),
            progress=progress,
        )
    assert found.learnability is not None
    (steps,) = {trial.steps for trial in found.learnability.trials}
    assert 3 < steps < 48
    assert any("steps of the pilot ended early" in cut for cut in found.time.cuts)
    for trial in found.learnability.trials:
        assert trial.curve[-1][0] == steps
        assert (trial.expected is None) == (len(trial.curve) < 2)  # a curve needs two points


def test_ten_examples_no_test_split_no_documents(base, tmp_path):
    found = run(request_for(base, train=tuple(map(example, range(10))), held_out=()), tmp_path, skip=("fit",))
    assert found.subject.split_off
    assert found.subject.train + found.subject.held_out == 10
    advice = advise_from(found)
    assert advice.confidence < 0.7
    assert {each.rule for each in advice.missing} >= {"held out", "validation", "documents"}
    assert any("held out" in each.text for each in advice.missing)
    assert any("--documents" in each.text for each in advice.change)
    assert any(each.text.startswith("no documents") for each in advice.missing)


def test_a_base_that_does_not_fit_is_told(base, tmp_path):
    machine = Machine(free=lambda: Available(1000, 1000, gpu=False))
    done: set[str] = set()
    asked = request_for(base, device="t4", memory=None)
    found = run(asked, tmp_path, progress=lambda stage, text: done.add(stage), machine=machine)
    assert done == {"fit", "cleanliness"}
    assert found.strength is found.knowledge is found.learnability is None
    assert "are free" in found.missing["strength"]
    assert found.fit is not None
    assert found.fit.device == "t4"
    assert advise_from(found).sure == "low"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": ()}, "0 training examples are too few"),
        ({"train": (example(1), Example((Message("user", "What?"),), (), "data:9"))}, "data:9 has no answer"),
        ({"train": (example(1),) * 5, "held_out": ()}, "every training example has a held-out prompt"),
        ({"full": True, "quantize": "int8"}, "leave out full or quantize"),
        ({"metric": "macro_f1"}, "name accuracy"),
        ({"metric": "fluency"}, "unknown metric 'fluency'"),
        ({"device": "abacus"}, "abacus"),
        ({"metric": "json_field_f1:x"}, "json_field_f1:x, item 0"),
    ],
)
def test_what_cannot_be_used_is_named_before_anything_is_loaded(base, tmp_path, changes, message):
    done: list[str] = []
    with pytest.raises(HalkaError, match=message):
        run(request_for(base, **changes), tmp_path, progress=lambda stage, text: done.append(stage))
    assert not done


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
    with pytest.raises(HalkaError, match="base is no causal language model: the advisor needs one that generates text"):
        run(request_for(folder), tmp_path / "out")


@pytest.mark.parametrize(
    ("given", "message"),
    [({"skip": ("luck",)}, "no probe luck"), ({"minutes": 0}, "minutes"), ({"minutes": math.nan}, "minutes")],
)
def test_settings_that_make_no_sense(base, tmp_path, given, message):
    with pytest.raises(HalkaError, match=message):
        run(request_for(base), tmp_path, **given)


def test_the_command_to_its_report(base, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = [{"question": f"Item {number}?", "answer": COLOURS[number % 3]} for number in range(24)]
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("docs").mkdir()
    Path("docs/items.md").write_text("Item 3 is red. Item 4 is green.")
    asked = ["advise", "--base", str(base), "--data", "train.jsonl", "--documents", "docs", "--dtype", "float32"]
    asked += ["--minutes", "9", "--max-new-tokens", "4", "--tasks", "5", "-o", "out"]
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
    asked += ["--minutes", "9", "--max-new-tokens", "4", "--skip", "fit", "--skip", "learnability", "--json"]
    assert ran(asked) == 0
    printed = capsys.readouterr()
    first = json.loads(printed.out)
    assert first["evidence"]["subject"]["documents"] == 1
    again = shlex.join(first["evidence"]["subject"]["again"])
    assert "--minutes 9 --skip fit --skip learnability" in again
    assert "base: loading" in printed.err
    assert ran(asked) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == first
    assert "base: " not in printed.err  # nothing is new


@pytest.fixture(scope="module")
def task_folder(base, tmp_path_factory) -> tuple[Path, Evidence]:
    """A task without test examples, with answers that no document has word by word, and system messages; its evidence.

    The saved result of its pilot says that only adapters with passages answer right, so that PEFT and retrieval are
    advised, and all files for advised commands are written.
    """
    folder = tmp_path_factory.mktemp("task")
    base = shutil.copytree(base, folder / "base")
    config = json.loads((base / "generation_config.json").read_text())
    own_generate = {**config, "no_repeat_ngram_size": 64}  # which the engine has not: `generate` answers
    (base / "generation_config.json").write_text(json.dumps(own_generate))
    for name, numbers in (("train", range(24)), ("validation", range(24, 30))):
        rows = [[Message("system", "Be brief."), *example(number).messages] for number in numbers]
        lines = [json.dumps({"messages": list(map(asdict, messages))}) + "\n" for messages in rows]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    (folder / "mine.yaml").write_text(
        "name: mine\ntrain: train.jsonl\nvalidation: validation.jsonl\nmetrics: [exact_match]\n"
    )
    (folder / "docs").mkdir()
    (folder / "docs" / "items.md").write_text("Item 3 is like blood. Item 4 is like grass.")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        task = load_task("mine.yaml")
        asked = request_for(
            base, train=task.train, held_out=task.validation, metric=task.primary, flags=("--task", "mine.yaml")
        )
        asked = replace(asked, documents=("docs",))
        run(asked, Path("out"), skip=("fit",))
        result = Path("out/learnability.json")
        saved = json.loads(result.read_text())
        for trial in saved["found"]["trials"]:
            value = float(trial["passages"])
            trial["score"] |= {"value": value, "low": value, "high": value}
            trial["values"] = [value] * len(trial["values"])
        result.write_text(json.dumps(saved))
        evidence = run(asked, Path("out"), skip=("fit",))
    assert advise_from(evidence).choice == "peft+rag"
    return folder, evidence


@pytest.mark.parametrize("choice", ["prompt", "rag", "peft", "peft+rag"])
def test_what_is_advised_can_be_run(task_folder, monkeypatch, capsys, choice):
    folder, evidence = task_folder
    monkeypatch.chdir(folder)
    rows = list(map(json.loads, Path("out/train-with-passages.jsonl").read_text().splitlines()))
    assert len(rows) == 24
    for row in rows:
        assert [message["role"] for message in row["messages"]] == ["system", "user", "assistant"]
        assert "Item 3 is like blood" in row["messages"][1]["content"]
    tokenizer, asked = chatml_tokenizer(), rows[0]["messages"][1]["content"]
    lines = commands(evidence, choice)
    assert lines
    for line in lines:
        words = shlex.split(line.replace("your question", "Item 0?"))
        with embedded_tokens() as embedded:
            assert ran(words[1:]) == 0, f"{line}\n{capsys.readouterr().err}"
        if line.startswith("halka ask"):
            texts = [tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in embedded]
            assert sum(asked in text for text in texts) == 1, texts  # asked as it was trained


@contextmanager
def embedded_tokens() -> Iterator[list[list[int]]]:
    """The tokens of one row that an embedding is given, by any model, one pass after another."""
    rows: list[list[int]] = []

    def record(module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        if isinstance(module, torch.nn.Embedding) and inputs[0].dim() == 2 and len(inputs[0]) == 1:
            rows.append(inputs[0][0].tolist())

    handle = register_module_forward_pre_hook(record)
    try:
        yield rows
    finally:
        handle.remove()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--task NAME or --data FILE"),
        (["--data", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--data", "train.jsonl", "--documents", "nowhere"], "--documents: nowhere does not exist"),
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
    found = run(request_for(base, full=True), tmp_path, skip=("fit", "strength", "knowledge"))
    assert found.learnability is not None
    assert [each.method for each in found.learnability.trials if each.name == "full fine-tuning"] == ["full"]
    assert "full" in {each.choice for each in advise_from(found).prospects}

"""An experiment's file, and its schedule: what is run, what is not, and what happens when a run goes wrong."""

from __future__ import annotations

import gc
import json
import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from halka.methods import build_method
from halka.studies.ablation import Ablation
from halka.studies.compare import ExperimentPlan, measurements, run, runner, write_outputs
from halka.studies.experiment import Entry, Experiment, demo_experiment, read_experiment
from halka.studies.hosts import Here
from halka.studies.runner import Event, Runner, report, serve
from halka.util.errors import HalkaError
from halka.util.machine import cores
from runs_for_tests import base_and_task, written_task
from staged_runs import Stage, is_alive, staged, within_seconds

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def stage(tmp_path) -> Iterator[Stage]:
    with staged(tmp_path) as stage:
        yield stage


def experiment(*methods: dict, **changes) -> Experiment:
    given = {"name": "test", "task": "support", "methods": methods, "seeds": (0, 1), "train": {"steps": 8}}
    given |= {"search_together": False, **changes}
    return Experiment(**given)


BASE = {"method": "base", "label": "bare"}
LORA = {"method": "lora", "label": "lora", "lrs": (0.1, 0.2, 0.3), "rank": 4}
IA3 = {"method": "ia3", "label": "ia3", "lrs": (0.01,)}
LORA_FINALS = ["lora 0.05 0 final", "lora 0.05 1 final"]
IA3_FINALS = ["ia3 0.01 0 final", "ia3 0.01 1 final"]
SEARCHES = ["lora 0.1 0 search", "lora 0.2 0 search", "lora 0.3 0 search"]


def kinds(events: list[Event]) -> Counter[str]:
    return Counter(event.kind for event in events)


def add_up(events: list[Event]) -> bool:
    """Each end of a run counts as one, the total does not grow, and at the end they are equal."""
    ends = [event for event in events if event.kind in ("done", "failed", "skipped")]
    return (
        [event.done for event in ends] == list(range(1, len(ends) + 1))
        and all(one.total >= two.total for one, two in pairwise(events))
        and events[-1].done == events[-1].total == len(ends)
        and kinds(events)["started"] == kinds(events)["done"] + kinds(events)["failed"]
    )


# ── searches together ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_methods_searches_share_one_process(stage):
    stage.plan(**{"lora_0.2": {"loss": 0.4}})
    events = stage.go(experiment(BASE, LORA, IA3, search_together=True))
    assert stage.names() == ["bare None 0 final", *SEARCHES, "lora 0.2 0 final", "lora 0.2 1 final", *IA3_FINALS]
    processes = {note["name"]: note["pid"] for note in stage.notes()}
    assert len({processes[name] for name in SEARCHES}) == 1
    assert len({*processes.values()}) == 6
    assert add_up(events)
    steps = [event.run for event in events if event.kind == "step" and "search" in event.run]
    assert Counter(steps) == {f"lora, lr 0.{n}, seed 0 (search)": 2 for n in (1, 2, 3)}


def test_those_that_are_too_much_together_run_one_by_one(stage):
    stage.plan(**{"lora_0.2": {"kill_together": True, "loss": 0.4}})
    events = stage.go(experiment(LORA, search_together=True))
    assert [name for name in stage.names() if "search" in name] == [*SEARCHES[:2], *SEARCHES[1:]]
    assert stage.names()[-2:] == ["lora 0.2 0 final", "lora 0.2 1 final"]
    assert add_up(events)
    assert kinds(events)["failed"] == 0


def test_whoever_reads_the_reports_may_be_gone(tmp_path, monkeypatch):
    """As where the command was killed: the run is not at fault, and neither a failure nor an old result is written."""
    source, target = tmp_path / "run.json", tmp_path / "result.json"
    source.write_text("{}")
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", buffering=1) as gone:
        monkeypatch.setattr(sys, "stdout", gone)

        def measure(runs, folders):
            report(step=1)
            yield {"status": "done"}

        assert serve([str(source), str(target)], lambda content: None, measure) == 1
        monkeypatch.undo()
        with suppress(BrokenPipeError):
            gone.close()
    assert not target.exists()


def test_one_that_is_killed_alone_too_is_recorded_and_the_others_go_on(stage):
    stage.plan(**{"lora_0.2": {"kill": True}})
    events = stage.go(experiment(LORA, search_together=True))
    assert add_up(events)
    assert kinds(events) == {"started": 5, "step": 12, "done": 4, "failed": 1}


def test_of_searches_together_only_what_is_missing_runs(stage):
    plan = experiment({**LORA, "lrs": (0.1, 0.2)}, search_together=True)
    stage.go(plan)
    stage.forget()
    stage.go(experiment(LORA, search_together=True))
    assert stage.names() == ["lora 0.3 0 search"]


def test_copies_of_all_weights_search_alone(stage):
    stage.go(experiment({"method": "full", "label": "full", "lrs": (0.1, 0.2)}, search_together=True))
    processes = {note["name"]: note["pid"] for note in stage.notes()}
    assert processes["full 0.1 0 search"] != processes["full 0.2 0 search"]


# ── the schedule ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_rate_with_the_lowest_validation_loss_goes_on_to_all_seeds(stage):
    stage.plan(**{"lora_0.1": {"loss": 0.6}, "lora_0.2": {"loss": 0.4}, "lora_0.3": {"loss": 0.5}})
    events = stage.go(experiment(BASE, LORA, IA3))
    assert stage.names() == [
        "bare None 0 final",
        *SEARCHES,
        "lora 0.2 0 final",
        "lora 0.2 1 final",
        "ia3 0.01 0 final",
        "ia3 0.01 1 final",
    ]
    assert add_up(events)
    assert kinds(events) == {"started": 8, "step": 16, "done": 8}
    found = {(each["label"], each["lr"], each["seed"], each["purpose"]) for each in measurements(stage.folder)}
    assert {" ".join(map(str, each)) for each in found} == set(stage.names())


def test_a_search_goes_on_beyond_an_edge_that_is_best(stage):
    losses = {"0.1": 0.4, "0.2": 0.5, "0.3": 0.6, "0.05": 0.3, "0.025": 0.35}
    stage.plan(**{f"lora_{rate}": {"loss": loss} for rate, loss in losses.items()})
    events = stage.go(experiment(LORA))
    assert stage.names() == [*SEARCHES, *(f"lora {rate} 0 search" for rate in ("0.05", "0.025")), *LORA_FINALS]
    assert add_up(events)
    stage.forget()
    stage.go(experiment(LORA))
    assert stage.names() == []


@pytest.mark.parametrize(("beyond", "rates"), [(0, []), (1, ["0.45"]), (2, ["0.45", "0.675"])])
def test_a_search_adds_at_most_so_many_rates(stage, beyond, rates):
    stage.plan(**{f"lora_{rate}": {"loss": 0.5 - float(rate) / 10} for rate in ("0.1", "0.2", "0.3", "0.45", "0.675")})
    events = stage.go(experiment(LORA, search_beyond=beyond))
    assert [name.split()[1] for name in stage.names() if "search" in name] == ["0.1", "0.2", "0.3", *rates]
    assert add_up(events)


def test_a_search_ends_at_a_rate_that_fails(stage):
    stage.plan(**{"lora_0.3": {"loss": 0.4}, "lora_0.45": {"error": "diverged"}})
    assert add_up(stage.go(experiment(LORA)))
    assert stage.names() == [*SEARCHES, "lora 0.45 0 search", "lora 0.3 0 final", "lora 0.3 1 final"]


def test_a_search_is_shorter_and_uses_the_first_seed(stage):
    stage.go(experiment(LORA, seeds=(5, 6)))
    assert {(each["purpose"], each["steps"], each["seed"]) for each in measurements(stage.folder)} == {
        ("search", 4, 5),
        ("final", 8, 5),
        ("final", 8, 6),
    }
    other = experiment(LORA, search_steps=3, name="other")
    stage.go(other)
    assert {each["steps"] for each in measurements(stage.folder) if each["purpose"] == "search"} == {3, 4}


@pytest.mark.parametrize(
    ("settings", "shorter"),
    [
        ({"train": {"epochs": 3}}, {"epochs": 1.5}),
        ({"train": {}}, {"epochs": 1.5}),
        ({"train": {"epochs": 3}, "search_steps": 5}, {"epochs": 3, "steps": 5}),
        ({"train": {"steps": 9}}, {"steps": 4}),
        ({"train": {"steps": 1}}, {"steps": 1}),
    ],
)
def test_a_search_is_as_long_as_the_file_says_or_half_as_long(settings, shorter):
    groups, _ = ExperimentPlan(experiment(LORA, **settings)).due({})
    for spec in (spec for group in groups for spec in group):
        assert {key: spec.train[key] for key in ("epochs", "steps") if key in spec.train} == shorter


def test_a_sweep_tries_every_rate_with_every_seed_and_ends(stage):
    means = {"0.1": 0.4, "0.2": 0.5, "0.3": 0.6, "0.05": 0.45}
    stage.plan(**{f"lora_{rate}": {"loss": loss} for rate, loss in means.items()})
    events = stage.go(experiment(LORA, sweep=True))
    rates = ["0.1", "0.2", "0.3"]
    assert stage.names() == [
        f"lora {rate} {seed} search" for tried in (rates, ["0.05"]) for seed in (0, 1) for rate in tried
    ]
    assert add_up(events)
    assert {each["steps"] for each in measurements(stage.folder)} == {8}
    stage.forget()
    stage.go(experiment(LORA, sweep=True))
    assert stage.names() == []


def test_a_sweeps_seeds_share_a_process_each(stage):
    stage.go(experiment(LORA, sweep=True, search_together=True, search_beyond=0))
    names: dict[int, list[str]] = {}
    for note in stage.notes():
        names.setdefault(note["pid"], []).append(note["name"])
    assert [*names.values()] == [[f"lora {rate} {seed} search" for rate in (0.1, 0.2, 0.3)] for seed in (0, 1)]


def test_a_sweep_does_not_go_on_from_a_rate_at_which_a_seed_failed(stage):
    stage.plan(**{"lora_0.3_1": {"error": "diverged"}, "lora_0.3": {"loss": 0.4}})
    assert add_up(stage.go(experiment(LORA, sweep=True)))
    assert not [name for name in stage.names() if name.split()[1] not in ("0.1", "0.2", "0.3")]


def test_a_sweep_whose_best_rate_is_beside_one_that_failed_tries_one_between(stage):
    losses = {"0.1": 0.5, "0.2": 0.4, "0.245": 0.45, "0.3": 0.6}
    lost = {"lora_0.3_1": {"error": "diverged"}}
    stage.plan(**lost, **{f"lora_{rate}": {"loss": loss} for rate, loss in losses.items()})
    assert add_up(stage.go(experiment(LORA, sweep=True)))
    assert [name for name in stage.names() if name.split()[1] not in ("0.1", "0.2", "0.3")] == [
        "lora 0.245 0 search",
        "lora 0.245 1 search",
    ]


@pytest.mark.parametrize(
    ("methods", "changes", "reason"),
    [
        ((LORA,), {"search_steps": 3}, "search_steps: a sweep has no final runs"),
        ((LORA,), {"score_every": 3}, "score_every: a sweep has no final runs"),
        ((LORA,), {"best_by": "score"}, "best_by: a sweep has no final runs"),
        ((LORA, BASE), {}, "two rates or more .* bare"),
        ((IA3,), {}, "two rates or more .* ia3"),
    ],
)
def test_a_sweep_has_rates_and_no_final_runs(methods, changes, reason):
    with pytest.raises(HalkaError, match=reason):
        experiment(*methods, sweep=True, **changes)


def test_events_say_what_happens(stage):
    events = stage.go(experiment(BASE, {**LORA, "lrs": (0.1, 0.2)}, seeds=(0,)))
    assert [(event.kind, event.run, event.step, event.steps, event.loss) for event in events[:4]] == [
        ("started", "bare, seed 0", None, None, None),
        ("step", "bare, seed 0", 1, 2, 1.0),
        ("step", "bare, seed 0", 2, 2, 0.5),
        ("done", "bare, seed 0", None, None, None),
    ]
    ends = {event.run: event.message for event in events if event.kind == "done"}
    assert ends == {
        "bare, seed 0": "exact_match 0.250",
        "lora, lr 0.1, seed 0 (search)": "validation loss 0.5000",
        "lora, lr 0.2, seed 0 (search)": "validation loss 0.5000",
        "lora, lr 0.1, seed 0": "exact_match 0.250",
    }


@pytest.mark.parametrize("jobs", [1, 3])
def test_so_many_runs_at_a_time_and_no_more(jobs, stage):
    stage.plan(**{"": {"meet": jobs, "sleep": 0.15}})  # none ends before so many have begun
    stage.go(experiment(IA3, BASE, jobs=jobs, seeds=tuple(range(5))))
    times = [(note["at"], 1) for note in stage.notes()] + [(note["at"], -1) for note in stage.notes("ends")]
    running = [sum(change for _, change in sorted(times)[: count + 1]) for count in range(len(times))]
    assert len(stage.notes()) == 6
    assert max(running) == jobs
    assert {note["threads"] for note in stage.notes()} == {str(max(1, cores() // jobs))}


def test_runs_that_are_there_are_not_run_again(stage):
    plan = experiment(BASE, IA3)
    stage.go(plan)
    before = {path.name: path.read_bytes() for path in (stage.folder / "runs").iterdir()}
    stage.forget()
    events = stage.go(plan)
    assert stage.names() == []
    assert kinds(events) == {"skipped": 3}
    assert add_up(events)
    assert {event.message for event in events} == {"exact_match 0.250"}
    assert {path.name: path.read_bytes() for path in (stage.folder / "runs").iterdir()} == before
    events = stage.go(experiment(BASE, IA3, seeds=(0, 1, 2)))
    assert stage.names() == ["ia3 0.01 2 final"]
    assert kinds(events) == {"skipped": 3, "started": 1, "step": 2, "done": 1}
    assert add_up(events)


def test_searches_that_are_there_lead_to_their_final_runs_once(stage):
    plan = experiment(LORA)
    stage.go(plan)
    stage.forget()
    events = stage.go(plan)
    assert stage.names() == []
    assert kinds(events) == {"skipped": 5}
    assert add_up(events)


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_experiment_stopped_after_its_searches_goes_on_with_the_final_runs(jobs, stage):
    plan = experiment(LORA, jobs=jobs)
    stage.plan(**{"": {"sleep": 0.1}})
    stage.go(plan)
    for path in (stage.folder / "runs").glob("*-final-*"):
        path.unlink()
    stage.forget()
    events = stage.go(plan)
    assert sorted(stage.names()) == ["lora 0.1 0 final", "lora 0.1 1 final"]
    assert add_up(events)


@pytest.mark.parametrize("label", [f"LoRA {', '.join('ab' * 200)}", "নরম " * 90])
def test_a_long_label_is_no_longer_than_a_file_name_may_be(label, stage):
    plan = experiment({**IA3, "label": f"{label} 1"}, {**IA3, "label": f"{label} 2"}, seeds=(0,))
    assert kinds(stage.go(plan))["done"] == 2
    assert len(measurements(stage.folder)) == 2


def test_the_same_work_has_the_same_name_wherever_it_runs(stage, tmp_path):
    def names(plan: Experiment, folder: Path) -> set[str]:
        list(run(plan, folder))
        return {path.name for path in (folder / "runs").iterdir()}

    own = names(experiment(IA3), tmp_path / "one")
    assert names(experiment(IA3, jobs=2), tmp_path / "two") == own
    for changes in (
        {"seeds": (7, 8)},
        {"train": {"steps": 9}},
        {"base": "other"},
        {"task": other_task(tmp_path)},
        {"examples": {"test": 3}},
    ):
        assert not names(experiment(IA3, **changes), tmp_path / str(changes)) & own
    assert not names(experiment({**IA3, "targets": ("attn.k",)}), tmp_path / "three") & own


def test_other_kinds_labels_and_texts_for_forgetting_are_other_work(tmp_path):
    (tmp_path / "rows.jsonl").write_text(
        "".join(f'{{"text": "Row {i}", "label": "{"ab"[i % 2]}"}}\n' for i in range(9))
    )
    (tmp_path / "text.txt").write_text("Once upon a time.")

    def keys(**changes) -> set[str]:
        work = {
            "train": "rows.jsonl",
            "validation": 0.3,
            "test": 0.3,
            "metrics": "accuracy",
            "kind": "sequence-classification",
            **changes,
        }
        (tmp_path / "task.yaml").write_text(yaml.safe_dump(work))
        plan = experiment(IA3, task=str(tmp_path / "task.yaml"), forgetting=str(tmp_path / "text.txt"))
        return {spec.key for group in ExperimentPlan(plan).due({})[0] for spec in group}

    own = keys()
    assert keys() == own
    for changes in ({"kind": "causal-lm"}, {"labels": ["b", "a"]}, {"labels": ["a", "b", "c"]}):
        assert not keys(**changes) & own
    (tmp_path / "text.txt").write_text("Another time.")
    assert not keys() & own


# ── when a run goes wrong ───────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_that_fails_is_recorded_and_the_rest_goes_on(stage):
    stage.plan(**{"ia3_0.01_0": {"error": "ValueError: no"}})
    events = stage.go(experiment(IA3, BASE))
    assert stage.names() == ["ia3 0.01 0 final", "ia3 0.01 1 final", "bare None 0 final"]
    assert add_up(events)
    assert [(event.run, event.message) for event in events if event.kind == "failed"] == [
        ("ia3, lr 0.01, seed 0", "ValueError: no")
    ]
    assert Counter(each["status"] for each in measurements(stage.folder)) == {"done": 2, "failed": 1}


@pytest.mark.parametrize(
    ("how", "said"), [("kill", "the process ended with -9 "), ("leave", "the process ended with 0 ")]
)
def test_a_run_that_ends_without_a_word_is_recorded_with_its_last_ones(how, said, stage):
    stage.plan(**{"ia3_0.01_0": {how: True}})
    events = stage.go(experiment(IA3))
    assert stage.names() == ["ia3 0.01 0 final", "ia3 0.01 1 final"]
    assert add_up(events)
    (lost,) = [each for each in measurements(stage.folder) if each["status"] == "failed"]
    assert lost["error"].startswith(said)
    assert lost["error"].endswith("here it goes wrong")
    assert (lost["method"]["label"], lost["lr"], lost["seed"], lost["purpose"]) == ("ia3", 0.01, 0, "final")


def test_a_search_goes_on_without_the_runs_that_failed(stage):
    stage.plan(**{"lora_0.1": {"kill": True}, "lora_0.2": {"loss": 0.6}, "lora_0.3": {"loss": 0.5}})
    events = stage.go(experiment(LORA, search_beyond=0))
    assert stage.names() == [*SEARCHES, "lora 0.3 0 final", "lora 0.3 1 final"]
    assert add_up(events)


def test_a_method_whose_searches_all_failed_has_no_final_runs(stage):
    stage.plan(lora={"error": "no"})
    events = stage.go(experiment(LORA, IA3))
    assert stage.names() == [*SEARCHES, "ia3 0.01 0 final", "ia3 0.01 1 final"]
    assert add_up(events)
    assert kinds(events)["failed"] == 3


@pytest.mark.parametrize("others", [0.5, None])
def test_a_search_whose_loss_is_not_finite_is_not_chosen(others, stage):
    stage.plan(**{"lora_0.1": {"loss": None}, "lora": {"loss": others}})
    events = stage.go(experiment(LORA, IA3))
    assert stage.names()[:3] == SEARCHES
    assert [name for name in stage.names() if name.startswith("lora 0.1")] == ["lora 0.1 0 search"]
    assert stage.names()[-1] == "ia3 0.01 1 final"
    assert add_up(events)


def test_what_failed_is_tried_again_only_when_asked(stage):
    plan = experiment(IA3, BASE)
    stage.plan(**{"ia3_0.01_1": {"error": "no"}})
    stage.go(plan)
    stage.plan()
    stage.forget()
    events = stage.go(plan)
    assert stage.names() == []
    assert kinds(events) == {"skipped": 3}
    assert [event.message for event in events] == ["exact_match 0.250", "no", "exact_match 0.250"]
    events = stage.go(plan, retry=True)
    assert stage.names() == ["ia3 0.01 1 final"]
    assert kinds(events) == {"skipped": 2, "started": 1, "step": 2, "done": 1}
    assert add_up(events)
    assert {each["status"] for each in measurements(stage.folder)} == {"done"}


def test_a_search_that_failed_is_tried_again_before_its_rate_is_passed_over(stage):
    plan = experiment(LORA, search_beyond=0)
    stage.plan(**{"lora_0.1": {"loss": 0.6}, "lora_0.2": {"loss": 0.5}, "lora_0.3": {"error": "no"}})
    stage.go(plan)
    stage.plan(**{"lora_0.1": {"loss": 0.6}, "lora_0.2": {"loss": 0.5}, "lora_0.3": {"loss": 0.4}})
    stage.forget()
    events = stage.go(plan, retry=True)
    assert stage.names() == ["lora 0.3 0 search", "lora 0.3 0 final", "lora 0.3 1 final"]
    assert add_up(events)


def test_a_run_that_was_tried_again_and_killed_leaves_no_old_result(stage):
    plan = experiment(IA3, seeds=(0,))
    stage.plan(ia3={"error": "the first time"})
    stage.go(plan)
    stage.plan(ia3={"kill": True})
    stage.go(plan, retry=True)
    (found,) = measurements(stage.folder)
    assert found["error"].startswith("the process ended with -9")


def test_what_a_library_prints_is_no_step(stage):
    stage.plan(ia3={"print": ["Loading weights: 100%", "[1, 2]", "", "  {}", "caf\xe9, not in UTF-8"]})
    assert kinds(stage.go(experiment(IA3, seeds=(0,)))) == {"started": 1, "step": 2, "done": 1}


@pytest.mark.parametrize("line", ["{'lr': 3}", '{"warning": "no GPU"}', "{"])
def test_nor_is_what_only_looks_like_one(line, stage):
    stage.plan(ia3={"print": [line]})
    events = stage.go(experiment(IA3, seeds=(0,)))
    assert kinds(events) == {"started": 1, "step": 2, "done": 1}


# ── stopped from outside ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", ["interrupted while waiting", "interrupted between events", "closed"])
def test_whoever_stops_it_stops_its_runs(how, stage):
    stage.plan(ia3={"sleep": 60})
    plan = experiment(IA3, BASE, jobs=2)
    stream = run(plan, stage.folder)
    assert [next(stream).kind for _ in range(6)].count("started") == 2
    pids = [note["pid"] for note in stage.notes()]
    assert len(pids) == 2
    assert all(map(is_alive, pids))
    if how == "closed":
        stream.close()
    elif how == "interrupted between events":
        with pytest.raises(KeyboardInterrupt):
            stream.throw(KeyboardInterrupt())
    else:
        with pytest.raises(KeyboardInterrupt), within_seconds(0.3, KeyboardInterrupt):
            list(stream)
    assert not any(map(is_alive, pids))
    assert measurements(stage.folder) == []
    stage.plan()
    stage.forget()
    events = stage.go(plan)
    assert sorted(stage.names()) == ["bare None 0 final", "ia3 0.01 0 final", "ia3 0.01 1 final"]
    assert add_up(events)


def test_what_was_done_before_an_interruption_stays_done(stage):
    stage.plan(**{"ia3_0.01_1": {"sleep": 60}})
    plan = experiment(IA3)
    stream = run(plan, stage.folder)
    assert any(event.kind == "step" and "seed 1" in event.run for event in stream)  # and no further
    with pytest.raises(KeyboardInterrupt):
        stream.throw(KeyboardInterrupt())
    stage.plan()
    stage.forget()
    events = stage.go(plan)
    assert stage.names() == ["ia3 0.01 1 final"]
    assert kinds(events) == {"skipped": 1, "started": 1, "step": 2, "done": 1}


def test_no_pipe_is_left_open(stage):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", ResourceWarning)
        stage.go(experiment(IA3))
        gc.collect()
    assert not [each.message for each in said if issubclass(each.category, ResourceWarning)]


# ── the experiment's file ───────────────────────────────────────────────────────────────────────────────────────────

GOOD = {"name": "test", "task": "support", "methods": [{"method": "lora", "rank": 4, "targets": ["attn.q"]}]}


def written(folder: Path, content) -> Path:
    path = folder / "experiment.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def test_an_experiment_is_read_as_it_is_written(tmp_path):
    given = {
        **GOOD,
        "base": "someone/base",
        "dtype": "float32",
        "quantize": "int8",
        "examples": {"train": 10},
        "methods": [
            {"method": "base"},
            {"method": "lora", "rank": 4, "targets": ["attn.q"], "lrs": [1e-3, 1e-2]},
            {"method": "lora", "label": "other"},
        ],
        "train": {"epochs": 2.5},
        "search_steps": 5,
        "search_beyond": 1,
        "score_every": None,
        "best_by": "score",
        "sweep": False,
        "search_together": False,
        "seeds": [3],
        "jobs": 2,
        "forgetting": str(tmp_path / "text.txt"),
    }
    (tmp_path / "text.txt").write_text("some")
    found = read_experiment(written(tmp_path, given))
    assert found.model_dump(exclude={"methods"}) == {
        key: tuple(value) if key == "seeds" else value for key, value in given.items() if key != "methods"
    }
    assert [entry.title() for entry in found.methods] == ["base", "lora rank=4 targets=('attn.q',)", "other"]
    usual = {"alpha": 32.0}  # which runs name that are of another α than those of before, twice the rank
    assert [entry.fields() for entry in found.methods] == [{}, {**usual, "rank": 4, "targets": ("attn.q",)}, usual]
    assert [(entry.lrs, entry.rate) for entry in found.methods[1:]] == [((1e-3, 1e-2), 1e-3), ((), None)]


def test_a_task_is_looked_for_beside_the_experiment(tmp_path, monkeypatch):
    (tmp_path / "task.yaml").write_text("train: x.jsonl")
    assert read_experiment(written(tmp_path, {**GOOD, "task": "task.yaml"})).task == str(
        (tmp_path / "task.yaml").resolve()
    )
    assert read_experiment(written(tmp_path, GOOD)).task == "support"
    monkeypatch.chdir(tmp_path)
    assert read_experiment("experiment.yaml").name == "test"


MISTAKES = [
    ("name: [", "cannot be read as YAML"),
    ("- lora", "holds no experiment: it needs at least name, task and methods"),
    ("", "holds no experiment"),
    ({"name": "test"}, r"task: it is missing; methods: it is missing"),
    ({**GOOD, "seed": 3}, r"seed: there is no such setting; did you mean seeds\?"),
    ({**GOOD, "jobs": 0}, "jobs: Input should be greater than or equal to 1"),
    ({**GOOD, "seeds": []}, "seeds: name at least one"),
    ({**GOOD, "seeds": [1, 1]}, "seeds: .* none twice"),
    ({**GOOD, "methods": []}, "methods: name at least one"),
    ({**GOOD, "methods": [{"method": "lora", "lrs": [0.1, 0.1]}]}, r"methods\.0: lrs: a rate is named twice"),
    ({**GOOD, "methods": [{"method": "lora", "lrs": [-0.1]}]}, r"methods\.0: lrs\.0: Input should be greater than 0"),
    ({**GOOD, "methods": [{"method": "lora", "rank": "x"}]}, r"methods\.0: rank: 'x' is not a whole number"),
    ({**GOOD, "methods": [{"method": "lora", "targets": "atn"}]}, r"methods\.0: lora: targets .* not 'atn'"),
    ({**GOOD, "methods": [{"method": "base", "rank": 3}]}, r"methods\.0: the bare base is not tuned: .* no rank"),
    ({**GOOD, "methods": [{"method": "base", "text": "a"}]}, r"methods\.0: the bare base is not tuned: .* no text"),
    ({**GOOD, "methods": [{"method": "lora", "text": "a"}]}, r"methods\.0: text: lora has no virtual tokens: choose"),
    ({**GOOD, "methods": [{"method": "prompt", "text": ""}]}, r"methods\.0: text: .* at least 1 character"),
    ({**GOOD, "methods": [{"method": "prompt", "text": "a", "tokens": [1]}]}, r"methods\.0: text: tokens already say"),
    ({**GOOD, "search_steps": 0}, "search_steps: Input should be greater than or equal to 1"),
    ({**GOOD, "examples": {"test": 0}}, r"examples\.test: Input should be greater than or equal to 1"),
    ({**GOOD, "train": {"steps": 4.5}}, "train: steps: 4.5 is not a whole number"),
    ({**GOOD, 1: 2}, "1: there is no such setting: choose of name, base, "),
    ({**GOOD, "methods": [{"method": "lora", 5: 2}]}, r"methods\.0: 5: there is no such setting"),
    ({**GOOD, "task": "none.yaml"}, r"task: there is no .*none\.yaml"),
    ({**GOOD, "base": "../base"}, r"base: there is no .*base"),
    ({**GOOD, "forgetting": "none.txt"}, r"forgetting: there is no .*none\.txt"),
    ({**GOOD, "seeds": [0, -1]}, r"seeds\.1: Input should be greater than or equal to 0"),
    ({**GOOD, "seeds": ["a"]}, r"seeds\.0: Input should be a valid integer"),
    ({**GOOD, "examples": {"dev": 3}}, "examples: the splits are train, validation and test, not dev"),
    ({**GOOD, "methods": [{"method": "lara"}]}, r"methods\.0: .*no method 'lara': choose one of bitfit"),
    ({**GOOD, "methods": [{"rank": 3}]}, r"methods\.0: method: it is missing"),
    ({**GOOD, "methods": [{"method": "lora", "rank": 0}]}, r"methods\.0: .*rank must be a whole number above 0, not 0"),
    ({**GOOD, "methods": [{"method": "lora", "rnk": 3}]}, r"methods\.0: rnk: there is no .* did you mean rank\?"),
    ({**GOOD, "methods": [{"method": "lora", "lr": 1e-3}]}, r"methods\.0: .*lr: the rates to search are a list, lrs"),
    ({**GOOD, "methods": [{"method": "lora", "lrs": ["fast"]}]}, r"methods\.0: lrs\.0: Input should be a valid number"),
    ({**GOOD, "methods": [{"method": "lora"}, {"method": "lora"}]}, "methods: two are called lora: give each"),
    ({**GOOD, "train": {"lr": 0.1}}, "train: lr is searched or set by seeds, not here"),
    ({**GOOD, "train": {"seed": 1}}, "train: seed is searched or set by seeds, not here"),
    ({**GOOD, "train": {"steps": 0}}, "steps must be above 0, not 0"),
    ({**GOOD, "train": {"stps": 3}}, "train: stps: there is no such setting; did you mean steps"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "message"), MISTAKES)
def test_a_mistake_in_the_file_is_named_with_its_key(content, message, tmp_path):
    path = written(tmp_path, content)
    with pytest.raises(ValueError, match=message) as refused:
        read_experiment(path)
    assert str(refused.value).startswith(f"{path}")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Experiment(**{**GOOD, "jobs": 0}), "jobs: Input should be greater than or equal to 1"),
        (lambda: Experiment(**{**GOOD, "seeds": 3}), "seeds: Input should be a list"),
        (lambda: experiment({"method": "lora", "lrs": (-1.0,)}), "methods.0: lrs.0: Input should be greater than 0"),
        (lambda: Entry(method="lara"), "there is no method 'lara': choose one of bitfit"),
        (lambda: Ablation(name="a", documents=(), questions={}), "documents: Tuple should have at least 1 item"),
    ],
)
def test_a_mistake_in_python_is_named_as_in_a_file(build, message):
    with pytest.raises(HalkaError) as refused:
        build()
    assert message in str(refused.value)


def test_a_method_may_be_its_name_alone(tmp_path):
    short, long = (
        read_experiment(written(tmp_path, {**GOOD, "methods": methods}))
        for methods in (["base", "lora"], [{"method": "base"}, {"method": "lora"}])
    )
    assert short == long


def test_a_file_that_is_not_there_is_said_to_be_missing(tmp_path):
    with pytest.raises(ValueError, match=r"there is no file .*none\.yaml"):
        read_experiment(tmp_path / "none.yaml")


def test_numbers_that_yaml_reads_as_text_are_numbers(tmp_path):
    """`1e-1` without a dot is text to YAML 1.1."""
    entry = {"method": "lora", "rank": "16", "dropout": "1e-1", "lrs": ["1e-3"], "targets": "attn.q,attn.v"}
    found = read_experiment(written(tmp_path, {**GOOD, "methods": [entry], "train": {"weight_decay": "1e-2"}}))
    assert found.methods[0].fields() == {"rank": 16, "alpha": 32, "dropout": 0.1, "targets": ("attn.q", "attn.v")}
    assert found.methods[0].lrs == (1e-3,)
    assert found.train == {"weight_decay": 1e-2}


def test_a_folder_called_as_a_shipped_task_or_base_is_not_meant(tmp_path):
    for name in ("support", "smollm2-135m"):
        (tmp_path / name).mkdir()
    found = read_experiment(written(tmp_path, {**GOOD, "base": "smollm2-135m"}))
    assert (found.task, found.base) == ("support", "smollm2-135m")


def test_a_base_beside_the_experiment_is_found(tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "config.json").write_text("{}")
    assert read_experiment(written(tmp_path, {**GOOD, "base": "own"})).base == str((tmp_path / "own").resolve())


TASK_MISTAKES = [
    ({"metrics": "exact_matchh"}, "exact_matchh"),
    ({"validation": None}, "has no validation examples"),
    ({"test": None}, "has no test examples"),
    ({"metrics": "json_field:intent"}, "intent"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), TASK_MISTAKES)
def test_a_task_that_would_fail_every_run_is_refused_before_the_first(changes, message, stage, tmp_path):
    with pytest.raises(ValueError, match=message):
        stage.go(experiment(IA3, task=other_task(tmp_path, **changes)))
    assert stage.names() == []
    assert not (stage.folder / ".lock").exists()


def other_task(folder: Path, **changes) -> str:
    return str(written_task(folder, **({"metrics": "exact_match", "max_new_tokens": 4} | changes)))


def test_changed_data_is_other_work(stage, tmp_path):
    plan = experiment(IA3, task=other_task(tmp_path), seeds=(0,))
    stage.go(plan)
    stage.forget()
    assert kinds(stage.go(plan)) == {"skipped": 1}
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "What is 99 + 1?", "completion": "It is 100."}) + "\n")
    assert kinds(stage.go(plan))["done"] == 1
    assert len(measurements(stage.folder)) == 2


OWN_METRIC = """
from halka.data.examples import Example, Message
from halka.data.metric import Metric
from halka.data.task import Task

LONGEST = 10

def longest():
    return LONGEST

def share(answer, references):
    return min(len(answer), longest()) / longest()

def task():
    example = Example((Message("user", "How?"), Message("assistant", "So.")))
    return Task("own", (example,), (example,), (example,), (Metric.mean("length", "", share),), "length")
"""


def test_what_a_metric_scored_before_its_code_changed_is_counted(tmp_path):
    (path := tmp_path / "own.py").write_text(OWN_METRIC)
    own = experiment(IA3, task=str(path))
    of_today = {"length": {"code": ExperimentPlan(own).task.metrics[0].code()}}
    scored = {"scores": {"length": {"value": 0.3}}, "own_metrics": of_today}
    before = {"scores": {}, "own_metrics": {"length": {}}}  # from before codes were kept
    assert ExperimentPlan(own).outdated([scored, before]) == {}
    path.write_text(f"# the same\n{OWN_METRIC}")
    assert ExperimentPlan(own).outdated([scored, before]) == {}
    path.write_text(OWN_METRIC.replace("LONGEST = 10", "LONGEST = 12"))
    assert ExperimentPlan(own).outdated([scored, scored, before, {**scored, "scores": None}]) == {"length": 2}
    assert [run.key for runs in ExperimentPlan(own).due({})[0] for run in runs]  # their work is the same


def test_a_file_as_a_studys_folder_is_refused(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(HalkaError, match="out is a file: name a folder"):
        next(run(experiment(IA3), tmp_path / "out"))


def test_a_primary_metric_that_is_none_of_the_tasks_costs_no_training(tmp_path):
    (path := tmp_path / "own.py").write_text(OWN_METRIC.replace(', "length")', ', "longth")'))
    with pytest.raises(HalkaError, match="task own: primary is 'longth': name one of its metrics "):
        ExperimentPlan(experiment(IA3, task=str(path)))


@pytest.mark.parametrize(
    ("train", "own", "together"),
    [
        ({"steps": 8}, {"epochs": 2}, {"epochs": 2}),
        ({"warmup": 0.1}, {"warmup_steps": 2}, {"warmup_steps": 2}),
        ({"epochs": 2}, {"steps": 8}, {"epochs": 2, "steps": 8}),
    ],
)
def test_a_methods_own_training_takes_the_place_of_the_experiments(train, own, together):
    planned = experiment({**IA3, "train": own}, train=train)
    assert planned.train_of(planned.methods[0]) == together


def test_other_weights_in_the_bases_folder_are_other_work(stage, tmp_path):
    (base := tmp_path / "base").mkdir()
    (base / "config.json").write_text("{}")
    (base / "model.safetensors").write_bytes(b"weights")
    plan = experiment(IA3, base=str(base), task=other_task(tmp_path), seeds=(0,))
    stage.go(plan)
    stage.forget()
    assert kinds(stage.go(plan)) == {"skipped": 1}
    (base / "model.safetensors").write_bytes(b"wiegths")
    assert kinds(stage.go(plan))["done"] == 1


def test_table_and_report_are_of_this_experiments_runs_alone(stage):
    stage.plan(**{"lora_0.1": {"loss": 0.6}, "lora_0.2": {"loss": 0.4}, "lora_0.3": {"loss": 0.5}})
    first = experiment(LORA, BASE)
    stage.go(first)
    second = experiment(LORA, train={"steps": 10}, seeds=(0,))
    stage.plan()
    stage.go(second)
    found = write_outputs(first, stage.folder)
    assert len(found.measurements) == 6
    assert {each["steps"] for each in found.measurements if each["purpose"] == "final"} == {8}
    assert {each["lr"] for each in found.measurements if each["purpose"] == "final"} == {0.2, None}
    assert found.others == len(measurements(stage.folder)) - 6 == 4
    assert found.table.read_text().count("| lora ") == 1
    assert "<title>test" in found.report.read_text()


def test_a_task_may_have_another_name_and_an_ablations_runs_are_none_of_other_settings(stage, tmp_path):
    plan = experiment(IA3, task=other_task(tmp_path, name="first"), seeds=(0,))
    stage.go(plan)
    (stage.folder / "runs" / "plain-seed0.json").write_text('{"status": "done", "who": "adapter"}')
    outputs = write_outputs(experiment(IA3, BASE, task=other_task(tmp_path, name="second"), seeds=(0,)), stage.folder)
    assert ([run["task"] for run in outputs.measurements], outputs.others) == (["second"], 0)
    (key,) = json.loads(outputs.summary.read_text())["runs"]
    assert key.startswith("ia3-")


def test_two_processes_do_not_run_experiments_in_one_folder(stage):
    stage.plan(ia3={"sleep": 60})
    stream = run(experiment(IA3), stage.folder)
    next(stream)
    with pytest.raises(ValueError, match="another process runs a study in"):
        stage.go(experiment(BASE))
    stream.close()
    assert kinds(stage.go(experiment(BASE)))["done"] == 1


def test_a_run_keeps_what_a_stopped_one_left(stage):
    (spec,) = ExperimentPlan(experiment(IA3, seeds=(0,))).due({})[0][0]
    left = stage.folder / "work" / spec.key / "checkpoint.safetensors"
    left.parent.mkdir(parents=True)
    left.write_text("of a run that was stopped")
    group = Runner(stage.folder, Here("program"), str).prepare([spec])
    assert group.files == ((left.with_name("run.json"), stage.folder / "runs" / f"{spec.key}.json"),)
    assert left.exists()


def test_of_runs_that_share_a_process_each_ends_when_its_result_is_there(stage):
    stage.plan(**{"lora_0.2": {"sleep": 60}})
    stream = run(experiment(LORA, search_together=True), stage.folder)
    kinds = [next(stream).kind for _ in range(5)]
    assert kinds == ["started", "step", "step", "done", "started"]
    stream.close()
    stage.plan()
    assert add_up(stage.go(experiment(LORA, search_together=True)))


def test_the_demo_is_an_experiment():
    found = demo_experiment()
    assert {entry.method for entry in found.methods} >= {"base", "full", "lora", "bottleneck", "prefix", "prompt"}


def test_the_demo_is_its_benchmark_with_fewer_items_seeds_and_rates():
    demo, benchmark = demo_experiment(), read_experiment(BENCHMARKS / "experiments" / "demo.yaml")
    assert demo.train == benchmark.train
    assert demo.base == benchmark.base
    entries = {entry.method: entry for entry in benchmark.methods}
    finals = [run for run in measurements(BENCHMARKS / "results" / "demo") if run["purpose"] == "final"]
    for entry in demo.methods:
        assert {run["lr"] for run in finals if run["method"]["name"] == entry.method} == {*(entry.lrs or [None])}
        other = entries[entry.method]
        assert (entry.label, entry.text, entry.train) == (other.label, other.text, other.train)
        if entry.method != "base":
            built, in_benchmark = (build_method(entry.method, one.fields()) for one in (entry, other))
            assert replace(built, **{"alpha": None} if entry.method == "lora" else {}) == in_benchmark
    assert [entry.method for entry in demo.methods] == [*entries]


# ── with the real program ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("name", "runs"), [("classification", 36), ("demo", 35), ("quantised", 6)])
def test_the_committed_runs_are_read_as_finished(name, runs):
    """A change of a run's key would measure everything anew."""
    plan = read_experiment(BENCHMARKS / "experiments" / f"{name}.yaml")
    try:
        found = ExperimentPlan(plan).results(runner(plan, BENCHMARKS / "results" / name)).values()
    except FileNotFoundError as missing:
        pytest.skip(str(missing))  # public data that is not in the repository
    assert len(found) == len(measurements(BENCHMARKS / "results" / name)) == runs
    assert {each["status"] for each in found} == {"done"}


@pytest.mark.slow
def test_a_small_experiment_from_its_file_to_its_report(tmp_path):
    base_and_task(tmp_path)
    plan = {
        "name": "small",
        "task": "task.yaml",
        "base": "base",
        "dtype": "float32",
        "methods": [{"method": "lora", "rank": 4}],
        "train": {"steps": 2},
        "seeds": [0],
    }
    small = read_experiment(written(tmp_path, plan))
    stream = run(small, tmp_path / "out")
    events = [next(stream), next(stream)]  # that it has started, and its first step: by now all is imported
    with within_seconds(120):
        events += stream
    assert kinds(events) == {"started": 1, "step": 2, "done": 1}
    assert add_up(events)
    outputs = write_outputs(small, tmp_path / "out")
    assert "lora" in outputs.table.read_text()
    assert outputs.report.stat().st_size > 1000
    assert json.loads(outputs.summary.read_text())
    assert [each["status"] for each in outputs.measurements] == ["done"]

"""Measurements to summary, tables, plots and the report: right intervals, honest sentences, safe and stable output."""

from __future__ import annotations

import base64
import copy
import hashlib
import io
import json
import math
import os
import random
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest

from halka.evaluation.metrics import resampled
from halka.evaluation.metrics import score as scored
from halka.report.axes import banded, spread_out
from halka.report.findings import quality_takeaway
from halka.report.html import render, side_by_side, write_report
from halka.report.intervals import T_975, Interval, ScoreEstimate, apart, difference, estimate, gap, ratio, share
from halka.report.plots import draw_plots
from halka.report.summary import Summary, summarise
from halka.report.svg import MARKERS, SERIES, THEME, looks
from halka.report.table import caption, cells, columns, to_markdown, to_rich
from halka.report.units import bounds, bytes_said, count, duration, learning_rate, listed, percent, signed, size
from halka.util.plain import plain
from halka.util.text import plural
from measurements_for_tests import HELD, METHODS, PROMPTS, WEIGHTS, measurements, perplexities
from page_for_tests import Page

UNIT = (0.0, 1.0)
Runs = list[dict[str, Any]]


def of(runs: Runs, label: str, purpose: str | None = None) -> Runs:
    return [r for r in runs if r["method"]["label"] == label and purpose in (None, r["purpose"])]


def without(runs: Runs, *labels: str) -> Runs:
    return [r for r in runs if r["method"]["label"] not in labels]


def about(summary: Summary, words: str) -> list[str]:
    return [sentence for sentence in summary.caveats if words in sentence]


def score(value: float, half: float, n: int = 200) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half, "n": n}


def small(runs: Runs) -> Runs:
    """Without curves: quicker, for what does not look at them."""
    return [r | {"train": {**r["train"], "curve": [], "validation": []} if r["train"] else None} for r in runs]


# ---- intervals ----


def test_a_line_of_several_runs_ends_where_the_first_of_them_does():
    assert banded([{1: 2.0, 2: 1.0, 3: 0.5}, {1: 4.0, 2: 3.0}]) == [(1, 2.0, 3.0, 4.0), (2, 1.0, 2.0, 3.0)]
    assert banded([]) == []


def test_one_seed_has_the_interval_of_its_items() -> None:
    found = estimate([score(0.6, 0.07)], UNIT)
    assert found is not None
    assert (found.low, found.high) == (pytest.approx(0.53), pytest.approx(0.67))
    assert found.how == "the test items alone (one run)"


def test_several_seeds_add_both_sources() -> None:
    values = [0.60, 0.62, 0.61]
    found = estimate([score(value, 0.07) for value in values], UNIT)
    assert found is not None
    seeds = T_975[1] * stdev(values) / math.sqrt(3)
    assert found.high is not None
    assert found.high - mean(values) == pytest.approx(math.hypot(seeds, 0.07))
    assert (found.seeds, found.items) == (3, 200)


def test_equal_seeds_do_not_shrink_the_items_part() -> None:
    one, five = estimate([score(0.6, 0.07)], UNIT), estimate([score(0.6, 0.07)] * 5, UNIT)
    assert one is not None
    assert five is not None
    assert (five.low, five.high) == (pytest.approx(one.low), pytest.approx(one.high))


def test_intervals_stay_lopsided_and_within_what_a_metric_can_be() -> None:
    lopsided = {"value": 0.02, "low": 0.01, "high": 0.06, "n": 50}
    found = estimate([lopsided, lopsided | {"value": 0.03}], UNIT)
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    assert found.low == 0.0
    assert found.high - found.value > 0.035


def test_missing_parts_are_said() -> None:
    assert estimate([], UNIT) is None
    assert estimate([{"value": None}, {"value": math.nan}], UNIT) is None
    bare = estimate([{"value": 0.5}], UNIT)
    assert bare is not None
    assert (bare.interval, bare.how) == (None, "no interval measured")
    seeds = estimate([{"value": 0.5}, {"value": 0.6}], UNIT)
    assert seeds is not None
    assert seeds.interval is not None
    assert seeds.how == "2 seeds, without the test items"


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Three seeds of varying skill on the same 100 items of varying difficulty: 95 % or a little more."""
    rng, hits, trials = random.Random(0), 0, 400
    for _ in range(trials):
        hardness = [rng.gauss(0, 0.2) for _ in range(100)]
        runs = []
        for _ in range(3):
            skill = 0.6 + rng.gauss(0, 0.03)
            part = mean(float(rng.random() < min(max(skill + hard, 0), 1)) for hard in hardness)
            runs.append(score(part, 1.96 * math.sqrt(part * (1 - part) / 100), 100))
        found = estimate(runs, UNIT)
        assert found is not None
        assert found.interval is not None
        hits += found.interval.low <= 0.599 <= found.interval.high
    assert 0.94 <= hits / trials <= 1.0


def test_the_ratio_of_even_intervals_is_fiellers() -> None:
    a, b, da, db = 0.61, 0.62, 0.07, 0.05
    found = ratio(Interval(a, a - da, a + da), Interval(b, b - db, b + db))
    assert found is not None
    root = math.sqrt((a * b) ** 2 - (a**2 - da**2) * (b**2 - db**2))
    assert found.low == pytest.approx((a * b - root) / (b**2 - db**2))
    assert found.high == pytest.approx((a * b + root) / (b**2 - db**2))
    assert ratio(Interval(a, a - da, a + da), Interval(0.1, 0.0, 0.2)) is None


@pytest.mark.parametrize("a", [0.02, -0.02])
def test_a_share_of_nearly_nothing_has_bounds(a) -> None:
    """Such as a gain that is hardly one: its interval may leave zero, the whole's does not."""
    found = ratio(Interval(a, a - 0.04, a + 0.04), Interval(0.5, 0.45, 0.55))
    assert found is not None
    root = math.sqrt((a * 0.5) ** 2 - (a**2 - 0.04**2) * (0.5**2 - 0.05**2))
    assert found.low == pytest.approx((a * 0.5 - root) / (0.5**2 - 0.05**2))
    assert found.high == pytest.approx((a * 0.5 + root) / (0.5**2 - 0.05**2))
    assert found.low < a / 0.5 < found.high < 0.5


def answered(right: list[list[bool]]) -> ScoreEstimate:
    """The estimate of runs of which each item is right or wrong, as `halka.studies.measure` leaves them."""
    runs = []
    for items in right:
        texts, references = ["x" if item else "y" for item in items], [["x"]] * len(items)
        whole = scored(texts, references, ["exact_match"], resamples=400)["exact_match"]
        runs.append({**asdict(whole), "draws": resampled(texts, references, "exact_match", resamples=400)})
    found = estimate(runs, (0.0, 1.0))
    assert found is not None
    return found


def test_a_difference_is_narrower_where_both_find_the_same_items_hard_and_still_covers_the_truth() -> None:
    rng, covered, widths = random.Random(0), {"gap": 0, "share": 0}, []
    for _ in range(60):
        hard = [rng.random() for _ in range(200)]
        a = answered([[level < 0.8 - rng.random() * 0.1 for level in hard] for _ in range(3)])
        b = answered([[level < 0.7 - rng.random() * 0.1 for level in hard] for _ in range(3)])
        between, part = gap(a, b), share(a, b)
        assert between is not None
        assert part is not None
        assert a.interval is not None
        assert b.interval is not None
        covered["gap"] += between.low <= 0.1 <= between.high
        covered["share"] += part.low <= 0.75 / 0.65 <= part.high
        apart_from_each_other = difference(a.interval, b.interval)
        widths.append((between.high - between.low) / (apart_from_each_other.high - apart_from_each_other.low))
        assert apart(a, b) == (between.low > 0)
    assert min(covered.values()) >= 0.9 * 60
    assert mean(widths) < 0.8


def test_without_the_same_draws_methods_count_as_independent() -> None:
    a, b = answered([[True] * 60 + [False] * 40]), answered([[True] * 50 + [False] * 50])
    assert a.interval is not None
    assert b.interval is not None
    for other in (replace(b, draws=()), replace(b, items=50)):
        assert gap(a, other) == difference(a.interval, b.interval)
        assert share(a, other) == ratio(a.interval, b.interval)


@pytest.mark.parametrize(("differ", "apart_then"), [(4, False), (5, False), (6, True)])
def test_as_many_items_tell_methods_apart_as_in_a_sign_test(differ: int, apart_then: bool) -> None:
    """Items that all differ one way: p is 0.125 for four of them, 0.0625 for five, 0.031 for six."""
    worse, better = [True] * 60 + [False] * 40, [True] * (60 + differ) + [False] * (40 - differ)
    assert apart(answered([worse]), answered([better])) == apart_then


def test_methods_that_answer_alike_are_not_known_to_be_equal() -> None:
    right = answered([[True] * 20])
    between, part = gap(right, right), share(right, right)
    assert between is not None
    assert part is not None
    assert between.low < -0.1
    assert between.high > 0.1
    assert part.low < 0.9


def test_sets_without_anything_to_count_are_left_out() -> None:
    a, b = answered([[True] * 60 + [False] * 40]), answered([[True] * 50 + [False] * 50])
    undefined = replace(b, draws=(math.nan, *b.draws[1:]))
    for compare in (gap, share):
        whole, without = compare(a, b), compare(a, undefined)
        assert whole is not None
        assert without is not None
        assert without.low == pytest.approx(whole.low, abs=0.01)
    nothing = replace(b, draws=(math.nan, 0.0, *b.draws[2:]))
    assert a.interval is not None
    assert b.interval is not None
    assert share(a, nothing) == ratio(a.interval, b.interval)


def test_undefined_draws_are_null_in_a_file_and_left_out() -> None:
    whole = measurements()
    for run in (run for run in whole if run.get("scores")):
        values = random.Random(0).choices([0.4, 0.5, 0.6], k=99)
        run["draws"] = [math.nan, *values]
    read = json.loads(json.dumps(plain(whole)))
    (row, *_), (same, *_) = (summarise(runs).rows for runs in (read, whole))
    ours, expected = (each.scores["exact_match"].draws for each in (row, same))
    assert math.isnan(ours[0])
    assert ours[1:] == expected[1:]


def test_a_tasks_own_metric_has_its_direction_and_range() -> None:
    whole = measurements()
    for run in whole:
        run["primary"] = "invented_facts"
        run["own_metrics"] = {"invented_facts": {"higher_is_better": False, "range": [0.0, None]}}
        if run.get("scores"):
            run["scores"]["invented_facts"] = run["scores"].pop("exact_match")
    summary = summarise(whole)
    assert (summary.primary.higher_is_better, summary.primary.low, summary.primary.high) == (False, 0.0, None)
    values = [row.scores["invented_facts"].value for row in summary.rows if not (row.is_base or row.is_full)]
    assert values == sorted(values)
    assert len({*values}) > 1


def test_a_tasks_own_share_has_intervals_within_its_range() -> None:
    whole = measurements()
    for run in whole:
        run["primary"] = "invented"
        run["own_metrics"] = {"invented": {"higher_is_better": True, "range": [0.0, 1.0]}}
        if run.get("scores"):
            run["scores"]["invented"] = {**run["scores"].pop("exact_match"), "value": 0.98, "low": 0.9, "high": 1.0}
    scores = [row.scores["invented"] for row in summarise(whole).rows if row.scores]
    assert scores
    assert all(0 <= score.low < score.high <= 1 and score.rare > 0 for score in scores)


def test_a_share_of_what_may_be_nothing_has_no_bounds() -> None:
    assert share(answered([[True, False] * 20]), answered([[True] + [False] * 39])) is None


def test_apart_only_when_the_difference_leaves_zero_out() -> None:
    def about(value: float, half: float) -> ScoreEstimate:
        found = estimate([score(value, half)], UNIT)
        assert found is not None
        return found

    assert apart(about(0.60, 0.05), about(0.50, 0.05))  # the intervals touch, the difference is clear
    assert not apart(about(0.60, 0.05), about(0.54, 0.05))
    assert not apart(about(0.60, 0.05), None)
    between = difference(Interval(0.6, 0.55, 0.65), Interval(0.5, 0.45, 0.55))
    assert between.low == pytest.approx(0.1 - math.hypot(0.05, 0.05))


# ---- the summary ----


def test_rows_come_base_full_then_by_score() -> None:
    labels = [row.label for row in summarise(small(measurements())).rows]
    assert labels == ["base (no tuning)", *(method.label for method in METHODS)]
    lower = [row.label for row in summarise(small(perplexities())).rows]
    assert lower == labels


def test_a_row_holds_the_means_over_final_runs() -> None:
    runs = small(measurements())
    summary = summarise(runs)
    row, finals = next(r for r in summary.rows if r.label == "LoRA r16"), of(runs, "LoRA r16", "final")
    assert (row.lr, row.lrs, row.seeds) == (2e-3, (5e-4, 1e-3, 2e-3, 4e-3), (0, 1, 2))
    assert row.scores["exact_match"].value == pytest.approx(mean(r["scores"]["exact_match"]["value"] for r in finals))
    assert row.share == pytest.approx(4_884_480 / 134_515_008)
    assert row.peak is not None
    assert row.beyond is not None
    assert row.peak.n == 3
    assert row.beyond.mean == pytest.approx(row.peak.mean - HELD - WEIGHTS)
    assert row.storage["100"] == pytest.approx(WEIGHTS + 100 * finals[0]["adapter_bytes"])
    assert summary.full is not None
    full = of(runs, "Full", "final")[0]["adapter_bytes"]
    assert summary.full.storage["1000"] == pytest.approx(1000 * full)
    assert row.relative == pytest.approx(row.scores["exact_match"].value / summary.full.scores["exact_match"].value)
    assert row.relative_interval is not None
    assert row.relative_interval.low < row.relative < row.relative_interval.high


def test_the_summary_goes_to_json() -> None:
    plain = summarise(small(measurements())).to_json()
    assert json.loads(json.dumps(plain, allow_nan=False))["rows"][2]["label"] == "LoRA r16"


def test_failed_runs_are_listed_with_reasons() -> None:
    failed = {(f.label, f.purpose): f.reason for f in summarise(small(measurements())).failed}
    assert failed == {
        ("Full", "search"): "loss became not finite at step 14",
        ("Prefix", "final"): "killed: out of memory (limit 4.0 GB)",
    }


@pytest.mark.parametrize("key", ["task", "base", "primary"])
def test_what_does_not_compare_is_refused(key: str) -> None:
    runs = small(measurements())
    runs[5] = runs[5] | {key: "other"}
    with pytest.raises(ValueError, match=f"several values of '{key}'"):
        summarise(runs)


def test_a_failed_run_may_name_its_task_otherwise() -> None:
    runs = small(measurements())
    failed = next(r for r in runs if r["status"] == "failed")
    failed |= {"task": "support.yaml"}
    del failed["primary"], failed["scores"]
    assert summarise(runs).task == "support"


def test_a_measurement_must_be_an_object() -> None:
    with pytest.raises(ValueError, match="not an object"):
        summarise(["run.json"])  # type: ignore[list-item]


# ---- the headline ----


def test_the_headline_compares_the_best_light_method_with_full() -> None:
    said = summarise(small(measurements())).headline
    assert re.match(r"LoRA r16 reaches 98 % \[\d+–\d+\] of full fine-tuning's exact match", said)
    assert "3.6 % of its trained parameters" in said
    assert said.endswith("the two scores cannot be told apart here.")


def test_the_headline_says_when_light_is_behind() -> None:
    runs = [r for r in small(measurements()) if r["method"]["name"] in ("base", "full", "prompt")]
    assert re.search(r"it is behind by 4\d points, more than chance explains\.$", summarise(runs).headline)


def test_one_seed_tells_no_methods_apart() -> None:
    """Neither in the headline, nor by bold, nor in the plot's sentence; the base needs no seeds."""
    unknown = "more than the test items explain; other seeds are not known"
    runs = [run for run in small(measurements(seeds=1)) if run["method"]["label"] in ("Full", "Prompt")]
    summary = summarise(runs)
    assert re.search(rf"it is behind by 4\d points, {unknown}\.$", summary.headline)
    assert not any(cell.best for c in columns(summary) if c.key == "score" for cell in cells(summary, c))
    assert quality_takeaway(summary.rows, summary.primary).endswith(f"Prompt lighter is behind by {unknown}.")
    assert "intervals over the test items alone (one run);" in caption(summary)

    base = small(measurements(seeds=1))[0]
    base["scores"]["exact_match"] = score(0.5, 0.06)
    assert about(summarise([base, *runs]), "Prompt did worse than base (no tuning), with one seed.")
    three = of(small(measurements()), "Full")
    assert summarise([*three, *of(runs, "Prompt")]).headline.endswith(f"{unknown}.")


def test_the_headline_turns_round_where_lower_is_better() -> None:
    said = summarise(small(perplexities())).headline
    assert re.match(r"LoRA r16's perplexity is 1\.03 \[0\.\d\d–1\.\d\d\] times that of full fine-tuning", said)


def test_the_headline_says_what_is_missing() -> None:
    runs = small(measurements())
    searches = [r for r in runs if r["purpose"] == "search"]
    assert summarise([]).headline == "Nothing has been measured yet."
    assert (
        summarise([r for r in runs if r["status"] == "failed"]).headline == "Nothing has finished yet; 2 runs failed."
    )
    assert summarise(searches).headline.startswith("No final run so far: 22 runs done, for Full,")
    assert summarise(runs[:1]).headline == "Only the base has been scored, at 0.0 % [0–1] in exact match."
    assert "the best of 6 methods, against 0.0 %" in summarise(without(runs, "Full")).headline


def sweep() -> Runs:
    """The searches of LoRA r8 and of full fine-tuning with two seeds, of which the second finds other rates better."""
    first = [r for label in ("Full", "LoRA r8") for r in of(measurements(), label, "search") if r["status"] == "done"]
    second = [{**run, "seed": 1, "validation_loss": 3 - run["validation_loss"]} for run in first]
    return [*first, *second[:-1], {**second[-1], "validation_loss": 0.1}]


def test_a_sweep_counts_the_runs_of_the_rate_that_is_best_in_the_mean() -> None:
    runs = sweep()
    row = next(row for row in summarise(runs).rows if row.label == "LoRA r8")
    assert (row.lr, row.seeds, row.runs, row.final) == (runs[-1]["lr"], (0, 1), 2, False)
    assert row.validation_loss is not None
    assert row.validation_loss.low == 0.1
    assert re.match(
        r"No final runs; of the learning rates tried the best are .* for Full and .* for LoRA r8",
        summarise(runs).headline,
    )
    plot = next(plot for plot in draw_plots(summarise(runs), runs) if plot.name == "search")
    assert "LoRA r8" in plot.svg
    assert "PolyCollection" in plot.svg or "FillBetween" in plot.svg


def test_of_a_sweep_a_rate_at_which_a_seed_failed_is_not_the_best() -> None:
    runs = sweep()
    best = runs[-1]
    failed = [{**run, "status": "failed", "error": "diverged"} if run is best else run for run in runs]
    row = next(row for row in summarise(failed).rows if row.label == "LoRA r8")
    assert row.lr != best["lr"]
    assert row.seeds == (0, 1)
    plot = next(plot for plot in draw_plots(summarise(failed), failed) if plot.name == "search")
    assert "×: failed" in plot.svg
    (first,) = [run for run in of(runs, "LoRA r8", "search") if run["lr"] == best["lr"] and run["seed"] == 0]
    (only,) = summarise([first, {**best, "status": "failed", "error": "diverged"}]).rows
    assert (only.lr, only.seeds) == (best["lr"], (0,))


def test_the_time_of_runs_that_were_trained_together_is_nobodys() -> None:
    runs = [{**run, "together": 3} if run["method"]["label"] == "LoRA r8" else run for run in sweep()]
    rows = {row.label: row for row in summarise(runs).rows}
    assert (rows["LoRA r8"].tokens_per_second, rows["LoRA r8"].seconds) == (None, None)
    assert rows["Full"].tokens_per_second is not None


def test_a_run_that_is_validated_once_says_nothing_of_more_steps() -> None:
    def validated(at: list[int]) -> Summary:
        train = {"best_step": 60, "steps": 60, "validation": [{"step": step, "loss": 0.5} for step in at]}
        return summarise([{**run, "train": {**run["train"], **train}} for run in sweep()])

    assert about(validated([30, 60]), "The last evaluation was the best")
    assert not about(validated([60]), "The last evaluation was the best")


def test_care_names_settings_that_a_method_has_of_its_own() -> None:
    batches = {
        "Full": {"batch_size": 4, "steps": 240, "lr": 1e-4},
        "LoRA r8": {"batch_size": 64, "steps": 15, "lr": 1e-3},
    }
    runs = [{**run, "config": batches[run["method"]["label"]]} for run in sweep()]
    assert about(summarise(runs), "differ in") == ["The methods differ in batch_size: 4 for Full; 64 for LoRA r8."]
    assert not about(summarise([{**run, "config": batches["Full"]} for run in runs]), "differ in")


@pytest.mark.parametrize(("key", "value", "others"), [("quantize", "nf4", "none"), ("dtype", "float32", "bfloat16")])
def test_care_names_the_precision_of_bases_whatever_the_methods_are_called(key, value, others) -> None:
    runs = [{**run, key: value} if run["method"]["label"] == "LoRA r8" else run for run in sweep()]
    assert about(summarise(runs), "differ in") == [
        f"The methods differ in {key}: {others} for Full; {value} for LoRA r8."
    ]
    base = measurements()[0]
    assert about(summarise([{**base, key: value}, *sweep()]), f"{key}: {value} for {base['method']['label']};")


# ---- caveats ----


def test_care_groups_what_cannot_be_told_apart() -> None:
    found = about(summarise(small(measurements())), "cannot be told apart")
    assert found[0].startswith("Full, LoRA r16, LoRA r8 and Bottleneck cannot be told apart here: they lie within 2.3 ")
    assert not any("Prompt" in sentence for sentence in found)
    assert not about(summarise(small(measurements(items=100_000))), "LoRA r8 and Bottleneck and IA3")


def test_care_counts_seeds() -> None:
    assert about(summarise(small(measurements(seeds=1))), "Every method has one finished seed")
    assert about(summarise(small(measurements(seeds=2, failures=False))), "Every method has two finished seeds")
    assert not about(summarise(small(measurements(seeds=3, failures=False))), "finished seed")


def test_care_names_lost_seeds_and_why() -> None:
    runs = small(measurements())
    assert about(summarise(runs), "Prefix stands on 2 of 3 seeds: seed 2 failed (killed: out of memory")
    runs = [r for r in runs if not (r["method"]["label"] == "IA3" and r["seed"] == 1)]
    assert about(summarise(runs), "IA3 stands on 2 of 3 seeds: seed 1 not run")


def test_care_sees_the_edge_of_the_grid() -> None:
    runs = small(measurements())
    found = about(summarise(runs), "highest learning rate")
    assert found == [
        "Bottleneck (2e-3) and Prompt (1e-1) took the highest learning rate that was tried: higher ones may be better, "
        "so the search may have been too narrow for them."
    ]  # not Full, whose highest rate was tried and failed
    assert "the highest or lowest was best for Bottleneck and Prompt" in caption(summarise(runs))
    low = [r for r in runs if not (r["method"]["label"] == "IA3" and r["lr"] == 3e-3)]
    assert about(summarise(low), "IA3 (1e-2) took the lowest")
    unsearched = [r for r in runs if r["method"]["label"] != "IA3" or r["purpose"] == "final"]
    assert about(summarise(unsearched), "IA3 was run at one learning rate only")


def test_care_sees_a_choice_against_the_search() -> None:
    runs = small(measurements())
    for run in of(runs, "IA3", "search"):
        run["validation_loss"] = 0.5 if run["lr"] == 3e-3 else 0.6
    assert about(summarise(runs), "IA3 ran at 1e-2, though 3e-3 had the lower validation loss")
    again = [
        {**run, "seed": run["seed"] + 1, "validation_loss": 1.4 if run["lr"] == 3e-3 else 0.6}
        for run in of(runs, "IA3", "search")
    ]
    assert not about(summarise([*runs, *again]), "had the lower validation loss")  # on average it had not


def test_care_sees_training_cut_short() -> None:
    care = summarise(small(measurements()))
    assert about(care, "The last evaluation was the best for IA3 (3 of 3 runs), Prefix (2 of 2 runs)")


def test_what_was_to_stop_early_and_did_not_has_a_caveat() -> None:
    runs = small(measurements())
    for run in runs[1:]:
        run["config"] = {"patience": 2}
    for run in (run for run in runs if run["train"]):
        run["train"]["best_step"] = 110 if run["method"]["label"] == "IA3" and run["seed"] else 100
        run["train"]["validation"] = [{"step": step, "loss": 1.0} for step in range(10, 121, 10)]
    summary = summarise(runs)
    assert about(summary, "had not converged") == ["IA3 (2 of 3 runs) had not converged at the most steps, 120."]
    finals = of(runs, "IA3", "final")
    searches = [run for run in runs if run not in finals]  # which are to end after few steps
    for run in of(searches, "IA3"):
        run["train"]["best_step"] = 120
    assert not about(summarise(searches), "had not converged")
    assert not about(summary, "The last evaluation was the best")
    for run in of(runs, "IA3"):
        run["train"]["steps"] = 360
    assert not about(summarise(runs), "steps of training differ")


def test_care_weighs_the_test_set() -> None:
    assert about(summarise(small(measurements(items=200))), "200 items, which alone leaves ±6.6 points")
    assert not about(summarise(small(measurements(items=20_000))), "items, which alone")


def test_care_sees_noise_and_mixed_origins() -> None:
    runs = small(measurements())
    for i, run in enumerate(of(runs, "LoRA r8", "final")):
        run["train"]["tokens_per_second"] = 900.0 + 200 * i
        run["commit"] = f"c{i}"
        run["machine"] = run["machine"] | {"threads": 1 + i}
        run["versions"] = run["versions"] | {"halka": f"0.{i}", "transformers": f"4.{i}"}
    summary = summarise(runs)
    assert about(summary, "the runs of LoRA r8 differ by 36 % among themselves")
    assert about(summary, "4 commits (7e66daf, c0, c1 and c2)")
    assert about(summary, "numbers of threads (")
    assert about(summary, "halka versions (")
    assert about(summary, "transformers versions (")
    assert about(summary, "The same base took 29.")


def test_the_noise_of_a_latency_is_that_of_one_base_on_one_machine() -> None:
    runs = small(measurements())
    for run in runs:
        if run.get("latency"):
            run["latency"] = {**run["latency"], "base_ms_per_token": 30.0}
    assert not about(summarise(runs), "The same base took")
    changes = {"quantize": "nf4", "dtype": "float32", "machine": {"cpu": "another", "device": "cpu"}}
    for key, value in changes.items():
        other = [{**run, "latency": {**run["latency"], "base_ms_per_token": 90.0}, key: value} for run in finals(runs)]
        assert not about(summarise([run for run in runs if run not in finals(runs)] + other), "The same base took"), key
    first, *_ = finals(runs)
    first["latency"]["base_ms_per_token"] = 36.0
    assert about(summarise(runs), "The same base took 30.0 to 36.0 ms a token")


def finals(runs: Runs) -> Runs:
    return [run for run in of(runs, "LoRA r8", "final") if run.get("latency")]


def test_care_sees_a_metric_that_was_mended_on_the_way() -> None:
    runs = small(measurements())
    for run in runs:
        run["own_metrics"] = {"length": {"higher_is_better": True, "range": [0.0, 1.0], "code": "c0"}}
    assert not about(summarise(runs), "versions of its code")
    of(runs, "Prompt", "final")[0]["own_metrics"]["length"]["code"] = "c1"
    assert about(summarise(runs), "length was computed by 2 versions of its code")


def test_care_sees_unequal_budgets_and_bad_predictions() -> None:
    runs = small(measurements())
    for run in of(runs, "Prompt"):
        run["train"]["steps"] = 360
        run["memory"]["predicted"]["activations"] *= 3
    summary = summarise(runs)
    assert about(summary, "The steps of training differ: Prompt 360; the others 120.")
    assert about(summary, "off by more than a quarter for Prompt")


def test_care_sees_no_gain() -> None:
    runs = small(measurements())
    runs[0]["scores"]["exact_match"] = score(0.25, 0.06)
    summary = summarise(runs)
    assert about(summary, "Prompt cannot be told apart from base (no tuning): no gain is shown.")
    runs[0]["scores"]["exact_match"] = score(0.5, 0.06)
    assert about(summarise(runs), "Prefix and Prompt did worse than base (no tuning).")


def test_care_says_what_there_is_to_compare_with() -> None:
    runs = of(small(measurements()), "LoRA r16")
    assert about(summarise(runs), "Full fine-tuning has no finished run")
    assert about(summarise(runs), "The base without tuning was not scored")


# ---- tables ----


def test_bold_marks_only_what_can_be_told_apart() -> None:
    summary = summarise(small(measurements()))
    best = {
        column.key: [row.label for row, cell in zip(summary.rows, cells(summary, column), strict=True) if cell.best]
        for column in columns(summary)
    }
    assert best["score"] == []
    assert best["trainable"] == best["adapter"] == ["Prompt"]
    assert best["tokens_per_second"] == []
    clear = summarise(small(without(measurements(), "Full", "LoRA r8", "Bottleneck")))
    assert "| **60.8 % [53–68]** |" in to_markdown(clear)
    single = summarise(small(measurements(seeds=1)))
    assert not any(cell.best for c in columns(single) if c.key in ("peak", "latency") for cell in cells(single, c))


def test_no_latency_is_best_beside_one_that_was_added_to_a_base_of_another_precision() -> None:
    def best(runs: Runs) -> list[str]:
        summary = summarise(runs)
        column = next(column for column in columns(summary) if column.key == "latency")
        return [row.label for row, cell in zip(summary.rows, cells(summary, column), strict=True) if cell.best]

    runs = small(without(measurements(), "Full"))
    for run in runs:
        if run.get("latency"):
            added = 0.01 if run["method"]["label"] == "LoRA r8" else 0.2
            run["latency"] = {**run["latency"], "added": added}
    assert best(runs) == ["LoRA r8"]
    for own in ({"quantize": "nf4"}, {"dtype": "float32"}):
        assert best([run | own if run["method"]["label"] == "Prompt" else run for run in runs]) == []


def followed(runs: Runs, scores: dict[str, list[float]]) -> Runs:
    """The runs with scores at every 100 steps, by label; perplexity rises by a tenth of the base's each time."""
    for run in runs:
        if run["purpose"] == "final" and (way := scores.get(run["method"]["label"])):
            base = run["forgetting"]["base_perplexity"]
            run["train"]["scores"] = [
                {"step": 100 * number, "score": score, "perplexity": base * (1 + number / 10)}
                for number, score in enumerate(way, start=1)
            ]
    return runs


def test_the_table_has_the_steps_to_95_percent_of_full_and_what_was_forgotten_by_then() -> None:
    scores = {"Full": [0.3, 0.58, 0.6], "LoRA r16": [0.2, 0.4, 0.57], "LoRA r8": [0.5, 0.569]}
    runs = followed(measurements(), scores)
    summary = summarise(runs)
    found = {label: (near.steps, round(near.forgetting or 0, 6)) for label, near in summary.near_full.items()}
    assert found == {"Full": (200, 0.2), "LoRA r16": (300, 0.3)}
    near_full = [cells(summary, column) for column in columns(summary) if "near_full" in column.key]
    shown = {row.label: [column[i].whole for column in near_full] for i, row in enumerate(summary.rows)}
    pace = mean(
        run["train"]["seconds"] / run["train"]["steps"]
        for run in runs
        if run["method"]["label"] == "LoRA r16" and run["purpose"] == "final"
    )
    assert shown["LoRA r16"] == ["300", duration(300 * pace), "+30 %"]
    assert shown["LoRA r8"] == ["–", "–", "–"]
    nothing = {label: [0.0, 0.0] for label in scores}
    assert summarise(followed(measurements(), nothing)).near_full == {}
    assert not any("near_full" in column.key for column in columns(summarise(measurements())))


def test_the_scores_on_the_way_are_drawn_where_they_were_followed() -> None:
    scores = {"Full": [0.3, 0.58, 0.6], "LoRA r16": [0.2, 0.4, 0.57], "LoRA r8": [0.5, 0.569]}
    runs = followed(measurements(), scores)
    plot = next(plot for plot in draw_plots(summarise(runs), runs) if plot.name == "progress")
    assert plot.takeaway == (
        "To 95 % of full fine-tuning's best score: Full after 200 steps and LoRA r16 after 300 steps; LoRA r8 did not "
        "come there."
    )
    once = next(run for run in runs if run["method"]["label"] == "LoRA r16" and run["purpose"] == "final")
    once["train"]["scores"][-1]["score"] = 0.4
    [plot] = [plot for plot in draw_plots(summarise(runs), runs) if plot.name == "progress"]
    assert "LoRA r16 after 300 steps (2 of 3 runs)" in plot.takeaway
    nothing = followed(measurements(), {label: [0.0, 0.0] for label in scores})
    [plot] = [plot for plot in draw_plots(summarise(nothing), nothing) if plot.name == "progress"]
    assert plot.takeaway.startswith("Full fine-tuning was not followed, or scored nothing")
    alone = without(runs, "Full")
    [plot] = [plot for plot in draw_plots(summarise(alone), alone) if plot.name == "progress"]
    assert plot.takeaway.startswith("Full fine-tuning was not followed")
    assert "progress" not in [plot.name for plot in draw_plots(summarise(measurements()), measurements())]


def test_markdown_has_the_figures_in_human_units() -> None:
    text = to_markdown(summarise(small(measurements())))
    line = next(line for line in text.splitlines() if line.startswith("| LoRA r16"))
    for figure in ("60.8 % [53–68]", "98 % [82–116]", "4.9 M (3.6 %)", "1.1 GB", "19.5 MB", "+8.6 %", "+10 %"):
        assert figure in line
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1
    assert "200 test items" in text
    assert "commit 7e66daf" in text
    assert "intervals over 3 seeds and the test items;" in text
    one_seed = [run for run in small(measurements()) if run.get("seed") in (0, None)]
    assert "intervals over the test items alone (one run);" in to_markdown(summarise(one_seed))


def test_a_copys_latency_beside_the_base_is_not_that_of_a_model_of_its_own() -> None:
    def runs(added: float) -> Runs:
        runs = small(measurements())
        for run in of(runs, "Full"):
            run["latency"] = {"base_ms_per_token": 30.0, "adapted_ms_per_token": 30.0 * (1 + added), "added": added}
        return runs

    (sentence,) = about(summarise(runs(3.0)), "copy of all weights")
    assert sentence.startswith("The added latency of Full is")
    assert not about(summarise(runs(0.05)), "copy of all weights")


def test_columns_without_figures_are_left_out() -> None:
    runs = [r | {"latency": None, "forgetting": None} for r in small(measurements())]
    assert "Latency" not in to_markdown(summarise(runs))


def test_names_cannot_break_a_table() -> None:
    runs = small(measurements())
    for run in of(runs, "LoRA r16"):
        run["method"]["label"] = "[red]a|b*\x1b[2J\n<i>"
    text = to_markdown(summarise(runs))
    assert r"\[red\]a\|b\* \[2J \<i\>" in text
    from rich.console import Console

    console = Console(width=220, file=io.StringIO(), force_terminal=False)
    console.print(to_rich(summarise(runs)))
    assert "[red]a|b* [2J <i>" in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        *((count(4_884_480), "4.9 M"), (count(57_600), "57.6 k"), (count(134_515_008), "135 M"), (count(12), "12")),
        *((size(2.7e9), "2.7 GB"), (size(19_600_000), "19.6 MB"), (size(999_990), "1.0 MB"), (size(10), "10 B")),
        *((plural(1, "query"), "1 query"), (plural(0, "query"), "0 queries"), (plural(2, "day"), "2 days")),
        *((percent(0.036), "3.6 %"), (percent(0.98), "98 %"), (percent(0.00014), "0.014 %"), (percent(0), "0 %")),
        *(
            (signed(0.09), "+9.0 %"),
            (signed(-0.021), "−2.1 %"),
            (signed(81.4), "×82"),
            (signed(6781.75), "×6,783"),
            (learning_rate(2e-3), "2e-3"),
        ),
        *((learning_rate(1.5e-4), "1.5e-4"), (learning_rate(1.0), "1"), (duration(61.2), "61 s")),
        *((bounds(0.53, 0.781), "[53–78]"), (bounds(0.124, 0.306, 2), "[0.12–0.31]")),
        *((bounds(0.0003, 0.0009, 2), "[0.0003–0.0009]"), (bounds(0.5, 0.5, 2), "[0.50–0.50]")),
        *((bounds(47.73, 58.66, 2), "[47.7–58.7]"), (bounds(-3.1, 120, 2), "[−3–120]")),
        *((bounds(0.001, 0.004), "[0.1–0.4]"), (bounds(0.9957, 0.9991), "[99.6–99.9]"), (bounds(1, 1), "[100–100]")),
        *((duration(9.97), "10 s"), (duration(149), "2.5 min"), (duration(598), "10 min")),
        *((duration(754), "13 min"), (duration(12_000), "3.3 h"), (listed(["a", "b", "c"]), "a, b and c")),
    ],
)
def test_units(text: str, wanted: str) -> None:
    assert text == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        *(("1000", 10**9), ("1.5", 1_500_000), ("512MB", 512 * 10**6), ("2 gb", 2 * 10**9), ("1.5GB", 1_500_000_000)),
        *(("64 kB", 64_000), ("3MiB", 3 * 2**20), ("2GiB", 2**31), ("1TB", 10**12), ("7 B", 7)),
        *(("5M", 5_000_000), ("24G", 24 * 10**9), ("2Gi", 2**31)),
    ],
)
def test_sizes_are_read_as_they_are_told(text: str, wanted: int) -> None:
    assert bytes_said(text) == wanted


@pytest.mark.parametrize("text", ["", "0", "0.1B", "-5", "much", "MB", "5 bits", "inf", "1e3", "5iB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no size above 0: write it as 512MB"):
        bytes_said(text)


def test_a_size_without_a_unit_or_without_end_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^'24' has no unit: write it as 512MB, 1.5GB$"):
        bytes_said("24", bare=False)
    for text in ("9" * 400, "1" + "0" * 30 + "TB"):
        with pytest.raises(ValueError, match="is more than there is: write it as"):
            bytes_said(text)


# ---- plots ----


@pytest.fixture(scope="module")
def runs() -> Runs:
    return measurements()


def parsed(svg: str) -> ET.Element:
    return ET.fromstring(svg.replace("<svg ", '<svg xmlns:xlink="x" ', 1))


def test_plots_are_the_same_for_the_same_input_and_unique_on_a_page(runs: Runs) -> None:
    plots = draw_plots(summarise(runs), runs)
    assert [plot.name for plot in plots] == [
        *("quality", "memory", "storage", "curves", "search", "speed", "forgetting")
    ]
    assert plots == draw_plots(summarise(copy.deepcopy(runs)), copy.deepcopy(runs))
    ids = [element.get("id") for plot in plots for element in parsed(plot.svg).iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    for plot in plots:
        used = re.findall(r"url\(#([^)]+)\)|href=\"#([^\"]+)\"", plot.svg)
        assert {a or b for a, b in used} <= set(ids)


def test_plots_follow_the_page_and_hold_text(runs: Runs) -> None:
    for plot in draw_plots(summarise(runs), runs):
        root = parsed(plot.svg)
        assert root.get("role") == "img"
        assert (root.get("aria-label") or "").startswith(f"{plot.title}. {plot.takeaway[:20]}")
        texts = ["".join(element.itertext()) for element in root.iter("text")]
        assert any("LoRA r16" in text for text in texts)
        assert not re.search(r"20\d\d-\d\d-\d\d|<metadata|<style|<!DOCTYPE", plot.svg)
        loose = re.sub(r"var\(--\w+, #\w+\)", "", " ".join(re.findall(r'style="[^"]*"', plot.svg)))
        assert not re.search(r"#[0-9a-f]{6}|DejaVu", loose)


def test_takeaways_say_what_the_plots_show(runs: Runs) -> None:
    said = {plot.name: plot.takeaway for plot in draw_plots(summarise(runs), runs)}
    assert said["quality"].startswith("Bottleneck, with 2.2 M trained parameters (1.7 % of the model), is the lightest")
    assert said["memory"].startswith("Full spends most on optimiser states (1.1 GB")
    assert "26.9 GB as full copies: 12 times as much" in said["storage"]
    assert said["curves"].endswith("IA3, Prefix and Prompt were still improving at the end.")
    assert (
        said["search"]
        == "At the edge of what was tried: Bottleneck (2e-3) and Prompt (1e-1); the other 5 chose inside."
    )
    assert re.search(r"from 1\.3\d times \(.+\) to 1\.4\d times \(Prefix\)", said["speed"])
    assert said["forgetting"].endswith("to +33 % (Full).")


def test_each_method_has_one_colour_that_does_not_hang_on_its_score(runs: Runs) -> None:
    rows = summarise(runs).rows
    assert looks(rows) == looks(rows[::-1])
    pairs = {(look.variable, look.marker) for look in looks(rows).values()}
    assert len(pairs) == len(rows)
    assert math.gcd(SERIES, len(MARKERS)) == 1  # so that colour and marker together repeat late


def test_the_palette_stands_out_from_its_ground() -> None:
    def light(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    def contrast(a: str, b: str) -> float:
        low, high = sorted((light(a), light(b)))
        return (high + 0.05) / (low + 0.05)

    for i in (0, 1):
        ground = THEME["--paper"][i]
        for name, pair in THEME.items():
            least = {"--paper": 0, "--line": 0, "--ink": 7, "--muted": 4.5}.get(name, 3)
            assert contrast(pair[i], ground) >= least, name


def test_labels_are_spread_without_overlap() -> None:
    rng = random.Random(1)
    for _ in range(200):
        wanted = sorted(rng.uniform(0, 200) for _ in range(rng.randint(1, 12)))
        placed = spread_out(wanted, 14, 0, 200)
        assert all(b - a >= 14 - 1e-9 for a, b in pairwise(placed))
        assert -1e-9 <= placed[0] <= placed[-1] <= 200 + 1e-9
    assert spread_out([10, 50, 90], 14, 0, 200) == [10, 50, 90]


# ---- the report ----


def test_the_report_is_one_file_that_needs_nothing_else(runs: Runs, tmp_path: Path) -> None:
    path = write_report(runs, tmp_path / "deep" / "report.html", command="halka compare support")
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert all(link.startswith("#") or link == "data:," for link in page.links)
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert not re.search(r"@import|@font-face|url\((?!#)|https?://", text)
    assert page.headings[0] == 1
    assert page.headings.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(page.headings))
    assert page.tags.count("caption") == page.tags.count("table") == 4
    assert "halka compare support" in page.texts
    assert "prefers-color-scheme: dark" in text
    assert list(path.parent.iterdir()) == [path]


def test_the_report_is_the_same_for_the_same_measurements(runs: Runs) -> None:
    assert render(runs) == render(copy.deepcopy(runs))


def test_only_the_reports_own_script_may_run(runs: Runs) -> None:
    text = render(runs)
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script.group(1).encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in text


def test_nothing_from_measurements_can_run() -> None:
    evil = "<script>alert(1)</script>\"'> onload=x {{7*7}} $x_1$ --> </style> বাংলা \x1b"
    runs = measurements()
    for run in runs:
        run |= dict.fromkeys(("task", "base", "experiment", "commit", "licence", "source", "date"), evil)
        run |= {"versions": {evil: evil}, "machine": {"cpu": evil, "device": evil}}
        run["error"] = run["error"] and evil
        if run["method"]["label"] == "LoRA r16":
            run["method"] = {"name": evil, "label": evil, "fields": {evil: evil}}
        for sample in run.get("samples", []):
            sample |= {"prompt": sample["prompt"] + evil, "prediction": evil, "reference": [evil, evil + "2"]}
        if run["forgetting"]:
            run["forgetting"]["text"] = evil
    text = render(runs, title=evil, command=evil)
    page = Page(text)
    assert page.tags.count("script") == 1
    assert page.tags.count("style") == 1
    assert any("<script>alert(1)</script>" in shown for shown in page.texts)
    assert not any("49" in shown and "onload" in shown for shown in page.texts)


def test_the_report_shows_answers_side_by_side(runs: Runs) -> None:
    text = "".join(Page(render(runs)).texts)
    assert all(prompt in text for prompt, _ in PROMPTS)
    assert "Equal to a reference, letter for letter: base (no tuning) 0 of 4, Full 3 of 4" in text.replace(
        "\u00a0", " "
    )
    silent = measurements(samples=False)
    assert "The same items" not in render(silent)


def test_items_that_end_alike_are_items_of_their_own() -> None:
    runs = measurements(methods=METHODS[:1])
    twice = [
        {"prompt": "Yes, please.", "references": ["One", "1"], "prediction": "1"},
        {"prompt": "Yes, please.", "references": ["Two"], "prediction": "Two"},
    ]
    of(runs, "Full", "final")[0]["samples"] = twice
    items = side_by_side(summarise(runs).rows, of(runs, "Full"))
    assert [(item.prompt, item.references) for item in items] == [
        ("Yes, please.", ("One", "1")),
        ("Yes, please.", ("Two",)),
    ]
    assert [answer.matches for item in items for answer in item.predictions] == [True, True]


def test_conversations_and_long_answers_are_shown() -> None:
    runs = measurements(methods=METHODS[:1])
    finals = of(runs, "Full", "final")
    finals[0]["samples"] = [
        {
            "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
            "reference": ["Hello", "Hey"],
            "prediction": " Hey \n" + "x" * 2000,
        }
    ]
    text = "".join(Page(render(runs)).texts)
    assert "system: Be brief.\nuser: Hi" in text
    assert "x" * 600 in text
    assert "x" * 700 not in text


def partial() -> dict[str, Runs]:
    runs = measurements()
    empty = dict.fromkeys(
        ("train", "memory", "latency", "forgetting", "adapter_bytes", "parameters", "versions", "machine", "date")
    )
    return {
        "one method": of(runs, "LoRA r16"),
        "one run": of(runs, "LoRA r16", "final")[:1],
        "searches alone": [r for r in runs if r["purpose"] == "search"],
        "nothing finished": [r for r in runs if r["status"] == "failed"],
        "base alone": runs[:1],
        "no full": without(runs, "Full"),
        "no base": runs[1:],
        "nothing": [],
        "lower is better": perplexities(),
        "nulls": [r | empty for r in runs],
        "bare": [{"status": "done", "purpose": "final", "scores": {"exact_match": {"value": 0.5}}}, {}],
        "not finite": [r | {"validation_loss": math.nan, "lr": math.inf} for r in runs],
    }


@pytest.mark.parametrize("case", sorted(partial()))
def test_the_report_works_with_what_there_is(case: str) -> None:
    runs = partial()[case]
    text = render(runs)
    Page(text)
    assert not re.search(r">\s*(nan|None|inf)\b", text)
    to_markdown(summarise(runs))
    to_rich(summarise(runs))


def test_an_unknown_metric_is_shown_as_it_is() -> None:
    runs = small(measurements())
    for run in runs:
        run["primary"] = "kindness"
        run["scores"] = {"kindness": score(3.5, 0.2)} if run["scores"] else {}
    assert "3.50 [3.30–3.70]" in to_markdown(summarise(runs))


def test_writing_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "report.html"
    target.write_text("old")

    def fail(beside: Path, target: Path) -> None:
        raise OSError("disk is gone")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk is gone"):
        write_report([], target)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_is_not_a_report(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is a folder; name a file in it, such as .*report\.html"):
        write_report([], tmp_path)


def test_formatting_a_number_loads_no_plots():
    code = "import sys; import halka.report.units; print([name for name in sys.modules if 'halka.report' in name])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['halka.report', 'halka.report.units']\n"

"""The advice as a page and in a terminal: all that was found, why the rest is not there, and nothing that can run."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from advice_for_tests import GB, about, full_advice, full_evidence, parts
from halka.advisor import pilot_plots, plots, words
from halka.advisor.advice import Advice
from halka.advisor.evidence import CONDITIONS, Evidence, Fit, Knowledge, Learnability, Strength, Time
from halka.advisor.reasons import Reason
from halka.advisor.rendering import render_advice, to_terminal, write_advice
from halka.cli.command import show
from halka.evaluation.metrics import Score
from halka.report.svg import drawing
from page_for_tests import Page

EVIL = "<script>alert(1)</script>\"'> onload=x {{7*7}} $x_1$ --> </style> বাংলা \x1b[31m"


def alone(**further: Any) -> Evidence:
    """The subject, and no probe but what is given."""
    missing = {
        "strength": "the base was not asked",
        "knowledge": "there are no documents",
        "learnability": "training was skipped with --quick",
        "cleanliness": "the data could not be read twice",
        "fit": "no device is known",
    }
    subject = replace(full_evidence().subject, documents=0, tasks=1, target=None)
    return Evidence(subject, **further, missing={name: why for name, why in missing.items() if name not in further})


def unsure() -> Advice:
    return Advice("data", 0.4, (), (), (), (), ())


def without_documents() -> Evidence:
    full = full_evidence()
    assert full.knowledge is not None
    closed = {name: full.knowledge.losses[name] for name in ("closed", "examples")}
    return alone(strength=full.strength, knowledge=Knowledge(closed, full.knowledge.tokens))


def without_memory() -> Evidence:
    fit = full_evidence().fit
    assert fit is not None
    unknown = {"fits": None, "largest_batch": None, "step_seconds": None}
    options = tuple(replace(each, **unknown) for each in fit.options)
    return alone(fit=replace(fit, memory=None, options=options))


def diverged() -> Evidence:
    full, nan = full_evidence(), Score(math.nan, math.nan, math.nan, 3)
    assert full.learnability is not None
    lost = replace(full.learnability.trials[0], loss=nan, expected=nan, score=nan, curve=((0, 3.1), (12, math.inf)))
    return alone(learnability=replace(full.learnability, trials=(lost,), more=nan, agreement=None))


CASES: dict[str, Callable[[], Evidence]] = {
    "nothing": alone,
    "no documents": without_documents,
    "no memory known": without_memory,
    "a diverged trial": diverged,
    "no trial": lambda: alone(learnability=Learnability(4, 0.0, ())),
    "no option": lambda: alone(fit=Fit("a100", 80 * GB, 0, 256, 4, 1, (), {})),
    "strength alone": lambda: alone(strength=Strength(0, {}, 5.0, {}, {}, {})),
}


def read(advice: Advice, evidence: Evidence) -> str:
    """The words of the page."""
    return " ".join(" ".join(Page(render_advice(advice, evidence)).texts).split())


def shown(advice: Advice, evidence: Evidence, capsys: pytest.CaptureFixture[str]) -> str:
    show(*to_terminal(advice, evidence))
    return capsys.readouterr().out


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")


# ---- words ----


def test_conditions_have_names_in_the_advisors_order() -> None:
    assert tuple(words.CONDITIONS) == CONDITIONS


def test_settings_are_told_in_a_line() -> None:
    given = {"method": "lora", "fields": {"r": 8, "targets": ("q", "v")}, "lr": 2e-3, "steps": 400, "extra": {}}
    assert words.settings(given) == "method lora, r 8, targets q v, lr 2e-3, steps 400"


def test_the_best_trials_are_those_that_the_advice_is_made_of() -> None:
    learnability = full_evidence().learnability
    assert learnability is not None
    alone, shown = learnability.best(), learnability.best(passages=True)
    assert (alone, shown) == (learnability.trials[0], learnability.trials[3])
    said = words.best_trials(learnability)
    assert said.startswith("Lowest held-out loss of the small adapters: lora with 1.52")
    assert "Lowest held-out loss with passages: lora with passages with 0.97" in said
    low = replace(learnability.trials[4], expected=about(0.1, 0.1))  # hoped for, and not reached
    assert replace(learnability, trials=(*learnability.trials, low)).best() == alone


@pytest.mark.parametrize(("choice", "name"), [("peft", "lora"), ("peft+rag", "lora with passages"), ("full", "full")])
def test_the_trial_that_is_marked_is_the_one_that_is_advised(choice: str, name: str) -> None:
    text = render_advice(replace(full_advice(), choice=choice), full_evidence())
    marked = [row for row in re.findall("<tr.*?</tr>", text, re.DOTALL) if 'class="marked"' in row]
    assert re.search(rf">{name}</", "".join(marked))


def test_of_a_trials_settings_rank_and_places_are_told_and_what_is_not_the_usual() -> None:
    learnability = full_evidence().learnability
    assert learnability is not None
    usual = {"rank": 16, "alpha": None, "dropout": 0.0, "targets": ["linear"], "scaling": "rank"}
    trials = [replace(learnability.trials[0], fields=fields) for fields in (usual, usual | {"dropout": 0.1})]
    assert [words.settings(trial.settings) for trial in trials] == [
        "rank 16, targets linear",
        "rank 16, dropout 0.1, targets linear",
    ]
    gone = replace(trials[0], method="gone", fields={"width": None})
    assert gone.settings == {"width": None}


def test_each_thing_that_was_missing_is_told_once() -> None:
    missing = {
        "fit": "skipped",
        "learnability": "skipped",
        "examples": "2 of 100 examples cannot be used with this base, the first: it is too long",
        "documents": "the folder is empty.",
    }
    subject = replace(full_evidence().subject, split_off=True)
    evidence = replace(full_evidence(), subject=subject, learnability=None, fit=None, knowledge=None, missing=missing)
    told = [
        "Not measured: pilot training runs and memory and time on the hardware (skipped).",
        "Not measured: what examples and passages add (it was not run).",
        "2 of 100 examples cannot be used with this base, the first: it is too long.",
        "Documents: the folder is empty.",
        "No validation examples: some of the training examples were held out.",
    ]
    assert sorted(words.missing(evidence)) == sorted(told[:-1])
    text = read(full_advice(), evidence)
    assert [text.count(each) for each in told] == [1] * 5
    assert "left out" not in text


def test_the_minutes_of_the_probes_and_what_was_cut_for_them_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    spent = {"base": 0.2, "strength": 0.56, "learnability": 2.9}
    cuts = ("16 of 48 held-out examples", "no trial of bottleneck")
    evidence = replace(full_evidence(), time=Time(4.0, spent, cuts))
    lines = words.time(evidence)
    assert lines == [
        "The probes of the base took 3.7 of 4 minutes: timing 0.2, strength 0.6 and the pilot 2.9.",
        "Cut for time: 16 of 48 held-out examples.",
        "Cut for time: no trial of bottleneck.",
    ]
    page = read(full_advice(), evidence)
    assert all(line in page for line in lines)
    show(*to_terminal(full_advice(), evidence))
    assert lines[1] in capsys.readouterr().out
    assert words.time(full_evidence()) == []


def test_which_methods_fit_and_how_is_told() -> None:
    fit = full_evidence().fit
    assert fit is not None
    lora, ia3, prefix, full = fit.options
    assert words.fit(fit).endswith("lora and ia3 fit; prefix fits on nf4; full fits with checkpointing.")
    small = replace(full, fits=False, largest_batch=3)
    options = (lora, replace(prefix, fits=False, largest_batch=0), small, replace(ia3, fits=False, largest_batch=5))
    assert words.fit(replace(fit, options=options)).endswith(
        "lora fits; prefix does not fit at all; full fits with checkpointing only with batches of 3; ia3 fits "
        "only with batches of 5."
    )


def test_how_often_every_example_is_seen_is_told() -> None:
    advice = replace(full_advice(), settings={"steps": 100, "batch_size": 2, "accumulate": 4})
    told = words.trained_with(advice.settings, 400)
    assert told == "steps 100, batch size 2, accumulate 4 (2.0 epochs over 400 examples)"
    assert words.trained_with({"method": "lora"}, 400) == "method lora"


# ---- the page ----


def test_the_page_is_one_file_that_needs_nothing_else(tmp_path: Path) -> None:
    path = write_advice(full_advice(), full_evidence(), tmp_path / "deep" / "advice.html")
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert all(link.startswith("#") or link == "data:," for link in page.links)
    assert len(page.ids) == len(set(page.ids))
    assert not re.search(r"@import|@font-face|url\((?!#)|https?://", text)
    assert page.headings[0] == 1
    assert page.headings.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(page.headings))
    assert page.tags.count("table") == page.tags.count("caption") == 3
    assert page.tags.count("svg") == 7
    assert "prefers-color-scheme: dark" in text


def test_the_page_tells_all_in_order() -> None:
    text = read(full_advice(), full_evidence())
    order = [
        "Advice for support.jsonl on smollm2-135m",
        "PEFT and retrieval together, with high confidence (87 %).",
        "What to run next",
        "halka docs add support --from documents/",
        "Settings: method lora, rank 8, alpha 16, lr 2e-3, steps 400 (1.0 epochs over 400 examples)",
        "What each choice is expected to score",
        "target 70 %",
        "72 % (66 % to 78 %)",
        "Why",
        "Passages take the loss of content from 4.26 to 2.66",
        "What would change this advice",
        "What is missing",
        "Scores without training",
        "Losses under each condition",
        "unigram 5.43",
        "4.26",
        "passages change the loss on content from 4.26 to 2.66",
        "Pilot runs",
        "1.44 (1.36 to 1.52)",
        "Memory in training, by part",
        "with checkpointing",
        "memory 6.0 GB",
        "5.7 GB",
        "In 6.0 GB of NVIDIA RTX A2000, with a batch of 8",
        "Of 400 training examples, 6 are repeated and 4 contradict another; of 96 held out, 3",
        "support.jsonl:40",
    ]
    text = text.replace("\u00a0", " ")
    places = [text.find(each) for each in order]
    assert -1 not in places, order[places.index(-1)]
    at = 0
    for each in order:
        found = text.find(each, at)
        assert found >= 0, f"{each} comes too early"
        at = found
    assert "with 4 times as many, 1.31 (1.19 to 1.43) is expected" in text


def test_the_cheapest_choice_stands_first_and_the_advised_one_is_marked() -> None:
    text = render_advice(full_advice(), full_evidence())
    rows = re.findall(r'<tr( class="marked")?>\s*<th scope="row">([^<]*)</th>', text)[:6]
    assert [name for _, name in rows] == [names.short for names in words.CHOICES.values()][:6]
    assert [name for mark, name in rows if mark] == ["PEFT and retrieval"]


def test_the_page_is_the_same_for_the_same_input() -> None:
    first = render_advice(full_advice(), full_evidence())
    assert first == render_advice(copy.deepcopy(full_advice()), copy.deepcopy(full_evidence()))


@pytest.mark.parametrize("case", sorted(CASES))
def test_what_was_not_looked_at_leaves_only_its_reason(case: str) -> None:
    evidence = CASES[case]()
    text = render_advice(unsure(), evidence)
    page = Page(text)
    said = re.sub(" +", " ", " ".join(page.texts))
    for name, why in evidence.missing.items():
        assert f"not measured: {words.PROBE_TITLES[name]} ({why}).".lower() in said.lower()
        assert said.count(why) == 1
        assert name in ("strength", "knowledge") or f'id="{name}"' not in text
    assert ("What is missing" in said) == bool(evidence.missing)
    assert "More or better data first, with low confidence (40\u00a0%)." in said
    assert not re.search(r">\s*(nan|None|inf)\b|\bnan\b", said)
    for gone in ("What each choice", "Why", "What to run next"):
        assert gone not in said


def test_only_what_is_known_is_told_of_the_memory() -> None:
    text = read(unsure(), without_memory())
    assert "the size of the memory is not known" in text
    assert "memory 6" not in text


def test_a_memory_far_larger_than_the_need_is_told_at_the_edge() -> None:
    fit = full_evidence().fit
    assert fit is not None
    text = read(unsure(), alone(fit=replace(fit, memory=80 * GB)))
    assert "memory 80.0 GB →" in text
    assert "60 GB" not in text
    assert "→" not in read(unsure(), alone(fit=fit))


def test_each_method_is_drawn_as_it_is_and_where_that_does_not_fit_in_the_way_that_does() -> None:
    fit = full_evidence().fit
    assert fit is not None
    svg = re.search("<svg.*?</svg>", render_advice(unsure(), alone(fit=fit)), re.DOTALL)
    assert svg is not None
    texts = " ".join(" ".join(Page(svg.group()).texts).split())
    assert "lora ia3 prefix on nf4 full with checkpointing" in texts
    for told in ("2.7 GB", "2.4 GB", "6.5 GB", "2.2 GB", "7.3 GB", "5.7 GB"):
        assert told in texts


def test_a_loss_of_guessing_that_is_far_away_does_not_crowd_the_others() -> None:
    strength = full_evidence().strength
    assert strength is not None
    text = read(unsure(), replace(full_evidence(), strength=replace(strength, unigram=18.92)))
    assert "unigram 18" not in text
    assert "A unigram model of the answers has 18.92, beyond the plot." in text


def test_trials_with_passages_have_a_plot_of_their_own() -> None:
    text = render_advice(full_advice(), full_evidence())
    alone, shown = (
        " ".join(Page(each).texts) for each in re.findall('<svg[^>]*aria-label="Pilot runs.*?</svg>', text, re.DOTALL)
    )
    assert "lora with passages" not in alone
    assert "lora, half" in alone
    assert "lora with passages" in shown
    assert "lora, half" not in shown


def test_the_longest_name_has_room_in_bold() -> None:
    prospects = tuple(each for each in full_advice().prospects if each.choice in ("prompt", "data"))
    with drawing("prospects"):
        made = plots.prospects(replace(full_advice(), choice="data", prospects=prospects), full_evidence())
        assert made is not None
        figure, *_ = made
        assert min(label.get_window_extent().x0 for label in figure.axes[0].get_yticklabels()) >= 0


def test_what_is_advised_and_was_not_measured_is_said() -> None:
    assert "The advice, a better base, has no expected score." in read(
        replace(full_advice(), choice="base"), full_evidence()
    )


def test_a_reason_is_a_sentence_without_its_rules_name() -> None:
    advice = replace(full_advice(), reasons=(Reason("best", "it is expected to score highest"),))
    text = read(advice, full_evidence())
    assert "Why It is expected to score highest. Expected token f1" in text


def test_reasons_of_no_probe_are_told_among_what_was_missing() -> None:
    text = read(unsure(), replace(full_evidence(), missing={"documents": "the folder is empty."}))
    assert "What is missing Documents: the folder is empty. The base without training" in text


def hostile() -> tuple[Advice, Evidence]:
    advice, full = full_advice(), full_evidence()
    assert full.learnability is not None
    assert full.fit is not None
    assert full.cleanliness is not None
    trials = tuple(replace(each, name=EVIL, method=EVIL, fields={EVIL: EVIL}) for each in full.learnability.trials)
    options = tuple(replace(each, method=EVIL, quantize=EVIL) for each in full.fit.options)
    advice = replace(
        advice,
        prospects=tuple(replace(each, how=EVIL) for each in advice.prospects),
        reasons=(Reason(EVIL, EVIL),),
        change=(Reason(EVIL, EVIL),),
        missing=(Reason(EVIL, EVIL),),
        commands=(EVIL, EVIL),
        settings={EVIL: EVIL, "fields": {EVIL: [EVIL]}},
    )
    return advice, replace(
        full,
        subject=replace(full.subject, base=EVIL, data=EVIL, metric=EVIL),
        learnability=replace(full.learnability, trials=trials),
        fit=replace(full.fit, device=EVIL, options=options, parts={EVIL: {**parts(1, 2, 3, 4, 5), EVIL: 3}}),
        cleanliness=replace(full.cleanliness, places={EVIL: (EVIL,) * 20}),
        missing={EVIL: EVIL},
    )


def test_nothing_that_was_given_can_run() -> None:
    advice, evidence = hostile()
    text = render_advice(advice, evidence)
    page = Page(text)
    assert page.tags.count("script") == page.tags.count("style") == 1
    assert sum("<script>alert(1)</script>" in said for said in page.texts) > 20
    assert not any("49" in said and "onload" in said for said in page.texts)
    assert "\x1b" not in text


def test_a_folder_is_no_page(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a folder; name a file in it"):
        write_advice(full_advice(), full_evidence(), tmp_path)


# ---- the terminal ----


def test_the_terminal_begins_with_the_verdict_and_ends_with_the_commands(
    narrow: None, capsys: pytest.CaptureFixture[str]
) -> None:
    advice = full_advice()
    lines = [line.rstrip() for line in shown(advice, full_evidence(), capsys).splitlines()]
    assert lines[0] == "PEFT and retrieval together, with high confidence (87 %)."
    assert lines[-4:] == ["Run next:", *(f"  {command}" for command in advice.commands)]
    assert max(map(len, lines)) <= 100
    text = " ".join(" ".join(lines).split())
    for told in (
        "Without a model, the copy of the question scores 11 %",
        "> PEFT and retrieval 72 % (66 % to 78 %)",
        "with passages 2.31 2.05 2.66 47 % (42 % to 52 %)",
        "Lowest held-out loss with passages: lora with passages with 0.97",
        "6 are repeated and 4 contradict another",
        "prefix on nf4 1.8 GB yes 31 410 ms 5.0 MB 560 MB",
        "full with checkpointing 5.2 GB yes 9 1.2 s",
    ):
        assert told in text


@pytest.mark.parametrize("case", sorted(CASES))
def test_the_terminal_shows_what_there_is(case: str, narrow: None, capsys: pytest.CaptureFixture[str]) -> None:
    evidence = CASES[case]()
    text = shown(unsure(), evidence, capsys)
    assert text.startswith("More or better data first, with low confidence (40 %).")
    assert max(map(len, text.splitlines())) <= 100
    said = " ".join(text.split())
    assert all(
        f"not measured: {words.PROBE_TITLES[name]} ({why}).".lower() in said.lower()
        for name, why in evidence.missing.items()
    )
    assert not re.search(r"\b(nan|None|inf)\b", said)
    assert "Expected:" not in said
    assert "Run next:" not in said


def test_the_terminal_is_not_steered(narrow: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert "\x1b" not in shown(*hostile(), capsys)


def test_sizes_that_are_close_are_not_written_over_each_other():
    assert pilot_plots.readable_ticks([125, 162, 168]) == [125, 168]
    assert pilot_plots.readable_ticks([50, 100, 400]) == [50, 100, 400]


def test_the_hardware_is_told_in_eighty_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    fit = full_evidence().fit
    assert fit is not None
    packed = replace(fit.options[0], method="bottleneck", quantize="nf4", checkpointing=True, memory=22_150_000_000)
    text = shown(full_advice(), replace(full_evidence(), fit=replace(fit, options=(*fit.options, packed))), capsys)
    assert re.search(r"memory +fits +batch +a step +disk +served", text)
    assert [line.strip() for line in text.splitlines()].count("checkpointing") == 2

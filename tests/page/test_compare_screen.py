"""Compare: what `halka compare` wrote, as a table, plots and answers; what is damaged says so, nothing becomes HTML."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import expect

from serving_for_tests import Running

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
SUMMARY = json.loads((RESULTS / "demo" / "summary.json").read_text())
HOSTILE = "<img src=x onerror=alert(1)>"


def percent(share: float) -> str:
    return f"{100 * share:.1f}".removesuffix(".0") + "%"


@pytest.fixture(scope="module")
def shelf(base, store, tmp_path_factory):
    """A server with a real comparison, whose answers have markup, and many damaged ones."""
    root = tmp_path_factory.mktemp("comparisons")
    shutil.copytree(RESULTS / "demo", root / "demo")
    for path in (root / "demo" / "runs").glob("*.json"):
        run = json.loads(path.read_text())
        for sample in run.get("samples") or ():
            sample["prediction"] += f" {HOSTILE}"
        path.write_text(json.dumps(run))
    for name in ("broken", *(f"c{n}" for n in range(24))):
        (root / name).mkdir()
        (root / name / "summary.json").write_text("{")
    with Running(base, store, tmp_path_factory.mktemp("compared"), comparisons=(root,)) as running:
        yield running.url


def test_a_report_is_browsed(read, shelf):
    page = read(shelf).page
    page.goto("/compare")
    expect(page.get_by_role("article", name="broken").get_by_role("alert")).to_contain_text("summary.json is no JSON")
    expect(page.get_by_text("1 to 24")).to_be_visible()
    page.get_by_role("button", name="Next").press("Enter")
    expect(page.get_by_text("25 to 26")).to_be_visible()
    page.wait_for_url("**/compare?from=25")
    expect(page.get_by_role("button", name="Next")).to_be_focused()
    page.get_by_role("link", name="demo").press("Enter")
    page.wait_for_url("**/compare/demo")
    expect(page.locator("#content")).to_be_focused()
    expect(page.get_by_text(SUMMARY["headline"])).to_be_visible()
    row = page.get_by_role("region", name="What each method came to").get_by_role("row", name="LoRA r16")
    (lora,) = (one for one in SUMMARY["rows"] if one["label"] == "LoRA r16")
    exact = lora["scores"]["exact_match"]
    for text in (
        percent(exact["value"]),
        f"{percent(exact['low'])} to {percent(exact['high'])}",
        percent(lora["relative"]),
        f"{lora['trainable'] / 1e6:.3g}M",
        percent(lora["share"]),
        f"{lora['beyond']['mean'] / 1e9:.1f} GB",
        f"{100 * lora['forgetting']['mean']:+.3g}%",
    ):
        expect(row).to_contain_text(text)
    page.get_by_label("Metric").select_option("line_accuracy")
    page.wait_for_url("**/compare/demo?metric=line_accuracy")
    expect(row).to_contain_text(percent(lora["scores"]["line_accuracy"]["value"]))
    for plot in ("Quality against trained parameters", "Memory of a training", "Forgetting"):
        expect(page.get_by_role("img", name=plot, exact=True)).to_be_visible()
    for caveat in SUMMARY["care"]:
        expect(page.get_by_text(caveat)).to_be_visible()

    item = page.get_by_role("article", name="Item 1")
    expect(item.get_by_role("heading", level=4)).to_have_count(1 + len(SUMMARY["rows"]))
    expect(item.locator("mark").filter(has_text=HOSTILE).first).to_be_visible()
    assert page.locator("main img").count() == 0
    page.get_by_role("button", name="Next", exact=True).click()
    expect(page.get_by_role("article", name="Item 4")).to_be_visible()
    expect(page.get_by_role("button", name="Next", exact=True)).to_be_focused()
    page.get_by_label("Item number").fill("99")
    page.get_by_label("Item number").press("Enter")
    expect(page.get_by_text("There is no item 99.")).to_be_visible()
    page.get_by_label("Item number").fill("1")
    page.get_by_label("Item number").press("Enter")
    expect(page.get_by_role("article", name="Item 1")).to_be_visible()
    expect(page.get_by_label("Item number")).to_be_focused()
    page.get_by_label("Item number").fill("২")
    page.get_by_role("button", name="Show").click()
    expect(page.get_by_role("article", name="Item 2")).to_be_visible()
    expect(page).to_have_title("demo · Compare · Halka")


def test_an_address_opens_what_is_shown(read, shelf):
    page = read(shelf).page
    page.goto("/compare/demo?metric=line_accuracy&item=5")
    expect(page.get_by_label("Metric")).to_have_value("line_accuracy")
    expect(page.get_by_role("article", name="Item 5")).to_be_visible()
    page.get_by_role("button", name="Before").click()
    page.wait_for_url("**/compare/demo?metric=line_accuracy&item=2")
    page.goto("/compare/demo?metric=nothing&item=-3")
    expect(page.get_by_label("Metric")).to_have_value(SUMMARY["primary"]["name"])
    expect(page.get_by_role("article", name="Item 1")).to_be_visible()


def test_the_next_answer_that_differs(read, shelf):
    """Of ten items the method answers the seventh alone otherwise than expected."""
    page = read(shelf).page
    answers = [{"label": "full", "prediction": "no" if number == 6 else " yes"} for number in range(10)]
    items = [
        {"item": number, "prompt": f"Question {number + 1}", "reference": "yes", "answers": [answer]}
        for number, answer in enumerate(answers)
    ]

    def some(route):
        start = int(re.search(r"start=(\d+)", route.request.url)[1])
        route.fulfill(json={"object": "list", "start": start, "data": items[start:]})

    page.route("**/answers?*", some)
    page.goto("/compare/demo")
    page.get_by_label("Where it differs").select_option("full")
    page.get_by_role("button", name="Next one").click()
    expect(page.get_by_text("Question 7")).to_be_visible()
    page.wait_for_url("**/compare/demo?item=7")
    page.get_by_role("button", name="Next one").click()
    expect(page.get_by_text("No later answer differs.")).to_be_visible()
    page.get_by_label("Item number").fill("1")
    page.get_by_label("Item number").press("Enter")
    expect(page.get_by_text("Question 1", exact=True)).to_be_visible()
    expect(page.get_by_text("No later answer differs.")).to_have_count(0)


def test_an_answer_in_another_spelling_is_the_same(read, shelf):
    """As exact match has it: a letter of two characters, and a joiner, are no difference."""
    page = read(shelf).page
    reference, prediction = "\u09b8\u09ae\u09af\u09bc \u0995\u09a4", "\u09b8\u09ae\u09df \u0995\u200c\u09a4"
    answers = [{"label": "full", "prediction": prediction}, {"label": "lora", "prediction": f"{prediction} no"}]
    item = {"item": 0, "prompt": "When?", "reference": reference, "answers": answers}
    page.route("**/answers?*", lambda route: route.fulfill(json={"object": "list", "start": 0, "data": [item]}))
    page.goto("/compare/demo")
    shown = page.get_by_role("article", name="Item 1")
    expect(shown.get_by_role("heading", name="full").get_by_text("the same")).to_be_visible()
    expect(shown.locator("mark")).to_have_text(["no"])


def test_an_address_behind_the_last_comparison_leads_back(read, shelf):
    page = read(shelf).page
    page.route("**/v1/comparisons?*", lambda route: route.fulfill(json={"object": "list", "total": 1, "data": []}))
    page.goto("/compare?from=25")
    page.get_by_role("button", name="Before").click()
    page.wait_for_url("**/compare")


def test_in_bengali_on_a_narrow_screen(read, shelf):
    page = read(shelf, locale="bn-BD", viewport={"width": 390, "height": 800}).page
    page.goto("/compare/demo")
    expect(page.get_by_role("heading", name="উত্তরগুলো পাশাপাশি")).to_be_visible()
    expect(page.get_by_role("article", name="প্রশ্ন ১")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_without_comparisons_it_says_how_to_make_one(read):
    page = read().page
    page.goto("/compare")
    expect(page.get_by_text("There are no comparisons yet")).to_be_visible()
    expect(page.get_by_text("halka compare experiment.yaml").first).to_be_visible()

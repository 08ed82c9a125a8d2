"""Advise: a question, its probes as they run, and the verdict, which fills the form of Train."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from playwright.sync_api import expect

from serving_for_tests import Running

HOSTILE = "<img src=x onerror=alert(1)>"
ROWS = [{"prompt": f"Say {word} {number}.", "completion": word} for word in ("yes", "no") for number in range(12)]
FILE = {
    "name": "words.jsonl",
    "mimeType": "application/jsonl",
    "buffer": "".join(json.dumps(row) + "\n" for row in ROWS).encode(),
}


@pytest.fixture(scope="module")
def working(base, store, tmp_path_factory):
    """A server that does jobs, one at a time."""
    with Running(base, store, tmp_path_factory.mktemp("advising"), jobs=1) as running:
        yield running


def test_probes_end_in_a_verdict(read, working):
    page = read(working.url).page
    page.goto("/advise")
    page.locator('input[type="file"]').first.set_input_files(FILE)
    page.get_by_label("Minutes").fill("0")
    expect(page.get_by_text("More than 0, at most a day.")).to_be_visible()
    page.get_by_label("Minutes").fill("২")
    page.get_by_label("Good enough").fill("50")
    page.get_by_text("More settings").click()
    for probe in ("What examples and passages add", "Small training runs", "Memory and time here"):
        page.get_by_label(probe).check()
    page.get_by_text("The same in a terminal").first.click()
    expect(page.get_by_role("tabpanel")).to_contain_text("--skip learnability")
    page.get_by_role("button", name="Ask for advice").press("Enter")
    page.wait_for_url(re.compile(r"/advise/job-\w+$"))
    expect(page.get_by_text("The advice", exact=True)).to_be_visible()
    expect(page.get_by_role("table", name="Expected")).to_contain_text("Prompting")
    expect(page.get_by_role("heading", name="What was not measured")).to_be_visible()
    page.get_by_role("link", name="All advice").click()
    chosen = page.get_by_role("region", name="Jobs").get_by_role("row", name="Advice").get_by_role("cell").nth(1)
    expect(chosen).not_to_be_empty()
    page.get_by_role("link", name="Advice").click()
    expect(page.get_by_text("The advice", exact=True)).to_be_visible()


def test_what_is_advised_is_trained(read, working):
    """A verdict with markup in its words, as the API gives it: it stays text, and its settings go to Train."""
    score = {"value": 0.75, "low": 0.5, "high": 0.9, "n": 16}
    advice: dict[str, Any] = {
        "choice": "peft",
        "title": "PEFT",
        "confidence": 0.9,
        "prospects": [{"choice": "peft", "score": score, "how": HOSTILE}],
        "reasons": [{"rule": "best", "text": HOSTILE}],
        "change": [{"rule": "held out", "text": "more"}, {"rule": "what is new", "text": HOSTILE}],
        "missing": [{"rule": "fit", "text": "fit: skipped"}],
        "commands": ["halka train"],
        "settings": {"method": "ia3", "lr": 0.002, "steps": 40, "dtype": "float32"},
    }
    subject = {"metric": "exact_match", "held_out": 16, "train": 8}
    job = {
        "id": "job-1", "kind": "advise", "status": "done", "created_at": 1, "settings": {}, "error": None,
        "result": {"advice": advice, "evidence": {"subject": subject}},
    }  # fmt: skip
    page = read(working.url, locale="bn-BD", viewport={"width": 390, "height": 800}).page
    body = f"event: status\ndata: {json.dumps(job)}\n\n"
    page.route("**/events", lambda route: route.fulfill(body=body, content_type="text/event-stream"))
    page.goto("/advise/job-1")
    expect(page.get_by_text("৭৫%")).to_be_visible()
    expect(page.get_by_role("definition").filter(has_text=HOSTILE)).to_have_count(2)
    terms = ["প্রত্যাশিত স্কোর সবচেয়ে বেশি", "যাচাইয়ের আরও উদাহরণ", "what is new", "এখানে মেমরি ও সময়"]
    expect(page.get_by_role("term")).to_have_text(terms)
    assert page.locator("main img").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.get_by_role("button", name="এভাবে প্রশিক্ষণ দিন").click()
    page.wait_for_url("**/train*")
    expect(page.get_by_role("radio", name="ia3")).to_be_checked()
    page.locator("summary", has_text="আরও সেটিং").click()
    expect(page.get_by_label("ধাপ (steps)", exact=True)).to_have_value("40")
    expect(page.get_by_label("শেখার হার (lr)", exact=True)).to_have_value("0.002")


def test_what_is_advised_is_trained_on_the_file_that_was_asked_about(read, working):
    """Not on that which stands in the form by then; of an advice that another tab asked for, on none."""
    nothing: dict[str, Any] = {"prospects": [], "reasons": [], "change": [], "missing": [], "commands": []}
    advice = nothing | {"choice": "peft", "title": "PEFT", "confidence": 0.9, "settings": {"method": "ia3"}}
    subject = {"metric": "exact_match", "held_out": 16, "train": 8}
    job = {
        "id": "job-1", "kind": "advise", "name": None, "status": "done", "created_at": 1, "settings": {},
        "error": None, "last_step": None, "result": {"advice": advice, "evidence": {"subject": subject}},
    }  # fmt: skip
    page = read(working.url).page
    body = f"event: status\ndata: {json.dumps(job)}\n\n"
    page.route("**/events", lambda route: route.fulfill(body=body, content_type="text/event-stream"))
    listed = {"object": "list", "data": [job]}
    page.route("**/v1/jobs", lambda route: route.fulfill(json=job if route.request.method == "POST" else listed))
    file = page.locator('input[type="file"]').first
    page.goto("/advise")
    file.set_input_files(FILE | {"name": "other.jsonl"})
    page.get_by_role("region", name="Jobs").get_by_role("link", name="Advice").click()
    page.get_by_role("button", name="Train this").click()
    expect(page.get_by_role("radio", name="ia3")).to_be_checked()
    expect(page.get_by_text("other.jsonl", exact=True)).to_have_count(0)

    page.get_by_role("link", name="Advise").click()
    file.set_input_files(FILE)
    page.get_by_role("button", name="Ask for advice").click()
    page.wait_for_url("**/advise/job-1")
    page.get_by_role("link", name="All advice").click()
    file.set_input_files(FILE | {"name": "other.jsonl"})
    page.get_by_role("region", name="Jobs").get_by_role("link", name="Advice").click()
    page.get_by_role("button", name="Train this").click()
    expect(page.get_by_text("words.jsonl", exact=True)).to_be_visible()

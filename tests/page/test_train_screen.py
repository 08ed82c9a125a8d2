"""Train: from a file to a tuned adapter that is scored beside the base; watched, stopped, resumed, reloaded."""

from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, expect

from serving_for_tests import LooksHere, Running

HOSTILE = "<img src=x onerror=alert(1)>"
ROWS = [{"prompt": f"What is {a} plus {b}?", "completion": str(a + b)} for a in range(6) for b in range(6)]
BAD = [{"prompt": HOSTILE, "completion": "<b>bold</b>"}, *ROWS, {"prompt": "Why?"}, ROWS[0]]
FILE = 'input[type="file"]'


@pytest.fixture(scope="module")
def working(base, store, tmp_path_factory):
    """A server that does jobs, one at a time."""
    with Running(base, store, tmp_path_factory.mktemp("working"), jobs=1) as running:
        running.service.looks = LooksHere()
        yield running


def upload(rows: list[dict[str, str]], name: str = "sums & more.jsonl") -> dict[str, str | bytes]:
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    return {"name": name, "mimeType": "application/jsonl", "buffer": lines.encode()}


def draft(page: Page, rows: list[dict[str, str]], steps: int) -> None:
    page.goto("/train")
    page.locator(FILE).set_input_files(upload(rows))
    expect(page.get_by_text(f"{len(rows) - 1} examples of the shape “prompt”.")).to_be_visible()
    page.get_by_text("More settings").click()
    page.get_by_label("Steps", exact=True).fill(str(steps))


def test_a_file_becomes_an_adapter_that_is_scored_beside_the_base(read, working):
    reader = read(working.url)
    page = reader.page
    draft(page, BAD, steps=6)
    shown = page.get_by_role("region", name="As the model reads it: line 1")
    expect(shown).to_contain_text(HOSTILE)
    expect(shown.locator("mark")).to_have_text(["<b>bold</b>", "<|im_end|>"])
    expect(page.get_by_role("row", name="38 no 'completion'")).to_be_visible()
    expect(page.locator("summary", has_text="1 example occurs twice")).to_be_visible()
    assert page.locator("main img, main b").count() == 0
    expect(page.get_by_text("6 steps")).to_be_visible()
    expect(page.get_by_label("Name of the adapter")).to_have_value("sums-more")
    page.get_by_text("The same in a terminal").first.click()
    expect(page.get_by_role("tabpanel")).to_contain_text("--validation 0.1")
    expect(page.get_by_role("tabpanel")).to_contain_text("--steps 6")
    page.get_by_label("Learning rate", exact=True).fill("0,0001")
    page.get_by_label("Learning rate", exact=True).press("Enter")
    page.get_by_text("More settings").click()
    page.get_by_role("button", name="Start training").click()
    expect(page.get_by_label("Learning rate", exact=True)).to_be_focused()
    page.get_by_label("Learning rate", exact=True).fill("0.001")
    page.get_by_label("Learning rate", exact=True).press("Enter")
    assert page.url.endswith("/train")
    page.get_by_role("button", name="Start training").click()

    page.wait_for_url(re.compile(r"/train/job-\w+$"))
    expect(page.get_by_text("Done: sums-more is in the library, as version 1.")).to_be_visible()
    expect(page.get_by_text("6 of 6")).to_be_visible()
    expect(page.get_by_text("Saved by packing")).to_be_visible()
    page.get_by_text("The values as a table").click()
    expect(page.get_by_role("region", name="Loss by step").get_by_role("row")).to_have_count(7)
    page.reload()
    expect(page.get_by_text("6 of 6")).to_be_visible()

    page.get_by_role("button", name="Score it beside the base").click()
    expect(page.get_by_text(re.compile("On [45] examples, with 95 % intervals"))).to_be_visible()
    page.get_by_text("On other examples").click()
    page.locator(FILE).set_input_files(upload(ROWS[:3], "test.jsonl"))
    page.get_by_role("button", name="Score it again").click()
    expect(page.get_by_role("button", name="Score it again")).to_have_attribute("aria-disabled", "true")
    expect(page.get_by_text("On 3 examples, with 95 % intervals")).to_be_visible()
    expect(page.get_by_role("button", name="Score it again")).not_to_have_attribute("aria-disabled", "true")
    page.get_by_text("What was answered").click()
    item = page.get_by_role("article", name="Item 3")
    expect(item).to_contain_text("What is 0 plus 2?")
    expect(item.get_by_role("heading", level=4)).to_have_text(["expected", "sums-more@1", "the bare base"])
    with page.expect_download() as download:
        page.get_by_role("link", name="Download all answers").click()
    assert len(Path(download.value.path()).read_text().splitlines()) == 6
    page.get_by_role("link", name="Open this evaluation").click()
    expect(page.get_by_role("heading", level=1, name="Scores of sums-more@1")).to_be_visible()
    expect(page.get_by_role("row", name="the bare base").first).to_be_visible()
    page.get_by_role("link", name="All jobs").click()
    page.get_by_role("link", name="sums-more", exact=True).click()
    for asked in ("sums-more.jsonl", "10%", "lora", "0.001"):
        expect(page.get_by_role("definition").get_by_text(asked, exact=True)).to_be_visible()
    assert working.client.get("/v1/adapters/sums-more").json()["task"] == "sums-more"
    page.get_by_role("link", name="Try it beside the base").click()
    page.wait_for_url("**/playground?model=tiny&model=sums-more")
    assert [url for url in reader.requests if url.endswith(("/files", "/upload"))] == [f"{working.url}/v1/files"] * 2


def test_a_training_is_stopped_and_resumed_by_the_keyboard(read, working):
    page = read(working.url, viewport={"width": 390, "height": 800}).page
    draft(page, BAD, steps=20_000)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.get_by_label("Name of the adapter").fill("")
    page.get_by_role("button", name="Start training").press("Enter")
    expect(page.get_by_text("Give it a name.")).to_be_visible()
    expect(page.get_by_label("Name of the adapter")).to_be_focused()
    page.get_by_label("Name of the adapter").fill("sums-more")
    for kept in working.service.tenants.of("main").files.glob("file-*"):
        kept.unlink()  # as after an hour: it is sent once more
    page.get_by_label("Name of the adapter").press("Enter")
    expect(page.get_by_text("Time left")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.get_by_role("button", name="Stop", exact=True).press("Enter")
    expect(page.get_by_role("button", name="Resume")).to_be_enabled()
    page.get_by_role("button", name="Resume").press("Enter")
    page.get_by_role("button", name="Stop", exact=True).press("Enter")
    expect(page.get_by_role("button", name="Resume")).to_be_visible()
    page.get_by_role("button", name="Delete this job").press("Enter")
    page.get_by_role("dialog").get_by_role("button", name="Delete this job").press("Enter")
    page.wait_for_url("**/train")


def test_a_file_to_validate_with_is_asked_for_and_another_method_has_its_own_defaults(read, working):
    page = read(working.url).page
    draft(page, BAD, steps=2)
    page.get_by_label("Held out for validation").select_option("file")
    page.get_by_role("button", name="Start training").click()
    expect(page.get_by_text("Choose the file to validate with.")).to_be_visible()
    assert page.url.endswith("/train")
    page.get_by_label("Rank", exact=True).fill("3")
    page.get_by_role("radio", name=re.compile("^bottleneck")).check()
    page.get_by_role("radio", name=re.compile("^lora")).check()
    expect(page.get_by_label("Rank", exact=True)).to_have_value("")
    expect(page.get_by_label("Steps", exact=True)).to_have_value("2")


def test_a_name_follows_the_file_until_somebody_types_one(read, working):
    page = read(working.url).page
    name = page.get_by_label("Name of the adapter")
    page.goto("/train")
    page.locator(FILE).set_input_files(upload(ROWS, "first.jsonl"))
    expect(name).to_have_value("first")
    preview = page.get_by_text("36 examples of the shape “prompt”.")
    expect(preview).to_be_visible()
    page.route("**/v1/data/preview", lambda route: None)
    page.locator(FILE).set_input_files(upload(ROWS, "lora.jsonl"))
    expect(name).to_have_value("lora")
    expect(preview).to_have_count(0)
    expect(page.get_by_text("There is an adapter lora: this becomes its next version.")).to_be_visible()
    name.fill("a b")
    page.get_by_role("button", name="Start training").click()
    expect(page.get_by_text("a letter or digit first and no dot last")).to_be_visible()
    expect(name).to_be_focused()
    page.locator(FILE).set_input_files(upload(ROWS, "third.jsonl"))
    expect(name).to_have_value("a b")
    name.fill("con")
    page.get_by_role("button", name="Start training").click()
    expect(page.locator(".begin .wrong")).to_contain_text("'con' cannot be a name")


def test_a_job_says_what_it_was_asked_for_and_is_asked_for_again(read, working):
    """A training that waits behind two others, as the API describes it."""
    page = read(working.url).page
    settings = {
        "method": "ia3",
        "train": {"lr": 0.002, "checkpointing": True, "save_every": None},
        "best_by": "score",
    }
    job = {
        "id": "job-1", "kind": "train", "name": "sums", "status": "queued", "created_at": 5, "queued_at": 5.5,
        "settings": {"data_file": "file-1", "validation_file": "file-2", "settings": settings},
        "files": {"data": "letters.jsonl", "validation": "check.csv"}, "error": None, "result": None,
        "adapter": None, "last_step": None,
    }  # fmt: skip
    others = [
        job | {"id": "job-2", "name": "a", "status": "running", "queued_at": 9},
        job | {"id": "job-3", "name": "b", "queued_at": 5.25},
        job | {"id": "job-4", "name": "c", "queued_at": 5.75},
        job | {"id": "job-5", "name": "d", "queued_at": 1, "status": "done"},
    ]
    page.route("**/v1/jobs", lambda route: route.fulfill(json={"object": "list", "data": [*others, job]}))

    def now(status: str) -> None:
        body = f"event: status\ndata: {json.dumps(job | {'status': status})}\n\n"
        page.route("**/events", lambda route: route.fulfill(body=body, content_type="text/event-stream"))

    now("queued")
    page.goto("/train/job-1")
    expect(page.get_by_text("It waits for its turn: 2 other jobs of yours are before it …")).to_be_visible()
    asked = {
        "Examples": "letters.jsonl", "Held out for validation": "check.csv", "Method": "ia3",
        "Learning rate": "0.002", "Save memory": "yes", "Which weights are kept": "score",
        "Steps between checkpoints": "none",
    }  # fmt: skip
    for term, definition in asked.items():
        listed = page.locator("dt", has_text=re.compile(f"^{term}$")).locator("+ dd")
        expect(listed).to_have_text(definition)
    now("running")
    page.reload()
    expect(page.get_by_text("It loads the base and reads the examples …")).to_be_visible()

    page.get_by_role("button", name="Use these settings again").click()
    expect(page.get_by_label("Name of the adapter")).to_have_value("sums")
    expect(page.get_by_text("A training of sums has not ended")).to_be_visible()
    expect(page.get_by_role("radio", name="ia3")).to_be_checked()
    page.get_by_text("More settings").click()
    expect(page.get_by_label("Steps between checkpoints")).to_have_value("none")
    page.get_by_text("The same in a terminal").first.click()
    expect(page.get_by_role("tabpanel")).to_contain_text("--save-every none")
    page.get_by_role("tab", name="curl").click()
    expect(page.get_by_role("tabpanel")).to_contain_text('"save_every":null')
    expect(page.get_by_text("Choose the file to validate with again.")).to_be_visible()
    page.locator(FILE).set_input_files(upload(ROWS, "letters.jsonl"))
    expect(page.get_by_label("Held out for validation")).to_have_value("file")
    expect(page.get_by_label("Name of the adapter")).to_have_value("sums")
    page.goto("/train?held=0.25&name=mine&settings={}")
    page.locator(FILE).set_input_files(upload(ROWS))
    expect(page.get_by_label("Held out for validation").locator(":checked")).to_have_text("25 % of the file")
    expect(page.get_by_label("Name of the adapter")).to_have_value("mine")


def test_scores_are_of_this_adapter_and_of_each_example_of_a_task(read, working):
    """An adapter that has the name and version of a deleted one has none of its scores; a task held nothing out."""
    page = read(working.url).page
    since = int(datetime.fromisoformat(working.client.get("/v1/adapters/lora").json()["trained_at"]).timestamp())
    job = {"files": {}, "error": None, "adapter": None, "last_step": None, "name": None, "status": "done"}
    trained = {"loss": 1, "validation_loss": 1, "best_step": 1, "tokens": 1, "seconds": 1, "parameters": 1}
    training = job | {
        "id": "job-1", "kind": "train", "created_at": since, "ended_at": since + 9,
        "adapter": {"name": "lora", "version": 1}, "settings": {"task": "support", "settings": {}}, "result": trained,
    }  # fmt: skip
    score = {"exact_match": {"value": 0.5, "low": 0, "high": 1, "n": 2}}
    scored = job | {
        "id": "job-2", "kind": "evaluate", "created_at": since + 8,
        "settings": {"adapters": ["lora@1"], "task": "support"},
        "result": {"examples": 2, "scores": score, "base_scores": score},
    }  # fmt: skip
    jobs = [scored]
    page.route("**/v1/jobs", lambda route: route.fulfill(json={"object": "list", "data": jobs}))

    def watched(route: Route) -> None:
        body = f"event: status\ndata: {json.dumps(training if 'job-1' in route.request.url else scored)}\n\n"
        route.fulfill(body=body, content_type="text/event-stream")

    page.route("**/events", watched)
    with page.expect_response("**/v1/jobs"):
        page.goto("/train/job-1")
    page.evaluate("fetch('/v1/session').then((answer) => answer.json())")  # what came before it was read by then
    expect(page.get_by_role("button", name="Score it beside the base")).to_have_attribute("aria-disabled", "true")
    expect(page.get_by_text("which should be others than those trained on")).to_be_visible()
    scored["created_at"] = since + 9
    lines = [
        {"where": "", "prompt": prompt, "references": [prompt], "prediction": prompt, "adapter": adapter}
        for adapter in ("lora@1", None)
        for prompt in ("One", "Two")
    ]
    page.route("**/predictions", lambda route: route.fulfill(body="\n".join(map(json.dumps, lines))))
    page.reload()
    expect(page.get_by_role("button", name="Score it again")).to_be_visible()
    page.get_by_text("What was answered").click()
    for number, prompt in enumerate(("One", "Two"), 1):
        item = page.get_by_role("article", name=f"Item {number}")
        expect(item.get_by_text(prompt, exact=True)).to_have_count(4)
        expect(item.get_by_role("heading", level=4)).to_have_count(3)
    training |= {"created_at": since - 9, "ended_at": since - 1}  # what has its adapter's name and version is another's
    page.reload()
    expect(page.get_by_text("lora, version 1, was removed since")).to_be_visible()
    expect(page.get_by_role("link", name="Open the adapter")).to_have_count(0)
    expect(page.get_by_role("button", name="Score it again")).to_have_count(0)
    training |= {"adapter": {"name": "lora", "version": 7}}
    page.reload()
    expect(page.get_by_text("lora, version 7, was removed since")).to_be_visible()


def test_data_are_looked_at_as_the_training_reads_them(read, working):
    page = read(working.url).page
    train = {"max_length": 12, "too_long": "drop", "batches": "padded"}
    page.goto(f"/train?settings={json.dumps({'method': 'lora', 'rank': -1, 'train': train})}")
    page.locator(FILE).set_input_files({"name": "tide.txt", "mimeType": "text/plain", "buffer": b"The tide rises."})
    expect(page.get_by_label("Held out for validation")).to_have_value("")  # it is one example
    page.locator(FILE).set_input_files(upload(ROWS))
    expect(page.get_by_label("Held out for validation")).to_have_value("0.1")
    expect(page.get_by_text("are longer than 12 tokens and will be left out.")).to_be_visible()
    expect(page.locator(".wrong")).to_contain_text("rank")
    expect(page.get_by_text("Saved by packing")).to_have_count(0)


def test_errors_are_the_apis_at_their_field(read, working):
    page = read(working.url, locale="bn-BD").page
    page.goto('/train?settings={"method":"lora","rank":-1}')
    page.locator(FILE).set_input_files(upload(ROWS))
    expect(page.locator(".wrong")).to_contain_text("rank")
    assert page.url.endswith("/train")  # which goes over what is typed no second time
    page.locator(FILE).set_input_files({"name": "a.pdf", "mimeType": "application/pdf", "buffer": b"%PDF"})
    expect(page.get_by_role("alert").first).to_contain_text("use .jsonl")


def test_a_broken_stream_goes_on_after_the_last_event_and_says_so_in_the_end(read, working):
    page = read(working.url).page
    asked: list[str | None] = []

    def broken(route):
        asked.append(route.request.headers.get("last-event-id"))
        step = {
            "step": len(asked),
            "steps": 9,
            "loss": 1.5,
            "tokens": 1,
            "seconds": 1,
            "tokens_per_second": 1,
            "memory": 1,
        }
        body = f"id: {len(asked)}\nevent: step\ndata: {json.dumps(step)}\n\n" if len(asked) < 3 else ""
        route.fulfill(body=body, content_type="text/event-stream")

    page.route("**/events", broken)
    page.clock.install()
    page.goto("/train/job-0000000000000000")
    for _ in range(100):
        page.clock.run_for(2_000)
        if page.get_by_role("alert").count():
            break
    expect(page.get_by_role("alert")).to_contain_text("The connection broke before the end.")
    assert asked[:3] == [None, "1", "2"]
    page.unroute("**/events")
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("alert")).to_contain_text("there is no job")
    expect(page.get_by_role("button", name="Try again")).to_have_count(0)

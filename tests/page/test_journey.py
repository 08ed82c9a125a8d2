"""The whole way, on the real base and on a phone: from a file to an adapter that answers, also from documents."""

from __future__ import annotations

import json
import re

import pytest
from playwright.sync_api import Page, expect

from halka import load_task
from halka.models.fetching import pull
from serving_for_tests import LooksHere, Running
from words_of_the_page import words_in

DRAFT = json.dumps({"train": {"steps": 3, "batch_size": 2}})
WIDE, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}


@pytest.fixture
def server(request, base, tmp_path):
    """A server with an empty store: of SmolLM2-135M, or of a tiny base."""
    of, dtype = (pull("smollm2-135m"), "bfloat16") if request.param == "real" else (base, "float32")
    (tmp_path / "store").mkdir()
    with Running(of, tmp_path / "store", tmp_path / "data", dtype=dtype, jobs=1) as running:
        if request.param == "tiny":
            running.service.looks = LooksHere()
        yield running


def rows() -> bytes:
    """Twenty letters to a support desk and their answers, as a file of JSON lines."""
    examples = load_task("support").train[:20]
    lines = [{"prompt": each.prompt[-1].content, "completion": each.answers[0]} for each in examples]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("server", "language", "locale", "size"),
    [("real", "en", "en-GB", WIDE), ("tiny", "bn", "bn-BD", PHONE)],
    indirect=["server"],
)
def test_from_a_file_to_an_adapter_that_answers(server, read, language, locale, size):
    """Everything but the choice of files is done by the keyboard."""
    word = words_in(language)
    page: Page = read(server.url, locale=locale, viewport=size).page
    key, _ = server.service.guards.keys.add("main", "admin")

    def press(role: str, key: str, **values: str) -> None:
        page.get_by_role(role, name=word(key, **values), exact=True).first.press("Enter")

    page.goto(f"/train?settings={DRAFT}")
    page.get_by_label(word("shell.key")).fill(key)
    page.get_by_label(word("shell.key")).press("Enter")
    page.locator('input[type="file"]').set_input_files(
        {"name": f"letters-{language}.jsonl", "mimeType": "application/jsonl", "buffer": rows()}
    )
    name = f"letters-{language}"
    expect(page.get_by_label(word("train.name"))).to_have_value(name)
    page.get_by_label(word("train.name")).press("Enter")
    page.wait_for_url(re.compile(r"/train/job-\w+$"))
    expect(page.get_by_role("link", name=word("train.tryIt"))).to_be_visible()
    expect(page.get_by_role("figure", name=word("train.curve")).locator("svg")).to_be_visible()

    press("link", "train.tryIt")
    page.wait_for_url(f"**/playground?model=*&model={name}")
    page.locator("summary", has_text=word("playground.settings")).press("Enter")
    page.get_by_label(word("playground.max_tokens")).fill("12")
    page.get_by_role("textbox", name=word("playground.prompt")).fill("My lamp flickers since Monday, order 4711.")
    page.get_by_role("textbox", name=word("playground.prompt")).press("Enter")
    for model in (server.service.name, name):
        answer = page.get_by_role("article", name=word("playground.answerOf", model=model))
        expect(answer.locator("dl.facts")).to_be_visible()

    page.goto("/documents")
    page.get_by_label(word("documents.name")).fill(f"faq-{language}")
    page.get_by_label(word("documents.name")).press("Enter")
    page.wait_for_url(f"**/documents/faq-{language}")
    page.get_by_label(word("documents.chooseFiles")).set_input_files(
        {"name": "keys.md", "mimeType": "text/plain", "buffer": b"The key of the shop hangs on hook 31."}
    )
    press("button", "documents.send")
    expect(page.get_by_role("region", name=word("documents.title")).locator("tbody tr")).to_have_count(1)
    press("link", "documents.ask")
    page.get_by_role("textbox", name=word("playground.prompt")).fill("Where does the key hang?")
    page.get_by_role("textbox", name=word("playground.prompt")).press("Enter")
    expect(page.get_by_role("article").get_by_text("keys.md")).to_be_attached()

    page.goto(f"/adapters/{name}")
    press("button", "adapters.replace")
    upload = page.get_by_role("dialog")
    files = sorted((server.service.tenants.of("main").store.folder / name / "1").iterdir())
    upload.get_by_label(word("adapters.chooseFiles")).set_input_files(files)
    upload.get_by_role("button", name=word("adapters.send"), exact=True).press("Enter")
    expect(upload).to_have_count(0)
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    assert server.service.tenants.of("main").store.versions(name) == [1, 2]
    if size is PHONE:
        press("button", "shell.menu")
    press("button", "shell.signOut")
    expect(page.get_by_role("heading", level=1)).to_have_text(word("shell.signIn"))

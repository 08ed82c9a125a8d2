"""The Playground: models side by side, documents with their passages, errors that are asked again, nothing as HTML."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Locator, Page, Route, expect

from conversing_for_tests import CHATS, answer_with, ask, bodies_of
from serving_for_tests import Running

HOSTILE = "<img src=x onerror=alert(1)><b>bold</b>"


@pytest.fixture(scope="module")
def library(base, store, tmp_path_factory):
    """A server whose base cites, from a collection with markup in its document."""
    says = [f"{HOSTILE} Hook 31 😀 [1], I think."]
    with Running(base, store, tmp_path_factory.mktemp("library"), says=says) as running:
        files = [("files", ("<i>keys.md", f"{HOSTILE} The key hangs on hook 31.".encode()))]
        assert running.client.post("/v1/collections", json={"name": "faq"}).status_code == 201
        assert running.client.post("/v1/collections/faq/documents", files=files).status_code == 201
        yield running


def test_base_and_adapter_answer_side_by_side(read, open_server):
    reader = read()
    page = reader.page
    bodies = bodies_of(page)
    page.goto("/playground?model=tiny&model=lora&prompt=Who+are+you%3F")
    page.get_by_text("Sampling").click()
    page.get_by_label("Most tokens").fill("6")
    page.get_by_label("Seed").fill("7")
    page.get_by_role("button", name="Ask", exact=True).click()
    base, adapter = (page.get_by_role("article", name=f"Answer of {name}", exact=True) for name in ("tiny", "lora"))
    for answer in (base, adapter):
        expect(answer.get_by_text("6 tokens", exact=True)).to_be_visible()
        expect(answer.get_by_text("cut off at its most tokens")).to_be_visible()
    expect(base.get_by_text("the bare base")).to_be_visible()
    asked = {name: value for name, value in bodies[1].items() if "stream" not in name}
    plain = open_server.client.post("/v1/chat/completions", json=asked)
    assert plain.json()["model"] == "lora"
    expect(adapter.locator("code")).to_have_attribute("title", plain.json()["system_fingerprint"])
    expect(adapter.locator(".plain-text")).to_have_text(plain.json()["choices"][0]["message"]["content"])

    ask(page, "And where?")
    expect(page.get_by_role("article")).to_have_count(4)
    expect(page.get_by_text("cut off at its most tokens")).to_have_count(4)
    assert [message["role"] for message in bodies[3]["messages"]] == ["user", "assistant", "user"]
    page.get_by_role("button", name="Ask lora again").click()
    expect(page.get_by_text("cut off at its most tokens")).to_have_count(4)
    assert bodies[4] == bodies[3]
    page.wait_for_url("**/playground?model=tiny&model=lora")  # what was asked stands in no history
    page.get_by_role("link", name="Playground").click()
    page.wait_for_url("**/playground?model=tiny&model=lora")
    page.get_by_role("textbox", name="Your message").fill("And then?")
    page.get_by_role("link", name="Documents").click()
    page.go_back()
    expect(page.get_by_role("textbox", name="Your message")).to_have_value("And then?")
    assert page.url.endswith("/playground?model=tiny&model=lora")  # what is written stands there neither
    page.get_by_role("button", name="New conversation").click()
    expect(page.get_by_role("article")).to_have_count(0)


def test_the_system_message_of_an_adapters_training_is_offered(read):
    page = read().page

    def trained(route: Route) -> None:
        adapter = route.fetch()
        route.fulfill(response=adapter, json=adapter.json() | {"training": {"system": "<b>Be brief.</b>"}})

    page.route("**/v1/adapters/lora*", trained)
    bodies = bodies_of(page)
    answer_with(page, "Yes.")
    page.goto("/playground?model=tiny")
    expect(page.get_by_role("button", name="Add a model")).to_be_visible()
    offer = page.get_by_text("lora was trained with the system message “<b>Be brief.</b>”, and none is set.")
    expect(offer).to_have_count(0)
    page.goto("/playground?model=tiny&model=lora@1")
    page.get_by_role("textbox", name="Your message").fill("Why?")
    expect(offer).to_be_visible()
    page.get_by_role("button", name="Use it").click()
    expect(offer).to_have_count(0)
    expect(page.get_by_text("System message set")).to_be_visible()
    ask(page, "Why?")
    expect(page.locator(".answer.done")).to_have_count(2)
    assert [message["role"] for message in bodies[1]["messages"]] == ["system", "user"]
    assert bodies[1]["messages"][0]["content"] == "<b>Be brief.</b>"


def test_an_answer_from_documents_opens_its_passage(read, library):
    page = read(library.url).page
    page.goto("/playground?model=tiny:faq")
    ask(page, "On which hook is the key?")
    answer = page.get_by_role("article")
    expect(answer.locator(".plain-text").first).to_have_text(f"{HOSTILE} Hook 31 😀 1, I think.")
    cite = answer.get_by_role("button", name="Open passage 1")
    cite.press("Enter")
    dialog = page.get_by_role("dialog", name="<i>keys.md")
    expect(dialog.locator("mark")).to_contain_text(f"{HOSTILE} The key hangs on hook 31.")
    assert page.locator("main img, main b, main i, dialog img").count() == 0
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    expect(cite).to_be_focused()
    expect(answer.get_by_text("From 1 passage")).to_be_visible()


def test_errors_are_the_apis_and_broken_streams_say_so(read):
    page = read().page
    page.goto("/playground?model=nobody&model=tiny")
    ask(page, "Hello")
    expect(page.get_by_role("alert")).to_contain_text("the model 'nobody' does not exist, or is not yours")
    page.get_by_role("button", name="Remove nobody").click()
    chunk = {"choices": [{"index": 0, "delta": {"content": "Half"}, "finish_reason": None}], "system_fingerprint": None}
    page.route(
        CHATS, lambda route: route.fulfill(body=f"data: {json.dumps(chunk)}\n\n", content_type="text/event-stream")
    )
    page.get_by_role("button", name="Ask tiny again").click()
    expect(page.get_by_role("alert")).to_contain_text("The connection broke before the end.")
    expect(page.get_by_text("Half")).to_be_visible()
    page.unroute(CHATS)
    page.get_by_text("Sampling").click()
    page.get_by_label("Most tokens").fill("2")
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_text("2 tokens", exact=True)).to_be_visible()
    page.get_by_label("Most tokens").fill("0")
    expect(page.get_by_text("From 1 to")).to_be_visible()


def test_documents_that_cannot_be_listed_say_so(read):
    page = read().page
    page.route("**/v1/collections", lambda route: route.fulfill(status=500, json={"error": {"message": "no index"}}))
    for screen in ("playground?model=tiny", "advise"):
        page.goto(f"/{screen}")
        expect(page.get_by_role("alert")).to_contain_text("no index")
    page.unroute("**/v1/collections")
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("alert")).to_have_count(0)


def test_an_answer_is_stopped(read):
    page = read().page
    page.route(CHATS, lambda route: None)
    page.goto("/playground?model=tiny&model=lora")
    ask(page, "Hello")
    expect(page.get_by_text("Waiting for the first token")).to_have_count(2)
    with page.expect_event("requestfailed"):
        page.get_by_role("button", name="Remove lora").click()
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(page.get_by_role("article").get_by_text("stopped")).to_be_visible()
    page.unroute_all(behavior="ignoreErrors")


@contextmanager
def unfolded(page: Page, text: str) -> Iterator[Locator]:
    """The line of that text, below which all is seen within the block."""
    folded = page.locator("summary", has_text=text)
    folded.click()
    yield folded
    folded.click()


def test_a_folded_setting_that_is_wrong_is_shown(read):
    page = read().page
    bodies = bodies_of(page)
    page.goto("/playground?model=tiny")
    with unfolded(page, "Sampling") as folded:
        page.get_by_label("Temperature").fill("much")
    expect(folded.get_by_text("Temperature much")).to_be_visible()
    ask(page, "Hello")
    expect(page.get_by_label("Temperature")).to_be_focused()
    expect(page.get_by_text("From 0 to 2.")).to_be_visible()
    assert bodies == []


def test_enter_is_a_new_line_where_fingers_write(read):
    page = read(has_touch=True, is_mobile=True, viewport={"width": 390, "height": 844}).page
    page.goto("/playground?model=tiny&prompt=Dear")
    message = page.get_by_role("textbox", name="Your message")
    expect(message).to_have_value("Dear")
    message.press("End")
    message.press("Enter")
    expect(message).to_have_value("Dear\n")
    expect(page.get_by_role("article")).to_have_count(0)
    page.get_by_role("button", name="Ask", exact=True).tap()
    expect(page.get_by_role("article")).to_have_count(1)


def test_a_system_message_comes_first(read):
    page = read().page
    bodies = bodies_of(page)
    page.goto("/playground?model=tiny")
    with unfolded(page, "System message") as folded:
        page.get_by_label("System message", exact=True).fill("You sell lamps.")
        page.get_by_label("Most tokens").fill("2")
    expect(folded.get_by_text("System message set")).to_be_visible()
    for number in range(2):
        ask(page, f"Message {number}")
        expect(page.locator(".answer.done")).to_have_count(number + 1)
    first, second = ([message["role"] for message in body["messages"]] for body in bodies)
    assert (first, second) == (["system", "user"], ["system", "user", "assistant", "user"])
    assert bodies[0]["messages"][0]["content"] == "You sell lamps."
    page.get_by_text("The same in a terminal").click()
    expect(page.get_by_role("tabpanel")).to_contain_text('{"role":"system","content":"You sell lamps."}')


def test_a_request_is_copied_as_commands(read):
    reader = read(permissions=["clipboard-read", "clipboard-write"])
    page = reader.page
    page.goto("/playground?model=lora:faq&prompt=It%27s+me")
    page.get_by_text("The same in a terminal").click()
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_text("Copied")).to_be_visible()
    copied = page.evaluate("navigator.clipboard.readText()")
    body = {"model": "lora", "messages": [{"role": "user", "content": "It's me"}], "halka": {"collection": "faq"}}
    assert json.dumps(body, separators=(",", ":")).replace("'", "'\"'\"'") in copied
    page.get_by_role("tab", name="curl").press("ArrowRight")
    python = page.get_by_role("tabpanel").inner_text()
    assert f'OpenAI(base_url="{reader.url}/v1", api_key="none")' in python
    assert 'extra_body={"halka":{"collection":"faq"}}' in python


def test_a_phone_in_bengali_by_the_keyboard_alone(read):
    """Numbers are read and written in Bengali digits; what was answered is still there after a look elsewhere."""
    page = read(locale="bn-BD", viewport={"width": 390, "height": 844}).page
    page.goto("/playground?model=tiny")
    tab_to(page, page.get_by_role("textbox", name="আপনার বার্তা"))
    page.keyboard.insert_text("তুমি কে?")
    tab_to(page, page.locator("summary", has_text="নমুনায়ন"))
    page.keyboard.press("Enter")
    tab_to(page, page.get_by_label("সর্বোচ্চ টোকেন"))
    page.keyboard.insert_text("৩")
    page.keyboard.press("Enter")
    answer = page.get_by_role("article", name="tiny-এর উত্তর")
    expect(answer.get_by_text("৩টি টোকেন")).to_be_visible()
    page.get_by_role("button", name="মেনু").press("Enter")
    page.get_by_role("link", name="নথি").press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("নথি")
    page.go_back()
    expect(answer.get_by_text("৩টি টোকেন")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def tab_to(page: Page, wanted: Locator) -> None:
    """Press Tab until this has the focus."""
    for _ in range(40):
        page.keyboard.press("Tab")
        if wanted.evaluate("element => element === document.activeElement"):
            return
    raise AssertionError("Tab does not come there")

"""Documents: a collection is made, filled, searched with reasons, and deleted; nothing in it becomes HTML."""

from __future__ import annotations

import re

import httpx
import pytest
from playwright.sync_api import Route, expect

from serving_for_tests import Running

PARCELS = "Parcels are sent on Tuesdays. <b>bold</b><img src=x onerror=alert(1)>"
KEYS = "The key hangs on hook 31, behind the door of the office."


@pytest.fixture(scope="module")
def url(base, store, tmp_path_factory):
    with Running(base, store, tmp_path_factory.mktemp("documents")) as running:
        yield running.url


@pytest.fixture
def shelf(url):
    """A server without collections."""
    yield url
    with httpx.Client(base_url=url, timeout=60) as client:
        for collection in client.get("/v1/collections").json()["data"]:
            client.delete(f"/v1/collections/{collection['id']}").raise_for_status()


def file(name: str, text: str) -> dict:
    return {"name": name, "mimeType": "text/plain", "buffer": text.encode()}


def test_a_collection_is_made_filled_searched_and_deleted(read, shelf):
    page = read(shelf).page
    page.goto("/documents")
    expect(page.get_by_text("There are no collections yet")).to_be_visible()
    page.get_by_label("Name").fill("faq")
    page.get_by_label("Name").press("Enter")
    page.wait_for_url("**/documents/faq")
    page.get_by_label("Choose files").set_input_files(
        [file("<i>parcels.md", PARCELS), file("keys.md", KEYS), file("photo.jpg", "no")]
    )
    page.get_by_label("Tags").fill("post, eu")
    page.get_by_role("button", name="Add them").click()
    expect(page.get_by_text("<i>parcels.md: added, 1 passage")).to_be_visible()
    expect(page.get_by_text("photo.jpg: files of this kind are not read")).to_be_visible()
    rows = page.get_by_role("region", name="Documents").locator("tbody tr")
    expect(rows).to_have_count(2)
    expect(rows.filter(has_text="parcels")).to_contain_text("everyone of the tenant")
    expect(rows.filter(has_text="parcels")).to_contain_text("#post")

    page.get_by_label("Question").fill("When are parcels sent?")
    page.get_by_label("Question").press("Enter")
    best = page.locator(".hits li").first
    expect(best).to_contain_text("<b>bold</b><img src=x onerror=alert(1)>")
    expect(best.locator("mark").first).to_have_text("Parcels")
    expect(best).to_contain_text("meaning")
    expect(best).to_contain_text("BM25")
    page.get_by_role("radio", name="meaning").check()
    expect(page.get_by_text("how near its meaning is to the question's")).to_be_visible()
    expect(best).not_to_contain_text("BM25")
    page.get_by_label("In", exact=True).select_option("keys.md")
    expect(page.locator(".hits li")).to_have_count(1)
    expect(best).to_contain_text("hook 31")
    assert page.locator("main img, main b, main i").count() == 0

    page.goto("/documents/faq?question=hook&mode=words")
    expect(best).to_contain_text("hook 31")
    page.get_by_label("Question").fill("When are parcels sent?")
    page.get_by_label("Question").press("Enter")
    page.wait_for_url("**/documents/faq?mode=words")
    expect(best.locator("mark").first).to_have_text("Parcels")

    page.get_by_label("In", exact=True).select_option("keys.md")
    expect(page.locator(".hits li")).to_have_count(0)
    page.get_by_role("button", name="Delete keys.md").click()
    page.get_by_role("dialog", name="Delete keys.md?").get_by_role("button", name="Delete keys.md").click()
    expect(rows).to_have_count(1)
    expect(page.get_by_label("In", exact=True)).to_have_value("")
    expect(best.locator("mark").first).to_have_text("Parcels")
    expect(page.get_by_role("heading", name="Documents")).to_be_focused()
    page.get_by_role("link", name="Ask it in the Playground").click()
    page.wait_for_url("**/playground?model=tiny%3Afaq*")
    page.goto("/documents/faq")
    page.get_by_role("button", name="Delete", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name="Delete faq").press("Enter")
    page.wait_for_url("**/documents")
    expect(page.get_by_text("There are no collections yet")).to_be_visible()


def test_files_are_taken_in_while_other_screens_are_shown(read, shelf):
    page = read(shelf).page
    page.goto("/documents")
    page.get_by_label("Name").fill("a b")
    page.get_by_label("Name").press("Enter")
    expect(page.get_by_text("a letter or digit first and no dot last")).to_be_visible()
    page.get_by_label("Name").fill("slow")
    page.get_by_label("Name").press("Enter")
    page.wait_for_url("**/documents/slow")
    held = []

    def hold_the_first(route):
        if route.request.method == "POST" and not held:
            held.append(route)
        else:
            route.continue_()

    page.route("**/v1/collections/slow/documents", hold_the_first)
    page.get_by_label("Choose files").set_input_files([file("parcels.md", PARCELS), file("keys.md", KEYS)])
    with page.expect_request(lambda request: request.method == "POST"):
        page.get_by_role("button", name="Add them").click()
    expect(page.get_by_text("parcels.md (1 of 2)")).to_be_visible()
    page.get_by_role("link", name="All collections").click()
    page.get_by_role("link", name="slow").click()
    expect(page.get_by_text("parcels.md (1 of 2)")).to_be_visible()
    held[0].continue_()
    expect(page.get_by_text("parcels.md: added, 1 passage")).to_be_visible()
    expect(page.get_by_text("keys.md: added, 1 passage")).to_be_visible()
    expect(page.get_by_role("region", name="Documents").locator("tbody tr")).to_have_count(2)


def test_a_collection_that_is_made_late_takes_nobody_from_another_screen(read, shelf):
    page = read(shelf).page
    held = list[Route]()
    page.route(
        "**/v1/collections", lambda route: held.append(route) if route.request.method == "POST" else route.continue_()
    )
    page.goto("/documents")
    page.get_by_label("Name").fill("faq")
    with page.expect_request(lambda request: request.method == "POST"):
        page.get_by_label("Name").press("Enter")
    page.get_by_role("link", name="Account").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Account")
    with page.expect_response(lambda response: response.request.method == "POST"):
        held[0].fulfill(status=201, json={})
    page.evaluate("fetch('/v1/session').then((answer) => answer.json())")
    assert page.url == f"{shelf}/account"


def test_words_are_marked_however_they_are_typed(read, shelf):
    """Passages are composed (NFC); keyboards type Bengali's য় in one character, and joiners within words."""
    page = read(shelf).page
    document = {"id": "a.md", "passages": 1, "readers": ["constructor"], "tags": [], "added": "2026-01-01T00:00:00Z"}
    hit = {"document": "a.md", "page": None, "start": 0, "end": 9, "heading": "", "score": 1, "cosine": 1, "bm25": 1}
    text = "\u09b8\u09ae\u09af\u09bc, \u09b0\u200d\u09cd\u09af\u09be\u09ae"
    question = "\u09b8\u09ae\u09df \u09b0\u09cd\u09af\u09be\u09ae"
    listed = {"documents": [document], "search": [hit | {"text": text}]}
    page.route(
        "**/v1/collections/faq/*",
        lambda route: route.fulfill(json={"object": "list", "data": listed[route.request.url.rpartition("/")[2]]}),
    )
    page.goto("/documents/faq")
    expect(page.locator("span.badge", has_text="constructor")).to_be_visible()
    page.get_by_label("Question").fill(question)
    page.get_by_label("Question").press("Enter")
    expect(page.locator(".hits mark")).to_have_text(text.split(", "))


def test_of_a_collection_that_does_not_exist_nothing_is_offered(read, shelf):
    page = read(shelf).page
    page.goto("/documents/nope")
    expect(page.get_by_role("alert")).to_contain_text("there is no collection 'nope'")
    expect(page.get_by_role("button", name=re.compile("Delete|Try again"))).to_have_count(0)
    expect(page.get_by_role("link", name="Ask it in the Playground")).to_have_count(0)

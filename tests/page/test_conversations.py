"""Conversations in the Playground: what models read of them, and what stays of them."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from conversing_for_tests import answer_with, ask, assistant, bodies_of, end_session_at_chat, user
from serving_for_tests import Running


@pytest.fixture(scope="module")
def closed(base, store, tmp_path_factory):
    """A server with keys."""
    with Running(base, store, tmp_path_factory.mktemp("closed")) as running:
        running.service.guards.keys.add("main", "admin")
        yield running


def sign_in(page: Page, key: str) -> None:
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Sign in").click()


def test_a_model_that_comes_later_reads_the_answers_of_another(read):
    page = read().page
    bodies = bodies_of(page)
    page.goto("/playground?model=tiny")
    for number, text in enumerate(("One.", "Two.")):
        page.unroute_all()
        answer_with(page, text)
        ask(page, f"Message {number}")
        expect(page.locator(".answer.done")).to_have_count(number + 1)
    page.get_by_role("button", name="Add a model").click()
    page.get_by_label("Model", exact=True).last.select_option("lora")
    page.get_by_role("button", name="Ask lora, too").click()
    late = page.get_by_role("article", name="Answer of lora")
    expect(late.get_by_text("It had no answer of its own to earlier messages, and read those of tiny.")).to_be_visible()
    expect(page.locator(".answer.done")).to_have_count(3)
    assert bodies[2]["messages"] == [user("Message 0"), assistant("One."), user("Message 1")]
    page.unroute_all()
    answer_with(page, "Three.")
    ask(page, "Message 2")
    expect(page.locator(".answer.done")).to_have_count(5)
    assert {body["model"]: body["messages"][3] for body in bodies[3:]} == {
        "tiny": assistant("Two."),
        "lora": assistant("Two."),
    }
    assert page.get_by_text("and read those of").count() == 2  # at the first turn it has none still


def test_a_reload_leaves_the_conversation_and_what_is_written(read):
    page = read().page
    answer_with(page, "One.")
    page.goto("/playground?model=tiny&model=lora")
    ask(page, "Message 0")
    expect(page.locator(".answer.done")).to_have_count(2)
    page.locator("summary", has_text="System message").click()
    page.get_by_label("System message", exact=True).fill("You sell lamps.")
    page.get_by_role("textbox", name="Your message").fill("Not yet")
    page.reload()
    expect(page.get_by_role("article")).to_have_count(2)
    expect(page.get_by_role("article", name="Answer of lora")).to_contain_text("One.")
    expect(page.get_by_role("textbox", name="Your message")).to_have_value("Not yet")
    expect(page.get_by_text("System message set")).to_be_visible()
    bodies = bodies_of(page)
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.locator(".answer.done")).to_have_count(4)
    assert [message["content"] for message in bodies[0]["messages"]] == [
        "You sell lamps.",
        "Message 0",
        "One.",
        "Not yet",
    ]
    page.get_by_role("button", name="New conversation").click()
    expect(page.get_by_role("article")).to_have_count(0)
    assert "Message 0" not in page.evaluate("Object.values({ ...sessionStorage }).join()")
    page.get_by_role("button", name="Back to the conversation before").click()
    expect(page.get_by_role("article")).to_have_count(4)
    page.get_by_role("button", name="New conversation").click()
    page.reload()
    expect(page.get_by_text("Ask something")).to_be_visible()


def test_answers_of_a_closed_column_come_back_under_no_other(read):
    page = read().page
    answer_with(page, "One.")
    page.goto("/playground?model=tiny&model=lora")
    ask(page, "Message 0")
    expect(page.locator(".answer.done")).to_have_count(2)
    page.evaluate(
        """() => {
            const articles = () => document.querySelectorAll("article").length;
            const before = articles();
            window.addressOnceRemoved = new Promise((resolve) => {
                const seen = () => articles() < before && resolve(location.search);
                new MutationObserver(seen).observe(document.body, { subtree: true, childList: true });
            });
        }"""
    )
    page.get_by_role("button", name="Remove lora").click()
    expect(page.get_by_role("article")).to_have_count(1)
    assert page.evaluate("window.addressOnceRemoved") == "?model=tiny"
    page.reload()
    expect(page.get_by_role("article")).to_have_count(1)
    page.get_by_role("button", name="Add a model").click()
    expect(page.get_by_role("button", name=re.compile("^Ask .*, too$"))).to_be_visible()
    expect(page.get_by_role("article")).to_have_count(1)


def test_a_conversation_that_is_too_long_goes_on_without_its_beginning(read):
    page = read().page
    bodies = bodies_of(page)
    page.goto("/playground?model=tiny")
    page.locator("summary", has_text="System message").click()
    page.get_by_label("Most tokens").fill("2")
    texts = [f"{letter} b c d " * 25 for letter in "xyz"]
    for text in texts:
        ask(page, text)
        expect(page.get_by_role("button", name="Stop")).to_have_count(0)
    expect(page.get_by_role("alert")).to_contain_text("positions for text that this base has")
    expect(page.get_by_role("button", name="Try again")).to_have_count(0)
    expect(page.get_by_role("textbox", name="Your message")).to_have_value(texts[2].strip())
    page.get_by_role("button", name="Go on without the first turns").click()
    expect(page.locator(".answer.done")).to_have_count(3)
    expect(page.get_by_role("textbox", name="Your message")).to_have_value("")
    expect(page.get_by_text("Models no longer read what stands above.")).to_be_visible()
    assert [body["messages"][0]["content"] for body in bodies] == [text.strip() for text in (*texts[:1] * 3, texts[1])]
    ask(page, "a b c d " * 300)
    expect(page.get_by_role("alert")).to_be_visible()
    page.get_by_role("textbox", name="Your message").fill("Shorter")
    page.get_by_role("button", name="Go on without the first turns").click()
    page.get_by_role("button", name="Go on without the first turns").click()
    expect(page.get_by_role("alert")).to_be_visible()
    expect(page.get_by_role("button", name="Go on without the first turns")).to_have_count(
        0
    )  # it is the message itself
    expect(page.get_by_role("textbox", name="Your message")).to_have_value("Shorter")


def test_a_session_that_ends_is_no_stop_of_the_reader(read, closed):
    keys = closed.service.guards.keys
    (key, _), (other, _) = keys.add("main", "user"), keys.add("main", "user")
    reader = read(closed.url)
    page = reader.page
    page.goto("/playground?model=tiny&model=lora")
    sign_in(page, key)
    page.get_by_role("button", name="Ask", exact=True).wait_for()
    end_session_at_chat(page, reader.context.clear_cookies, held="lora")
    ask(page, "Who?")
    sign_in(page, key)
    expect(page.get_by_text("Your session ended before the answer was whole.")).to_have_count(2)
    page.unroute_all(behavior="ignoreErrors")
    page.get_by_role("button", name="Try again").first.click()
    expect(page.locator(".answer.done")).to_have_count(1)
    page.get_by_role("textbox", name="Your message").fill("A secret")
    reader.context.clear_cookies()
    page.reload()
    with page.expect_navigation():
        sign_in(page, other)  # who gets nothing of what this tab had
    expect(page.get_by_text("Ask something")).to_be_visible()
    expect(page.get_by_role("textbox", name="Your message")).to_have_value("")
    assert page.evaluate("Object.values({ ...sessionStorage }).join()").count("secret") == 0
    page.get_by_role("textbox", name="Your message").fill("A secret")
    elsewhere = read(closed.url)
    elsewhere.page.goto("/playground")
    sign_in(elsewhere.page, key)
    elsewhere.page.get_by_role("button", name="Ask", exact=True).wait_for()
    reader.context.add_cookies(elsewhere.context.cookies())  # as of a tab that slept while another signed in
    page.reload()
    page.get_by_role("button", name="Ask", exact=True).wait_for()
    expect(page.get_by_role("textbox", name="Your message")).to_have_value("")

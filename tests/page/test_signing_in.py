"""Signing in and out with a key, and what that of another tenant does not show: on the page and in what it was sent."""

from __future__ import annotations

from contextlib import suppress

import pytest
from playwright.sync_api import Error, Page, Response, Route, expect

from conversing_for_tests import ask, end_session_at_chat
from halka.server.page import SCREENS
from serving_for_tests import Running


@pytest.fixture(scope="module")
def closed(base, store, tmp_path_factory):
    """A server with keys; tenant main has adapters."""
    with Running(base, store, tmp_path_factory.mktemp("closed")) as running:
        yield running


def sign_in(page: Page, key: str) -> None:
    page.get_by_label("API key").fill(key)
    page.get_by_label("API key").press("Enter")


def sign_out(page: Page, url: str) -> None:
    """Until the page has begun anew: before, it asks for a key, too."""
    with page.expect_navigation(url=f"{url}/"):
        page.get_by_role("button", name="Sign out").click()


def test_a_tab_acts_for_nobody_who_signed_in_in_another(read, closed):
    keys = closed.service.guards.keys
    (key, _), (other, _) = keys.add("main", "manager"), keys.add("acme", "manager")
    reader = read(closed.url)
    page, second = reader.page, reader.context.new_page()
    page.goto("/adapters")
    sign_in(page, key)
    expect(page.get_by_text("Signed in as manager of main")).to_be_visible()
    second.goto(f"{closed.url}/adapters")
    sign_out(second, closed.url)
    expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")
    sign_in(second, other)
    expect(page.get_by_text("Signed in as manager of acme")).to_be_visible()


def test_a_key_signs_in_and_out(read, closed):
    keys = closed.service.guards.keys
    (key, _), (other, _) = keys.add("main", "manager"), keys.add("acme", "user")
    reader = read(closed.url)
    page, texts = reader.page, list[str]()

    def read_text(response: Response) -> None:
        if "/v1/" in response.url and response.ok:
            with suppress(Error):  # of a page that was left nothing is there any more
                texts.append(response.text())

    page.goto("/adapters")
    expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")
    sign_in(page, "")
    expect(page.get_by_text("Enter a key.")).to_be_visible()
    sign_in(page, "halka_wrong")
    expect(page.get_by_role("alert")).to_contain_text("the API key is wrong, revoked or has expired")
    sign_in(page, key)
    expect(page.get_by_role("heading", level=1)).to_have_text("Adapters")
    expect(page.get_by_text("Signed in as manager of main")).to_be_visible()
    assert page.evaluate("[document.cookie, ...Object.values({ ...localStorage, ...sessionStorage })]") in (
        [""],
        ["", "system"],
    )
    (cookie,) = reader.context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
    page.goto("/playground")
    expect(page.locator("option", has_text="lora").first).to_be_attached()
    sign_out(page, closed.url)
    expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")
    assert reader.context.cookies() == []
    page.go_back()
    expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")
    assert page.locator("option", has_text="lora").count() == 0

    page.on("response", read_text)
    sign_in(page, other)
    expect(page.get_by_text("Signed in as user of acme")).to_be_visible()
    expect(page.get_by_text("There is no adapter yet")).to_be_visible()
    for path in (*SCREENS, "adapters/lora"):
        page.goto(f"/{path}", wait_until="networkidle")
        expect(page.get_by_text("Signed in as user of acme")).to_be_visible()
        expect(page.locator(".waiting")).to_have_count(0)
        assert page.locator("main").get_by_text("bottleneck").count() == 0, path
    expect(page.get_by_role("alert")).to_be_visible()
    assert len(texts) > len(SCREENS)
    assert not [text for text in texts if "lora" in text or "main" in text]
    assert page.get_by_role("link", name="Train").count() == 0
    page.goto("/train")
    expect(page.get_by_text("This needs a key of the role manager; yours is user.")).to_be_visible()


def test_a_browser_that_keeps_no_cookie_is_why_nobody_is_signed_in(read, closed):
    key, _ = closed.service.guards.keys.add("main", "user")
    page = read(closed.url).page
    signed_in = {"status": 201, "json": {}}  # the server's answer without its cookie
    page.route(
        "**/v1/session",
        lambda route: route.fulfill(**signed_in) if route.request.method == "POST" else route.continue_(),
    )
    page.goto("/playground")
    sign_in(page, key)
    expect(page.get_by_role("alert")).to_contain_text("your browser did not keep this server's cookie")
    expect(page.get_by_label("API key")).to_have_value(key)


def test_a_late_refusal_of_an_earlier_session_does_not_end_the_new_one(read, closed):
    key, _ = closed.service.guards.keys.add("main", "user")
    reader, held = read(closed.url), list[Route]()
    page = reader.page
    page.route("**/v1/usage", lambda route: held.append(route))
    page.goto("/playground")
    sign_in(page, key)
    with page.expect_request("**/v1/usage"):
        page.get_by_role("link", name="Account").click()
    reader.context.clear_cookies()
    page.get_by_role("link", name="Adapters").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")
    sign_in(page, key)
    expect(page.get_by_role("heading", level=1)).to_have_text("Adapters")
    with page.expect_response("**/v1/usage"):
        held[0].fulfill(status=401, json={"error": {"message": "no key", "code": "invalid_api_key"}})
    page.evaluate("fetch('/v1/session').then((answer) => answer.json())")
    expect(page.get_by_text("Signed in as user of main")).to_be_visible()


def test_a_key_that_is_revoked_ends_at_the_next_call(read, closed):
    keys = closed.service.guards.keys
    key, entry = keys.add("main", "user")
    reader = read(closed.url)
    page = reader.page
    page.goto("/playground?model=tiny&prompt=Hello")
    sign_in(page, key)
    page.get_by_role("button", name="Ask", exact=True).wait_for()
    end_session_at_chat(page, reader.context.clear_cookies)
    ask(page, "Who?")
    sign_in(page, key)
    expect(page.get_by_role("article")).to_have_count(1)  # the same key goes on where its session ended
    page.unroute_all()
    end_session_at_chat(page, lambda: keys.revoke(entry.id))
    page.get_by_label("Your message").fill("Hello")
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")
    assert "/playground?model=tiny" in page.url

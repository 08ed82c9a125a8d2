"""axe finds nothing to object to on any screen, in both themes and widths; what a reader does opens more of it."""

from __future__ import annotations

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from conversing_for_tests import answer_with, ask
from halka.server.page import SCREENS

RULES = {
    "runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"],
    "resultTypes": ["violations"],
}


def objections(page: Page) -> list[str]:
    violations = Axe().run(page, options=RULES).response["violations"]
    return [f"{one['id']}: {node['html']}" for one in violations for node in one["nodes"]]


@pytest.mark.parametrize(("locale", "scheme"), [("en-GB", "light"), ("bn-BD", "dark")])
def test_every_screen(read, locale, scheme):
    page = read(locale=locale, color_scheme=scheme).page
    for screen in SCREENS:
        page.goto(f"/{screen}")
        page.get_by_role("heading", level=1).wait_for()
        expect(page.locator(".waiting")).to_have_count(0)
        for width in (1280, 390):
            page.set_viewport_size({"width": width, "height": 800})
            assert objections(page) == [], (screen, width)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, (screen, width)
    page.locator(".unfold").click()
    assert objections(page) == []


def test_an_open_playground(read):
    page = read(color_scheme="dark").page
    page.goto("/playground?model=tiny&model=nobody&prompt=Hello")
    for summary in ("Sampling", "The same in a terminal"):
        page.get_by_text(summary).click()
    page.get_by_label("Most tokens").fill("3")
    page.get_by_label("Seed").fill("much")
    assert objections(page) == []
    page.get_by_label("Seed").fill("")
    page.get_by_role("button", name="Ask", exact=True).click()
    page.get_by_text("3 tokens", exact=True).wait_for()
    page.get_by_role("alert").wait_for()
    assert objections(page) == []


def test_an_answer_with_tables_and_code(read):
    page = read(viewport={"width": 390, "height": 800}).page
    lines = (
        "<think>",
        "So.",
        "</think>",
        "# Prices",
        "1. *One*",
        "   - `two`",
        "```",
        "three " * 40,
        "```",
        "| | P |",
        "| - | - |",
        "| a | 1 |",
    )
    answer_with(page, "\n".join(lines))
    page.goto("/playground?model=tiny")
    ask(page, "Hello")
    page.locator(".thought summary").click()
    assert objections(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_what_opens_over_a_screen(read):
    page = read(viewport={"width": 390, "height": 800}).page
    for path, button in (("account", "New key"), ("adapters/lora", "Tags"), ("adapters/lora", "Delete")):
        page.goto(f"/{path}")
        page.get_by_role("button", name=button, exact=True).click()
        page.get_by_role("dialog").wait_for()
        for folded in page.get_by_role("dialog").locator("summary").all():
            folded.click()
        page.get_by_role("dialog").get_by_role("button").last.wait_for()
        assert objections(page) == [], (path, button)

"""Pictures of every screen of a server's page, to look at: both languages, light and dark, wide and narrow.

    PYTHONPATH=src:tests python benchmarks/pictures.py --url http://127.0.0.1:8000 --out pictures
    PYTHONPATH=src:tests python benchmarks/pictures.py --url … --out … --ask "Who are you?" "/playground?model=support"

    PYTHONPATH=src:tests python benchmarks/pictures.py --url … --out docs/pictures --readme

They show what the server has; HALKA_API_KEY signs in, where it asks for a key. With `--ask` the Playground is shown
with its answers. `--readme` takes README's three, small, of a server with the demo's adapter and comparison and the
collection `handbook` of examples/handbook. Nothing is measured.
"""

from __future__ import annotations

import argparse
import os
from itertools import product
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from browser_for_tests import OPTIONS, browser_path
from halka.server.page import SCREENS

LETTER = "My lamp flickers since Monday, order 4711."
README = {
    "playground": ("/playground?model=smollm2-135m&model=support", "en", "light"),
    "compare": ("/compare/demo", "en", "light"),
    "documents": ("/documents/handbook?question=On+which+hook+is+the+key+of+a+meeting+room+hung%3F", "bn", "dark"),
}
"""Address, language and theme of README's pictures, by their names."""
LANGUAGES, THEMES, WIDTHS = {"en": "en-GB", "bn": "bn-BD"}, ("light", "dark"), {"wide": 1280, "narrow": 390}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="where the server is")
    parser.add_argument("--out", type=Path, required=True, help="the folder of the pictures")
    parser.add_argument("--ask", help="a question for the Playground")
    parser.add_argument("--readme", action="store_true", help="README's pictures alone")
    parser.add_argument("paths", nargs="*", default=[f"/{name}" for name in SCREENS], help="which, if not every screen")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path(playwright), args=[*OPTIONS])
        for name, (path, language, theme) in README.items() if options.readme else ():
            size = {"width": 1180, "height": 700}
            context = browser.new_context(
                base_url=options.url, locale=LANGUAGES[language], color_scheme=theme, viewport=size
            )
            page = context.new_page()
            page.goto(path)
            page.get_by_role("heading", level=1).wait_for()
            if name == "playground":
                ask(page, LETTER)
            page.wait_for_load_state("networkidle")
            page.evaluate("scrollTo(0, 0)")
            file = options.out / f"{name}.png"
            page.screenshot(path=file)
            Image.open(file).convert("RGB").quantize(64).save(file, optimize=True)
            context.close()
        for language, theme, width in () if options.readme else product(LANGUAGES, THEMES, WIDTHS):
            context = browser.new_context(
                base_url=options.url,
                locale=LANGUAGES[language],
                color_scheme=theme,
                viewport={"width": WIDTHS[width], "height": 844},
                reduced_motion="reduce",
            )
            if key := os.environ.get("HALKA_API_KEY"):
                sign_in(context.new_page(), key)
            page = context.new_page()
            for path in options.paths:
                page.goto(path)
                page.get_by_role("heading", level=1).wait_for()
                page.wait_for_load_state("networkidle")
                if options.ask and path.startswith("/playground"):
                    ask(page, options.ask)
                name = path.partition("?")[0].strip("/").replace("/", "-") or "index"
                page.screenshot(path=options.out / f"{name}-{language}-{theme}-{width}.png")
            context.close()
        browser.close()


def sign_in(page: Page, key: str) -> None:
    page.goto("/")
    page.locator("input[type=password]").fill(key)
    page.keyboard.press("Enter")
    page.get_by_role("navigation").wait_for(state="attached")
    page.close()


def ask(page: Page, question: str) -> None:
    """Ask it and wait for every answer."""
    page.locator("#prompt").fill(question)
    page.keyboard.press("Enter")
    page.locator(".answer").first.wait_for()
    for _ in range(page.locator(".answer").count()):
        page.locator(".answer.waiting, .answer.writing").first.wait_for(state="detached", timeout=120_000)


if __name__ == "__main__":
    main()

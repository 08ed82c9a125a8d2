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
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from browser_for_tests import OPTIONS, browser_path
from halka.data.demo_task import SYSTEM
from halka.server.page import SCREENS

LETTER = "Hello, my Tern floor lamp flickers since Monday. It is order JL-48213. Thanks, Priya"
README = {
    "playground": ("/playground?model=smollm2-135m&model=support", "en", "light", 800),
    "compare": ("/compare/demo", "en", "light", 1040),
    "documents": (
        "/documents/handbook?question=On+which+hook+is+the+key+of+a+meeting+room+hung%3F",
        "bn",
        "dark",
        1040,
    ),
}
"""Address, language, theme and height of README's pictures, by their names."""
LANGUAGES, THEMES, WIDTHS = {"en": "en-GB", "bn": "bn-BD"}, ("light", "dark"), {"wide": 1280, "narrow": 390}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="where the server is")
    parser.add_argument("--out", type=Path, required=True, help="the folder of the pictures")
    parser.add_argument("--ask", help="a question for the Playground")
    parser.add_argument("--whole", action="store_true", help="each screen to its end, not what a window shows")
    parser.add_argument("--readme", action="store_true", help="README's pictures alone")
    parser.add_argument("paths", nargs="*", default=[f"/{name}" for name in SCREENS], help="which, if not every screen")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path(playwright), args=[*OPTIONS])
        if options.readme:
            for name, (path, language, theme, height) in README.items():
                with opened(browser, options.url, language, theme, 1280, height) as page:
                    show(page, path, LETTER if name == "playground" else None, system=SYSTEM)
                    file = options.out / f"{name}.png"
                    page.screenshot(path=file)
                    Image.open(file).convert("RGB").quantize(128, Image.Quantize.MAXCOVERAGE).save(file, optimize=True)
        else:
            for language, theme, width in product(LANGUAGES, THEMES, WIDTHS):
                with opened(browser, options.url, language, theme, WIDTHS[width], 844) as page:
                    for path in options.paths:
                        show(page, path, options.ask if path.startswith("/playground") else None)
                        name = path.partition("?")[0].strip("/").replace("/", "-") or "index"
                        file = options.out / f"{name}-{language}-{theme}-{width}.png"
                        page.screenshot(path=file, full_page=options.whole)
        browser.close()


@contextmanager
def opened(browser: Browser, url: str, language: str, theme: str, width: int, height: int) -> Iterator[Page]:
    """A window of somebody who is signed in, where a key is there."""
    context = browser.new_context(
        base_url=url,
        locale=LANGUAGES[language],
        color_scheme=theme,  # type: ignore[arg-type]
        viewport={"width": width, "height": height},
        reduced_motion="reduce",
    )
    if key := os.environ.get("HALKA_API_KEY"):
        sign_in(context.new_page(), key)
    yield context.new_page()
    context.close()


def show(page: Page, path: str, question: str | None, system: str = "") -> None:
    """Go to a screen, wait until it is there, and ask it a question, after a system message."""
    page.goto(path)
    page.get_by_role("heading", level=1).wait_for()
    if question:
        if system:
            settings = page.locator(".settings summary")
            settings.click()
            page.locator(".settings textarea").fill(system)
            settings.click()
        ask(page, question)
    page.wait_for_load_state("networkidle")
    page.evaluate("scrollTo(0, 0)")


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

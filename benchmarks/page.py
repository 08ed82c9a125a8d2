"""How soon the page of `halka serve` can be used, and what it loads for that; how long somebody new needs to an answer.

    PYTHONPATH=src:tests python benchmarks/page.py       # some minutes, and needs a Chromium (docs/page.md)

`halka serve` with SmolLM2-135M-Instruct, in a fresh browser profile each time: requests, their bytes as they come
over the wire, and the seconds from the address to a Playground that takes a question. On this machine as it is; as on a
slow phone (1.6 Mbit/s, 150 ms there and back, the processor slowed four times by Chromium); and again in the same
profile, as on that phone. Medians of five (`--only loads`).

Somebody new, once each (`--only walks`): `own`, from a file of 200 letters and their answers, through a training as it
is offered, to an answer of the adapter beside the base's; `served`, from the command that serves this adapter to an
answer beside the base's, as after `scripts/demo`. The result goes to benchmarks/results/page.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright
from serving import free_port, server
from side_by_side import setup

from browser_for_tests import OPTIONS, browser_path
from halka import load_task
from halka.util.files import write_text

RESULT = Path(__file__).parent / "results" / "page.json"
PARTS = ("loads", "walks")
TIMES = 5
PHONE = {"offline": False, "latency": 150, "downloadThroughput": 200_000, "uploadThroughput": 90_000}  # bytes a second
SLOWER = 4
LETTERS, PATIENCE = 200, 900_000  # examples of the file, and milliseconds that anything may take


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, help="one part; the file keeps the other")
    only = parser.parse_args().only
    found = json.loads(RESULT.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as data, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path(playwright), args=[*OPTIONS])
        if only != "walks":
            found |= {"setup": setup("halka", "playwright"), **loads(browser, data)}
        if only != "loads":
            found["walks"] = {"setup": setup("halka", "playwright"), **walks(browser, data)}
        browser.close()
    write_text(RESULT, json.dumps(found, indent=1) + "\n")


def loads(browser: Browser, data: str) -> dict[str, dict[str, float]]:
    """The medians of first loads, and of loads once more."""
    each = dict[str, list[dict[str, float]]]()
    with serving(data) as url:
        for phone in (False, True) * TIMES:
            context = browser.new_context(base_url=url)
            each.setdefault("phone" if phone else "machine", []).append(load(context, phone))
            if phone:
                each.setdefault("again", []).append(load(context, phone))
            context.close()
    return {name: medians(times) for name, times in each.items()}


def walks(browser: Browser, data: str) -> dict[str, float]:
    """The seconds of somebody new."""
    with serving(data) as url:
        own = seconds_to(own_file, browser, url)
    begin = time.perf_counter()
    with serving(data) as url:
        seconds_to(ask, browser, url)
        served = time.perf_counter() - begin
    return {"own": own, "served": served}


@contextmanager
def serving(data: str) -> Iterator[str]:
    """The address of a server with this data."""
    port = str(free_port())
    words = ("-m", "halka", "serve", "--base", "smollm2-135m", "--port", port, "--data", data)
    with server([sys.executable, *words], int(port), "/readyz"):
        yield f"http://127.0.0.1:{port}"


def seconds_to(act: Callable[[Page], None], browser: Browser, url: str) -> float:
    """How long somebody needs for this who opens the page."""
    with browser.new_context(base_url=url) as context:
        context.set_default_timeout(PATIENCE)
        page, begin = context.new_page(), time.perf_counter()
        page.goto("/")
        act(page)
        return time.perf_counter() - begin


def own_file(page: Page) -> None:
    """Train on a file as the page offers it, and try the adapter beside the base."""
    rows = [
        {"prompt": one.prompt[-1].content, "completion": one.answers[0]} for one in load_task("support").train[:LETTERS]
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    page.get_by_role("link", name="Train").click()
    file = {"name": "letters.jsonl", "mimeType": "application/jsonl", "buffer": lines.encode()}
    page.locator("input[type=file]").set_input_files(file)
    page.get_by_role("button", name="Start training").click()
    page.get_by_role("link", name="Try it beside the base").click()
    ask(page)


def ask(page: Page) -> None:
    """Ask the models that are shown, and wait for all their answers."""
    page.locator("#prompt").fill("My lamp flickers since Monday, order 4711.")
    page.keyboard.press("Enter")
    page.locator(".answer.done").nth(1).wait_for()


def load(context: BrowserContext, phone: bool) -> dict[str, float]:
    """One load of the page, up to where a question can be asked."""
    page, requests = context.new_page(), list[Any]()
    page.on("requestfinished", lambda request: requests.append(request))
    if phone:
        tools = context.new_cdp_session(page)
        tools.send("Network.emulateNetworkConditions", PHONE)
        tools.send("Emulation.setCPUThrottlingRate", {"rate": SLOWER})
    page.goto("/")
    page.locator(".composer button[type=submit]").wait_for()
    seconds = page.evaluate("performance.now()") / 1000
    page.wait_for_load_state("networkidle")
    sizes = [request.sizes() for request in requests]
    bytes = sum(size["responseBodySize"] + size["responseHeadersSize"] for size in sizes)
    page.close()
    return {"requests": len(requests), "bytes": bytes, "seconds": seconds}


def medians(loads: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(load[name] for load in loads) for name in loads[0]}


if __name__ == "__main__":
    main()

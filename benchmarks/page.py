"""How soon the page of `halka serve` can be used, and what it loads for that.

    PYTHONPATH=src:tests python benchmarks/page.py       # a minute, and needs a Chromium (docs/page.md)

`halka serve` with SmolLM2-135M-Instruct, in a fresh browser profile each time: requests, their bytes as they come
over the wire, and the seconds from the address to a Playground that takes a question. On this machine as it is; as on a
slow phone (1.6 Mbit/s, 150 ms there and back, the processor slowed four times by Chromium); and again in the same
profile, as on that phone. Medians of five. The result goes to benchmarks/results/page.json.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import BrowserContext, sync_playwright
from serving import free_port, server
from side_by_side import setup

from browser_for_tests import OPTIONS, browser_path
from halka.util.files import write_text

RESULT = Path(__file__).parent / "results" / "page.json"
TIMES = 5
PHONE = {"offline": False, "latency": 150, "downloadThroughput": 200_000, "uploadThroughput": 90_000}  # bytes a second
SLOWER = 4


def main() -> None:
    port, loads = free_port(), dict[str, list[dict[str, float]]]()
    with tempfile.TemporaryDirectory() as data, sync_playwright() as playwright:
        command = [
            sys.executable,
            "-m",
            "halka",
            "serve",
            "--base",
            "smollm2-135m",
            "--port",
            str(port),
            "--data",
            data,
        ]
        with server(command, port, "/readyz"):
            browser = playwright.chromium.launch(executable_path=browser_path(playwright), args=[*OPTIONS])
            for phone in (False, True) * TIMES:
                context = browser.new_context(base_url=f"http://127.0.0.1:{port}")
                loads.setdefault("phone" if phone else "machine", []).append(load(context, phone))
                if phone:
                    loads.setdefault("again", []).append(load(context, phone))
                context.close()
            browser.close()
    result = {"setup": setup("halka", "playwright")} | {name: medians(each) for name, each in loads.items()}
    write_text(RESULT, json.dumps(result, indent=1) + "\n")


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

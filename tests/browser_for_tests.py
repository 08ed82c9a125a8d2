"""A Chromium for tests of the page: Debian's, or playwright's own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, ConsoleMessage, Playwright, Request, expect

PATIENCE = 240_000  # milliseconds: a training of the real base, or a page alone, on a machine that others keep busy
expect.set_options(timeout=PATIENCE)

OPTIONS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def browser_path(playwright: Playwright) -> str | None:
    """Where a Chromium is; None: nowhere."""
    own = Path(playwright.chromium.executable_path)
    installed = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
    return str(own) if own.is_file() else next(filter(None, installed), None)


class Reader:
    """Who reads the page of a server in a browser window of their own; what a page must never do fails the test."""

    def __init__(self, browser: Browser, url: str, **context: Any):
        self.url, self.wrong, self.requests = url, list[str](), list[str]()
        self.context = browser.new_context(base_url=url, reduced_motion="reduce", **context)
        self.context.set_default_timeout(PATIENCE)
        self.page = self.context.new_page()
        self.page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        self.page.on("console", self._console)
        self.page.on("request", self._request)

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and "the server responded with a status of" not in message.text:
            self.wrong.append(f"{message.type}: {message.text}")

    def _request(self, request: Request) -> None:
        self.requests.append(request.url)
        address = urlsplit(request.url)
        if address.scheme not in ("data", "blob") and f"{address.scheme}://{address.netloc}" != self.url:
            self.wrong.append(f"another host: {request.url}")


@contextmanager
def reading(browser: Browser, url: str, **context: Any) -> Iterator[Reader]:
    """A reader whose page has made no error, and asked no other host, by the end."""
    reader = Reader(browser, url, **context)
    try:
        yield reader
    finally:
        reader.context.close()
    assert not reader.wrong, "\n".join(reader.wrong)

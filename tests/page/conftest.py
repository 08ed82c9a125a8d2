"""The page in a real browser, from a real server of a tiny base."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import sync_playwright

from browser_for_tests import OPTIONS, Reader, browser_path, reading
from serving_for_tests import Running, make_base, make_store


@pytest.fixture(scope="module")
def browser():
    """A Chromium for all tests of a module: while it is there, no other test could run an event loop in this thread.

    Where the machine has none they are skipped, or fail if HALKA_NEEDS_BROWSER asks for one.
    """
    with sync_playwright() as playwright:
        path = browser_path(playwright)
        if path is None:
            missing = pytest.fail if os.environ.get("HALKA_NEEDS_BROWSER") else pytest.skip
            missing("no Chromium: apt-get install chromium, or playwright install chromium")
        browser = playwright.chromium.launch(executable_path=path, args=[*OPTIONS])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    """A tiny base, which no test changes."""
    return make_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="session")
def store(base, tmp_path_factory) -> Path:
    """A store with adapters `lora`, `prefix` and `bottleneck` of it, which no test changes."""
    return make_store(tmp_path_factory.mktemp("stored"), base)


@pytest.fixture(scope="session")
def open_server(base, store, tmp_path_factory):
    """A server without keys, for all tests of a session."""
    with Running(base, store, tmp_path_factory.mktemp("data")) as running:
        yield running


@pytest.fixture
def read(browser, open_server) -> Iterator[Callable[..., Reader]]:
    """Opens windows on the open server, or on `url`: `read(locale="bn-BD")`; each is checked at the test's end."""
    with ExitStack() as windows:

        def opened(url: str = open_server.url, **context: Any) -> Reader:
            return windows.enter_context(reading(browser, url, **context))

        yield opened

"""The order of tests, their random numbers and garbage, and a PostgreSQL for those that ask for it."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator

import hypothesis
import pytest

from postgres_for_tests import server

hypothesis.settings.register_profile("halka", deadline=None)  # a busy machine may not run a test for a while
hypothesis.settings.load_profile("halka")


@pytest.hookimpl(trylast=True)  # after pytest-randomly, whose order is kept otherwise
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the slow tests, so that workers end together."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_sessionstart() -> None:
    """Keep the garbage collector from what is imported and collected: a quarter of that time."""
    gc.set_threshold(1_000_000)


def pytest_collection_finish() -> None:
    """Keep the garbage collector from what is imported: half a second a collection, and tests ask for hundreds.

    Of what comes then it counts so little that it would look through all of it every few tests.
    """
    gc.freeze()
    gc.set_threshold(20_000)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say how this order is had again; pytest's header, where the plugin says it, is not shown with -q."""
    seed = config.getoption("randomly_seed", None)
    if seed is not None:
        terminalreporter.write_line(f"in random order: the same again with --randomly-seed={seed}")
    skipped = [report for report in terminalreporter.stats.get("skipped", ()) if "tests/page/" in report.nodeid]
    if skipped:
        reason = skipped[0].longrepr[2].removeprefix("Skipped: ")
        terminalreporter.write_line(f"{len(skipped)} tests of the page were skipped: {reason}")


@pytest.fixture(autouse=True, scope="session")
def no_wait_for_the_disk() -> Iterator[None]:
    """Writes reach the disk when the system likes: only a power cut could tell, and each wait takes milliseconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(autouse=True)
def torch_seed() -> None:
    """What a test draws without a seed of its own does not depend on the tests before it."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture(scope="session")
def postgres():
    """The URL of a database with pgvector."""
    with server() as url:
        yield url

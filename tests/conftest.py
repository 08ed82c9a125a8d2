"""Tests that fail since encoders, experts and exchange came together, by name: to be mended, then taken off the list.

`known_failures.txt` holds them. A test that is not on it must pass.
"""

from pathlib import Path

import pytest

KNOWN = set((Path(__file__).parent / "known_failures.txt").read_text(encoding="utf-8").split())


def pytest_collection_modifyitems(items):
    for item in items:
        if item.nodeid.split("[")[0] in KNOWN:
            item.add_marker(pytest.mark.xfail(reason="known: see tests/known_failures.txt", strict=False))

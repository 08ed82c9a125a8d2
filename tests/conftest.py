"""A PostgreSQL that begins with the tests that ask for it."""

from __future__ import annotations

import pytest

from postgres_for_tests import server


@pytest.fixture(scope="session")
def postgres():
    """The URL of a database with pgvector."""
    with server() as url:
        yield url

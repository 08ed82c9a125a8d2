"""Where passages are kept, for the tests of collections: in a folder, and in a PostgreSQL that begins with them."""

from __future__ import annotations

import pytest

from postgres_for_tests import server


@pytest.fixture(scope="session")
def postgres():
    """The URL of a database with pgvector."""
    with server() as url:
        yield url


@pytest.fixture(params=["folder", "postgres"])
def at(request) -> str | None:
    """A place to keep passages, as `rag.stores` names it, each in turn."""
    return request.getfixturevalue("postgres") if request.param == "postgres" else None

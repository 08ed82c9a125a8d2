"""Where passages are kept, for the tests of collections: a folder, a PostgreSQL that begins with them, and Qdrant."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path += [str(folder) for folder in Path(__file__).parent.iterdir() if folder.is_dir()]

from postgres_for_tests import server


@pytest.fixture(scope="session")
def postgres():
    """The URL of a database with pgvector."""
    with server() as url:
        yield url


@pytest.fixture(params=["folder", "postgres", "qdrant"])
def at(request, tmp_path) -> str | None:
    """A place to keep passages, as `rag.stores` names it, each in turn."""
    if request.param == "qdrant":
        return f"qdrant:{tmp_path / 'qdrant'}"
    return request.getfixturevalue("postgres") if request.param == "postgres" else None

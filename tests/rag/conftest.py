"""Where passages are kept: a folder, a PostgreSQL that begins with the tests, and Qdrant."""

from __future__ import annotations

import pytest


@pytest.fixture(params=["folder", "postgres", "qdrant"])
def at(request, tmp_path) -> str | None:
    """A place to keep passages, as `rag.stores` names it, each in turn."""
    if request.param == "qdrant":
        return f"qdrant:{tmp_path / 'qdrant'}"
    return request.getfixturevalue("postgres") if request.param == "postgres" else None

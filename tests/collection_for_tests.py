"""What a collection reports while it takes documents in."""

from __future__ import annotations

from pathlib import Path


def told(events) -> list[tuple[str, str]]:
    """Of each event, what happened to a document and the document's name."""
    return [(event.what, Path(event.document).name) for event in events]

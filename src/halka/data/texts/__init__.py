"""Shipped texts of no task, for measuring what tuning or merging changes: `shipped_text`."""

from __future__ import annotations

from importlib.resources import files
from typing import Literal


def shipped_text(name: Literal["forgetting", "merging"]) -> str:
    """The text that a measurement reads by default; results depend on it, so neither text ever changes.

    "forgetting" is a page of plain prose; "merging" is prose, a sum, a function and JSON.
    """
    return files("halka.data.texts").joinpath(f"{name}.txt").read_text(encoding="utf-8")

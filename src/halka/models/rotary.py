"""Rotary positions that change with the longest text of a pass, so that the texts of one pass change each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CHANGING = ("dynamic", "longrope")  # transformers' types whose frequencies follow from the largest position of a pass


def changing_rotary(base: Any) -> str | None:
    """The type of the base's rotary positions, or of some of its layers', if it is one of `CHANGING`."""
    parameters: Mapping[str, Any] = getattr(base.config.get_text_config(), "rope_parameters", None) or {}
    by_layers = [own for own in parameters.values() if isinstance(own, Mapping)]
    types = [own.get("rope_type") for own in (parameters, *by_layers)]
    return next((kind for kind in types if kind in CHANGING), None)

"""`Draft`: a training that may become a job of the same fields; a job's `task` has no data to be looked at."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from halka.server.jobs.requests import DataFiles, Rows, Validation
from halka.server.requests import Name


class Draft(DataFiles):
    """A training's data and settings. `examples`: how many to show, in previews; `name` changes nothing."""

    kind: Literal["train"] | None = None
    name: Name | None = None
    data: Rows | None = None
    validation: Validation = None
    shape: Annotated[str, Field(max_length=40)] | None = None
    settings: dict[str, Any] = Field(default_factory=dict[str, Any])
    examples: Annotated[int, Field(ge=0, le=20)] = 3

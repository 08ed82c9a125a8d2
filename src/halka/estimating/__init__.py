"""Estimating: what each method will need on a base, in memory and time, before anything runs."""

from halka.estimating.batches import largest_batch
from halka.estimating.dry_runs import Memory, Setup, rehearse
from halka.estimating.estimates import FAMILIES, Estimate, Row, at_least_one, estimate, prepared, row_of

__all__ = [
    "FAMILIES",
    "Estimate",
    "Memory",
    "Row",
    "Setup",
    "at_least_one",
    "estimate",
    "largest_batch",
    "prepared",
    "rehearse",
    "row_of",
]

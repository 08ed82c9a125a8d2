"""Estimating: the memory and time that training needs on a base, before its weights are downloaded."""

from halka.estimating.batches import largest_batch
from halka.estimating.dry_runs import DryRun, Memory, Setup, dry_run, weights_of
from halka.estimating.estimates import FAMILIES, Estimate, Row, at_least_one, estimate, prepared, row_of

__all__ = [
    "FAMILIES",
    "DryRun",
    "Estimate",
    "Memory",
    "Row",
    "Setup",
    "at_least_one",
    "dry_run",
    "estimate",
    "largest_batch",
    "prepared",
    "row_of",
    "weights_of",
]

"""Memory that runs out in training becomes an error that says when, and what would need less."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from halka.util.divided import lost_rank_error
from halka.util.machine import memory_named

if TYPE_CHECKING:
    from halka.training.sharing import Pass

SMALLER_BATCHES = "lower batch_tokens or batch_size"
SMALLER_SCORE = "score fewer examples, or fewer at a time"
SMALLER_ADAPTER = "train fewer parameters, such as a lower rank has, or fewer adapters together"
"""What an optimiser's step needs less memory with: it holds two more numbers for each that is trained."""


@contextmanager
def memory_errors(when: str, less: str) -> Generator[None]:
    """Turns errors of memory that ran out into OutOfMemoryError, which says `less`; lost ranks' into LostRankError."""
    with memory_named(f"out of memory {when}: {less}"), lost_rank_error():
        yield


def smaller_pass(shared: Pass) -> str:
    """What the forward and backward pass over these examples needs less memory with."""
    if any(len(items) > 1 for items in shared.values()):
        ways = [f"{SMALLER_BATCHES} (and raise accumulate to keep the step's size)"]
    else:
        ways = ["lower max_length, since a batch is a single example"]
    if not any(run.config.checkpointing for run in shared):
        ways.append("turn checkpointing on")
    if len(shared) > 1:
        ways.append("train fewer adapters together")
    return ways[0] if len(ways) == 1 else f"{', '.join(ways[:-1])}, or {ways[-1]}"

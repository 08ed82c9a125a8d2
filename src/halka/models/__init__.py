"""transformers models as bases: load one, find its targets, run it."""

from halka.models.adapting import (
    adapt,
    context,
    hidden_states,
    logits,
    memory_of,
    pad_id,
    run,
    shares_lines,
    stack_of,
    taken_positions,
    without_dropout,
)
from halka.models.loading import load_base

__all__ = [
    "adapt",
    "context",
    "hidden_states",
    "load_base",
    "logits",
    "memory_of",
    "pad_id",
    "run",
    "shares_lines",
    "stack_of",
    "taken_positions",
    "without_dropout",
]

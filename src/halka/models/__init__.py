"""transformers models as bases: load one, find its targets, run it."""

from halka.models.adapting import adapt, context, hidden_states, logits, pad_id, run
from halka.models.loading import load_base

__all__ = ["adapt", "context", "hidden_states", "load_base", "logits", "pad_id", "run"]

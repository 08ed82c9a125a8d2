"""How long most of some examples are, in tokens: the 90th percentile."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from halka.data.examples import Example

BYTES = 3  # of UTF-8 per token, before the tokenizer is loaded: more in Latin script, which has one a letter


def length_by_bytes(examples: Sequence[Example]) -> int:
    """An estimate without a tokenizer."""
    return percentile_90(
        [sum(len(message.written.encode()) for message in example.messages) // BYTES for example in examples]
    )


def percentile_90(lengths: Sequence[int]) -> int:
    """The 90th percentile, at least 16."""
    return max(16, int(statistics.quantiles([*lengths, *lengths], n=10, method="inclusive")[-1]))

"""`Scoring`: how a layer's attention makes probabilities of its scores."""

from __future__ import annotations

from typing import NamedTuple


class Scoring(NamedTuple):
    """What a layer's configuration and a pass settle, beside the tensors.

    scale     of the products of queries and keys
    dropout   of the probabilities
    softcap   c in c·tanh(score / c); None without one
    window    how many tokens back the layer sees, itself included; None without one, or where a mask knows it
    """

    scale: float
    dropout: float = 0.0
    softcap: float | None = None
    window: int | None = None

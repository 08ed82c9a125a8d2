"""The fused weights of a base, which all engines that are open on it share: the last to close gives them back."""

from __future__ import annotations

from threading import Lock
from weakref import ReferenceType, WeakKeyDictionary, ref

from torch import nn

from halka.engine.llama.weights import LlamaWeights

_open, _lock = WeakKeyDictionary[nn.Module, ReferenceType[LlamaWeights]](), Lock()


def open_weights(base: nn.Module, user: object) -> LlamaWeights:
    """The base's weights, fused once for all users, until these have closed them, or are gone.

    The base must have its own weights meanwhile. One that was moved, or has other weights now, is fused anew.
    """
    with _lock:
        shared = _open.get(base)
        weights = None if shared is None else shared()
        if weights is None or not weights.intact():
            weights = LlamaWeights(base)
            _open[base] = ref(weights)
        weights.users.add(user)
        return weights


def close_weights(weights: LlamaWeights, user: object) -> None:
    """Let the base have its weights again, unless another user has these open."""
    with _lock:
        weights.users.discard(user)
        if not weights.users:
            weights.undo()

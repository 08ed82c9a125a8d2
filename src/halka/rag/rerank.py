"""A cross-encoder as a `Reranker`: it reads the question together with each passage, and says how well they fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from halka.util.errors import HalkaError


class CrossEncoder:
    """One of the sentence-transformers library: a folder, or a hub name (`cross-encoder/ms-marco-MiniLM-L6-v2`)."""

    def __init__(self, name_or_path: str, *, device: str | None = None, batch_size: int = 32):
        """Raises ValueError where the extra `rag` is missing, and for a name that leads to no cross-encoder."""
        from halka.util.quiet import quiet_bitsandbytes

        try:
            with quiet_bitsandbytes():
                from sentence_transformers import CrossEncoder as Loaded
        except ImportError:
            raise HalkaError("a cross-encoder needs the extra: pip install 'halka[rag]'") from None
        self.name, self.batch_size = str(name_or_path), batch_size
        try:
            self._model: Any = Loaded(self.name, device=device, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise HalkaError(f"{name_or_path} cannot be loaded as a cross-encoder: {error}") from error
        if (labels := self._model.config.num_labels) != 1:
            raise HalkaError(f"{name_or_path} gives {labels} scores for a pair, where a cross-encoder gives one")

    def __call__(self, question: str, texts: Sequence[str]) -> list[float]:
        """A score for each text; higher is better."""
        if not texts:
            return []
        pairs = [(question, text) for text in texts]
        return self._model.predict(pairs, batch_size=self.batch_size, show_progress_bar=False).tolist()

"""An ablation's documents: their collection."""

from __future__ import annotations

import hashlib
from pathlib import Path

from halka.rag.collection import Collection
from halka.rag.embed import SentenceEmbedder
from halka.studies.ablation.settings import Ablation


def collection_of(ablation: Ablation, folder: Path) -> Collection:
    """The documents of one embedder: vectors of two cannot be compared."""
    if ablation.embedder is None:
        return Collection(folder / "collection")
    own = hashlib.sha256(ablation.embedder.encode()).hexdigest()[:8]
    return Collection(folder / f"collection-{own}", SentenceEmbedder(ablation.place(ablation.embedder)))

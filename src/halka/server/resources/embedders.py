"""`Embedders`: the models that embed texts and documents, each loaded once."""

from __future__ import annotations

import threading
from importlib.util import find_spec

from halka.rag.embed import DEFAULT, Embedder, SentenceEmbedder


class Embedders:
    """The embedders of a server, by their names.

    embedder  of new collections, which `default` names; loaded when it is first needed if not given
    """

    def __init__(self, embedder: Embedder | None = None):
        self._loaded = {} if embedder is None else {embedder.name: embedder}
        self.default = DEFAULT if embedder is None else embedder.name
        self._loading = threading.Lock()

    @property
    def available(self) -> bool:
        """Whether what embeds texts is installed: the extra `rag`."""
        return bool(self._loaded) or find_spec("sentence_transformers") is not None

    def get(self, name: str | None = None) -> Embedder:
        """The embedder of that name, by default that of new collections."""
        name = self.default if name is None else name
        with self._loading:
            if name not in self._loaded:
                self._loaded[name] = SentenceEmbedder(name)
            return self._loaded[name]

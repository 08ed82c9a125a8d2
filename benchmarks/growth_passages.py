"""Passages to grow stores with: a million and more, of real words and drawn vectors, the same in every run.

Words are drawn by how often SciFact, Debian's questions and Natural Questions have them, so that common words are as
common as there; one in fifty is of a long tail of invented ones, since a large collection has more words than a small
one. A passage is as long as a real one. Its vector lies near two of 1,500 drawn topics, so that it has neighbours, as
real ones do: among vectors that are drawn evenly none is near, and no index works.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from retrieval import sets

from halka.rag.passages import Passage
from halka.rag.store import Document, Entry
from halka.rag.stores.bm25 import LEFT_OUT

IN_DOCUMENT, TEAMS = 10, 100  # passages of a document; teams, each of which may read one document in so many
TOPICS, WIDTH = 1500, 384
INVENTED, TAIL = 0.02, 2_000_000
EVERYONE = "all"


@dataclass(frozen=True)
class Drawn:
    """Draws passages by the words of the real ones, which `folder` keeps."""

    folder: Path

    @cached_property
    def _real(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Words, how likely each is, and how many a passage has."""
        path = self.folder / "words.json"
        if not path.exists():
            texts = [re.findall(r"[a-z]+", text.lower()) for text in self._texts()]
            counts = Counter(word for words in texts for word in words)
            lengths = [min(len(words), 200) for words in texts if len(words) > 20]
            path.write_text(json.dumps([counts.most_common(), lengths]))
        counts, lengths = json.loads(path.read_text())
        times = np.array([times for _, times in counts], float)
        return np.array([word for word, _ in counts]), np.cumsum(times / times.sum()), np.array(lengths)

    @cached_property
    def _topics(self) -> np.ndarray:
        return np.random.default_rng(1).standard_normal((TOPICS, WIDTH)).astype(np.float32) / np.sqrt(WIDTH)

    def _texts(self) -> Iterator[str]:
        for name, texts, _ in sets():
            if name != "tofu":
                yield from texts.values()

    def entries(self, start: int, count: int) -> list[Entry]:
        """Documents `start` and on: `count` of them."""
        entries = []
        for number in range(start, start + count):
            draw = np.random.default_rng([2, number])
            readers = tuple(sorted([EVERYONE, f"team{number % TEAMS}", f"half{number % 2}"]))
            name = f"{'abcdefgh'[number % 8]}/{number}"
            texts = [self._text(draw) for _ in range(IN_DOCUMENT)]
            passages = tuple(Passage(name, at, text, 0, len(text), None, "", readers) for at, text in enumerate(texts))
            document = Document(name, f"{number}", readers, (), "now", IN_DOCUMENT)
            entries.append(Entry(document, passages, self.vectors(draw, IN_DOCUMENT)))
        return entries

    def _text(self, draw: np.random.Generator) -> str:
        words, likely, lengths = self._real
        drawn = words[np.searchsorted(likely, draw.random(draw.choice(lengths)))]
        tail = draw.random(len(drawn)) < INVENTED
        drawn = drawn.tolist()
        for at in np.flatnonzero(tail):
            drawn[at] = f"x{int(TAIL ** draw.random())}"  # the n-th as likely as 1/n: Zipf's law
        return " ".join(drawn)

    def vectors(self, draw: np.random.Generator, count: int) -> np.ndarray:
        """Unit vectors (count, width)."""
        first, second = self._topics[draw.integers(0, TOPICS, (2, count))]
        noise = draw.standard_normal((count, WIDTH)) / np.sqrt(WIDTH)
        made = first + draw.random((count, 1)) * second + 0.6 * noise
        return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)

    def questions(self, kind: str, count: int) -> list[tuple[str, np.ndarray]]:
        """Texts of five `common` words (of the hundred most frequent) or of `rare` ones, each with a vector."""
        words = [str(word) for word in self._real[0] if word not in LEFT_OUT and len(word) > 3]
        among = words[:100] if kind == "common" else words[5000:10_000]
        draw = np.random.default_rng([3, kind == "rare"])
        texts = [" ".join(draw.choice(among, 5, replace=False)) for _ in range(count)]
        return [*zip(texts, self.vectors(draw, count), strict=True)]

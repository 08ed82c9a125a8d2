"""`Retriever`: find the passages that may answer a question, by vectors and by words.

**How hybrid search joins both.** Reciprocal ranks lose each search's confidence: words that match many passages alike
would push down good results of the vector search. Here a passage's score is its cosine plus its BM25 as a share of the
best BM25, weighted by how far that best one stands out among the next nine. So words count where they single out one
passage, and hardly elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from statistics import mean
from typing import Any, Literal, get_args

import numpy as np

from halka.rag.collection import Collection
from halka.rag.passages import Passage
from halka.rag.store import Found, Scope
from halka.rag.texts import composed
from halka.util.errors import HalkaError
from halka.util.quiet import quiet_libraries
from halka.util.text import not_unicode

Mode = Literal["hybrid", "vectors", "words"]
WORDS = 0.5  # weight of a BM25 score that stands out fully
NEXT = 9  # passages that the best one is compared with
DEPTH = 100  # candidates of each search
DEEPER = 7  # searches at most, each for twice as many candidates, where many of them have one text

Reranker = Callable[[str, Sequence[str]], Sequence[float]]
"""From a question and texts to a score for each text, such as `CrossEncoder`."""


@dataclass(frozen=True)
class Hit:
    """A passage with its score in the search's mode, and its cosine and BM25 if the search computed them."""

    passage: Passage
    score: float
    cosine: float | None = None
    bm25: float | None = None


@dataclass(frozen=True)
class Retriever:
    """Searches one collection.

    mode        search by vectors, by words, or by both
    rerank      scores the best candidates anew
    candidates  the number of passages that `rerank` scores
    distinct    leave out passages with the text of a better one

    Raises HalkaError for an unknown mode.
    """

    collection: Collection
    mode: Mode = "hybrid"
    rerank: Reranker | None = None
    candidates: int = 32
    distinct: bool = True

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise HalkaError(f"{self.mode!r} is no search mode: choose one of {', '.join(get_args(Mode))}")

    def search(self, question: str, count: int = 8, scope: Scope = Scope()) -> list[Hit]:  # noqa: B008
        """The best `count` passages in the scope, best first. Raises HalkaError for an empty question, and one that is
        no Unicode."""
        if not question.strip():
            raise HalkaError("the question is empty: ask something")
        if why := not_unicode(question):
            raise HalkaError(f"the question {why}")
        question = composed(question)
        if count < 1:
            raise HalkaError(f"cannot search for {count} passages: ask for one or more")
        vector = cache(lambda: self.collection.embedder.query(question))  # words alone need no embedder
        wanted, depth = count if self.rerank is None else max(self.candidates, count), max(DEPTH, 2 * count)
        hits: list[Hit] = []
        for times in range(DEEPER):
            hits, more = self._candidates(question, vector, depth << times, scope)
            hits = distinct(hits) if self.distinct else hits
            if not more or len(hits) >= wanted:
                break
        if self.rerank is not None and hits:
            chosen = hits[:wanted]
            scores = self.rerank(question, [hit.passage.searched for hit in chosen])
            hits = [replace(hit, score=float(score)) for hit, score in zip(chosen, scores, strict=True)]
            hits.sort(key=lambda hit: -hit.score)
        return hits[:count]

    def _candidates(
        self, question: str, vector: Callable[[], np.ndarray], depth: int, scope: Scope
    ) -> tuple[list[Hit], bool]:
        """The best `depth` passages of each search, joined, and whether there may be more."""
        store, near = self.collection.store, list[Found]()
        with ThreadPoolExecutor(1) as beside:
            matching = beside.submit(store.matching, question, depth, scope) if self.mode != "vectors" else None
            if self.mode != "words":
                near = store.nearest(vector(), depth, scope)
            worded = [] if matching is None else matching.result()
        more = max(len(near), len(worded)) == depth
        if self.mode == "hybrid":
            near = with_cosines(vector(), near, worded)
        return joined(near, worded), more

    def expanded(
        self,
        hits: Sequence[Hit],
        budget: int,
        scope: Scope = Scope(),  # noqa: B008
        fits: Callable[[Sequence[Passage]], bool] = lambda passages: True,
    ) -> list[Passage]:
        """The hits' passages, best first, with the passages before and after each; adjacent ones become one.

        Neighbours are added, the best hit's first, as long as all passages together have at most `budget` tokens and
        `fits` returns true for them; hits are never left out. A joined passage has its true start and end, but its
        parts are separated by a space or an empty line, since the document's own white space is not stored.
        """
        chosen = {hit.passage.id: hit.passage for hit in hits}
        room = budget - sum(map(self._tokens, chosen.values()))
        for middle in [*chosen.values()]:
            around = {middle.number - 1, middle.number + 1}
            for neighbour in self.collection.store.passages(middle.document, around, scope):
                if neighbour.id in chosen or (cost := self._tokens(neighbour)) > room:
                    continue
                wider = {**chosen, neighbour.id: neighbour}
                if fits(_touching(wider.values())):
                    chosen, room = wider, room - cost
        return _touching(chosen.values())

    def _tokens(self, passage: Passage) -> int:
        return len(self.collection.embedder.tokenizer.encode(passage.searched, add_special_tokens=False).ids)


class CrossEncoder:
    """A `Reranker` that reads the question together with each passage: a cross-encoder of sentence-transformers."""

    def __init__(self, name_or_path: str, *, device: str | None = None, batch_size: int = 32):
        """Load it from a folder or by a hub name, such as `cross-encoder/ms-marco-MiniLM-L6-v2`.

        Raises HalkaError if the extra `rag` is missing, and for a folder or name that is not a cross-encoder.
        """
        try:
            with quiet_libraries():
                from sentence_transformers import CrossEncoder as Loaded
        except ImportError:
            raise HalkaError("a cross-encoder needs the extra: pip install 'halka[rag]'") from None
        self.name, self.batch_size = str(name_or_path), batch_size
        try:
            with quiet_libraries():
                self._model: Any = Loaded(
                    self.name,
                    device=device,
                    trust_remote_code=False,
                    model_kwargs={"use_kernels": False},  # which would be the hub's code
                )
        except (OSError, ValueError, KeyError) as error:
            raise HalkaError(f"{name_or_path} cannot be loaded as a cross-encoder: {error}") from error
        if (labels := self._model.config.num_labels) != 1:
            raise HalkaError(f"{name_or_path} returns {labels} scores for a pair: a cross-encoder returns one")

    def __call__(self, question: str, texts: Sequence[str]) -> list[float]:
        """A score for each text: how well it fits the question; higher is better."""
        if not texts:
            return []
        pairs = [(question, text) for text in texts]
        return self._model.predict(pairs, batch_size=self.batch_size, show_progress_bar=False).tolist()


def with_cosines(vector: np.ndarray, near: Sequence[Found], worded: Sequence[Found]) -> list[Found]:
    """The results of the vector search, then those of the word search alone, with their cosines as scores."""
    seen = {match.passage.id for match in near}
    others = (match for match in worded if match.passage.id not in seen)
    return [*near, *(replace(match, score=float(match.vector @ vector)) for match in others)]


def joined(near: Sequence[Found], worded: Sequence[Found]) -> list[Hit]:
    """Passages scored by cosine and BM25 together, best first; either list may be empty."""
    words = {match.passage.id: match.score for match in worded}
    best = max(words.values(), default=0.0)
    if not near:
        return [Hit(match.passage, match.score, bm25=match.score) for match in worded]
    share = WORDS * _standing_out([*words.values()]) / best if best > 0 else 0.0
    hits = [
        Hit(
            match.passage,
            match.score + share * words.get(match.passage.id, 0.0),
            match.score,
            words.get(match.passage.id),
        )
        for match in near
    ]
    return sorted(hits, key=lambda hit: -hit.score)


def distinct(hits: Iterable[Hit]) -> list[Hit]:
    """The hits without those whose text, but for white space, a better one has.

    Texts of like vectors stay: forms filled in with other names and numbers are as near as copies.
    """
    by_text: dict[str, Hit] = {}
    for hit in hits:
        by_text.setdefault(" ".join(hit.passage.searched.split()), hit)
    return [*by_text.values()]


def _standing_out(scores: Sequence[float]) -> float:
    """How far the best score stands out among the next ones: 0 if all are equal, 1 if there are no others."""
    first, *others = sorted(scores, reverse=True)
    others = [*others[:NEXT], *[0.0] * (NEXT - len(others[:NEXT]))]
    return (first - mean(others)) / first


def _touching(passages: Iterable[Passage]) -> list[Passage]:
    """The passages; adjacent ones of a document become one, at the place of the first in the list."""
    at = {(passage.document, passage.number): passage for passage in passages}
    joined = []
    while at:
        document, first = next(iter(at))
        while (document, first - 1) in at:
            first -= 1
        span, number = list[Passage](), first
        while (document, number) in at:
            span.append(at.pop((document, number)))
            number += 1
        joined.append(_one(span))
    return joined


def _one(span: Sequence[Passage]) -> Passage:
    """Adjacent passages of one document as one."""
    text = span[0].text
    for before, after in pairwise(span):
        gap = after.start - before.end  # spaces and line ends, which passages do not keep
        text += ("\n\n" if gap > 1 else " " * gap) + after.text[max(0, -gap) :]
    return replace(span[0], text=text, end=span[-1].end)

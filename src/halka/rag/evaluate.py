"""Evaluate retrieval with ir-measures, on queries with known relevant documents in BEIR's layout.

scifact/
  corpus.jsonl      {"_id": "4983", "title": "…", "text": "…"}
  queries.jsonl     {"_id": "1", "text": "…"}
  qrels/test.tsv    query-id, corpus-id, score, below a header line
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from halka.rag.collection import Collection, Event
from halka.rag.retrieve import Retriever
from halka.rag.store import Scope
from halka.util.errors import DataError, HalkaError

DEPTH = 100
MEASURES = ("nDCG@10", "RR@10", "R@5", "R@100", "Success@1", "Success@5")


@dataclass(frozen=True)
class Queries:
    """Questions by their ids, and the scores of the relevant documents of each."""

    texts: Mapping[str, str]
    relevant: Mapping[str, Mapping[str, int]]


def read_queries(folder: Path, split: str = "test") -> Queries:
    """The queries of a folder in BEIR's layout that have relevant documents in this split.

    Raises DataError for a missing file, a line that is not in the layout, and a query without a text.
    """
    relevant: dict[str, dict[str, int]] = {}
    for line, query, document, score in _tsv(folder / "qrels" / f"{split}.tsv"):
        if not score.lstrip("-").isdigit():
            raise DataError(f"{folder / 'qrels' / f'{split}.tsv'}, line {line}: {score!r} is no whole number")
        relevant.setdefault(query, {})[document] = int(score)
    texts = {row["_id"]: row["text"] for row in _rows(folder / "queries.jsonl", "_id", "text")}
    if missing := [query for query in relevant if query not in texts]:
        raise DataError(f"{folder / 'queries.jsonl'} lacks query {missing[0]}, which {split}.tsv judges")
    return Queries({query: texts[query] for query in relevant}, relevant)


def read_corpus(folder: Path) -> Iterator[tuple[str, str]]:
    """The documents (id, text) of a folder in BEIR's layout; a title becomes a heading above its text.

    Raises DataError for a missing file, and for a line that is not in the layout.
    """
    for row in _rows(folder / "corpus.jsonl", "_id", "text"):
        title = str(row.get("title") or "").strip()
        yield row["_id"], f"# {title}\n\n{row['text']}" if title else row["text"]


def put_corpus(collection: Collection, folder: Path) -> Iterator[Event]:
    """Add a folder's documents to a collection that holds no others. Raises HalkaError for one that does."""
    corpus = dict(read_corpus(folder))
    if others := [document.name for document in collection.documents() if document.name not in corpus]:
        raise HalkaError(
            f"{collection.folder.name} holds {others[0]}, which {folder / 'corpus.jsonl'} does not: use another name, "
            "so that the corpus gets a collection of its own"
        )
    yield from collection.put(corpus.items())


def evaluate(
    retriever: Retriever,
    queries: Queries,
    *,
    scope: Scope = Scope(),  # noqa: B008
    on_progress: Callable[[int], None] | None = None,
) -> dict[str, float]:
    """The mean of each measure over the queries, for 100 documents ranked by their best passage.

    Judgements name documents, so one that has another's text counts by itself, whatever `retriever.distinct` is.
    `on_progress` is called with the number of queries done. Raises HalkaError if the extra `rag` is missing, and if
    there is no query.
    """
    measures = measures_of(MEASURES)  # raises if the extra is missing
    from ir_measures import calc_aggregate

    if not queries.texts:
        raise HalkaError("there are no queries to evaluate on")
    retriever = replace(retriever, distinct=False)
    wanted = min(DEPTH, len(retriever.collection.documents(scope)))
    run: dict[str, dict[str, float]] = {}
    for done, (query, text) in enumerate(queries.texts.items(), start=1):
        run[query] = {name: -float(rank) for rank, name in enumerate(_ranked(retriever, text, wanted, scope))}
        if on_progress is not None:
            on_progress(done)
    relevant = {query: dict(documents) for query, documents in queries.relevant.items()}
    scores = calc_aggregate(measures, relevant, run)
    return {str(measure): float(scores[measure]) for measure in measures}


def measures_of(names: Sequence[str]) -> list[Any]:
    """Measures of ir-measures by their names, such as nDCG@10. Raises HalkaError if the extra `rag` is missing.

    The library's own parser does not run on Python 3.14.
    """
    try:
        import ir_measures
    except ImportError:
        raise HalkaError("scoring retrieval needs the extra: pip install 'halka[rag]'") from None
    return [getattr(ir_measures, kind) @ int(depth) for kind, depth in (name.split("@") for name in names)]


def _ranked(retriever: Retriever, question: str, wanted: int, scope: Scope) -> list[str]:
    """The best `wanted` documents by their best passage, or all if there are fewer.

    The documents of the first 100 passages come first; if those are too few, passages further down add others, without
    reranking.
    """
    best: dict[str, None] = {}
    count, before, now = DEPTH, -1, 0
    while len(best) < wanted and now > before:
        hits = retriever.search(question, count, scope)
        best |= dict.fromkeys(hit.passage.document for hit in hits if hit.passage.document not in best)
        before, now, count = now, len(hits), 2 * count
        retriever = replace(retriever, rerank=None)
    return [*best][:wanted]


def _rows(path: Path, *fields: str) -> Iterator[dict[str, str]]:
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if any(not isinstance(row[field], str) for field in fields):
                raise TypeError
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{path}, line {number}: not an object with texts {' and '.join(fields)}") from None
        yield row


def _tsv(path: Path) -> Iterator[tuple[int, str, str, str]]:
    """Each row below the head, with the number of its line."""
    for number, row in enumerate(csv.reader(_lines(path), delimiter="\t"), start=1):
        if row and len(row) != 3:
            raise DataError(f"{path}, line {number}: {len(row)} columns instead of query, document and score")
        if row and number > 1:
            yield number, row[0], row[1], row[2]


def _lines(path: Path) -> Iterator[str]:
    if not path.is_file():
        raise DataError(f"there is no file {path}: BEIR's layout has corpus.jsonl, queries.jsonl and qrels/test.tsv")
    try:
        with path.open(encoding="utf-8") as file:
            yield from file
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason}): save it as UTF-8") from None

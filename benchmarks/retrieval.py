"""How well passages are found by vectors, by words, by ranks and as Halka joins them; how fast; what taking in costs.

    HALKA_DATA=… python benchmarks/retrieval.py              # ten minutes on two cores; needs the extra `rag`

SciFact (claims, abstracts; CC BY 4.0 and ODC-By), Debian and Python questions (answers without their questions, among
sections of documentation; Debian's notice and the PSF licence), invented authors (TOFU, MIT; four answers a passage),
and Natural Questions with one passage each (MIT; passages CC BY-SA). MiniLM has not seen the second and third. Speed:
all of them in one collection, two threads. The result goes to benchmarks/results/retrieval.json.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ir_measures
import numpy as np
from rag_data import rows
from side_by_side import setup

from halka.rag.collection import Collection
from halka.rag.embed import SentenceEmbedder
from halka.rag.evaluate import Queries, measures_of
from halka.rag.retrieve import DEPTH, Retriever, joined, with_cosines
from halka.rag.store import Scope

HERE = Path(__file__).parent
MEASURES = ("nDCG@10", "Success@1", "Success@5", "R@100")


@dataclass
class Timed(SentenceEmbedder):
    """The default embedder, and how long it worked."""

    seconds: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        super().__init__()

    def _vectors(self, texts: list[str], encode: Any) -> np.ndarray:
        start = time.perf_counter()
        made = super()._vectors(texts, encode)
        self.seconds += time.perf_counter() - start
        return made


def sets() -> Iterator[tuple[str, dict[str, str], Queries]]:
    """Each set's name, its texts by id, and its queries."""
    claims = [each for each in rows("scifact/claims_dev.jsonl") if each["cited_doc_ids"]]
    texts = {
        str(each["_id"]): f"# {each['title']}\n\n{' '.join(each['sentences'])}"
        for each in rows("scifact/corpus.jsonl.gz")
    }
    gold = [[str(each) for each in claim["cited_doc_ids"]] for claim in claims]
    yield "scifact", texts, queries([each["claim"] for each in claims], gold)

    faq, distractors = rows("debian_faqs/faq.jsonl"), rows("debian_faqs/python_docs_sections.jsonl")
    texts = {each["id"]: each["answer"] for each in faq} | {each["id"]: each["text"] for each in distractors}
    asked = [each for each in faq if each["question"].strip().endswith("?")]
    yield "debian_faqs", texts, queries([each["question"] for each in asked], [[each["id"]] for each in asked])

    authors: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for each in rows("tofu/qa.jsonl"):
        authors[each["author_id"]].append(each)
    groups = {
        f"{author} {start}": found[start : start + 4]
        for author, found in authors.items()
        for start in range(0, len(found), 4)
    }
    texts = {name: " ".join(each["answer"] for each in group) for name, group in groups.items()}
    pairs = [(each["question"], [name]) for name, group in groups.items() for each in group]
    yield "tofu", texts, queries(*zip(*pairs, strict=True))

    found = rows("nq_oracle/nq-open-oracle.jsonl.gz")
    titled = [f"# {each['ctxs'][0]['title']}\n\n{each['ctxs'][0]['text']}" for each in found]
    names = {text: str(number) for number, text in enumerate(dict.fromkeys(titled))}
    texts = {name: text for text, name in names.items()}
    pairs = [(each["question"], [names[text]]) for each, text in zip(found, titled, strict=True)][:800]
    yield "nq_oracle", texts, queries(*zip(*pairs, strict=True))


def queries(questions: Any, gold: Any) -> Queries:
    return Queries(
        {str(number): each for number, each in enumerate(questions)},
        {str(number): dict.fromkeys(each, 1) for number, each in enumerate(gold)},
    )


def by_ranks(*sides: list[Any]) -> list[Any]:
    """Reciprocal ranks (Cormack et al. 2009), k = 60."""
    scores: dict[str, float] = defaultdict(float)
    passages = {}
    for side in sides:
        for rank, found in enumerate(side, start=1):
            scores[found.passage.id] += 1 / (60 + rank)
            passages[found.passage.id] = found
    return [passages[each] for each in sorted(scores, key=lambda each: -scores[each])]


def scored(collection: Collection, asked: Queries) -> dict[str, dict[str, float]]:
    """Each way's means."""
    scope = Scope()
    runs: dict[str, dict[str, dict[str, float]]] = defaultdict(dict)
    for query, text in asked.texts.items():
        vector = collection.embedder.query(text)
        near = collection.store.nearest(vector, DEPTH, scope)
        worded = collection.store.matching(text, DEPTH, scope)
        ways = {
            "vectors": near,
            "words": worded,
            "ranks": by_ranks(near, worded),
            "joined": joined(with_cosines(vector, near, worded), worded),
        }
        for way, hits in ways.items():
            best: dict[str, float] = {}
            for rank, hit in enumerate(hits):
                best.setdefault(hit.passage.document, -float(rank))
            runs[way][query] = best
    measures = measures_of(MEASURES)
    relevant: Mapping[str, Any] = {query: dict(each) for query, each in asked.relevant.items()}
    return {
        way: {
            str(measure): round(float(value), 4)
            for measure, value in ir_measures.calc_aggregate(measures, relevant, run).items()
        }
        for way, run in runs.items()
    }


def speed(collection: Collection, questions: list[str]) -> dict[str, Any]:
    """Searches of the whole collection, one after another."""
    retriever = Retriever(collection)
    for each in questions[:10]:
        retriever.search(each)
    taken = []
    for each in questions[10:]:
        start = time.perf_counter()
        retriever.search(each)
        taken.append(1000 * (time.perf_counter() - start))
    passages = sum(each.passages for each in collection.documents())
    return {
        "passages": passages,
        "searches": len(taken),
        "ms_median": statistics.median(taken),
        "ms_p95": float(np.quantile(taken, 0.95)),
    }


def main() -> None:
    quality, every, asked_of_all = {}, [], []
    with tempfile.TemporaryDirectory() as folder:
        for name, texts, asked in sets():
            collection = Collection(Path(folder) / name, SentenceEmbedder())
            for _ in collection.put(texts.items()):
                pass
            counts = {"documents": len(texts), "passages": sum(each.passages for each in collection.documents())}
            quality[name] = {**counts, "queries": len(asked.texts), "ways": scored(collection, asked)}
            print(name, json.dumps(quality[name], indent=1), flush=True)
            every += [(f"{name} {each}", text) for each, text in texts.items()]
            asked_of_all += list(asked.texts.values())[:60]
        embedder = Timed()
        whole = Collection(Path(folder) / "all", embedder)
        start = time.perf_counter()
        for _ in whole.put(every):
            pass
        seconds = time.perf_counter() - start
        found = speed(whole, asked_of_all)
    ingest = {
        "seconds": seconds,
        "passages_per_second": found["passages"] / seconds,
        "embedding": embedder.seconds / seconds,
    }
    result = {
        "setup": setup("halka", "torch", "lancedb", "sentence-transformers"),
        "quality": quality,
        "search": found,
        "ingest": ingest,
    }
    print(json.dumps({"search": found, "ingest": ingest}, indent=1))
    (HERE / "results" / "retrieval.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Tables of retrieval: how well passages are found, and how stores grow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def retrieval(found: Any) -> list[list[str]]:
    """nDCG@10 and how often the first, or one of the first five, is right, of each way to search."""
    names = {"vectors": "vectors", "words": "words (BM25)", "ranks": "by ranks", "joined": "as Halka joins them"}
    rows = [["Set", "Passages", *(f"{each}: nDCG@10, hit@1, hit@5" for each in names.values())]]
    for name, each in found["quality"].items():
        ways = [[each["ways"][way][measure] for measure in ("nDCG@10", "Success@1", "Success@5")] for way in names]
        rows.append([name, f"{each['passages']:,}", *(", ".join(f"{value:.3f}" for value in way) for way in ways)])
    return rows


def growth(found: Any) -> list[list[str]]:
    """How each store's searches grow, for a reader of all passages."""
    kinds = ("rare words", "common words", "vectors", "joined")
    rows = [["Store", "Passages", *kinds, "Recall", "On disk", "Memory", "Taken in a second", "Tidied in"]]
    for store, sizes in found["stores"].items():
        for size, each in sorted(sizes.items(), key=lambda pair: int(pair[0])):
            times = [f"{each['all'][kind]['median']:.0f}, {each['all'][kind]['p95']:.0f}" for kind in kinds]
            disk = "–" if each["disk"] is None else f"{each['disk'] / 1e6:,.0f} MB"
            size_of = [disk, f"{each['memory'] / 1e6:,.0f} MB"]
            taken = [f"{each['put_per_second']:.0f}", f"{each['tidy_seconds']:.1f} s"]
            rows.append([store, f"{int(size):,}", *times, f"{each['all']['recall']:.2f}", *size_of, *taken])
    return rows


def growth_scopes(found: Any) -> list[list[str]]:
    """The same searches for readers of fewer passages."""
    kinds = ("common words", "vectors", "joined")
    rows = [["Store", "Passages", *(f"{kind}, {of}" for of in ("a half", "one in 100") for kind in kinds)]]
    for store, sizes in found["stores"].items():
        for size, each in sorted(sizes.items(), key=lambda pair: int(pair[0])):
            times = [f"{each[scope][kind]['median']:.0f}" for scope in ("half", "one in 100") for kind in kinds]
            rows.append([store, f"{int(size):,}", *times])
    return rows


def searching(found: Any) -> list[list[str]]:
    """What a search and taking in cost."""
    search, ingest = found["search"], found["ingest"]
    return [
        ["All sets in one collection", "Measured"],
        ["passages", f"{search['passages']:,}"],
        ["a search, at the median", f"{search['ms_median']:.0f} ms"],
        ["a search, at the 95th percentile", f"{search['ms_p95']:.0f} ms"],
        ["passages taken in a second", f"{ingest['passages_per_second']:.0f}"],
        ["of that time, the embedder's share", f"{100 * ingest['embedding']:.0f} %"],
    ]


TABLES: dict[str, tuple[str, Callable[[Any], list[list[str]]]]] = {
    "retrieval": ("retrieval", retrieval),
    "searching": ("retrieval", searching),
    "growth": ("growth", growth),
    "growth_scopes": ("growth", growth_scopes),
}

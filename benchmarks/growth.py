"""How a store's searches grow with its passages: by words, by vectors, joined; for readers of all, of half, of few.

    HALKA_DATA=… python benchmarks/growth.py grow PASSAGES     # goes on where it stopped; prints how far it is
    HALKA_DATA=… python benchmarks/growth.py measure           # of the size that the store has now; two minutes
    HALKA_DATA=… python benchmarks/growth.py both PASSAGES     # at 10,000 passages, 100,000 … and PASSAGES

`--place` is `folder` (LanceDB, the default), `postgresql://…`, `qdrant:http://HOST:6333` (a server; `--storage` is its
folder, if it is on this machine, to count its bytes) or `qdrant:FOLDER`. The passages are drawn (growth_passages.py).
Growing may run beside other work; measuring, which also puts a thousand passages, takes them into the indexes and
removes them, needs the machine alone. Each size says at which commit and on which machine it was measured.
The embedder takes no part: questions come with their vectors. Results go to benchmarks/results/growth.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from growth_passages import EVERYONE, IN_DOCUMENT, TEAMS, WIDTH, Drawn
from side_by_side import setup

from halka.rag.collection import Collection
from halka.rag.retrieve import DEPTH, Retriever
from halka.rag.store import Scope, VectorStore
from halka.rag.stores import store_at

RESULTS = Path(__file__).parent / "results" / "growth.json"
AT_ONCE = 100  # documents, a thousand passages
NEW = 10_000_000  # the first number of documents that are put and removed while measuring
SECONDS = 3.5  # for each kind of search
SCOPES = {"all": EVERYONE, "half": "half0", f"one in {TEAMS}": "team0"}


@dataclass
class Growing:
    """A store at a place, the folder where its passages come from, and that of a server's own files, if it is here."""

    place: str
    folder: Path
    storage: Path | None = None

    def open(self, **options: Any) -> VectorStore:
        at = None if self.place == "folder" else self.place
        return store_at(at, "growth", self.folder / "lance", WIDTH, **options)

    @property
    def name(self) -> str:
        if self.place.startswith("qdrant:"):
            return "Qdrant" if self.server else "Qdrant, local"
        return "LanceDB" if self.place == "folder" else "PostgreSQL"

    @property
    def server(self) -> str | None:
        """The address of Qdrant's server."""
        place = self.place.removeprefix("qdrant:")
        return place if place.startswith(("http://", "https://")) else None

    def disk(self) -> int | None:
        """Bytes of the store; None: they are on another machine."""
        if self.place.startswith("postgresql"):
            tables = (
                "SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relname LIKE 'growth.%' AND relkind = 'r'"
            )
            return int(self.sql(tables)[0][0])
        folder = self.folder / "lance" if self.place == "folder" else Path(self.place.removeprefix("qdrant:"))
        if self.server is not None:
            if self.storage is None:
                return None
            folder = self.storage
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

    def memory(self) -> int:
        """Bytes of this process, or of the server and all that serve a connection; Qdrant's server says its own."""
        if self.server is not None:
            key = {"api-key": value} if (value := os.environ.get("QDRANT_API_KEY")) else {}
            with urllib.request.urlopen(urllib.request.Request(f"{self.server}/metrics", headers=key)) as response:
                (resident,) = re.findall(r"(?m)^memory_resident_bytes (\S+)$", response.read().decode())
            return int(float(resident))
        processes = [psutil.Process()]
        if self.place.startswith("postgresql"):
            ids = "SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
            processes = [psutil.Process(id) for (id,) in self.sql(ids) if psutil.pid_exists(id)]
        return sum(process.memory_full_info().pss for process in processes)

    def sql(self, statement: str) -> list[Any]:
        import psycopg

        with psycopg.connect(self.place) as connection:
            return connection.execute(statement.encode()).fetchall()


def grow(growing: Growing, passages: int) -> None:
    drawn, store = Drawn(growing.folder), growing.open()
    start, wanted, began = len(store.documents()), passages // IN_DOCUMENT, time.time()
    for at in range(start, wanted, AT_ONCE):
        store.put(drawn.entries(at, min(AT_ONCE, wanted - at)))
        if at // AT_ONCE % 10 == 9:
            print(f"{growing.name}: {(at + AT_ONCE) * IN_DOCUMENT:,} passages, {time.time() - began:.0f} s", flush=True)
    store.tidy()
    print(f"{growing.name}: {passages:,} passages, tidied, {time.time() - began:.0f} s", flush=True)


class Fixed:
    """An embedder that knows the vectors of the questions."""

    name, width, limit, tokenizer = "drawn", WIDTH, 256, None

    def __init__(self, questions: list[tuple[str, np.ndarray]]):
        self.query = dict(questions).__getitem__


def timed(search: Callable[[str, np.ndarray], Any], questions: list[tuple[str, np.ndarray]]) -> dict[str, float]:
    """Milliseconds of searches, one after another, as many as fit into the seconds."""
    taken: list[float] = []
    search(*questions[0])
    began = time.perf_counter()
    for question in questions[1:]:
        start = time.perf_counter()
        search(*question)
        taken.append(1000 * (time.perf_counter() - start))
        if time.perf_counter() - began > SECONDS:
            break
    return {"searches": len(taken), "median": statistics.median(taken), "p95": float(np.quantile(taken, 0.95))}


def recall(growing: Growing, store: VectorStore, questions: list[tuple[str, np.ndarray]], scope: Scope) -> float:
    """Which share of the ten nearest passages the store returns among its own."""
    exact, shares = growing.open(exact=True), []
    for _, vector in questions:
        true = {found.passage.id for found in exact.nearest(vector, 10, scope)}
        shares.append(len(true & {found.passage.id for found in store.nearest(vector, DEPTH, scope)[:10]}) / 10)
    return statistics.mean(shares)


def measure(growing: Growing) -> None:
    drawn, store = Drawn(growing.folder), growing.open()
    kinds = {kind: drawn.questions(kind, 200) for kind in ("rare", "common")}
    found: dict[str, Any] = {"passages": sum(document.passages for document in store.documents())}
    collection = Collection(growing.folder / "collection", Fixed(kinds["common"]), store)  # type: ignore[arg-type]
    retriever = Retriever(collection)
    for name, reader in SCOPES.items():
        scope = Scope(frozenset([reader]))

        def words(text: str, vector: np.ndarray, scope: Scope = scope) -> Any:
            return store.matching(text, DEPTH, scope)

        def vectors(text: str, vector: np.ndarray, scope: Scope = scope) -> Any:
            return store.nearest(vector, DEPTH, scope)

        def joined(text: str, vector: np.ndarray, scope: Scope = scope) -> Any:
            return retriever.search(text, 8, scope)

        found[name] = {
            "rare words": timed(words, kinds["rare"]),
            "common words": timed(words, kinds["common"]),
            "vectors": timed(vectors, kinds["common"]),
            "joined": timed(joined, kinds["common"]),
            "recall": recall(growing, store, kinds["rare"][:10], scope),
        }
        print(name, json.dumps(found[name]), flush=True)
    found |= {"disk": growing.disk(), "memory": growing.memory()}
    new = [drawn.entries(NEW + at, 25) for at in range(0, AT_ONCE, 25)]
    start = time.perf_counter()
    for entries in new:
        store.put(entries)
    put = time.perf_counter()
    store.tidy()
    tidied = time.perf_counter()
    store.remove([entry.document.name for entries in new for entry in entries])
    found |= {"put_per_second": AT_ONCE * IN_DOCUMENT / (put - start), "tidy_seconds": tidied - put}
    found["remove_seconds"] = time.perf_counter() - tidied
    print(json.dumps(found, indent=1))
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"stores": {}}
    found["setup"] = results["setup"] = setup("halka", "lancedb", "psycopg", "qdrant-client")
    results["stores"].setdefault(growing.name, {})[str(found["passages"])] = found
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("do", choices=["grow", "measure", "both"])
    parser.add_argument("passages", type=int, nargs="?", default=10_000)
    parser.add_argument("--place", default="folder")
    parser.add_argument("--folder", type=Path, default=Path("growing"))
    parser.add_argument("--storage", type=Path, help="the folder of Qdrant's server, if it is on this machine")
    asked = parser.parse_args()
    growing = Growing(asked.place, asked.folder.resolve(), asked.storage)
    growing.folder.mkdir(parents=True, exist_ok=True)
    for passages in [10**power for power in range(4, 7) if asked.do == "both" and 10**power < asked.passages]:
        grow(growing, passages)
        measure(growing)
    if asked.do != "measure":
        grow(growing, asked.passages)
    if asked.do != "grow":
        measure(growing)


if __name__ == "__main__":
    main()

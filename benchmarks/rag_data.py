"""Documents and questions for `benchmarks/experiments/rag_*.yaml`, from two public sets.

    HALKA_DATA=… python benchmarks/rag_data.py              # writes benchmarks/data/rag, a few seconds

nq_oracle: Natural Questions with the passage of Wikipedia that holds each answer (Kwiatkowski et al. 2019; Liu et al.
2023, arXiv:2307.03172; MIT, passages CC BY-SA). tofu: questions on invented authors (Maini et al. 2024,
arXiv:2401.06121; MIT), whose documents are built of the gold answers, four each.

The splits are fixed and share no passage, in tofu no author. Of the questions in `test` and `development` one in five
has no answer in the documents: its passage was left out (tofu: its author's sentence). `development` is for choices
between settings, so that the test is read once; tofu, which has too few questions, has none. Folders whose names end
in -long have 500 test questions and more, the others 300 and 200, of which the first tables are.
"""

from __future__ import annotations

import gzip
import json
import os
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

OUT = Path(__file__).parent / "data" / "rag"
SPLITS = ("test", "validation", "train", "development")
PASSAGES = {"nq_oracle": (300, 60, 1000), "nq_oracle-long": (500, 80, 1600, 300)}  # of the splits
AUTHORS = {"tofu": (10, 3, 22), "tofu-long": (25, 3, 7)}
PART = 4  # answers a document of tofu
WITHHELD = 5  # one test question in so many


def rows(path: str) -> list[dict[str, Any]]:
    whole = Path(os.environ["HALKA_DATA"]) / path
    with (gzip.open if path.endswith(".gz") else open)(whole, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def write(path: Path, found: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in found), encoding="utf-8")


def splits(items: Sequence[Any], sizes: Sequence[int], seed: int = 0) -> list[list[Any]]:
    """The items in so many shuffled parts; the last part's may be fewer."""
    mixed = [*items]
    random.Random(seed).shuffle(mixed)
    parts, start = [], 0
    for size in sizes:
        parts.append(mixed[start : start + size])
        start += size
    return parts


def nq_oracle(folder: Path, sizes: Sequence[int]) -> None:
    by_passage: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for each in rows("nq_oracle/nq-open-oracle.jsonl.gz"):
        by_passage[each["ctxs"][0]["title"], each["ctxs"][0]["text"]].append(each)
    parts = splits([*by_passage.items()], sizes)
    names = {passage: f"{number:04d} {passage[0]}" for number, passage in enumerate(by_passage)}
    asked_of = [part for split, part in zip(SPLITS, parts, strict=False) if split in ("test", "development")]
    withheld = {passage for part in asked_of for number, (passage, _) in enumerate(part) if number % WITHHELD == 0}
    kept = [passage for passage in by_passage if passage not in withheld]
    write(folder / "documents.jsonl", ({"name": names[each], "text": f"# {each[0]}\n\n{each[1]}"} for each in kept))
    for split, part in zip(SPLITS, parts, strict=False):
        write(
            folder / f"{split}.jsonl",
            (
                {"question": each["question"], "answers": [], "would_be": each["answers"]}
                if passage in withheld
                else {"question": each["question"], "answers": each["answers"], "document": names[passage]}
                for passage, asked in part
                for each in asked[:1]
            ),
        )


def tofu(folder: Path, sizes: Sequence[int]) -> None:
    by_author: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for each in rows("tofu/qa.jsonl"):
        by_author[each["author_id"]].append(each)
    parts = splits([*by_author], sizes)
    withheld = {
        (author, number)
        for author in parts[0]
        for number in range(len(by_author[author]))
        if (author + number) % WITHHELD == 0
    }
    documents = []
    for author, asked in by_author.items():
        for start in range(0, len(asked), PART):
            numbers = range(start, min(start + PART, len(asked)))
            told = " ".join(asked[number]["answer"] for number in numbers if (author, number) not in withheld)
            documents.append({"name": f"author {author} part {start // PART}", "text": told})
    write(folder / "documents.jsonl", documents)
    for split, authors in zip(SPLITS, parts, strict=False):
        found = [
            {"question": each["question"], "answers": [], "would_be": [each["answer"]]}
            if (author, number) in withheld
            else {
                "question": each["question"],
                "answers": [each["answer"]],
                "document": f"author {author} part {number // PART}",
            }
            for author in authors
            for number, each in enumerate(by_author[author])
        ]
        random.Random(0).shuffle(found)
        write(folder / f"{split}.jsonl", found)


if __name__ == "__main__":
    for name, sizes in PASSAGES.items():
        nq_oracle(OUT / name, sizes)
    for name, sizes in AUTHORS.items():
        tofu(OUT / name, sizes)
    for path in sorted(OUT.glob("*/*.jsonl")):
        print(path, sum(1 for _ in path.open(encoding="utf-8")))

"""A text's words as numbers and weights, so that a product of two is BM25: for stores that keep sparse vectors.

The store multiplies with how rare a word is; everything else of BM25 is in the weights of a passage. That includes its
length, measured against one fixed here, since no passage is written anew when others come.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from functools import lru_cache

from halka.rag.store import BM25_B, BM25_K1

LENGTH = 128  # words of a usual passage, as the default embedder has them cut, those below left out
WORD = re.compile(r"\w+")
# Lucene's: they single nothing out.
LEFT_OUT = frozenset(
    WORD.findall(
        "a an and are as at be but by for if in into is it no not of on or such that the their then there these they "
        "this to was will with"
    )
)


def counted(text: str) -> Counter[int]:
    """How often each word is in a text; words are numbers that their English stems are hashed to."""
    return Counter(_number(word) for word in WORD.findall(text.lower()) if word not in LEFT_OUT)


def weighed(words: Counter[int]) -> dict[int, float]:
    """A passage's words to what each adds to a score, but for how rare it is."""
    norm = BM25_K1 * (1 - BM25_B + BM25_B * words.total() / LENGTH)
    return {word: times * (BM25_K1 + 1) / (times + norm) for word, times in words.items()}


@lru_cache(maxsize=100_000)
def _number(word: str) -> int:
    from snowballstemmer import stemmer

    return zlib.crc32(stemmer("english").stemWord(word).encode("utf-8", "surrogatepass"))

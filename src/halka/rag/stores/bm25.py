"""BM25 as a product of sparse vectors: a text's words as numbers with weights.

The store multiplies by how rare a word is; everything else of BM25 is in a passage's weights. Its length is compared
with a fixed one, since passages are not written again when others are added.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from functools import lru_cache

from halka.rag.store import BM25_B, BM25_K1

LENGTH = 128  # words of a usual passage for the default embedder, without stop words
WORD = re.compile(r"\w+")
# Lucene's stop words.
LEFT_OUT = frozenset(
    WORD.findall(
        "a an and are as at be but by for if in into is it no not of on or such that the their then there these they "
        "this to was will with"
    )
)


def counted(text: str) -> Counter[int]:
    """How often each word occurs in a text; a word is the hash of its English stem."""
    return Counter(_number(word) for word in WORD.findall(text.lower()) if word not in LEFT_OUT)


def weighed(words: Counter[int]) -> dict[int, float]:
    """The weights of a passage's words: BM25 without the factor for how rare a word is."""
    norm = BM25_K1 * (1 - BM25_B + BM25_B * words.total() / LENGTH)
    return {word: times * (BM25_K1 + 1) / (times + norm) for word, times in words.items()}


@lru_cache(maxsize=100_000)
def _number(word: str) -> int:
    from snowballstemmer import stemmer

    return zlib.crc32(stemmer("english").stemWord(word).encode("utf-8", "surrogatepass"))

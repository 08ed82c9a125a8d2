"""BM25 as a dot product of sparse vectors, from a text's words, as numbers, to their weights.

The store multiplies by a word's inverse document frequency; a passage's weights hold the rest of BM25. A fixed length
stands for the average passage's, since adding passages does not rewrite the others.
"""

from __future__ import annotations

import zlib
from collections import Counter
from functools import lru_cache

import regex

from halka.rag.store import BM25_B, BM25_K1

LENGTH = 128  # words of a typical passage for the default embedder, without stop words
WORD = regex.compile(r"\w+")  # with the vowel signs of Bengali or Hindi, which `re` takes for spaces
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
    """The weights of a passage's words: BM25 without the inverse document frequency."""
    norm = BM25_K1 * (1 - BM25_B + BM25_B * words.total() / LENGTH)
    return {word: times * (BM25_K1 + 1) / (times + norm) for word, times in words.items()}


@lru_cache(maxsize=100_000)
def _number(word: str) -> int:
    from snowballstemmer import stemmer

    return zlib.crc32(stemmer("english").stemWord(word).encode("utf-8", "surrogatepass"))

"""Embedders: one without weights, and a small one of the sentence-transformers library."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers


class WordEmbedder:
    """A text's vector is the sum of its words' own, so that texts of like words are near."""

    name = "words"
    width = 32

    def __init__(self, limit: int = 64):
        self.limit = limit
        self.tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
        self.tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
        self.embedded = 0

    def passages(self, texts: Sequence[str]) -> np.ndarray:
        self.embedded += len(texts)
        return np.stack([self.query(text) for text in texts]) if texts else np.zeros((0, self.width), np.float32)

    def query(self, text: str) -> np.ndarray:
        words = re.findall(r"\w+", text.lower())
        vectors = [np.random.default_rng(zlib.crc32(word.encode())).normal(size=self.width) for word in words]
        total = np.sum(vectors, axis=0) if vectors else np.ones(self.width)
        return (total / np.linalg.norm(total)).astype(np.float32)


class PiecesEmbedder(WordEmbedder):
    """As MiniLM it reads words in pieces, here letters, and what is longer than 100 of them as one unknown word."""

    def __init__(self, limit: int = 64):
        super().__init__(limit)
        signs = "".join(map(chr, range(33, 127)))
        known = ["[UNK]", *signs, *(f"##{each}" for each in signs)]
        self.tokenizer = Tokenizer(models.WordPiece({each: at for at, each in enumerate(known)}, unk_token="[UNK]"))
        self.tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]


TEXT = "the parcels are sent on monday refunds take nine days where is my parcel salary secret"


def sentence_embedder(folder: Path) -> Path:
    """The folder of a BERT of random weights, as `SentenceEmbedder` takes it."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertModel

    bert = Transformer(str(small_bert(folder / "bert", BertModel)), max_seq_length=128)
    SentenceTransformer(modules=[bert, Pooling(32)], device="cpu").save(str(folder / "made"))
    return folder / "made"


def static_embedder(folder: Path, seed: int = 0) -> Path:
    """The folder of an embedder that adds up words' vectors, which the seed draws."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(["[UNK]", *sorted({*TEXT.split()})])}))
    tokenizer.model.unk_token = "[UNK]"
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    vectors = np.random.default_rng(seed).normal(size=(tokenizer.get_vocab_size(), 32)).astype(np.float32)
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, vectors)], device="cpu").save(str(folder))
    return folder


def small_bert(folder: Path, kind: type, **options: int) -> Path:
    """The folder of a BERT of that class of transformers', of random weights, with its tokenizer."""
    from transformers import BertConfig, BertTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *TEXT.split(), *"abcdefghijklmnopqrstuvwxyz", ".", "?"]
    (folder / "vocab.txt").write_text("\n".join([*tokens, *(f"##{each}" for each in "abcdefghijklmnopqrstuvwxyz")]))
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=128)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=128,
        **options,
    )
    kind(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder

"""Tokenizers of every way that tokens become text, small and real: byte-level, SentencePiece's, WordPiece."""

from __future__ import annotations

import json

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tokenizers_for_tests import SENTENCES, chatml_tokenizer, llama3_tokenizer

TEXTS = [
    "What is the capital of France? The capital is Paris.",
    "আমি বাংলায় গান গাই। সোনার বাংলা 😀👍🏽 naïve café",
    "  two spaces\n\n\tand a tab; 你好，世界! \ufffd a real replacement character",
    "👨‍👩‍👧‍👦🇫🇷é́",
]


def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """As Llama 2's: spaces are ▁, one is put before the text and taken off again; unknown characters become bytes."""
    core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    core.train_from_iterator(
        SENTENCES, trainers.BpeTrainer(vocab_size=500, special_tokens=special[:3], show_progress=False)
    )
    vocabulary = {token: number for number, token in enumerate(special)}
    for token in sorted(core.get_vocab(), key=core.get_vocab().__getitem__):
        vocabulary.setdefault(token, len(vocabulary))
    core.model = models.BPE(vocabulary, merges_of(core), byte_fallback=True, unk_token="<unk>")
    core.add_special_tokens([AddedToken(token, special=True) for token in special[:3]])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def merges_of(core: Tokenizer) -> list[tuple[str, str]]:
    return [tuple(pair) for pair in json.loads(core.to_str())["model"]["merges"]]


def metaspace_tokenizer() -> PreTrainedTokenizerFast:
    """As newer SentencePiece vocabularies': a unigram model, and ▁ at the beginning only."""
    core = Tokenizer(models.Unigram())
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    core.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    core.train_from_iterator(SENTENCES * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", unk_token="<unk>")


def wordpiece_tokenizer() -> PreTrainedTokenizerFast:
    """As BERT's, its spaces as the decoder puts them."""
    core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece(cleanup=False)
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]", "[SEP]"], show_progress=False)
    core.train_from_iterator(SENTENCES * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="[SEP]", unk_token="[UNK]")


def added_words_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level one with words added later, that are text."""
    tokenizer = chatml_tokenizer()
    tokenizer.add_tokens(["<tool_call>", "naïve😀", " "])
    return tokenizer


VOCABULARIES = {
    "byte-level": chatml_tokenizer,
    "llama3": llama3_tokenizer,
    "sentencepiece": sentencepiece_tokenizer,
    "metaspace": metaspace_tokenizer,
    "wordpiece": wordpiece_tokenizer,
    "added": added_words_tokenizer,
}

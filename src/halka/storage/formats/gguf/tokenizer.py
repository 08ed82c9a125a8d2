"""Write a byte-level BPE tokenizer into a GGUF file: tokens, merges, special tokens, chat template, pre-tokenizer.

llama.cpp has its own names for pre-tokenizers; `SPLITS` derives them from the tokenizer's steps. A tokenizer with other
steps is refused: llama.cpp would give the model other tokens than it was trained on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halka.util.errors import HalkaError

if TYPE_CHECKING:
    from gguf import GGUFWriter

GPT2 = "as GPT-2 does"  # the pattern of the ByteLevel step, or the same pattern spelled out
GPT2_PATTERNS = tuple(
    rf"{endings}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+"
    for endings in ("'s|'t|'re|'ve|'m|'ll|'d", "'(?:[sdmt]|ll|ve|re)")
)
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
SPLITS: dict[tuple[str, ...], str] = {  # pre-tokenizer steps -> llama.cpp's name
    (GPT2,): "gpt-2",
    ("each digit", GPT2): "smollm",
    (LLAMA3,): "llama-bpe",
    (QWEN2,): "qwen2",
}


def write_tokenizer(writer: GGUFWriter, tokenizer: Any, folder: Path, size: int) -> None:
    """Add `tokenizer`, saved in `folder` by transformers, to a file; the vocabulary is padded to `size` embeddings.

    Raises HalkaError for a tokenizer that llama.cpp would not reproduce.
    """
    from gguf import SpecialVocab, TokenType

    split = split_of(json.loads(tokenizer.backend_tokenizer.to_str()))
    names = {number: token for token, number in tokenizer.get_vocab().items()}
    if max(names) >= size:
        raise HalkaError(f"the tokenizer has a token {max(names)}, where the model has {size} embeddings")
    added = tokenizer.added_tokens_decoder
    tokens: list[str] = []
    kinds: list[TokenType] = []
    for number in range(size):
        token = names.get(number)
        if token is None:
            kind = TokenType.UNUSED
        elif number not in added:
            kind = TokenType.NORMAL
        else:
            control = added[number].special or (token.startswith("<|") and token.endswith("|>"))
            kind = TokenType.CONTROL if control else TokenType.USER_DEFINED
        tokens.append(f"[PAD{number}]" if token is None else token)
        kinds.append(kind)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    special = SpecialVocab(folder, load_merges=True, n_vocab=size)
    if split == SPLITS[(LLAMA3,)]:  # where the file does not say, llama.cpp begins such texts with a BOS
        special.add_special_token.setdefault("bos", [tokenizer.bos_token_id] == tokenizer("").input_ids[:1])
    special.add_to_gguf(writer, quiet=True)


def split_of(spec: dict[str, Any]) -> str:
    """Return llama.cpp's name for the pre-tokenizer of a `tokenizer.json`. Raises HalkaError if it has none."""
    model, normalizer = spec["model"], spec["normalizer"]
    steps = tuple(_steps(spec["pre_tokenizer"]))
    if model["type"] != "BPE" or model.get("byte_fallback") or steps not in SPLITS:
        summary = f"{model['type']} with {' and '.join(steps) or 'no'} splitting"
        raise HalkaError(
            f"this tokenizer ({summary}) cannot be written as GGUF here, which has byte-level BPE as in "
            f"{', '.join(SPLITS.values())}: write safetensors and try llama.cpp's own convert_hf_to_gguf.py"
        )
    if normalizer not in (None, {"type": "NFC"}):
        raise HalkaError(f"this tokenizer normalises text first ({normalizer['type']}), which llama.cpp would not do")
    return SPLITS[steps]


def _steps(step: dict[str, Any] | None) -> list[str]:
    """Return the steps that split the text, in order."""
    match step:
        case None:
            return []
        case {"type": "Sequence", "pretokenizers": inner}:
            return [name for step in inner for name in _steps(step)]
        case {"type": "Digits", "individual_digits": True}:
            return ["each digit"]
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": regex}:
            return [GPT2] if regex else []
        case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}:
            return [GPT2 if pattern in GPT2_PATTERNS else pattern]
        case _:
            return [json.dumps(step)]

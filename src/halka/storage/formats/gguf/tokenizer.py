"""A byte-level BPE tokenizer in a GGUF file: its tokens, merges, special tokens, chat template, and how it splits text.

llama.cpp knows the ways of splitting text by names of its own; here they follow from what the tokenizer does
(`SPLITS`), and one that splits in another way is refused: its tokens would be others than the model was trained on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halka.util.errors import HalkaError

if TYPE_CHECKING:
    from gguf import GGUFWriter

GPT2 = "as GPT-2 does"  # the byte-level step's own pattern, or the same written out
GPT2_PATTERNS = tuple(
    rf"{endings}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+"
    for endings in ("'s|'t|'re|'ve|'m|'ll|'d", "'(?:[sdmt]|ll|ve|re)")
)
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
SPLITS: dict[tuple[str, ...], str] = {  # the steps that split text -> llama.cpp's name
    (GPT2,): "gpt-2",
    ("each digit", GPT2): "smollm",
    (LLAMA3,): "llama-bpe",
    (QWEN2,): "qwen2",
}


def write_tokenizer(writer: GGUFWriter, tokenizer: Any, folder: Path, size: int) -> None:
    """Add `tokenizer`, which `folder` holds as transformers saves it, to a file; `size` rows of embeddings are named.

    Raises HalkaError for a tokenizer that llama.cpp would not follow.
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
    SpecialVocab(folder, load_merges=True, n_vocab=size).add_to_gguf(writer, quiet=True)


def split_of(spec: dict[str, Any]) -> str:
    """llama.cpp's name for how a tokenizer, as `tokenizer.json` has it, splits text. Raises HalkaError for none."""
    model, normalizer = spec["model"], spec["normalizer"]
    steps = tuple(_steps(spec["pre_tokenizer"]))
    if model["type"] != "BPE" or model.get("byte_fallback") or steps not in SPLITS:
        told = f"{model['type']} with {' and '.join(steps) or 'no'} splitting"
        raise HalkaError(
            f"this tokenizer ({told}) is none that can be written as GGUF here, which has byte-level BPE as in "
            f"{', '.join(SPLITS.values())}: write safetensors and try llama.cpp's own convert_hf_to_gguf.py"
        )
    if normalizer not in (None, {"type": "NFC"}):
        raise HalkaError(f"this tokenizer changes its text first ({normalizer['type']}), which llama.cpp would not do")
    return SPLITS[steps]


def _steps(step: dict[str, Any] | None) -> list[str]:
    """What splits the text, in turn."""
    match step:
        case None:
            return []
        case {"type": "Sequence", "pretokenizers": inner}:
            return [each for one in inner for each in _steps(one)]
        case {"type": "Digits", "individual_digits": True}:
            return ["each digit"]
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": regex}:
            return [GPT2] if regex else []
        case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}:
            return [GPT2 if pattern in GPT2_PATTERNS else pattern]
        case _:
            return [json.dumps(step)]

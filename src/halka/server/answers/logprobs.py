"""Log probabilities of tokens in OpenAI's two forms, that of chat and that of completions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from typing import Any

from halka.engine.logprobs import TokenLogprob

KEPT = 2**16  # tokens whose texts are kept: a request may ask for twenty beside each of thousands
BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class TokenTexts:
    """What single tokens of a tokenizer stand for."""

    def __init__(self, tokenizer: Any, ends: Iterable[int]):
        """ends: tokens that end a text and are no part of it."""
        self._tokenizer, self._ends = tokenizer, frozenset(ends)
        self._special = {number: token.content for number, token in tokenizer.added_tokens_decoder.items()}
        self._entries = lru_cache(KEPT)(self._written)

    def raw(self, token: int) -> bytes:
        """A token's bytes, which need not be whole characters."""
        if token in self._special:
            return self._special[token].encode()
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if piece is None:
            return b""
        if byte := BYTE.fullmatch(piece):
            return bytes([int(byte[1], 16)])
        if self._byte_level:
            return b"".join(self._bytes_of.get(letter) or letter.encode() for letter in piece)
        return piece.replace("\u2581", " ").encode()

    def text(self, token: int) -> str:
        """A token's text; bytes that are no character by their numbers, as OpenAI writes them."""
        return self._entries(token)[0]

    def for_chat(self, tokens: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
        """As `choices[].logprobs.content` has them."""
        return [
            {**self._entry(item.token, item.logprob), "top_logprobs": [self._entry(*other) for other in item.top]}
            for item in tokens
            if item.token not in self._ends
        ]

    def for_completion(self, tokens: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
        """As a completion's `choices[].logprobs` has them; `offset` is where the first token's text begins."""
        kept = [item for item in tokens if item.token not in self._ends]
        texts = [self.text(item.token) for item in kept]
        ends = [offset := offset + len(text) for text in texts]
        return {
            "tokens": texts,
            "token_logprobs": [item.logprob for item in kept],
            "top_logprobs": [{self.text(token): logprob for token, logprob in item.top} for item in kept],
            "text_offset": [end - len(text) for end, text in zip(ends, texts, strict=True)],
        }

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        text, bytes = self._entries(token)
        return {"token": text, "logprob": logprob, "bytes": bytes}

    def _written(self, token: int) -> tuple[str, list[int]]:
        """A token's text and its bytes."""
        raw = self.raw(token)
        try:
            return raw.decode(), [*raw]
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw), [*raw]

    @cached_property
    def _byte_level(self) -> bool:
        decoder = getattr(getattr(self._tokenizer, "backend_tokenizer", None), "decoder", None)
        return "ByteLevel" in repr(decoder)

    @cached_property
    def _bytes_of(self) -> dict[str, bytes]:
        """The byte that each letter of a byte-level vocabulary stands for (GPT-2's `bytes_to_unicode`)."""
        printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
        others = [byte for byte in range(256) if byte not in printable]
        letters = [*map(chr, printable), *(chr(256 + number) for number in range(len(others)))]
        return {letter: bytes([byte]) for letter, byte in zip(letters, [*printable, *others], strict=True)}

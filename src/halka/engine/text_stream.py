"""`TextStream`: the text of tokens that come one by one."""

from __future__ import annotations

import re
from typing import Any
from weakref import WeakKeyDictionary

WINDOW = 16  # tokens that are decoded together, at most, save a run of bytes
CONTEXT = 4  # tokens kept of a full window: a character has up to four bytes, so up to three tokens may be incomplete
INCOMPLETE = "\ufffd"  # what tokenizers put for a character whose last bytes are missing
BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_special: WeakKeyDictionary[Any, tuple[int, frozenset[int]]] = WeakKeyDictionary()
"""Of each tokenizer how many tokens it had, and the special ones, of which some have thousands."""


def special_tokens(tokenizer: Any) -> frozenset[int]:
    """The ids of the tokens that are no text, read anew where the tokenizer has more tokens than before."""
    before, special = _special.get(tokenizer, (0, frozenset[int]()))
    if before != (length := len(tokenizer)):
        added = tokenizer.added_tokens_decoder.items()
        special = frozenset(number for number, token in added if token.special)
        _special[tokenizer] = length, special
    return special


class TextStream:
    """Decodes tokens as they come; all pieces joined are `tokenizer.decode(tokens, skip_special_tokens=True)`.

    The work for a token does not depend on the number before it: a few tokens are decoded together, and what they add
    to the text before is new. Two things wait: a character until its last byte, and a run of byte tokens (the byte
    fallback of SentencePiece's vocabularies, which decodes as a whole or not at all) until a token of another kind.

    There is no such promise for tokenizers that clean up spaces after decoding (`clean_up_tokenization_spaces`).
    """

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._skipped = special_tokens(tokenizer)
        self._window: list[int] = []
        self._sent = 0  # characters of the window's text

    def push(self, token: int) -> str:
        """The text that is certain now and was not before."""
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if token in self._skipped or piece is None:  # None: the embedding has more rows than the tokenizer has tokens
            return ""
        self._window.append(token)
        return "" if BYTE.fullmatch(piece) else self._take(final=False)

    def end(self) -> str:
        """The rest of the text, whatever is incomplete."""
        return self._take(final=True)

    def _take(self, final: bool) -> str:
        text = self._decode()
        new = text[self._sent : len(text) - self._waiting(text, final)]
        self._sent += len(new)
        if len(self._window) > WINDOW:
            self._window = self._window[-CONTEXT:]
            text = self._decode()
            self._sent = len(text) - self._waiting(text, final)
        return new

    def _waiting(self, text: str, final: bool) -> int:
        """The number of characters at the text's end that may change."""
        return 1 if text.endswith(INCOMPLETE) and not final else 0

    def _decode(self) -> str:
        return self._tokenizer.decode(self._window, skip_special_tokens=True)

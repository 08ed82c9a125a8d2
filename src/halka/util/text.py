"""Text for people and Cards: any value on one line, a chat template's fingerprint."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

JOINERS = "\u200c\u200d"  # part of the spelling in Bengali and other scripts


def one_line(value: object) -> str:
    """The value as one line of text, without control characters and marks that change the writing direction."""
    return " ".join("".join(c if c.isprintable() or c in JOINERS else " " for c in str(value)).split())


def chat_template_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Twelve hexadecimal digits of the chat template's sha256, "none" without a template."""
    if tokenizer.chat_template is None:
        return "none"
    return hashlib.sha256(tokenizer.get_chat_template().encode()).hexdigest()[:12]

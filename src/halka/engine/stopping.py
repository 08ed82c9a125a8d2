"""When a text ends: at an end token, a stop token, a stop string, or a number of tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal

from halka.data.answers import Spoken
from halka.engine.checked import checked
from halka.engine.text_stream import TextStream
from halka.util.errors import HalkaError

Reason = Literal["stop", "length"]


@dataclass(frozen=True)
class Stopping:
    """Where a request's text ends, besides the model's own end tokens.

    max_new_tokens  the most tokens, an end token among them
    strings         the text ends before the first of these that is complete
    tokens          ids of tokens that end the text and are no part of it
    ignore_ends     whether the model's own end tokens end nothing: texts of a set length, to measure

    Raises HalkaError for a value that no text can end at.
    """

    max_new_tokens: int = 256
    strings: tuple[str, ...] = ()
    tokens: frozenset[int] = frozenset()
    ignore_ends: bool = False

    def __post_init__(self) -> None:
        most = checked("max_new_tokens", self.max_new_tokens, Integral, 1, math.inf, "a whole number, 1 or above")
        object.__setattr__(self, "max_new_tokens", most)
        if isinstance(self.strings, str) or not all(isinstance(text, str) and text for text in self.strings):
            raise HalkaError(f"strings is {self.strings!r}: it is a tuple of texts, none of them empty")
        own = (
            checked("tokens", token, Integral, 0, math.inf, "a set of token ids, 0 or above") for token in self.tokens
        )
        object.__setattr__(self, "tokens", frozenset(own))


class StoppedText:
    """A request's text as its tokens come, up to where it ends.

    opening: what its tokens may begin with that is no part of it, see `data.answers`; stop strings do not end that.

    reason  why it ended: "stop" at an end token, stop token or stop string, "length" at the most tokens; None before
    tokens  the number of tokens so far, the one that ended the text among them
    """

    def __init__(self, tokenizer: Any, stopping: Stopping, ends: frozenset[int], opening: str = ""):
        self.reason: Reason | None = None
        self.tokens = 0
        self._stopping = stopping
        self._ends = stopping.tokens if stopping.ignore_ends else ends | stopping.tokens
        self._stream, self._spoken = TextStream(tokenizer), Spoken(opening)
        self._held = ""  # the end of the text that is certain, but may be the beginning of a stop string

    def push(self, token: int) -> str:
        """The text to pass on after this token; all of the rest if it ends the text. No token may follow the last."""
        assert self.reason is None, "the text has ended"
        self.tokens += 1
        if token in self._ends:
            return self.close("stop")
        text = self._until_stop(self._spoken.push(self._stream.push(token)))
        if self.reason is None and self.tokens == self._stopping.max_new_tokens:
            text += self.close("length")
        return text

    def close(self, reason: Reason) -> str:
        """End the text for the reason of whoever calls; the rest of it. A stop string in the rest is a stop.

        One that is complete with the last token that it may have has ended by a stop, too.
        """
        if self.reason is not None:
            self.reason = reason if self.reason == "length" else self.reason
            return ""
        text = self._until_stop(self._spoken.push(self._stream.end()) + self._spoken.end())
        if self.reason is None:
            self.reason = reason
            text, self._held = text + self._held, ""
        return text

    def _until_stop(self, new: str) -> str:
        """The text up to a stop string, less what may be the beginning of one. Of two, the first that is complete."""
        text = self._held + new
        ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in self._stopping.strings if stop in text]
        if ends:
            self.reason, self._held = "stop", ""
            return text[: min(ends)[1]]
        held = max((_overlap(text, stop) for stop in self._stopping.strings), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """The length of the longest beginning of `stop` that `text` ends with."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)

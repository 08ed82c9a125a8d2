"""The next token of each text whose logits a step has computed, or what is wrong with it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from torch import Tensor

from halka.engine.logprobs import TokenLogprob, token_logprobs
from halka.engine.sampling import choose, likeliest_with_logits, rows_of
from halka.engine.text import Text
from halka.util.errors import HalkaError

Chosen = tuple[Text, int | Exception, TokenLogprob | None]


def next_tokens(texts: Sequence[Text], logits: Tensor) -> Iterator[Chosen]:
    """Each text with its next token and, if its request asks for it, how likely that was: logits (len(texts), V)."""
    tokens, highest = likeliest_with_logits(logits)
    rows = list[int]()  # of the logits, whose token can be chosen
    allowed: list[Tensor | None] = []
    for row, text in enumerate(texts):
        try:
            if not math.isfinite(highest[row]):
                who = "the base" if text.version.name is None else f"adapter {text.version.name!r}"
                raise HalkaError(
                    f"{who} makes logits that are no numbers: are its weights finite, and does the base's precision "
                    "hold what it computes (float16 may not: try float32)?"
                )
            allowed.append(text.allowed(logits.shape[-1]))
            rows.append(row)
        except Exception as error:
            yield text, error, None
    texts = [texts[row] for row in rows]
    logits = logits if len(rows) == len(logits) else rows_of(logits, rows)
    chosen = choose(logits, [text.draw for text in texts], allowed, [tokens[row] for row in rows])
    asking = {  # the rows whose log probabilities somebody wants, and their tokens
        row: token
        for row, (text, token) in enumerate(zip(texts, chosen, strict=True))
        if text.answer.request.logprobs is not None and not isinstance(token, Exception)
    }
    logprobs: dict[int, TokenLogprob] = {}
    if asking:
        tops = [texts[row].answer.request.logprobs or 0 for row in asking]
        logprobs = dict(zip(asking, token_logprobs(rows_of(logits, [*asking]), [*asking.values()], tops), strict=True))
    for row, (text, token) in enumerate(zip(texts, chosen, strict=True)):
        yield text, token, logprobs.get(row)

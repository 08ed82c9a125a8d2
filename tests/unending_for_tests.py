"""Answers that do not end by themselves, for tests of who ends them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial

from halka.engine.engine import Engine


@contextmanager
def unending(*engines: Engine) -> Iterator[None]:
    """Within the block no answer of these gets the last token that it may have: steps wait until somebody ends it.

    End tokens and stop strings are the test's own business.
    """

    def advance(engine: Engine) -> Future[None] | None:
        answers = [text.answer for text in engine.schedule.running]
        if any(len(answer.tokens) + 1 >= answer.request.stopping.max_new_tokens for answer in answers):
            time.sleep(0.005)
            return None
        return Engine.advance(engine)

    for engine in engines:
        engine.advance = partial(advance, engine)
    try:
        yield
    finally:
        for engine in engines:
            del engine.advance

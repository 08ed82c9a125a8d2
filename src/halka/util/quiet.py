"""What other libraries say while they are loaded, left unsaid: progress bars, and advice that nobody asked for."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """transformers without progress bars and advice; its settings are as before afterwards."""
    from transformers.utils import logging as theirs

    level = theirs.get_verbosity()
    hook = theirs.set_tqdm_hook(lambda make, args, kwargs: make(*args, **{**kwargs, "disable": True}))
    theirs.set_verbosity_error()
    try:
        yield
    finally:
        theirs.set_verbosity(level)
        theirs.set_tqdm_hook(hook)


@contextmanager
def quiet_bitsandbytes() -> Iterator[None]:
    """bitsandbytes, imported by us or by others, without a word of a faster kernel that it would fetch from the hub."""
    log = logging.getLogger("bitsandbytes.backends.cpu.ops")

    def other(record: logging.LogRecord) -> bool:
        return "gemm_4bit_forward" not in record.getMessage()

    log.addFilter(other)
    try:
        yield
    finally:
        log.removeFilter(other)

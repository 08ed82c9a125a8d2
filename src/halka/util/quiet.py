"""Keep other libraries' progress bars, logging and warnings off stderr."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock

VARIABLES = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # transformers and sentence-transformers follow it, too
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "HF_HUB_VERBOSITY": "error",
    "LANCEDB_LOG": "error",  # it warns of every empty part of an index
}


def quiet_process() -> None:
    """Keep libraries quiet in this process and those that it starts: for a command line, before it imports them.

    Variables that are set in the environment, and options like `python -W`, stay as they are.
    """
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", module=r"(?!halka\b)")


class _Blocks:
    """The blocks of `quiet_libraries` under way, in all threads."""

    lock, number, settings = Lock(), 0, ExitStack()


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep transformers and bitsandbytes quiet within the block; their settings are restored after the last thread's.

    bitsandbytes logs, when it is imported, that it would fetch a faster kernel from the hub.
    """
    with _Blocks.lock:
        if not _Blocks.number:
            _Blocks.settings.enter_context(_quiet_settings())
        _Blocks.number += 1
    try:
        yield
    finally:
        with _Blocks.lock:
            _Blocks.number -= 1
            if not _Blocks.number:
                _Blocks.settings.close()


@contextmanager
def _quiet_settings() -> Iterator[None]:
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    hook = transformers_logging.set_tqdm_hook(lambda make, args, kwargs: make(*args, **{**kwargs, "disable": True}))
    transformers_logging.set_verbosity_error()
    bitsandbytes = logging.getLogger("bitsandbytes.backends.cpu.ops")
    bitsandbytes.addFilter(_is_no_offer)
    try:
        yield
    finally:
        bitsandbytes.removeFilter(_is_no_offer)
        transformers_logging.set_verbosity(level)
        transformers_logging.set_tqdm_hook(hook)


def _is_no_offer(record: logging.LogRecord) -> bool:
    return "gemm_4bit_forward" not in record.getMessage()

"""The command of a new Python process, which imports from the working folder only where this process does."""

from __future__ import annotations

import os
import sys


def program(module: str, *arguments: str) -> list[str]:
    """`python -m MODULE ARGUMENTS`, by this interpreter.

    Without -P a `random.py` in the working folder would be run in place of the library's, which `halka` does not do.
    """
    return [sys.executable, *([] if _imports_from_here() else ["-P"]), "-m", module, *arguments]


def _imports_from_here() -> bool:
    try:
        here = os.getcwd()
    except FileNotFoundError:  # it was deleted
        return False
    return bool({"", here} & {*sys.path})

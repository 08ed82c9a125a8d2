"""The command of a new Python process, which imports from the working folder only where this process does."""

from __future__ import annotations

import os
import sys


def program(module: str, *arguments: str) -> list[str]:
    """`python -m MODULE ARGUMENTS`, by this interpreter.

    Without -P a `random.py` in the working folder would be run in place of the library's, which `halka` does not do.
    """
    path = [] if {"", os.getcwd()} & {*sys.path} else ["-P"]
    return [sys.executable, *path, "-m", module, *arguments]

"""`kernel`: a function that numba compiles, once a machine."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from numba import config, njit

from halka.util.base_folders import cache_dir

FAST = {"reassoc", "contract", "nsz", "arcp"}  # sums in any order; what is no number stays none


@cache
def _digest(folder: Path) -> str:
    """Of the sources of this folder's kernels and of what they are made of, which is here.

    numba would not see that a kernel calls one which has changed in another file.
    """
    files = sorted({*folder.glob("*.py"), *Path(__file__).parent.glob("*.py")})
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def kernel(function: Callable[..., Any]) -> Any:
    """Compiles a function at its first call, and keeps the code on disk where a folder can be written.

    That is beside the source, else in the user's cache as numba has it, else in Halka's.
    """
    options = {"fastmath": FAST, "nogil": True, "error_model": "numpy"}
    # A kernel has its own copy of all that it calls. Of functions that two had in common, each optimised differently, a
    # process would use the first it compiles or loads, and compute other bits in another order of them.
    options |= {"forceinline": True, "no_cfunc_wrapper": True}  # and none for C, which nobody calls
    options["_nrt"] = False  # nobody counts who holds an array, which threads would wait for; `arrays.room` makes some
    function.__qualname__ += f"_{_digest(Path(function.__code__.co_filename).parent)}"  # in the name of numba's file
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # numba knows of no folder that it may write to
        config.CACHE_DIR = config.CACHE_DIR or str(cache_dir() / "numba")  # pyright: ignore[reportAttributeAccessIssue]
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:
        return njit(**options)(function)

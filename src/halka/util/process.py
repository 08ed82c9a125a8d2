"""A process of Halka's own begins and ends sooner: most of what its imports leave is never garbage.

torch and transformers leave a million objects. Python looks for garbage among them again and again while they come, and
frees them one by one when the process ends: together a third of what a short process computes (docs/log.md).
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
import threading
from collections.abc import Callable

OBJECTS = 10_000
"""After so many more objects Python looks for garbage; its own number, 700, comes again and again in an import."""


def run_process(main: Callable[[], int | None]) -> None:
    """Run `main` as the whole process, which ends with its exit code as `sys.exit(main())` ends it, but sooner.

    What has to happen does: threads that are no daemons end, functions for the exit are called, output is written.
    Objects are not freed, as little as in multiprocessing's children. Errors end the process as always.
    """
    gc.set_threshold(OBJECTS, *gc.get_threshold()[1:])
    try:
        sys.exit(main())
    except SystemExit as ended:
        if isinstance(ended.code, int | None) and not _is_watched() and _is_written_out():
            os._exit(ended.code or 0)
        raise


def _is_watched() -> bool:
    """Whether a profiler or the like watches this process, and has something to write after it."""
    tools = getattr(sys, "monitoring", None)  # from Python 3.12 on, of which there are six
    watching = tools is not None and any(tools.get_tool(number) is not None for number in range(6))
    return watching or sys.gettrace() is not None or sys.getprofile() is not None


def _is_written_out() -> bool:
    """Do what an exit has to; whether all output is written, of which else the interpreter says that it is lost."""
    threading._shutdown()  # pyright: ignore  # as multiprocessing ends its children
    atexit._run_exitfuncs()  # pyright: ignore  # they are not called twice
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except (OSError, ValueError):
        return False
    return True

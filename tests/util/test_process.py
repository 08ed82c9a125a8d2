"""A process of Halka's ends as Python ends one: its code, output, threads, functions for the exit, and errors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

PROGRAM = """
import atexit, sys, threading, time
from halka.util.process import run_process

def last():
    time.sleep(0.2)
    print("thread")

def main():
    print("begin")  # into a buffer: stdout is no terminal
    atexit.register(print, "exit")
    threading.Thread(target=last).start()
    END

run_process(main)
"""


def ended(end: str, stdout: int | IO[str] = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM.replace("END", end)]
    buffered = {**os.environ, "PYTHONUNBUFFERED": ""}
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, env=buffered, text=True, timeout=60)


@pytest.mark.parametrize(
    ("end", "code", "error"),
    [
        ("return None", 0, ""),
        ("return 3", 3, ""),
        ("sys.exit(130)", 130, ""),
        ("sys.exit()", 0, ""),
        ("sys.exit('no data')", 1, "no data\n"),
    ],
)
def test_it_ends_as_sys_exit_does(end: str, code: int, error: str):
    done = ended(end)
    assert (done.returncode, done.stdout.split(), done.stderr) == (code, ["begin", "thread", "exit"], error)


def test_an_error_ends_it_with_its_traceback():
    done = ended("raise ValueError('broken')")
    assert (done.returncode, done.stdout.split()) == (1, ["begin", "thread", "exit"])
    assert done.stderr.endswith("ValueError: broken\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_output_that_is_lost_is_no_success():
    with open("/dev/full", "w") as full:
        done = ended("return 0", stdout=full)
    assert done.returncode == 120
    assert "No space left on device" in done.stderr


def test_who_watches_it_has_the_last_word():
    """As cProfile and coverage, which write what they saw once it has ended."""
    watched = PROGRAM.replace("END", "sys.setprofile(lambda *_: None); return 0")
    watched = watched.replace("\nrun_process(main)", "\ntry: run_process(main)\nfinally: print('written')")
    done = subprocess.run([sys.executable, "-c", watched], capture_output=True, text=True, timeout=60)
    assert (done.returncode, {*done.stdout.split()}) == (0, {"begin", "thread", "written", "exit"})


def test_it_frees_nothing_as_it_ends():
    held = "global kept; kept = type('Kept', (), {'__del__': lambda self: print('freed')})(); return 0"
    assert ended(held).stdout.split() == ["begin", "thread", "exit"]

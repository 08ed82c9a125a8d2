"""A Mac's file system, in so far as names that differ in case, or in how Unicode spells them, are one file."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest


def needs_both_cases(folder: Path) -> None:
    """Skip the test where the file system takes names that differ in capitals for one."""
    (folder / "one case").mkdir()
    if (folder / "ONE CASE").exists():
        pytest.skip("this file system takes names that differ in capitals for one")
    (folder / "one case").rmdir()


def ignore_spelling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `os.stat`, and with it `exists` and `samefile`, find files whose names are spelled in another way."""
    stat = os.stat

    def folded(name: str) -> str:
        return unicodedata.normalize("NFD", name).casefold()

    def on_disk(path: Path) -> Path:
        if path == path.parent:
            return path
        folder = on_disk(path.parent)
        return next((folder / name for name in os.listdir(folder) if folded(name) == folded(path.name)), path)

    def stat_of_any(path, **options):
        try:
            return stat(path, **options)
        except FileNotFoundError:
            return stat(on_disk(Path(path)), **options)

    monkeypatch.setattr(os, "stat", stat_of_any)

"""Paths are spelled as on the disk, whatever its file system takes for the same."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest

from halka.util.spelling import spelled
from mac_for_tests import ignore_spelling, needs_both_cases

COMPOSED, APART = (unicodedata.normalize(form, "Café") for form in ("NFC", "NFD"))


@pytest.fixture
def menu(tmp_path) -> Path:
    (tmp_path / COMPOSED).mkdir()
    (tmp_path / COMPOSED / "Menu.md").write_text("Soup.")
    return tmp_path / COMPOSED / "Menu.md"


@pytest.mark.parametrize("typed", [f"{COMPOSED}/Menu.md", f"{APART}/Menu.md", "CAFÉ/menu.MD"])
def test_a_mac_finds_a_file_by_any_spelling_and_its_path_is_the_disks(menu, tmp_path, monkeypatch, typed):
    ignore_spelling(monkeypatch)
    assert spelled(tmp_path / typed) == menu
    assert spelled((tmp_path / typed).with_name("new.md")) == menu.with_name("new.md")


def test_names_of_different_files_are_left_as_they_are(menu, tmp_path):
    needs_both_cases(tmp_path)
    for path in (menu, tmp_path / "café" / "menu.md", Path("/")):
        assert spelled(path) == path


def test_a_folder_that_may_not_be_listed_leaves_its_names(menu, tmp_path, monkeypatch):
    ignore_spelling(monkeypatch)

    def refused(folder):
        raise PermissionError(folder)

    monkeypatch.setattr(os, "listdir", refused)
    assert spelled(menu) == menu

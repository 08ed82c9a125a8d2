"""A file or folder is the old one or the new one, whole, whatever stops its writer; nothing else is left behind."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import halka.util.files
from halka.util.files import new_folder, write_file, write_text

SIZE = 200_000  # long enough that a write can be interrupted


class Stop(Exception):
    pass


# One letter again and again, a letter at a time through the alphabet. The module is run by its path: it needs nothing
# of the package, whose import takes seconds.
FILES = """
import runpy, sys, pathlib
write_text = runpy.run_path(sys.argv[1])["write_text"]
for round in range(10**9):
    write_text(pathlib.Path(sys.argv[2]), "abcdefgh"[round % 8] * SIZE)
"""
FOLDERS = """
import runpy, sys, pathlib
new_folder = runpy.run_path(sys.argv[1])["new_folder"]
for round in range(10**9):
    with new_folder(pathlib.Path(sys.argv[2])) as beside:
        for name in ("one", "two", "three"):
            (beside / name).write_text("abcdefgh"[round % 8] * SIZE)
"""


def killed_at_random(program: str, path: Path, seed: int) -> None:
    """Run `program` in a process of its own, and kill it after a few milliseconds of writing."""
    arguments = [sys.executable, "-c", program.replace("SIZE", str(SIZE)), halka.util.files.__file__, str(path)]
    with subprocess.Popen(arguments) as process:
        deadline = time.monotonic() + 20
        while not path.exists():
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.001)
        time.sleep(random.Random(seed).uniform(0.002, 0.04))
        process.kill()
    assert process.returncode == -signal.SIGKILL


def test_write_file_puts_the_new_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "deep" / "er" / "file.txt"
    write_text(path, "one")
    write_text(path, "zwei 二")
    assert path.read_text(encoding="utf-8") == "zwei 二"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("old", [None, "old"])
def test_an_error_while_writing_leaves_the_old_file(tmp_path, old):
    path = tmp_path / "file.txt"
    if old:
        path.write_text(old)

    def half(beside: Path) -> None:
        beside.write_text("new, but only ha")
        raise Stop

    with pytest.raises(Stop):
        write_file(path, half)
    assert {each.name: each.read_text() for each in tmp_path.iterdir()} == ({"file.txt": "old"} if old else {})


def test_an_error_while_flushing_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def full_disk(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match=r"No space left on device: '.*/file\.txt'"):
        write_text(path, "new")
    assert {each.name: each.read_text() for each in tmp_path.iterdir()} == {"file.txt": "old"}


def test_the_file_is_on_the_disk_before_it_takes_its_place(tmp_path, monkeypatch):
    """fsync of the file, then rename, then fsync of the folder."""
    path, calls = tmp_path / "file.txt", []

    def record(name: str, call) -> None:
        monkeypatch.setattr(
            os, name, lambda what, *where: (calls.append((name, os.stat(what).st_ino)), call(what, *where))
        )

    record("fsync", os.fsync)
    record("replace", os.replace)
    write_text(path, "new")
    file, folder = path.stat().st_ino, tmp_path.stat().st_ino
    assert calls == [("fsync", file), ("replace", file), ("fsync", folder)]


@pytest.mark.parametrize("old", [False, True])
def test_new_folder_takes_the_place_of_what_was_there(tmp_path, old):
    path = tmp_path / "folder"
    if old:
        path.mkdir()
        (path / "old").write_text("old")
    with new_folder(path) as beside:
        assert path.exists() == old
        (beside / "deeper").mkdir()
        (beside / "deeper" / "new").write_text("new")
    assert [str(each.relative_to(tmp_path)) for each in sorted(tmp_path.rglob("*"))] == [
        "folder",
        "folder/deeper",
        "folder/deeper/new",
    ]


def test_a_link_that_leads_to_itself_is_replaced(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "link")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").read_text() == "new"


@pytest.mark.parametrize("old", [False, True])
def test_a_link_stays_and_the_file_that_it_leads_to_is_replaced(tmp_path, old):
    path, link = tmp_path / "elsewhere" / "file", tmp_path / "link"
    path.parent.mkdir()
    if old:
        path.write_text("old")
    link.symlink_to(path)
    write_text(link, "new")
    assert link.is_symlink()
    assert path.read_text() == "new"
    assert [each.name for each in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("old", [False, True])
def test_a_link_stays_and_the_folder_that_it_leads_to_is_replaced(tmp_path, old):
    path, link = tmp_path / "elsewhere" / "folder", tmp_path / "link"
    path.parent.mkdir()
    if old:
        path.mkdir()
        (path / "old").write_text("old")
    link.symlink_to(path)
    with new_folder(link) as beside:
        (beside / "new").write_text("new")
    assert link.is_symlink()
    assert [str(each.relative_to(tmp_path)) for each in sorted(tmp_path.rglob("*"))] == [
        "elsewhere",
        "elsewhere/folder",
        "elsewhere/folder/new",
        "link",
    ]


def test_what_a_killed_process_left_is_removed_a_day_later(tmp_path):
    path = tmp_path / "folder [1]"
    hours = {"0123abcd": 25, "0123abce": 1, "settings": 25, "0123abcf.old": 25}
    for end, age in hours.items():
        folder = tmp_path / f".folder [1].{end}"
        (folder / "deeper").mkdir(parents=True)
        (folder / "file").write_text("half")
        for entry in (folder / "deeper", folder / "file", folder):
            os.utime(entry, (time.time() - 3600 * 25,) * 2)
        if age < 24:
            os.utime(folder / "file")
    path.mkdir()
    with new_folder(path):
        pass
    assert {each.name for each in tmp_path.iterdir()} == {
        "folder [1]",
        ".folder [1].0123abce",
        ".folder [1].settings",
    }


def test_what_a_killed_process_left_of_a_file_is_removed_a_day_later(tmp_path):
    path = tmp_path / "file [1]"
    for end, age in {"0123abcd": 25, "0123abce": 1, "settings": 25, "20250101": 25}.items():
        left = tmp_path / f".file [1].{end}"
        left.write_text("half")
        os.utime(left, (time.time() - 3600 * age,) * 2)
    write_text(path, "whole")
    kept = ("0123abce", "settings", "20250101")
    assert {each.name for each in tmp_path.iterdir()} == {"file [1]", *(f".file [1].{end}" for end in kept)}


def test_a_folder_that_is_moved_aside_counts_as_abandoned_from_then_on(tmp_path, monkeypatch):
    """Its files may be years old while another process is between two renames."""
    path, rename, ages = tmp_path / "folder", os.rename, []
    path.mkdir()
    os.utime(path, (0, 0))

    def watched(one, other):
        if Path(other) == path:
            ages.extend(time.time() - aside.stat().st_mtime for aside in tmp_path.glob(".*.old"))
        rename(one, other)

    monkeypatch.setattr(ctypes, "CDLL", lambda *args, **options: object())
    monkeypatch.setattr(os, "rename", watched)
    with new_folder(path):
        pass
    assert len(ages) == 1
    assert ages[0] < 3600


def test_an_error_while_filling_leaves_the_old_folder(tmp_path):
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").write_text("old")
    with pytest.raises(Stop), new_folder(path) as beside:  # noqa: PT012
        (beside / "new").write_text("new")
        raise Stop
    assert [str(each.relative_to(tmp_path)) for each in sorted(tmp_path.rglob("*"))] == ["folder", "folder/old"]


def test_folders_are_exchanged_without_renameat2_too(tmp_path, monkeypatch):
    """As on systems other than Linux: in two renames."""
    monkeypatch.setattr(ctypes, "CDLL", lambda *args, **options: object())
    path = tmp_path / "folder"
    for text in ("one", "two"):
        with new_folder(path) as beside:
            (beside / "file").write_text(text)
    assert (path / "file").read_text() == "two"
    assert list(tmp_path.iterdir()) == [path]


def test_a_mac_swaps_folders_in_one_step(tmp_path, monkeypatch):
    path, rename = tmp_path / "folder", os.rename

    class Libc:
        def renamex_np(self, one: bytes, other: bytes, flags: int) -> int:
            assert flags == 2
            for names in ((other, one + b".x"), (one, other), (one + b".x", one)):
                rename(*names)
            return 0

    path.mkdir()
    monkeypatch.setattr(ctypes, "CDLL", lambda *args, **options: Libc())
    monkeypatch.setattr(os, "rename", None)
    with new_folder(path) as beside:
        (beside / "file").write_text("new")
    assert (path / "file").read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def refused_rename(tmp_path, monkeypatch) -> Path:
    """A folder with a file, where folders cannot be swapped, nor another be renamed to its name."""
    path, rename = tmp_path / "folder", os.rename
    path.mkdir()
    (path / "file").write_text("old")

    def refused(one, other):
        if Path(other) == path and not str(one).endswith(".old"):
            raise PermissionError(1, "Operation not permitted")
        rename(one, other)

    monkeypatch.setattr(ctypes, "CDLL", lambda *args, **options: object())
    monkeypatch.setattr(os, "rename", refused)
    return path


def test_an_error_between_renames_leaves_the_old_folder(refused_rename):
    with pytest.raises(PermissionError), new_folder(refused_rename) as beside:
        (beside / "file").write_text("new")
    assert (refused_rename / "file").read_text() == "old"
    assert list(refused_rename.parent.iterdir()) == [refused_rename]


def test_the_next_call_brings_back_what_a_crash_between_renames_hid(tmp_path):
    path, hidden = tmp_path / "folder [1]", tmp_path / ".folder [1].0123abcd.old"
    hidden.mkdir()
    (hidden / "file").write_text("old")
    with pytest.raises(Stop), new_folder(path):
        raise Stop
    assert (path / "file").read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_exchange_is_one_step_here(tmp_path, monkeypatch):
    """On Linux the target is never missing, not even between two renames."""
    path = tmp_path / "folder"
    path.mkdir()

    def refused(*args):
        raise AssertionError("os.rename was needed")

    monkeypatch.setattr(os, "rename", refused)
    with new_folder(path) as beside:
        (beside / "file").write_text("new")
    assert (path / "file").read_text() == "new"


def test_a_killed_writer_leaves_a_whole_file(tmp_path):
    for seed in range(12):
        folder = tmp_path / str(seed)
        path = folder / "file.txt"
        killed_at_random(FILES, path, seed)
        text = path.read_text()
        assert text == text[0] * SIZE
        write_text(path, "after")
        assert path.read_text() == "after"
        # what a killed writer leaves beside is hidden, and never taken for the file
        assert all(each.name.startswith(".file.txt.") for each in folder.iterdir() if each != path)


def test_a_killed_writer_leaves_a_whole_folder(tmp_path):
    for seed in range(12):
        path = tmp_path / str(seed) / "folder"
        killed_at_random(FOLDERS, path, seed)
        texts = [(path / name).read_text() for name in ("one", "two", "three")]
        assert texts == [texts[0][0] * SIZE] * 3
        assert sorted(each.name for each in path.iterdir()) == ["one", "three", "two"]


def test_processes_take_turns(tmp_path):
    """Each adds to a file what it reads there: nothing is lost."""
    program = (
        "import sys, time; from pathlib import Path; from halka.util.files import in_turn\n"
        "count = Path(sys.argv[1])\n"
        "for _ in range(5):\n"
        "    with in_turn(count.with_suffix('.lock')):\n"
        "        number = int(count.read_text())\n"
        "        time.sleep(0.01)\n"
        "        count.write_text(str(number + 1))\n"
    )
    count = tmp_path / "count"
    count.write_text("0")
    processes = [subprocess.Popen([sys.executable, "-c", program, str(count)]) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert count.read_text() == "10"

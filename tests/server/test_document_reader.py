"""A document that crashes, outlasts or floods its reader is refused, and takes nobody with it."""

from __future__ import annotations

import sys

import pytest

from halka.rag.texts import Text, Unreadable, read_text
from halka.server.resources.document_reader import read_apart

MANY = 10**6  # characters


def program(code: str) -> list[str]:
    return [sys.executable, "-c", f"import os, sys, time, resource\n{code}"]


def test_what_is_read_apart_is_what_is_read_here(tmp_path):
    page = tmp_path / "0.html"
    page.write_text("<h1>Parcels</h1><p>Sent on <b>Monday</b>.</p><script>evil()</script>")
    assert read_apart("page.html", page, MANY) == read_text(page) != Text("")
    plain = tmp_path / "1.md"
    plain.write_text("# A\n\nB")
    assert read_apart("a.md", plain, MANY, reader=program("raise SystemExit(1)")) == read_text(plain), (
        "no process for that"
    )


def test_its_name_is_the_uploads(tmp_path):
    (tmp_path / "0.pdf").write_bytes(b"%PDF-1.4 broken")
    with pytest.raises(Unreadable, match=r"^broken\.pdf is no whole PDF"):
        read_apart("broken.pdf", tmp_path / "0.pdf", MANY)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("os.kill(os.getpid(), 11)", "ended with signal SIGSEGV"),
        ("raise SystemExit(1)", "ended with an error"),
        ("time.sleep(60)", "takes longer than 0.5 seconds"),
        ("resource.setrlimit(resource.RLIMIT_AS, (10**9, 10**9)); x = bytearray(4 * 10**9)", "ended with an error"),
    ],
)
def test_a_reader_that_fails_is_a_file_that_is_not_read(tmp_path, code, reason):
    (tmp_path / "0.pdf").write_bytes(b"%PDF")
    with pytest.raises(Unreadable, match=reason) as caught:
        read_apart("evil.pdf", tmp_path / "0.pdf", MANY, reader=program(code), seconds=0.5 if "sleep" in code else 60)
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize(("name", "text"), [("0.md", "four"), ("0.html", "<p>four</p>")])
def test_a_document_has_only_so_many_characters(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    assert read_apart("a", path, 4).text.strip() == "four"
    with pytest.raises(Unreadable, match=r"^a has more than 3 characters"):
        read_apart("a", path, 3)


def test_a_reader_that_writes_without_end_is_ended(tmp_path):
    (tmp_path / "0.docx").write_bytes(b"PK")
    endless = program("while True: sys.stdout.write('x' * 10**6)")
    with pytest.raises(Unreadable, match="more than 10 characters"):
        read_apart("bomb.docx", tmp_path / "0.docx", 10, reader=endless)


def test_a_text_that_nobody_wants_any_more_is_not_read_to_its_end(tmp_path):
    (tmp_path / "0.pdf").write_bytes(b"%PDF")
    looks = iter(range(3))

    def check():
        if next(looks) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read_apart("a.pdf", tmp_path / "0.pdf", 10, reader=program("time.sleep(60)"), check=check)

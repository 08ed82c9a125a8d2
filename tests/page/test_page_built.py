"""What is committed of the page fits its sources, in every language; no Node.js is needed to see that."""

from __future__ import annotations

import gzip
import hashlib
import re
from pathlib import Path

import pytest

from halka.methods import all_methods, catalogued
from halka.server.jobs.commands import BEST_BY, OF_TRAINING, TEXT
from halka.server.page import BUILT, SCREENS
from words_of_the_page import WORDS, entries

WEB = BUILT.parent
SOURCES = ("index.html", "package-lock.json", "package.json", "src", "tsconfig.json", "vite.config.ts")
MOST = 60_000  # bytes of the first load, compressed


def digest(folder: Path) -> str:
    """The SHA-256 of all sources, each as its path, its size and its bytes, as vite.config.ts counts it."""
    paths = [
        path for name in SOURCES for path in ([folder / name], (folder / name).rglob("*"))[(folder / name).is_dir()]
    ]
    hashed = hashlib.sha256()
    for name in sorted(str(path.relative_to(folder)) for path in paths if path.is_file()):
        content = (folder / name).read_bytes()
        hashed.update(f"{name}\n{len(content)}\n".encode() + content)
    return hashed.hexdigest()


def test_the_build_is_of_these_sources():
    assert (BUILT / "sources.sha256").read_text().splitlines()[0] == digest(WEB), "run scripts/page"


def test_each_built_file_is_as_it_was_built():
    """What a merge mixed from two builds, or what was edited by hand, fails here."""
    _, *lines = (BUILT / "sources.sha256").read_text().splitlines()
    written = {name: sha256 for sha256, name in (line.split("  ", 1) for line in lines)}
    files = [path for path in BUILT.rglob("*") if path.is_file() and path.name != "sources.sha256"]
    built = {path.relative_to(BUILT).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    assert written == built, "run scripts/page"


def test_the_build_has_what_its_index_names_and_no_code_of_its_own():
    index = (BUILT / "index.html").read_text()
    files = re.findall(r'(?:src|href)="/assets/([^"]+)"', index)
    assert len(files) >= 3
    assert {*files} <= {path.name for path in (BUILT / "assets").iterdir()}
    assert not re.search(r"<style|style=|<script(?![^>]* src=)|\son\w+=|https?:", index)


def test_the_first_load_is_small():
    index = (BUILT / "index.html").read_text()
    first = {*re.findall(r'"/assets/([^"]+)"', index)}
    first |= {path.name for path in (BUILT / "assets").glob("playground-*")}
    first |= {max((BUILT / "assets").glob("??-*.js"), key=lambda path: path.stat().st_size).name}  # a language
    sizes = {name: len(gzip.compress((BUILT / "assets" / name).read_bytes())) for name in first}
    assert sum(sizes.values()) + len(gzip.compress(index.encode())) < MOST, sizes


def test_the_server_knows_the_screens():
    listed = re.findall(r'\{ name: "(\w+)"', (WEB / "src" / "screens" / "screens.ts").read_text())
    assert tuple(listed) == SCREENS


# ── languages ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_words_with_quoted_keys_are_read():
    assert "formats.lora-gguf" in entries(WORDS / "en" / "adapters.ts")


@pytest.mark.parametrize("path", sorted((WORDS / "en").glob("*.ts")), ids=lambda path: path.stem)
def test_no_word_is_missing_in_bengali(path):
    english, bengali = entries(path), entries(WORDS / "bn" / path.name)
    assert list(english) == list(bengali)
    assert english or path.stem == "index"
    for key, text in english.items():
        assert sorted(re.findall(r"\{\w+\}", text)) == sorted(re.findall(r"\{\w+\}", bengali[key])), key


@pytest.mark.parametrize("path", sorted((WORDS / "bn").glob("*.ts")), ids=lambda path: path.stem)
def test_bengali_words_are_bengali(path):
    untranslated = {key for key, text in entries(path).items() if not re.search("[\u0980-\u09ff]", text)}
    assert not untranslated


def test_bengali_lines_of_methods_are_of_methods_that_there_are():
    assert {*entries(WORDS / "bn" / "methods.ts")} <= {*all_methods()}


def test_every_field_of_a_training_has_words():
    names = {field["name"] for method in all_methods().values() for field in catalogued(method)["fields"]}
    names |= {setting.name for setting in (*OF_TRAINING.values(), BEST_BY, TEXT)}
    assert {*names, *(f"{name}_hint" for name in names)} <= {*entries(WORDS / "en" / "fields.ts")}


def test_meanings_are_of_errors_that_there_are():
    sources = [path.read_text(encoding="utf-8") for path in (WEB.parent).rglob("*.py")]
    codes = {code for source in sources for code in re.findall(r'(?:code=|\d+: |, )"(\w+)"', source)}
    assert {key for key in entries(WORDS / "en" / "errors.ts") if not key.startswith("status_")} <= codes


def test_revoking_and_leaving_are_different_words():
    revoke, cancel = entries(WORDS / "bn" / "account.ts")["revoke"], entries(WORDS / "bn" / "parts.ts")["cancel"]
    assert not {*revoke.split()} & {*cancel.split()}


def test_texts_stand_in_the_words_alone():
    """No screen and no part has a text of its own between its tags, or as what something is called."""
    for path in (WEB / "src").rglob("*.tsx"):
        source = re.sub(r"/\*.*?\*/|//.*", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.ASCII)
        shown = re.findall(r"(?<!=)>\s*([A-Z][a-z]+[^<>{}()=;]*)<", source)
        named = re.findall(r'(?:aria-label|title|label|placeholder|hint|alt)="([^"]+)"', source)
        assert not shown + named, f"{path.name}: {shown + named}"


def test_no_text_becomes_html():
    for path in (WEB / "src").rglob("*.ts*"):
        source = path.read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\(|new Function", source), path

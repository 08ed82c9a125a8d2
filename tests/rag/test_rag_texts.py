"""Files to texts, texts to passages: nothing lost, offsets exact, what cannot be read is told by name."""

from __future__ import annotations

import base64
import itertools
import random
import sys
import time
import unicodedata
import zipfile

import pytest

from embedder_for_tests import PiecesEmbedder, WordEmbedder
from halka.rag import texts
from halka.rag.passages import Cutter, Passage, _headings, joined
from halka.rag.roots import text_of
from halka.rag.texts import Text, Unreadable, is_readable, read_text

MARKDOWN = """# Guide

Some words before anything else.

## Install

Run the script. It takes a minute.

```sh
# not a heading
run --now
```

## Use

""" + "\n\n".join(
    f"Paragraph {number} says something of its own, in a sentence or two. It ends here." for number in range(12)
)


def cutter(limit: int = 64) -> Cutter:
    return Cutter(WordEmbedder().tokenizer, limit)


def pdf(path, *pages: str, locked: bool = False):
    """A PDF of these pages, written by hand; `locked` by a password that nobody knows."""
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", "", "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"]
    kids = []
    for text in pages:
        stream = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET"
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
        content = len(objects)
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {content} 0 R "
            "/Resources << /Font << /F1 3 0 R >> >> >>"
        )
        kids.append(f"{len(objects)} 0 R")
    objects[1] = f"<< /Type /Pages /Kids [{' '.join(kids)}] /Count {len(kids)} >>"
    body, places = "%PDF-1.4\n", []
    for number, each in enumerate(objects, start=1):
        places.append(len(body))
        body += f"{number} 0 obj\n{each}\nendobj\n"
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    key = f"/Encrypt << /Filter /Standard /V 1 /R 2 /O <{'11' * 32}> /U <{'22' * 32}> /P -4 >> /ID [<33> <33>] "
    end = (
        f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}trailer\n"
        f"<< /Size {len(objects) + 1} /Root 1 0 R {key if locked else ''}>>\n"
    )
    path.write_text(f"{body}{end}startxref\n{len(body)}\n%%EOF\n")
    return path


# ── files ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("name", "markdown"), [("a.md", True), ("a.TXT", False), ("a.rst", False)])
def test_text_is_read_as_it_is(name, markdown, tmp_path):
    path = tmp_path / name
    path.write_bytes("\ufeffOne\r\nTwo হালকা".encode())
    assert read_text(path) == Text("One\nTwo হালকা", markdown=markdown)


def test_pages_of_a_pdf_are_known(tmp_path):
    text = read_text(pdf(tmp_path / "a.pdf", "The first page.", "The second page."))
    assert text.text.split("\n\n") == ["The first page.", "The second page."]
    assert [text.page(text.text.index(word)) for word in ("first", "second")] == [1, 2]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_accents_are_written_one_way(form, tmp_path):
    """So that questions, as keyboards type them, find the words of a PDF or of another system's files."""
    path = tmp_path / "a.txt"
    path.write_text(unicodedata.normalize(form, "Frau Müller"), encoding="utf-8")
    assert read_text(path).text == unicodedata.normalize("NFC", "Frau Müller")
    assert text_of("a", unicodedata.normalize(form, "é")).text == "\u00e9"
    pages = texts._composed(
        Text(unicodedata.normalize(form, "éé\n\né"), (0, len(unicodedata.normalize(form, "éé\n\n"))))
    )
    assert (pages.text, pages.pages) == ("\u00e9\u00e9\n\n\u00e9", (0, 4))


def test_html_becomes_text_with_headings(tmp_path):
    path = tmp_path / "a.html"
    path.write_text(
        "<html><head><title>no</title><style>p {}</style></head><body><nav>menu</nav><h2>Parcels</h2>"
        "<p>They are <a href='x'>sent</a> by <b>noon</b>.</p><script>alert(1)</script></body></html>"
    )
    read = read_text(path)
    assert read.text == "## Parcels\n\nThey are sent by **noon**."
    assert read.markdown


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("<html><head><title>no</title><body><h1>Rules</h1><p>Open.", "# Rules\n\nOpen."),
        ("<ul>" + "<li>one" * 500, "\n".join(["* one"] * 500)),
        ("<p>one" * 500, "\n\n".join(["one"] * 500)),
        ("<p>Set max_new_tokens to 5 * 3 for user_id.", "Set max_new_tokens to 5 * 3 for user_id."),
    ],
)
def test_html_may_leave_out_end_tags_and_words_stay_as_written(page, text, tmp_path):
    path = tmp_path / "a.html"
    path.write_text(page)
    assert read_text(path).text == text


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.bin", b"x", "files of the kind .bin are not read"),
        ("a.md", b"\xff\xfe\xfa", "is not UTF-8 text"),
        ("a.txt", b"a\0b", "is binary"),
        ("a.md", b" \n\n", "holds no text"),
        ("a.pdf", b"%PDF-1.4 nothing", "is no whole PDF"),
    ],
)
def test_what_cannot_be_read_is_told(name, content, reason, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(Unreadable, match=reason) as refused:
        read_text(path)
    assert str(path) in str(refused.value)


def test_a_scan_says_so(tmp_path):
    with pytest.raises(Unreadable, match="a scan"):
        read_text(pdf(tmp_path / "a.pdf", ""))


def test_an_encrypted_pdf_says_so(tmp_path):
    with pytest.raises(Unreadable, match="is encrypted: save it without a password"):
        read_text(pdf(tmp_path / "a.pdf", "Secret.", locked=True))


def test_what_fails_in_its_reader_is_told(tmp_path, monkeypatch):
    def broken(path):
        raise RuntimeError("no such table")

    monkeypatch.setitem(texts.READERS, ".table", broken)  # as whoever reads another kind of file adds it
    with pytest.raises(Unreadable, match=r"a\.table cannot be read \(RuntimeError\): is it whole\?"):
        read_text(tmp_path / "a.table")


def docx(path, *paragraphs: tuple[str, str]):
    """A Word document of (style, text), written by hand."""
    space = "http://schemas.openxmlformats.org"
    body = "".join(
        f'<w:p><w:pPr><w:pStyle w:val="{style}"/></w:pPr><w:r><w:t>{text}</w:t></w:r></w:p>'
        for style, text in paragraphs
    )
    kind = "application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"
    parts = {
        "[Content_Types].xml": f'<Types xmlns="{space}/package/2006/content-types">'
        '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        f'<Override PartName="/word/document.xml" ContentType="{kind}"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{space}/package/2006/relationships"><Relationship Id="r1" '
        f'Type="{space}/officeDocument/2006/relationships/officeDocument" Target="word/document.xml"/></Relationships>',
        "word/document.xml": f'<w:document xmlns:w="{space}/wordprocessingml/2006/main">'
        f"<w:body>{body}</w:body></w:document>",
    }
    with zipfile.ZipFile(path, "w") as file:
        for name, text in parts.items():
            file.writestr(name, f'<?xml version="1.0" encoding="UTF-8"?>{text}')
    return path


def test_a_word_document_becomes_text_with_headings(tmp_path):
    """Where the extra `documents` is installed; it is too heavy for the extra `test`."""
    pytest.importorskip("markitdown", reason="the extra `documents` is not installed: Word documents are not read")
    read = read_text(docx(tmp_path / "a.docx", ("Heading1", "Parcels"), ("Normal", "They are sent by noon.")))
    assert read == Text("# Parcels\n\nThey are sent by noon.", markdown=True)
    whole = (tmp_path / "a.docx").read_bytes()
    (tmp_path / "half.docx").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Unreadable, match=r"half\.docx is no whole \.docx file"):
        read_text(tmp_path / "half.docx")
    with pytest.raises(Unreadable, match=r"bad\.docx"):
        read_text(docx(tmp_path / "bad.docx", ("Normal", "<")))


def test_a_word_document_without_the_extra_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "markitdown", None)
    with pytest.raises(Unreadable, match=r"a\.docx: files of the kind \.docx need the extra: pip install 'halka\[docu"):
        read_text(docx(tmp_path / "a.docx"))


def test_hidden_files_are_not_read(tmp_path):
    assert [is_readable(tmp_path / name) for name in ("a.md", ".a.md", "~$a.docx", "a.png")] == [
        True,
        False,
        False,
        False,
    ]


# ── passages ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("limit", [56, 80, 400])
def test_passages_are_slices_within_the_limit_and_lose_nothing(limit):
    tokenizer = WordEmbedder().tokenizer
    text = Text(MARKDOWN, markdown=True)
    passages = [*cutter(limit).cut("d", text, ("*",))]
    assert all(len(tokenizer.encode(each.searched).ids) <= limit for each in passages)
    check_whole(passages, text.text)


def check_whole(passages: list[Passage], text: str) -> None:
    assert [each.number for each in passages] == [*range(len(passages))]
    assert all(each.text == text[each.start : each.end] for each in passages)
    for before, after in itertools.pairwise(passages):
        assert text[before.end : after.start].strip() == ""
    assert text[: passages[0].start].strip() == ""
    assert text[passages[-1].end :].strip() == ""


def test_a_long_text_that_is_cut_in_parts_loses_nothing():
    text = "One word and another. " * 30_000
    check_whole([*cutter(400).cut("d", Text(text), ("*",))], text)


def test_no_passage_is_a_heading_alone():
    body = "It says a word and then another one. " * 30
    text = Text(f"# Guide\n\n{body}\n\n## Install\n\n{body}\n\n## Empty", markdown=True)
    passages = [*cutter(64).cut("d", text, ("*",))]
    assert passages[0].text.startswith("# Guide\n\nIt says")
    assert not any(each.text.startswith("#") and "\n" not in each.text for each in passages)
    tokenizer = WordEmbedder().tokenizer
    assert all(len(tokenizer.encode(each.searched).ids) <= 64 for each in passages)


def test_a_passage_knows_its_headings():
    by_text = {each.text[:9]: each.heading for each in cutter().cut("d", Text(MARKDOWN, markdown=True), ("*",))}
    headings = set(by_text.values())
    assert headings <= {"Guide", "Guide › Install", "Guide › Use"}
    assert "Guide › Use" in headings
    assert not any("not a heading" in each for each in headings)


def test_a_long_heading_keeps_its_end():
    title = " ".join(f"w{number}" for number in range(60))
    passage = [*cutter().cut("d", Text(f"# {title}\n\n{'Body. ' * 60}", markdown=True), ("*",))][-1]
    assert passage.heading.endswith("w59")
    assert len(passage.heading.split()) < 24


def test_a_run_without_spaces_is_cut_though_it_is_one_token():
    """To the tokenizer it is one unknown word, however long; what stands around it stays findable."""
    run = base64.b64encode(random.Random(0).randbytes(30_000)).decode()
    text = Text(
        f"# Guide\n\nBefore it. {'More words. ' * 30}\n\n{run}\n\nAfter it.\n\n# {run} #\n\nAt the end.", markdown=True
    )
    passages = [*Cutter(PiecesEmbedder().tokenizer, 64).cut("d", text, ("*",))]
    assert max(len(each.text) for each in passages) <= 16 * 64
    assert max(len(each.heading) for each in passages) <= 16 * 24
    assert all(len(PiecesEmbedder().tokenizer.encode(each.searched).ids) <= 64 for each in passages)
    assert all(each.text == text.text[each.start : each.end] for each in passages)
    assert "".join("".join(each.text.split()) for each in passages) == "".join(text.text.split())


def test_spaces_are_no_reason_to_cut():
    table = Text(f"| a |{' ' * 3000}| b |\n| c |{' ' * 3000}| d |", markdown=True)
    assert [each.text for each in cutter(64).cut("d", table, ("*",))] == [table.text]


@pytest.mark.parametrize(
    "text",
    [
        "# " + " ".join(f"w{number}" for number in range(20_000)),
        "# a" + " " * 100_000 + "b",
        "# " + "#" * 100_000 + "b",
        "\n".join(f"{'#' * (1 + number % 6)} Heading {number}" for number in range(8_000)),
        "# " + "a" * 500_000 + "\n\n" + "\n\n".join(f"## {number}\n\nText." for number in range(2_000)),
        "".join(chr(0x4E00 + number % 5_000) for number in range(100_000)),
        "\n\n".join(f"```\n# {number}\n```\n\n# {number}" for number in range(4_000)),
        "\n\n".join(f"- ~~~{number}\n\n# {number}" for number in range(4_000)),
        "- " * 50_000 + "`" * 100_000 + "a`",
    ],
    ids=["words", "spaces", "signs", "headings", "giant", "characters", "fences", "unclosed", "items"],
)
def test_no_line_stalls_the_cutting(text):
    """Measured by an ordinary text of 100,000 characters."""
    cutter, seconds = Cutter(PiecesEmbedder().tokenizer, 64), {}
    for each in ((MARKDOWN + "\n\n") * (100_000 // len(MARKDOWN)), text):
        started = time.process_time()
        passages = [*cutter.cut("d", Text(each, markdown=True), ("*",))]
        seconds[each] = time.process_time() - started
        assert "".join("".join(passage.text.split()) for passage in passages) == "".join(each.split())
    ordinary, strange = seconds.values()
    assert strange < 20 * ordinary


@pytest.mark.parametrize(
    ("line", "title"),
    [
        ("# a", "a"),
        ("## a b ##", "a b"),
        ("#\ta#", "a"),
        ("# #", "#"),
        ("# ## ", "##"),
        ("# a # b", "a # b"),
        ("#a", ""),
    ],
)
def test_a_headings_title_is_without_its_signs(line, title):
    (passage,) = cutter().cut("d", Text(f"{line}\nText.", markdown=True), ("*",))
    assert passage.heading == title


@pytest.mark.parametrize(
    ("text", "titles"),
    [
        ("````\n```\n# no\n```\n# no\n````\n# A", ["A"]),
        ("```\n# no\n\n# no", []),
        ("   ```\n# no\n   ```\n# A", ["A"]),
        ("    ```\n# A", ["A"]),
        ("- item\n\n    ```\n# no\n    ```\n# A", ["A"]),
        ("1. - ```sh\n# no\n     ```\n# A", ["A"]),
        ("- ```\n  code\n\n# A", ["A"]),
        ("```one``` inline\n\n# A\n\n```\n# no\n```\n# B", ["A", "B"]),
        ("~~~ a`b`\n# no\n```\n# no\n~~~ no\n# no\n~~~~ \t\n# A", ["A"]),
        ("```\n# no\n    ```\n# no\n``` \n# A", ["A"]),
    ],
)
def test_what_is_fenced_is_no_heading(text, titles):
    headings = _headings(Text(text, markdown=True), lambda heading: heading)
    assert [heading.rpartition(" › ")[2] for _, heading in headings] == titles


def test_passages_joined_are_their_text_but_for_the_white_space_between_them():
    text = Text(MARKDOWN, (), markdown=True)
    again = joined(cutter().cut("guide.md", text, ()))
    assert len(again) == len(MARKDOWN)
    assert again.split() == MARKDOWN.split()

"""Files to texts, texts to passages: nothing lost, offsets exact, what cannot be read is told by name."""

from __future__ import annotations

import itertools

import pytest

from embedder_for_tests import WordEmbedder
from halka.rag.passages import Cutter
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


def pdf(path, *pages: str):
    """A PDF of these pages, written by hand."""
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
    end = (
        f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}trailer\n<< /Size {len(objects) + 1} /Root 1 0 R >>\n"
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
    assert [each.number for each in passages] == [*range(len(passages))]
    for each in passages:
        assert each.text == text.text[each.start : each.end]
        assert len(tokenizer.encode(each.searched).ids) <= limit
    for before, after in itertools.pairwise(passages):
        assert text.text[before.end : after.start].strip() == ""
    assert text.text[: passages[0].start].strip() == ""
    assert text.text[passages[-1].end :].strip() == ""


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

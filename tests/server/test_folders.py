"""A message has at most the last part of a path, whatever the server's folders are called."""

from __future__ import annotations

from pathlib import Path

import pytest

from halka.server.folders import Folders

DATA = "/srv/my own dätä, of ঘর (2)"


@pytest.fixture
def folders() -> Folders:
    return Folders([Path("/srv"), Path(DATA), Path("/srv/my own"), Path("/")])


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        (f"{DATA}/tenants/acme/adapters/lora/1 is damaged", "1 is damaged"),
        (f"'{DATA}/uploads/3f/halka.json': no Card", "'halka.json': no Card"),
        (f"{DATA}/a.txt, {DATA}/b.txt and /srv/my own/c/d.", "a.txt, b.txt and d."),
        (f"{DATA} is a file", "my own dätä, of ঘর (2) is a file"),
        (f"the folder {DATA}/", "the folder my own dätä, of ঘর (2)"),
        ("/srv/halka/a b, /srvs/x", "a b, x"),
        ("/opt/one/two.json and run/adapter.safetensors", "two.json and adapter.safetensors"),
        ("see https://example.org/srv/x and org/Name-1.7B", "see https://example.org/srv/x and org/Name-1.7B"),
        ("GET /v1/models lists them", "GET /v1/models lists them"),
    ],
)
def test_the_last_part_of_a_path_stays(folders, text, hidden):
    assert folders.hidden(text) == hidden


def test_folders_that_links_lead_to_are_hidden_too(tmp_path):
    (tmp_path / "a b" / "c d").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a b" / "c d")
    folders = Folders([tmp_path / "link"])
    assert folders.hidden(f"{tmp_path}/a b/c d/x is damaged") == "x is damaged"
    assert folders.hidden(f"{tmp_path}/link/x is damaged") == "x is damaged"


def test_what_an_error_writes_as_a_literal_is_hidden_too():
    assert Folders([Path("/srv/a\tb")]).hidden(f"no file {'/srv/a' + chr(9) + 'b/c'!r}") == "no file 'c'"

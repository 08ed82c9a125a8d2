"""Collections over HTTP: documents by their files' names, searched by who may read them, and never another's."""

from __future__ import annotations

import json
import time
from pathlib import Path

import httpx
import numpy as np
import pytest

from embedder_for_tests import WordEmbedder
from halka.rag.collection import BATCH, Collection
from halka.server.guards.keys import Limits
from halka.server.resources.collections import EMPTY, MOST
from halka.server.threads import Workers
from serving_for_tests import InProcess

PARCELS = b"# Parcels\n\nParcels are sent on Monday.\n\n## Lost\n\nWrite to the depot."


class CountedWorkers(Workers):
    calls = 0

    async def __call__(self, function, *arguments):
        self.calls += 1
        return await super().__call__(function, *arguments)


def upload(client: httpx.Client, collection: str, *files: tuple[str, bytes], **fields) -> httpx.Response:
    return client.post(
        f"/v1/collections/{collection}/documents", files=[("files", file) for file in files], data=fields
    )


def search(client: httpx.Client, collection: str, query: str, **more) -> list[dict]:
    response = client.post(f"/v1/collections/{collection}/search", json={"query": query, **more})
    assert response.status_code == 200, response.text
    return response.json()["data"]


def refusal(response: httpx.Response, status: int) -> str:
    assert response.status_code == status, response.text
    assert {*response.json()} == {"error"}
    return response.json()["error"]["message"]


@pytest.fixture
def faq(client) -> httpx.Client:
    """A client whose collection `faq` has documents."""
    assert client.post("/v1/collections", json={"name": "faq"}).status_code == 201
    assert upload(client, "faq", ("parcels.md", PARCELS), ("Wages & more.txt", b"Ada earns more.")).status_code == 201
    return client


def test_an_upload_has_a_bounded_number_of_files_and_fields(faq):
    """Small ones come into memory."""
    text = ("a.txt", b"Ada")
    labels = [f"label{number}" for number in range(64)]
    assert upload(faq, "faq", text, tags=labels, readers=labels).status_code == 201
    assert "Too many fields" in refusal(upload(faq, "faq", text, tags=labels, readers=[*labels, "more"]), 400)
    files = [(f"{number}.txt", b"Ada") for number in range(65)]
    assert "Too many files" in refusal(upload(faq, "faq", *files), 400)
    assert upload(faq, "faq", *files[1:]).status_code == 201


def test_documents_go_in_are_found_and_go(faq, tmp_path):
    (listed,) = faq.get("/v1/collections").json()["data"]
    assert listed == {"id": "faq", "object": "collection", "documents": 2, "passages": listed["passages"]}
    assert faq.get("/v1/collections/faq").json() == listed
    hit = search(faq, "faq", "When are parcels sent?", count=1)[0]
    assert (hit["document"], hit["heading"]) == ("parcels.md", "Parcels")
    assert "Monday" in hit["text"]
    assert search(faq, "faq", "Who earns more?", document="parcels.md")[0]["document"] == "parcels.md"
    again = upload(faq, "faq", ("parcels.md", PARCELS.replace(b"Monday", b"Friday")), ("new.md", b"New."))
    assert {event["id"]: event["status"] for event in again.json()["data"]} == {
        "parcels.md": "changed",
        "new.md": "added",
    }
    assert "Friday" in search(faq, "faq", "When are parcels sent?", count=1)[0]["text"]
    assert faq.delete("/v1/collections/faq/documents/Wages%20%26%20more.txt").status_code == 200
    documents = faq.get("/v1/collections/faq/documents").json()["data"]
    assert [document["id"] for document in documents] == ["new.md", "parcels.md"]
    assert not any("earns" in hit["text"] for hit in search(faq, "faq", "Ada earns"))
    assert faq.delete("/v1/collections/faq").json()["deleted"]
    assert faq.get("/v1/collections").json()["data"] == []
    for response in (
        faq.get("/v1/collections/faq"),
        faq.delete("/v1/collections/faq"),
        upload(faq, "faq", ("a.md", b"a")),
    ):
        assert "no collection 'faq'" in refusal(response, 404)
    assert str(tmp_path) not in json.dumps(documents)


def test_what_cannot_be_read_is_said_and_the_rest_goes_in(faq, server):
    response = upload(faq, "faq", ("broken.pdf", b"%PDF-1.4 broken"), ("good.md", b"Good."))
    assert {event["id"]: event["status"] for event in response.json()["data"]} == {
        "broken.pdf": "skipped",
        "good.md": "added",
    }
    assert response.json()["data"][0]["reason"].startswith("broken.pdf ")
    assert "caf.txt is not UTF-8" in refusal(upload(faq, "faq", ("caf.txt", b"caf\xe9")), 400)
    assert "files of this kind" in refusal(upload(faq, "faq", ("picture.png", b"\x89PNG")), 400)
    assert "same name" in refusal(upload(faq, "faq", ("a.md", b"a"), ("a.md", b"b")), 400)
    assert not [*(server.service.settings.data / "uploads").iterdir()]


@pytest.mark.parametrize(
    "name", ["../a.md", "/etc/passwd.md", "a\\b.md", ".hidden.md", "", "a\u202ecod.md", "\u200d.md", "x" * 300 + ".md"]
)
def test_a_document_is_never_named_by_a_path(faq, name):
    response = upload(faq, "faq", (name, b"text"))
    assert response.status_code == 400
    assert len(faq.get("/v1/collections/faq/documents").json()["data"]) == 2


@pytest.mark.parametrize(("name", "tag"), [("র\u200d্যাব.md", "হিসাব"), ("می\u200cخواهم.md", "बिक्री")])
def test_names_may_be_of_any_script(faq, name, tag):
    """With vowel signs, and with the joiners that are not seen by themselves."""
    assert upload(faq, "faq", (name, b"text"), tags=[tag]).status_code == 201
    entries = faq.get("/v1/collections/faq/documents").json()["data"]
    assert [entry["id"] for entry in entries if entry["tags"] == [tag]] == [name]


@pytest.mark.parametrize("name", ["../faq", "a/b", "", ".x", "a b", "x" * 101, "ends.", "con"])
def test_a_collection_is_never_named_by_a_path(visitor, name):
    assert visitor.post("/v1/collections", json={"name": name}).status_code == 400
    assert visitor.get("/v1/collections").json()["data"] == []


@pytest.mark.parametrize("path", ["..%2Ffaq", "%2e%2e", "faq%2F..%2Ffaq", "faq%00", ".lock"])
def test_paths_in_names_lead_nowhere(faq, path):
    assert faq.get(f"/v1/collections/{path}").status_code == 404
    assert faq.get(f"/v1/collections/{path}/documents").status_code == 404
    assert faq.delete(f"/v1/collections/{path}").status_code == 404
    assert faq.delete(f"/v1/collections/faq/documents/{path}").status_code == 404
    assert faq.get("/v1/collections/faq").status_code == 200


def test_there_is_one_collection_of_a_name(faq):
    assert "already" in refusal(faq.post("/v1/collections", json={"name": "faq"}), 409)


def test_a_new_name_differs_by_more_than_capitals(faq):
    assert "differs from 'faq' in capitals alone" in refusal(faq.post("/v1/collections", json={"name": "FAQ"}), 400)
    assert [entry["id"] for entry in faq.get("/v1/collections").json()["data"]] == ["faq"]


def test_a_link_is_no_collection(faq, server, tmp_path):
    other = Collection(tmp_path / "theirs", WordEmbedder())
    [*other.put([("secret.md", "Secret.")])]
    place = server.service.tenants.of("main").collections
    (place / "linked").symlink_to(tmp_path / "theirs")
    assert [entry["id"] for entry in faq.get("/v1/collections").json()["data"]] == ["faq"]
    assert refusal(faq.get("/v1/collections/linked/documents"), 404)
    assert refusal(faq.post("/v1/collections/linked/search", json={"query": "secret"}), 404)
    assert refusal(faq.delete("/v1/collections/linked"), 404)
    assert [document.name for document in other.documents()] == ["secret.md"]


def test_an_operators_folder_is_named_without_what_is_above_it(server, tmp_path):
    documents = tmp_path / "private" / "handbook"
    (documents / "deep").mkdir(parents=True)
    (documents / "deep" / "leave.md").write_text("Leave is thirty days.")
    single = tmp_path / "private" / "single.md"
    single.write_text("Single things.")
    collection = Collection(server.service.tenants.of("main").collections / "hr", WordEmbedder())
    [*collection.add([documents, single])]
    client = server.client
    names = [document["id"] for document in client.get("/v1/collections/hr/documents").json()["data"]]
    assert names == ["handbook/deep/leave.md", "single.md"]
    hit = search(client, "hr", "How many days of leave?", count=1)[0]
    assert hit["document"] == "handbook/deep/leave.md"
    assert search(client, "hr", "leave", document="single.md")[0]["document"] == "single.md"
    taken = client.post("/v1/collections/hr/documents", files={"files": ("single.md", "Other things.")})
    assert (taken.status_code, taken.json()["error"]["param"]) == (409, "files")
    assert client.delete("/v1/collections/hr/documents/handbook/deep/leave.md").status_code == 200
    assert [Path(document.name).name for document in collection.documents()] == ["single.md"]
    assert (documents / "deep" / "leave.md").exists()


def test_bad_questions_are_refused_with_their_field(faq):
    for body, field in (
        ({"query": ""}, "query"),
        ({"query": "  "}, "query"),
        ({"query": "a", "count": 0}, "count"),
        ({"query": "a", "mode": "magic"}, "mode"),
        ({"query": "a", "tags": ["no tag"]}, "tags.0"),
        ({"query": "a", "readers": ["admin"]}, "readers"),
        ({"query": "a", "document": "nothing"}, "document"),
    ):
        response = faq.post("/v1/collections/faq/search", json=body)
        assert response.status_code in (400, 404)
        assert response.json()["error"]["param"] == field, response.text


def test_only_readers_find_a_document(faq):
    assert upload(faq, "faq", ("salaries.md", b"Bob earns nine."), readers="hr", tags="money").status_code == 201
    assert upload(faq, "faq", ("managers.md", b"Managers earn ten."), readers="admin").status_code == 201
    found = {hit["document"] for hit in search(faq, "faq", "Bob earns nine", count=50)}
    assert "managers.md" in found
    assert "salaries.md" not in found
    assert "salaries.md" not in {entry["id"] for entry in faq.get("/v1/collections/faq/documents").json()["data"]}
    assert upload(faq, "faq", ("a.md", b"a"), readers="no reader").status_code == 400


def test_a_document_that_is_replaced_keeps_its_readers_unless_others_are_named(faq):
    for readers, is_shown in (("hr", False), (None, False), ("*", True), (None, True)):
        named = {} if readers is None else {"readers": readers}
        text = f"Bob earns nine, says {readers}."
        assert upload(faq, "faq", ("salaries.md", text.encode()), **named).status_code == 201
        found = {hit["document"] for hit in search(faq, "faq", "Bob earns nine", count=50)}
        assert ("salaries.md" in found) is is_shown


def test_documents_that_take_longer_to_embed_than_the_timeout_go_in(base, tmp_path):
    """Nothing is sent meanwhile, but something is done, a batch after another."""
    with InProcess.open(base, None, tmp_path / "data", timeout=6.0) as server:
        embedder = server.service.embedders.get()

        def slowly(texts):
            time.sleep(2.5)
            return np.ones((len(texts), embedder.width), np.float32)

        embedder.passages = slowly
        assert server.client.post("/v1/collections", json={"name": "faq"}).status_code == 201
        response = upload(server.client, "faq", ("long.txt", b"parcel " * embedder.limit * BATCH * 3))
        assert response.status_code == 201, response.text
        assert response.json()["data"][0]["passages"] > 2 * BATCH


def test_a_document_that_is_too_long_is_skipped_with_the_reason(base, tmp_path):
    with InProcess.open(base, None, tmp_path / "data", document_characters=20) as server:
        assert server.client.post("/v1/collections", json={"name": "faq"}).status_code == 201
        long = "<p>" + "Many words. " * 3 + "</p>"
        response = upload(server.client, "faq", ("long.html", long.encode()), ("short.md", b"Short."))
        events = {event["id"]: event for event in response.json()["data"]}
        assert events["short.md"]["status"] == "added"
        assert events["long.html"]["status"] == "skipped"
        assert "more than 20 characters" in events["long.html"]["reason"]
        assert "more than 20 characters" in refusal(upload(server.client, "faq", ("a.md", b"a" * 21)), 400)


def test_a_hidden_document_is_as_one_that_is_not_there(faq):
    assert upload(faq, "faq", ("salaries.md", b"Bob earns nine."), readers="hr").status_code == 201
    refused = [
        refusal(faq.post("/v1/collections/faq/search", json={"query": "Bob", "document": name}), 404)
        for name in ("salaries.md", "nothing.md")
    ]
    assert refused[0].replace("salaries.md", "nothing.md") == refused[1]
    assert faq.delete("/v1/collections/faq/documents/salaries.md").status_code == 200, "managers remove any"


def test_collections_have_an_end(client, server):
    """Folders of other collections, which need not be whole to count."""
    folder = server.service.tenants.of("main").collections
    for number in range(MOST):
        (folder / f"c{number}").mkdir(parents=True)
        (folder / f"c{number}" / "collection.json").touch()
    refused = client.post("/v1/collections", json={"name": "more"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "too_many")
    assert "1000 collections: delete some" in refused.json()["error"]["message"]
    assert not (folder / "more").exists()
    (folder / "c0" / "collection.json").unlink()
    assert client.post("/v1/collections", json={"name": "more"}).status_code == 201


def test_a_collection_needs_room_in_the_storage(server):
    server.key("main", "admin")
    headers = server.key("acme", limits=Limits(storage=1000))
    refused = server.client.post("/v1/collections", json={"name": "faq"}, headers=headers)
    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "storage_full")
    assert not server.service.tenants.of("acme").collections.exists()
    headers = server.key("acme", limits=Limits(storage=100_000))
    assert server.client.post("/v1/collections", json={"name": "faq"}, headers=headers).status_code == 201
    assert server.service.tenants.of("acme").storage.used() <= EMPTY


def test_other_searches_go_between_the_entries_of_a_list(faq, server):
    assert faq.post("/v1/collections", json={"name": "more"}).status_code == 201
    search = server.service.threads.near.search = CountedWorkers(1)
    assert [entry["id"] for entry in faq.get("/v1/collections").json()["data"]] == ["faq", "more"]
    assert search.calls == 3

"""Adapters over HTTP: what comes in is verified, what goes out is whole, and no name and no link leads elsewhere."""

from __future__ import annotations

import io
import json
import pickle
import re
import shutil
import threading
import zipfile
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

import anyio
import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file

import halka
from engine_for_tests import filled
from halka.server.resources.adapter_files import close, copy_files, files_below, sizes_of
from halka.server.resources.adapter_views import losses_of, points_of
from halka.server.resources.adapters import verify
from halka.server.resources.uploads import staging
from serving_for_tests import InProcess, make_base, make_store

WEIGHTS, CONFIG, CARD = "adapter_model.safetensors", "adapter_config.json", "halka.json"


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def upload(client: httpx.Client, name: str, files: Mapping[str, bytes], **more) -> httpx.Response:
    parts = [("files", (file, content)) for file, content in files.items()]
    return client.post("/v1/adapters", data={"name": name}, files=parts, **more)


def refusal(response: httpx.Response, status: int = 400) -> str:
    assert response.status_code == status, response.text
    return response.json()["error"]["message"]


def answer(client: httpx.Client, model: str) -> str:
    body = {"model": model, "messages": [{"role": "user", "content": "What is the capital?"}], "max_tokens": 8}
    response = client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"]


@pytest.fixture
def lora(store) -> dict[str, bytes]:
    return files_of(store / "lora" / "1")


# ── what comes in ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_upload_answers_at_once_and_goes_out_as_it_came(client, lora):
    response = upload(client, "mine", lora)
    assert response.status_code == 201, response.text
    made = response.json()
    assert (made["id"], made["version"], made["versions"], made["loaded"]) == ("mine", 1, [1], False)
    assert made["files"] == {name: len(content) for name, content in lora.items()}
    assert answer(client, "mine") == answer(client, "lora") != answer(client, "tiny")
    assert "mine" in {model["id"] for model in client.get("/v1/models").json()["data"]}
    for name, content in lora.items():
        assert client.get(f"/v1/adapters/mine/files/{name}").content == content
    archive = client.get("/v1/adapters/mine/archive")
    with zipfile.ZipFile(io.BytesIO(archive.content)) as zipped:
        assert zipped.testzip() is None
        assert {name: zipped.read(name) for name in zipped.namelist()} == lora
    assert 'filename="mine-1.zip"' in archive.headers["content-disposition"]


def test_a_second_upload_is_the_next_version(client, store, lora):
    before = answer(client, "lora")
    response = upload(client, "lora", files_of(store / "bottleneck" / "1"))
    assert (response.json()["version"], response.json()["versions"]) == (2, [1, 2])
    assert answer(client, "lora") == answer(client, "bottleneck") != before
    assert client.get("/v1/adapters/lora?version=1").json()["method"]["name"] == "lora"
    assert client.delete("/v1/adapters/lora?version=2").json()["deleted"]
    assert answer(client, "lora") == before
    assert "version 2" in refusal(client.get("/v1/adapters/lora?version=2"), 404)


def test_an_older_version_answers_beside_the_newest(client, store, lora):
    upload(client, "lora", files_of(store / "bottleneck" / "1"))
    before, newest = answer(client, "lora@1"), answer(client, "lora")
    assert answer(client, "lora@2") == newest == answer(client, "bottleneck") != before
    upload(client, "first", lora)
    assert before == answer(client, "first")
    shown = client.get("/v1/models/lora@1").json()
    assert (shown["id"], shown["parent"]) == ("lora@1", client.get("/v1/models/lora").json()["parent"])
    assert "lora@1" not in {model["id"] for model in client.get("/v1/models").json()["data"]}
    assert client.delete("/v1/adapters/lora?version=1").json()["deleted"]
    for gone in ("lora@1", "lora@3", "lora@0", "lora@", "nobody@1", "../lora@1", "tiny@1"):
        assert repr(gone) in refusal(client.post("/v1/completions", json={"model": gone, "prompt": "a"}), 404)
        refusal(client.get(f"/v1/models/{quote(gone, safe='')}"), 404)


def test_tags_are_all_versions_and_replace_each_other(client, store):
    upload(client, "lora", files_of(store / "bottleneck" / "1"))
    assert client.patch("/v1/adapters/lora", json={"tags": ["live", "ঘর", "live"]}).json()["tags"] == ["live", "ঘর"]
    assert client.get("/v1/adapters/lora?version=1").json()["tags"] == ["live", "ঘর"]
    assert client.patch("/v1/adapters/lora", json={"tags": ["old"]}).json()["tags"] == ["old"]
    assert client.patch("/v1/adapters/lora", json={"tags": []}).json()["tags"] == []
    assert "nobody" in refusal(client.patch("/v1/adapters/nobody", json={"tags": ["x"]}), 404)
    for wrong in ([""], ["a b"], ["x"] * 65, ["<b>"], None):
        refusal(client.patch("/v1/adapters/lora", json={"tags": wrong}))
    assert client.get("/v1/adapters/lora").json()["tags"] == []


@pytest.mark.parametrize(
    ("method", "path"), [("GET", ""), ("GET", f"/files/{CARD}"), ("GET", "/archive"), ("DELETE", "")], ids=str
)
def test_a_version_longer_than_a_files_name_is_refused(visitor, method, path):
    assert "version" in refusal(visitor.request(method, f"/v1/adapters/lora{path}?version={'9' * 301}"))


def test_two_uploads_at_once_both_stay(server, store, lora):
    responses = list[httpx.Response]()
    threads = [
        threading.Thread(target=lambda: responses.append(upload(server.client, "twice", lora))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(response.json()["version"] for response in responses) == [1, 2, 3, 4]
    assert client_versions(server, "twice") == [1, 2, 3, 4]
    assert not [*(server.service.settings.data / "uploads").iterdir()]


def client_versions(server: InProcess, name: str) -> list[int]:
    return server.client.get(f"/v1/adapters/{name}").json()["versions"]


class Evil:
    def __reduce__(self):
        return print, ("code has run",)


def changed(files: Mapping[str, bytes], change) -> bytes:
    """The weights with a change."""
    path = Path("changed.safetensors")
    path.write_bytes(files[WEIGHTS])
    tensors = change(load_file(path))
    save_file(tensors, path)
    return path.read_bytes()


def with_nan(tensors):
    return {
        key: tensor.fill_(torch.nan) if number == 0 else tensor for number, (key, tensor) in enumerate(tensors.items())
    }


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda files: files | {"adapter_model.bin": pickle.dumps(Evil())}, "safetensors alone"),
        (lambda files: files | {WEIGHTS: pickle.dumps(Evil())}, "is damaged"),
        (lambda files: files | {"task.py": b"print()"}, "'task.py' is no file of an adapter"),
        (lambda files: files | {"../evil.json": b"{}"}, "cannot be a file's name"),
        (lambda files: files | {"a\\b": b"{}"}, "cannot be a file's name"),
        (lambda files: files | {".hidden": b"{}"}, "cannot be a file's name"),
        (lambda files: files | {WEIGHTS: files[WEIGHTS][:-7]}, "is damaged"),
        (lambda files: {name: files[name] for name in (CONFIG, CARD)}, "the adapter is incomplete"),
        (lambda files: {WEIGHTS: files[WEIGHTS]}, "holds no adapter_config.json"),
        (lambda files: files | {CONFIG: b"{"}, "is not JSON"),
        (lambda files: files | {CONFIG: b"[" * 5000}, "is not JSON"),
        (lambda files: files | {CONFIG: b" " * (1 << 20) + b"{}"}, "larger than"),
        (lambda files: files | {CARD: b"{}"}, "is not a Card"),
        (lambda files: files | {CARD: with_deep_training(files)}, "nested deeper than 64 levels"),
        (lambda files: files | {CONFIG: files[CONFIG].replace(b'"r": 4', b'"r": 8')}, "changed since halka.json"),
        (lambda files: {**without_card(files), WEIGHTS: changed(files, with_nan)}, "not finite"),
        (
            lambda files: {**without_card(files), WEIGHTS: changed(files, lambda t: {**t, "more": torch.ones(1)})},
            "more",
        ),
        (
            lambda files: {**without_card(files), WEIGHTS: changed(files, lambda t: {k: v[:2] for k, v in t.items()})},
            "they do not fit",
        ),
    ],
)
def test_what_is_no_whole_safe_adapter_of_this_base_is_no_version(
    shared, lora, change, reason, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    response = upload(shared.client, "bad", change(lora))
    assert response.status_code in (400, 413)
    message = response.json()["error"]["message"]
    assert reason in message
    assert str(tmp_path) not in message
    assert "uploads" not in message
    assert refusal(shared.client.get("/v1/adapters/bad"), 404)
    assert not [*(shared.service.settings.data / "uploads").glob("*")]
    assert not shared.service.engine.engine.adapters.residents.versions
    assert "code has run" not in capfd.readouterr().out


def with_deep_training(files: Mapping[str, bytes]) -> bytes:
    card = json.loads(files[CARD])
    for _ in range(700):
        card["training"] = {"a": card["training"]}
    return json.dumps(card).encode()


def without_card(files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if name != CARD}


def test_an_adapter_of_another_base_is_refused(client, tmp_path):
    other = make_base(tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    files = files_of(make_store(tmp_path / "theirs", other, {"lora": halka.LoRA(rank=4)}) / "lora" / "1")
    assert "another base" in refusal(upload(client, "theirs", files))


def test_an_adapter_that_its_store_refuses_is_refused_without_its_folder(client, store, lora):
    """The store is of another base than the server's."""
    (store / "store.json").write_text('{"base": "other", "fingerprint": {"weights": "other"}}')
    message = refusal(upload(client, "late", lora))
    assert message.startswith("the adapter was made for another base than the adapters in")
    assert str(store) not in message


def test_no_adapter_is_called_as_the_stores_own_file(client, lora):
    for name in ("store.json", "Store.JSON"):
        assert "cannot be a name in a store" in refusal(upload(client, name, lora))


def test_a_folder_without_a_card_comes_in_by_its_shapes(client, lora):
    assert upload(client, "plain", without_card(lora)).status_code == 201
    assert answer(client, "plain") == answer(client, "lora")


@pytest.mark.filterwarnings("ignore:.*was trained on this base quantised to")
def test_a_card_that_says_nothing_of_how_its_base_was_quantised_is_read(client, lora):
    card = json.loads(lora[CARD])
    card["base"]["quantize"] = [1]
    assert upload(client, "odd", lora | {CARD: json.dumps(card).encode()}).status_code == 201


@pytest.mark.parametrize("name", ["../evil", "a/b", ".hidden", "", "a b", "x" * 101, "tiny", "words", "ends.", "con"])
def test_a_name_that_could_be_a_path_or_something_else_is_none(visitor, lora, name):
    assert upload(visitor, name, lora).status_code == 400


def test_a_name_that_is_none_is_refused_in_plain_words(visitor, lora):
    for refused in (upload(visitor, "a b", lora), visitor.post("/v1/collections", json={"name": "a b"})):
        assert refusal(refused).startswith("name: 'a b' cannot be a name: use up to 100 letters, digits,")


def test_a_new_name_differs_by_more_than_capitals(client, lora):
    assert upload(client, "Cased", lora).status_code == 201
    refused = upload(client, "cASED", lora)
    assert refused.status_code == 400
    assert "differs from 'Cased' in capitals alone" in refused.json()["error"]["message"]


@pytest.mark.parametrize("headers", [f"x: {'a' * 1_000_000}", "\r\n".join(f"x{n}: a" for n in range(10_000))])
def test_the_headers_of_an_uploads_part_are_bounded(visitor, headers):
    """The form's parser keeps them in memory: `pyproject.toml` asks for a version that counts them."""
    body = f'--x\r\nContent-Disposition: form-data; name="name"\r\n{headers}\r\n\r\na\r\n--x--\r\n'
    content = {"content-type": "multipart/form-data; boundary=x"}
    refused = visitor.post("/v1/adapters", content=body.encode(), headers=content)
    assert refused.status_code == 400, refused.text
    assert re.search("header|multipart data", refused.json()["error"]["message"])


def test_two_files_of_one_name_are_refused(visitor, lora):
    parts = [("files", (CONFIG, lora[CONFIG])), ("files", (CONFIG, lora[CONFIG]))]
    assert "same name" in refusal(visitor.post("/v1/adapters", data={"name": "a"}, files=parts))


# ── loaded, pinned, unloaded, deleted ───────────────────────────────────────────────────────────────────────────────


def test_an_adapter_is_loaded_pinned_and_unloaded(client):
    assert client.post("/v1/adapters/lora/load").json()["loaded"]
    assert client.post("/v1/adapters/lora/pin").json()["pinned"]
    assert not client.post("/v1/adapters/lora/unpin").json()["pinned"]
    unloaded = client.post("/v1/adapters/lora/unload").json()
    assert (unloaded["loaded"], unloaded["requests"]) == (False, 0)
    listed = {entry["id"]: entry for entry in client.get("/v1/adapters").json()["data"]}
    assert {*listed} == {"lora", "prefix", "bottleneck"}
    for action in ("load", "pin", "unpin", "unload"):
        assert "no adapter 'nothing'" in refusal(client.post(f"/v1/adapters/nothing/{action}"), 404)


def test_a_deleted_adapter_finishes_what_is_under_way(server, lora):
    client = server.client
    body = {"model": "lora", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 200, "stream": True}
    body |= {"logit_bias": {"2": -100}, "temperature": 0}
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        lines = response.iter_lines()
        assert next(lines)
        other = InProcess(server.service, client)
        assert other.client.delete("/v1/adapters/lora").json()["deleted"]
        assert refusal(client.get("/v1/adapters/lora"), 404)
        rest = [*lines]
    assert [line for line in rest if line][-1] == "data: [DONE]"
    assert not any('"error"' in line for line in rest)
    again = client.post("/v1/chat/completions", json=body | {"stream": False})
    assert again.json()["error"]["code"] == "model_not_found"


# ── lists ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_list_has_pages_and_is_searched(server, store):
    """A damaged adapter is found by its name; a link is none of the caller's."""
    tenant = server.service.tenants.of("main").store
    tenant.set_tags("lora", ["live", "ঘর"])
    (tenant.folder / "prefix" / "1" / CARD).write_text("{")
    card = json.loads((tenant.folder / "bottleneck" / "1" / CARD).read_text())
    (tenant.folder / "bottleneck" / "1" / CARD).write_text(json.dumps({**card, "method": {"fields": ["width"]}}))
    (tenant.folder / "linked").symlink_to(tenant.folder / "lora")

    def listed(query: str) -> tuple[list[str], int, int]:
        page = server.client.get(f"/v1/adapters?{query}").json()
        return [entry["id"] for entry in page["data"]], page["matching"], page["total"]

    assert listed("") == (["bottleneck", "lora", "prefix"], 3, 3)
    assert listed("start=1&count=1") == (["lora"], 3, 3)
    assert listed("start=2&count=5") == (["prefix"], 3, 3)
    assert listed("start=3") == ([], 3, 3)
    assert listed("find=RANK+4+%23live") == (["lora"], 1, 3)
    assert listed("find=o&start=1") == (["lora"], 2, 3)
    assert listed("find=pre") == (["prefix"], 1, 3)
    assert listed("find=length") == ([], 0, 3)
    for wrong in ("start=-1", "count=0", "count=x", "find=" + "a" * 201):
        assert server.client.get(f"/v1/adapters?{wrong}").status_code == 400


# ── where adapters come from, and where they go ─────────────────────────────────────────────────────────────────────


def test_adapters_are_imported_from_configured_folders_alone(base, store, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(store / "lora" / "1", root / "team" / "nice")
    (root / "link").symlink_to(store / "lora" / "1")
    shutil.copytree(store / "lora" / "1", root / "linked")
    (root / "linked" / WEIGHTS).unlink()
    (root / "linked" / WEIGHTS).symlink_to(store / "lora" / "1" / WEIGHTS)
    with InProcess.open(base, store, tmp_path / "data", adapter_roots=(root,)) as server:
        client = server.client
        assert client.post("/v1/adapters/import", json={"folder": "team/nice"}).json()["id"] == "nice"
        named = client.post("/v1/adapters/import", json={"folder": "team/nice", "name": "nicer"})
        assert (named.status_code, named.json()["version"]) == (201, 1)
        for folder in ("../adapters/lora/1", "/etc", "team/../../adapters/lora/1", str(store / "lora" / "1"), ""):
            assert "no folder below those" in refusal(client.post("/v1/adapters/import", json={"folder": folder}))
        for folder in ("link", "nothing", "team/nothing"):
            assert "there is no folder" in refusal(client.post("/v1/adapters/import", json={"folder": folder}), 404)
        assert "incomplete" in refusal(client.post("/v1/adapters/import", json={"folder": "linked"}))
    with InProcess.open(base, store, tmp_path / "data") as server:
        assert refusal(server.client.post("/v1/adapters/import", json={"folder": "team/nice"}), 404)


def test_a_file_that_grows_is_copied_up_to_the_room_that_was_held(tmp_path):
    root, copies = tmp_path / "root" / "mine", tmp_path / "copies"
    for folder in (root, copies):
        folder.mkdir(parents=True)
    (root / CONFIG).write_bytes(b"{}")
    (root / WEIGHTS).write_bytes(b"x" * 3_000_000)
    files = files_below([root.parent], "mine")
    try:
        sizes = sizes_of(files)
        with (root / WEIGHTS).open("ab") as file:
            file.write(b"y" * 3_000_000)
        copy_files(files, sizes, copies)
    finally:
        close(files)
    assert files_of(copies) == {CONFIG: b"{}", WEIGHTS: b"x" * 3_000_000}


def test_a_tenant_imports_from_its_own_roots_alone(base, store, tmp_path):
    for tenant in ("main", "acme"):
        shutil.copytree(store / "lora" / "1", tmp_path / tenant / f"of-{tenant}")
    roots = tmp_path / "main", Path(f"acme={tmp_path / 'acme'}")
    with InProcess.open(base, store, tmp_path / "data", adapter_roots=roots) as server:
        for tenant, other in (("main", "acme"), ("acme", "main"), ("third", "main")):
            headers = server.key(tenant, "admin")

            def imported(folder: str, headers: dict[str, str] = headers) -> httpx.Response:
                return server.client.post("/v1/adapters/import", json={"folder": folder}, headers=headers)

            assert imported(f"of-{tenant}").status_code == (404 if tenant == "third" else 201)
            assert "there is no folder" in refusal(imported(f"of-{other}"), 404)


def test_no_link_in_a_store_is_followed(client, store, tmp_path, lora):
    secret = tmp_path / "secret"
    shutil.copytree(store / "lora", secret)
    (store / "linked").symlink_to(secret)
    (store / "lora" / "1" / "note.txt").symlink_to(tmp_path / "note.txt")
    (tmp_path / "note.txt").write_text("secret")
    (store / "prefix" / "2").symlink_to(secret / "1")
    assert {entry["id"] for entry in client.get("/v1/adapters").json()["data"]} == {"bottleneck"}
    for name in ("linked", "lora", "prefix"):
        for path in ("", "/files/halka.json", "/files/note.txt", "/archive"):
            assert client.get(f"/v1/adapters/{name}{path}").status_code == 404
        assert client.delete(f"/v1/adapters/{name}").status_code == 404
        body = {"model": name, "messages": [{"role": "user", "content": "Hi"}]}
        assert client.post("/v1/chat/completions", json=body).status_code == 404
    assert upload(client, "linked", lora).status_code == 404
    job = {"kind": "train", "name": "linked", "data": [{"prompt": "a", "completion": "b"}], "settings": {}}
    assert refusal(client.post("/v1/jobs", json=job), 404)
    assert [path.name for path in secret.iterdir()] == ["1"]


@pytest.mark.parametrize(
    "path",
    [
        "/v1/adapters/..%2Flora",
        "/v1/adapters/%2e%2e",
        "/v1/adapters/lora%2F1",
        "/v1/adapters/lora/files/..%2F..%2Fstore.json",
        "/v1/adapters/lora/files/%2Fetc%2Fpasswd",
        "/v1/adapters/lora/files/.locks",
        "/v1/adapters/.locks",
        "/v1/adapters/lora%00",
    ],
)
def test_paths_in_names_lead_nowhere(visitor, path):
    response = visitor.get(path)
    assert response.status_code == 404
    assert {*response.json()} == {"error"}


def test_who_downloads_is_not_cut_off_by_who_deletes(server, lora):
    from halka.server.resources.adapter_files import opened_files, zipped

    files = opened_files(server.service.tenants.of("main").store.get("lora").folder)
    pieces = zipped(files)
    first = next(pieces)
    server.client.delete("/v1/adapters/lora")
    with zipfile.ZipFile(io.BytesIO(first + b"".join(pieces))) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == lora


def test_what_a_store_has_of_unlike_adapters_is_described(client, server, base, store):
    model = halka.adapt(*halka.load_base(base, dtype="float32"))
    filled(model, "a", halka.Prompt(length=3))
    training = {"steps": 3, "curve": [{"step": 3, "loss": 0.5, "validation": None}], "data": str(store / "x.jsonl")}
    halka.AdapterStore(store).save(model, "a", task="greeting", measurements={"f1": 0.5}, training=training)
    entry = client.get("/v1/adapters/a").json()
    assert (entry["task"], entry["measurements"], entry["method"]["name"]) == ("greeting", {"f1": 0.5}, "prompt")
    assert (entry["kind"], entry["training"]["steps"], entry["curve"]) == ("causal-lm", 3, training["curve"])
    assert entry["versions_used"]["halka"]
    assert str(store.parent) not in json.dumps(entry)
    (listed,) = [listed for listed in client.get("/v1/adapters").json()["data"] if listed["id"] == "a"]
    assert ("curve" not in listed, listed["losses"]) == (True, [0.5])


@pytest.mark.parametrize(
    ("curve", "losses"),
    [
        (None, []),
        ("high", []),
        ([None, 3, {"loss": "<b>"}, {"loss": float("nan")}, {"step": 2}, {"loss": 0.25}], [0.25]),
        ([{"loss": float(loss)} for loss in range(48)], [0.5 + 2 * pair for pair in range(24)]),
        ([{"loss": 1.0}] * 100, [1.0] * 20),
        ([{"loss": 1.7e308}] * 100 + [{"loss": 10**400}, {"loss": 3}], [3.0]),
    ],
)
def test_any_curve_comes_to_a_few_losses(curve, losses):
    assert losses_of(curve) == losses
    assert all(isinstance(point, dict) for point in points_of(curve))


def test_an_adapter_says_which_content_it_is(client, store):
    """As answers do."""
    chat = {"model": "lora", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
    answer = client.post("/v1/chat/completions", json=chat).json()
    assert client.get("/v1/adapters/lora").json()["fingerprint"] == answer["system_fingerprint"]
    (store / "lora" / "1" / "adapter_model.safetensors").write_bytes(b"damaged")
    damaged = client.get("/v1/adapters/lora").json()
    assert damaged["fingerprint"] is None
    assert "the copy is damaged" in damaged["error"]


def test_who_leaves_in_the_middle_leaves_nothing(server, store):
    folder = store / "lora" / "1"

    async def leave() -> None:
        async with staging(server.service) as staged:
            (staged / "file").write_text("half")
            with anyio.CancelScope() as scope:
                scope.cancel()
                await verify(server.service, "lora", folder)
        with anyio.CancelScope() as scope:
            async with staging(server.service):
                scope.cancel()
                await anyio.sleep(1)

    anyio.run(leave)
    assert not [*(server.service.settings.data / "uploads").iterdir()]
    adapters = server.service.engine.engine.adapters
    assert not adapters.residents.versions
    assert not adapters._put

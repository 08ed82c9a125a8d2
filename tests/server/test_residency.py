"""A tenant pins at most its share of the adapters' memory; the operator, an admin of `main`, pins what he wants."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from halka.storage.adapter_store import AdapterStore
from serving_for_tests import InProcess


def files_of(folder: Path) -> list[tuple[str, tuple[str, bytes]]]:
    return [("files", (path.name, path.read_bytes())) for path in folder.iterdir()]


@pytest.fixture
def full(base, store, tmp_path):
    """A server whose tenants may pin 1.5 LoRAs each, and a function that adds an adapter to one."""
    with InProcess.open(base, store, tmp_path / "probe") as server:
        server.client.post("/v1/adapters/lora/load")
        (loaded,) = server.service.engine.engine.adapters.residents.versions
    with InProcess.open(base, store, tmp_path / "data", adapter_memory=6 * loaded.bytes / 1e9, pinned=0.25) as server:

        def add(name: str, headers: dict[str, str], adapter: str = "lora") -> httpx.Response:
            files = files_of(store / adapter / "1")
            return server.client.post("/v1/adapters", data={"name": name}, files=files, headers=headers)

        yield server, add


def pin(server: InProcess, name: str, headers: dict[str, str], action: str = "pin") -> httpx.Response:
    return server.client.post(f"/v1/adapters/{name}/{action}", headers=headers)


def test_a_tenant_pins_its_share(full):
    server, add = full
    acme, other = server.key("acme"), server.key("other", "admin")
    for headers in (acme, other):
        assert [add(name, headers).status_code for name in ("one", "two")] == [201, 201]
    assert pin(server, "one", acme).json()["pinned"]
    assert pin(server, "one", acme).json()["pinned"], "again"
    refused = pin(server, "two", acme)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "pinned_full")
    assert "a tenant's pinned adapters may take" in refused.json()["error"]["message"]
    assert not server.client.get("/v1/adapters/two", headers=acme).json()["pinned"]
    assert pin(server, "one", other).json()["pinned"], "another tenant has a share of its own"
    assert pin(server, "two", other).status_code == 400, "its admin, too"
    assert not pin(server, "one", acme, "unpin").json()["pinned"]
    assert pin(server, "two", acme).json()["pinned"]


def test_all_tenants_together_leave_the_others_room(full):
    """Each is within its share; without an end to that, nobody else could load or upload anything."""
    server, add = full
    tenants = [server.key(name) for name in ("acme", "other", "third", "fourth")]
    for headers in tenants:
        assert add("one", headers).status_code == 201
    *pinned, refused = [pin(server, "one", headers) for headers in tenants]
    assert [response.json()["pinned"] for response in pinned] == [True] * 3
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "pinned_full")
    assert "all tenants' pinned adapters may take" in refused.json()["error"]["message"]
    assert add("two", tenants[-1]).status_code == 201
    assert pin(server, "one", server.key("main", "admin")).status_code == 404
    assert pin(server, "lora", server.key("main", "admin")).json()["pinned"], "the operator goes further"
    assert not pin(server, "one", tenants[0], "unpin").json()["pinned"]
    assert pin(server, "one", tenants[-1]).status_code == 400, "what the operator pinned counts"
    assert not pin(server, "one", tenants[1], "unpin").json()["pinned"]
    assert pin(server, "one", tenants[-1]).json()["pinned"]


def test_the_next_version_of_a_pinned_adapter_is_within_the_share(full):
    """It would be loaded, and pinned, by the next request."""
    server, add = full
    acme = server.key("acme")
    assert [add(*adapter).status_code for adapter in (("one", acme), ("two", acme, "prefix"))] == [201, 201]
    assert [pin(server, name, acme).json()["pinned"] for name in ("one", "two")] == [True, True]
    refused = add("two", acme)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "pinned_full")
    assert server.client.get("/v1/adapters/two", headers=acme).json()["versions"] == [1]
    assert not pin(server, "two", acme, "unpin").json()["pinned"]
    assert add("two", acme).json()["versions"] == [1, 2]


def test_a_version_that_a_job_stored_is_pinned_where_it_fits(full, store):
    """Nobody could refuse it: a job's process knows nothing of the engine."""
    server, add = full
    acme = server.key("acme")
    adapters = server.service.tenants.of("acme").store
    assert [add(*adapter).status_code for adapter in (("one", acme), ("two", acme, "prefix"))] == [201, 201]
    assert [pin(server, name, acme).json()["pinned"] for name in ("one", "two")] == [True, True]
    for source, pinned in (("prefix", True), ("lora", False)):
        adapters.add(store / source / "1", "two")
        assert pin(server, "two", acme, "load").json()["pinned"] is pinned
    assert server.client.get("/v1/adapters/one", headers=acme).json()["pinned"]
    assert pin(server, "one", acme, "unpin").status_code == 200
    assert not pin(server, "two", acme, "load").json()["pinned"], "its pin has ended"
    assert pin(server, "two", acme).json()["pinned"]


def test_the_operator_pins_what_he_wants(full):
    server, add = full
    main = server.key("main", "admin")
    assert [add(name, main).status_code for name in ("one", "two")] == [201, 201]
    assert [pin(server, name, main).json()["pinned"] for name in ("one", "two")] == [True, True]


@pytest.mark.parametrize(
    ("method", "action"), [("POST", "/unpin"), ("POST", "/unload"), ("POST", "/pin"), ("DELETE", "")]
)
def test_an_adapter_that_is_removed_underneath_is_pinned_no_more(client, server, store, method, action):
    """As `halka adapters remove` does it."""
    assert pin(server, "lora", {}).json()["pinned"]
    assert pin(server, "prefix", {}).json()["pinned"]
    AdapterStore(store).remove("lora")
    assert client.request(method, f"/v1/adapters/lora{action}").status_code == 404
    (left,) = server.service.adapters.residents.versions
    assert (left.name, left.pinned) == ("main/prefix", True)


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_pin_goes_back_with_its_name_to_the_version_before(client, server, store, by_hand):
    body = {"model": "lora", "max_tokens": 2, "messages": [{"role": "user", "content": "Hi"}]}
    adapters = AdapterStore(store)
    assert pin(server, "lora", {}).json()["pinned"]
    adapters.add(store / "prefix" / "1", "lora")
    assert client.post("/v1/chat/completions", json=body).status_code == 200
    if by_hand:  # as `halka adapters remove` does it
        adapters.remove("lora", 2)
        assert pin(server, "lora", {}).json()["pinned"]
    else:
        assert client.delete("/v1/adapters/lora", params={"version": 2}).status_code == 200
    (left,) = server.service.adapters.residents.versions
    assert (left.folder.path, left.pinned) == (store / "lora" / "1", True)


def test_a_version_by_its_number_has_a_place_in_memory_of_its_own(client, server, store):
    AdapterStore(store).add(store / "prefix" / "1", "lora")
    shown = pin(server, "lora@1", {}).json()
    assert (shown["id"], shown["version"], shown["pinned"]) == ("lora", 1, True)
    assert client.get("/v1/adapters/lora@1").json()["pinned"]
    assert not client.get("/v1/adapters/lora").json()["loaded"]
    assert not pin(server, "lora@1", {}, "unpin").json()["pinned"]
    assert not pin(server, "lora@1", {}, "unload").json()["loaded"]
    assert pin(server, "lora@2", {}, "load").json()["loaded"]
    assert pin(server, "lora@1", {}).json()["pinned"]
    assert pin(server, "lora@3", {}).status_code == 404
    assert client.delete("/v1/adapters/lora", params={"version": 1}).status_code == 200
    (left,) = server.service.adapters.residents.versions
    assert (left.name, server.service.adapters.residents.pins) == ("main/lora@2", {})
    assert client.delete("/v1/adapters/lora").status_code == 200
    assert not server.service.adapters.residents.versions


@pytest.mark.parametrize(("places", "own", "together"), [(4, 2, 2), (5, 2, 2), (2, 1, 1), (1, 0, 0)])
def test_pins_leave_the_others_places_too_where_memory_has_few(base, store, tmp_path, places, own, together):
    with InProcess.open(base, store, tmp_path / "data", adapters_in_memory=places) as server:
        counts = {}
        for tenant in ("acme", "other"):
            headers, adapters = server.key(tenant), server.service.tenants.of(tenant).store
            for name in ("one", "two", "three"):
                adapters.add(store / "lora" / "1", name)
            answers = [pin(server, name, headers) for name in ("one", "two", "three")]
            assert {(answer.status_code, answer.json().get("pinned")) for answer in answers} <= {
                (200, True),
                (400, None),
            }
            counts[tenant] = sum(answer.status_code == 200 for answer in answers)
        assert counts == {"acme": own, "other": together - own}
        refused = answers[-1].json()["error"]
        assert (refused["code"], f"of the {places} places in memory" in refused["message"]) == ("pinned_full", True)
        body = {"model": "lora", "max_tokens": 2, "messages": [{"role": "user", "content": "Hi"}]}
        answer = server.client.post("/v1/chat/completions", json=body, headers=server.key("main", "user"))
        assert answer.status_code == 200, answer.text


def test_what_pinned_adapters_leave_no_room_for_is_no_fault_of_the_request(base, store, tmp_path):
    with InProcess.open(base, store, tmp_path / "data", adapters_in_memory=1) as server:
        main = server.key("main", "admin")
        assert pin(server, "lora", main).json()["pinned"]
        body = {"model": "prefix", "max_tokens": 2, "messages": [{"role": "user", "content": "Hi"}]}
        upload = {"data": {"name": "prefix"}, "files": files_of(store / "prefix" / "1")}
        refusals = [
            server.client.post("/v1/chat/completions", json=body, headers=main),
            pin(server, "prefix", main),
            server.client.post("/v1/adapters", **upload, headers=main),
        ]
        for refused in refusals:
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "adapters_pinned")
            assert "adapter 'prefix' has no room: all 1 in memory are pinned" in refused.json()["error"]["message"]

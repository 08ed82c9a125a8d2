"""`/v1/keys`: an admin says who else may call, of its own tenant, and never gives more than it has."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from pydantic import ValidationError

from guarded_for_tests import LOCAL
from halka.server.guards.keys import Limits
from halka.server.jobs.requests import EvaluateJob
from halka.server.resources.keys import NewKey

SOON = datetime.now(UTC).replace(microsecond=0) + timedelta(days=2)


@pytest.fixture
def admin(server) -> dict[str, str]:
    """The headers of the operator."""
    return server.key("main", "admin")


@pytest.fixture(scope="module")
def operator(shared) -> dict[str, str]:
    """Its headers at the server that stays as it is."""
    return shared.key("main", "admin")


def add(server, headers, **key):
    return server.client.post("/v1/keys", json=key, headers=headers)


def change(server, headers, id, *, last=False, **to):
    return server.client.patch(f"/v1/keys/{id}", json=to, headers=headers, params={"last": last})


def bearer(response) -> dict[str, str]:
    """The headers of a key that was added."""
    return {"authorization": f"Bearer {response.json()['key']}"}


def test_a_key_is_added_shown_once_and_revoked(server, admin):
    response = add(server, admin, role="manager", note="laptop", limits={"requests": 60}, expires=SOON.isoformat())
    assert response.status_code == 201
    key = response.json()
    text = key.pop("key")
    assert key | {"id": "", "created": ""} == {
        "object": "key", "id": "", "tenant": "main", "role": "manager", "created": "", "expires": SOON.isoformat(),
        "expired": False, "limits": {"requests": 60}, "note": "laptop", "own": False, "parent": None,
    }  # fmt: skip
    mine = {"authorization": f"Bearer {text}"}
    assert server.client.get("/v1/session", headers=mine).json()["role"] == "manager"
    listed = server.client.get("/v1/keys", headers=admin)
    assert text not in listed.text
    assert [entry["own"] for entry in listed.json()["data"]] == [True, False]
    assert listed.json()["data"][1] == key
    assert server.service.guards.keys.all()[key["id"]].hash not in listed.text
    assert server.client.delete(f"/v1/keys/{key['id']}", headers=admin).json() == {**key, "deleted": True}
    assert server.client.get("/v1/session", headers=mine).status_code == 401
    assert server.client.delete(f"/v1/keys/{key['id']}", headers=admin).status_code == 404


@pytest.mark.parametrize("role", ["user", "manager", "monitor"])
def test_only_admins_see_and_make_keys(server, admin, role):
    headers = server.key("main", role)
    (id, *_) = server.service.guards.keys.all()
    calls = [("GET", "/v1/keys", {}), ("POST", "/v1/keys", {"json": {}}), ("DELETE", f"/v1/keys/{id}", {})]
    calls.append(("PATCH", f"/v1/keys/{id}", {"json": {}}))
    for method, path, more in calls:
        assert server.client.request(method, path, headers=headers, **more).status_code == 403


def test_a_tenants_admin_has_to_do_with_its_own_tenant_alone(server, admin):
    acme = server.key("acme", "admin")
    (operator, own) = server.service.guards.keys.all()
    assert [key["id"] for key in server.client.get("/v1/keys", headers=acme).json()["data"]] == [own]
    assert len(server.client.get("/v1/keys", headers=admin).json()["data"]) == 2
    assert server.client.delete(f"/v1/keys/{operator}", headers=acme).status_code == 404
    assert change(server, acme, operator, role="user").status_code == 404
    assert add(server, acme, tenant="main").json()["error"]["code"] == "wrong_tenant"
    assert add(server, acme, tenant="other").status_code == 403
    assert add(server, acme, role="monitor").status_code == 400
    assert add(server, acme, role="admin").json()["tenant"] == "acme"
    assert add(server, admin, tenant="globex", role="admin").json()["tenant"] == "globex"


@pytest.mark.parametrize(
    ("key", "param"),
    [
        ({"role": "root"}, "role"),
        ({"role": None}, "role"),
        ({"tenant": "../main"}, "tenant"),
        ({"tenant": "Acme"}, None),
        ({"tenant": "manager"}, None),
        ({"limits": {"requests": 0}}, "limits.requests"),
        ({"limits": {"storage": 2**60}}, "limits.storage"),
        ({"limits": {"answers": 1}}, "limits.answers"),
        ({"expires": "tomorrow"}, "expires"),
        ({"expires": "2030-01-01T00:00:00"}, "expires"),
        ({"expires": "2020-01-01T00:00:00Z"}, None),
        ({"expires": 10**30}, "expires"),
        ({"note": "a" * 201}, "note"),
        ({"hash": "x"}, "hash"),
    ],
)
def test_what_is_no_key_is_refused(shared, operator, key, param):
    response = add(shared, operator, **key)
    assert response.status_code == 400, response.text
    assert param is None or response.json()["error"]["param"] == param
    assert len(shared.service.guards.keys.all()) == 1


def test_what_has_a_default_may_be_null():
    """As clients with types send what is not set."""
    key = NewKey.model_validate({"role": "user", "tenant": None, "limits": None, "note": None, "expires": None})
    assert key == NewKey.model_validate({"role": "user"})
    assert "expires" in key.model_fields_set
    job = {"kind": "evaluate", "data": [{"prompt": "a", "completion": "b"}]}
    unset = EvaluateJob.model_validate({**job, "adapters": None, "with_base": None, "metrics": None})
    assert unset == EvaluateJob.model_validate(job)
    with pytest.raises(ValidationError, match="kind"):
        EvaluateJob.model_validate({**job, "kind": None})


def test_a_note_is_one_line(server, admin):
    assert "\n" not in add(server, admin, note="a\nb\x1b[31m").json()["note"]


def test_nobody_gives_more_than_the_own_key_has(server, admin):
    limits = Limits(requests=10, storage=1000)
    headers = server.key("acme", "admin", expires=SOON, limits=limits)
    key = add(server, headers).json()
    assert (key["limits"], key["expires"]) == ({"requests": 10, "storage": 1000}, SOON.isoformat())
    less = add(server, headers, limits={"requests": 5, "tokens": 7}).json()
    assert less["limits"] == {"requests": 5, "tokens": 7, "storage": 1000}
    later = (SOON + timedelta(seconds=1)).isoformat()
    for more, param in (
        ({"limits": {"requests": 11}}, "limits.requests"),
        ({"expires": later}, "expires"),
        ({"expires": None}, "expires"),
    ):
        response = add(server, headers, **more)
        assert (response.status_code, response.json()["error"]["param"]) == (403, param)


def test_nobody_gives_more_than_the_servers_limits_leave_the_own_key(server, admin):
    """What a key does not say is the server's default; the operator is not bound by that."""
    acme = server.key("acme", "admin")
    refused = add(server, acme, limits={"concurrency": 65})
    assert (refused.status_code, refused.json()["error"]["param"]) == (403, "limits.concurrency")
    key = add(server, acme, limits={"storage": 10}).json()
    assert (key["limits"], key["parent"]) == (
        {"storage": 10},
        server.client.get("/v1/session", headers=acme).json()["key"],
    )
    assert add(server, admin, limits={"concurrency": 65}).json()["parent"] is None


def test_keys_that_made_each_other_share_the_limits_of_the_first(server, admin):
    first = server.key("acme", "admin", limits=Limits(requests=4))
    second = bearer(add(server, first, role="admin"))
    third = bearer(add(server, second, role="admin"))
    calls = [server.client.get("/v1/models", headers=headers).status_code for headers in (first, third, second)]
    assert calls == [200, 200, 429]
    (revoked,) = [key for key in server.service.guards.keys.all().values() if key.limits.requests and not key.parent]
    server.service.guards.keys.revoke(revoked.id)
    assert server.client.get("/v1/models", headers=third).status_code == 429, "also without it"


def test_a_key_that_is_revoked_meanwhile_makes_none(server, admin, monkeypatch):
    """Between the guard and the keys' lock."""
    headers, keys = server.key("acme", "admin"), server.service.guards.keys
    changed, (*_, own) = keys._changed, keys.all()

    def revoked_before():
        monkeypatch.setattr(keys, "_changed", changed)
        keys.revoke(own)
        return changed()

    monkeypatch.setattr(keys, "_changed", revoked_before)
    assert (add(server, headers).status_code, len(keys.all())) == (401, 1)


def test_without_a_key_none_is_made_once_there_is_one(server, monkeypatch):
    keys = server.service.guards.keys
    changed = keys._changed

    def added_before():
        monkeypatch.setattr(keys, "_changed", changed)
        keys.add("main", "admin")
        return changed()

    monkeypatch.setattr(keys, "_changed", added_before)
    assert (add(server, {}, role="admin").status_code, len(keys.all())) == (401, 1)


def test_the_last_admin_does_not_go_in_passing(server, admin):
    (operator,) = server.service.guards.keys.all()
    refused = server.client.delete(f"/v1/keys/{operator}", headers=admin)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "last_admin")
    server.key("acme", "admin")
    assert server.client.delete(f"/v1/keys/{operator}", headers=admin).status_code == 409, "another tenant's is no help"
    server.key("main", "admin")
    gone = server.client.delete(f"/v1/keys/{operator}", headers=admin)
    assert (gone.status_code, gone.json()["own"]) == (200, True)
    assert server.client.get("/v1/keys", headers=admin).status_code == 401


def test_the_last_admin_may_go_all_the_same(server, admin):
    (operator,) = server.service.guards.keys.all()
    assert server.client.delete(f"/v1/keys/{operator}?last=true", headers=admin).json()["deleted"]
    assert server.client.get("/v1/session").json()["keys_required"]


def test_the_first_key_is_one_that_can_add_others(server):
    refused = add(server, {}, role="user")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "first_key")
    assert add(server, {}, tenant="acme", role="admin").status_code == 409
    assert server.client.get("/v1/models").status_code == 200, "nothing is closed"
    text = add(server, {}, role="admin").json()["key"]
    assert server.client.get("/v1/models").status_code == 401
    assert add(server, {"authorization": f"Bearer {text}"}, role="user").status_code == 201


def test_a_key_is_changed_and_keeps_its_text(server, admin):
    response = add(server, admin, tenant="acme", note="laptop", limits={"requests": 60})
    mine, before = bearer(response), response.json()
    to = {"role": "manager", "limits": {"storage": 1000}, "note": "train\ning"}
    changed = change(server, admin, before["id"], **to).json()
    del before["key"]
    assert changed == before | {"role": "manager", "limits": {"storage": 1000}, "note": "train ing"}
    assert server.client.get("/v1/session", headers=mine).json()["role"] == "manager"
    assert server.client.get("/v1/jobs", headers=mine).status_code == 200
    assert change(server, admin, before["id"], role="user", limits=None).json()["limits"] == {"storage": 1000}
    assert server.client.get("/v1/jobs", headers=mine).status_code == 403
    assert change(server, admin, before["id"]).json() == changed | {"role": "user"}
    assert change(server, admin, "0" * 16, role="user").status_code == 404
    assert change(server, admin, before["id"], role="monitor").status_code == 400, "of main alone"


@pytest.mark.parametrize(
    ("to", "param"),
    [
        ({"role": "root"}, "role"),
        ({"limits": {"requests": 0}}, "limits.requests"),
        ({"limits": {"storage": 2**60}}, "limits.storage"),
        ({"limits": {"answers": 1}}, "limits.answers"),
        ({"note": "a" * 201}, "note"),
        ({"tenant": "acme"}, "tenant"),
        ({"expires": None}, "expires"),
    ],
)
def test_a_key_does_not_become_what_is_none(shared, operator, to, param):
    before = shared.service.guards.keys.all()
    response = change(shared, operator, next(iter(before)), **to)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert shared.service.guards.keys.all() == before


def test_nobody_makes_more_of_a_key_than_the_own(server, admin):
    """Neither by limits nor by a role that a key with more, or for longer, is given."""
    own = server.key("acme", "admin", expires=SOON, limits=Limits(requests=10, storage=1000))
    more = add(server, admin, tenant="acme", limits={"requests": 500, "tokens": 7}).json()["id"]
    refused = change(server, own, more, limits={"storage": 1001})
    assert (refused.status_code, refused.json()["error"]["param"]) == (403, "limits.storage")
    assert change(server, own, more, note="as it was").json()["limits"] == {"requests": 500, "tokens": 7}
    raised = change(server, own, more, role="manager").json()
    within = {"requests": 10, "tokens": 7, "concurrency": 64, "storage": 1000}
    assert (raised["limits"], raised["expires"]) == (within, SOON.isoformat())
    assert change(server, own, more, limits={}).json()["limits"] == within


def test_a_tenants_admin_only_lowers_the_limits_of_what_the_operator_made(server, admin):
    """They share no root: raised to the admin's own one by one, they would multiply what the tenant has."""
    own = server.key("acme", "admin", limits=Limits(requests=100, tokens=100))
    other = add(server, admin, tenant="acme", limits={"requests": 10}).json()["id"]
    refused = change(server, own, other, limits={"requests": 11})
    assert (refused.status_code, refused.json()["error"]["param"]) == (403, "limits.requests")
    assert change(server, own, other, limits={}).json()["limits"] == {"requests": 10, "tokens": 100}
    assert change(server, own, other, limits={"requests": 5}).json()["limits"] == {"requests": 5, "tokens": 100}
    assert change(server, admin, other, limits={"requests": 11}).json()["limits"] == {"requests": 11}
    child = add(server, own, limits={"requests": 3}).json()["id"]
    assert change(server, own, child, limits={"requests": 9}).json()["limits"]["requests"] == 9, "it shares the own's"


def test_keys_that_made_each_other_go_down_together(server, admin):
    first = server.key("acme", "admin", limits=Limits(requests=50, storage=1000))
    *_, root = server.service.guards.keys.all()
    second = add(server, first, role="admin")
    third = add(server, bearer(second), limits={"requests": 20})
    for _ in range(2):
        assert server.client.get("/v1/models", headers=bearer(third)).status_code == 200
    assert change(server, admin, root, limits={"requests": 3}).status_code == 200
    keys = server.service.guards.keys.all()
    assert [keys[one.json()["id"]].limits for one in (second, third)] == [Limits(requests=3, storage=1000)] * 2
    assert {keys[one.json()["id"]].root.limits for one in (second, third)} == {Limits(requests=3)}
    calls = [server.client.get("/v1/models", headers=bearer(third)).status_code for _ in range(4)]
    assert calls == [200, 200, 200, 429], "what the first's minute had left holds for all, and no minute begins anew"
    assert change(server, admin, root, limits={"requests": 100}).status_code == 200
    assert server.client.get("/v1/models", headers=bearer(third)).status_code == 429


def test_the_last_admin_stays_one(server, admin):
    (operator,) = server.service.guards.keys.all()
    refused = change(server, admin, operator, role="user")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "last_admin")
    assert change(server, admin, operator, role="admin", note="mine").json()["own"]
    assert change(server, admin, operator, role="user", last=True).json()["role"] == "user"
    assert server.client.get("/v1/keys", headers=admin).status_code == 403


def test_a_page_needs_its_header_for_keys_too(server, admin):
    page = {"x-halka-page": "1", "origin": LOCAL}
    text = admin["authorization"].removeprefix("Bearer ")
    server.client.post("/v1/session", json={"key": text}, headers=page)
    assert add(server, {}, role="user").status_code == 403
    id = add(server, page, role="user").json()["id"]
    assert change(server, {}, id, role="manager").status_code == 403
    assert change(server, page, id, role="manager").json()["role"] == "manager"

"""`/v1/keys`: who may call as whom, for admins of a tenant, and for the operator, the admins of `main`, of all tenants.

Nobody gives a key more than the own has, and the last that could make others is not lost in passing.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import AwareDatetime, Field
from starlette.responses import Response

from halka.server.errors import ApiError
from halka.server.guards.access import RIGHTS, AdminDep, Caller
from halka.server.guards.keys import MAIN, Key, Limits, Role
from halka.server.guards.sessions import unauthorized
from halka.server.requests import Body, Name
from halka.server.service import ServiceDep
from halka.server.wire import Json
from halka.util.text import one_line

router = APIRouter(tags=["keys"])
log = logging.getLogger("halka.server")

MOST = 1000  # keys of a tenant
Note = Annotated[str, Field(max_length=200)]
Last = Annotated[bool, Query(description="also where nobody could make another key of its tenant then")]


class NewKey(Body):
    """A key: of the caller's tenant, unless the operator names another; what is left out is as the caller's own key."""

    tenant: Name | None = None
    role: Role = "user"
    expires: AwareDatetime | None = None
    limits: Limits = Field(default_factory=Limits)
    note: Note = ""


class ChangedKey(Body):
    """What a key is from now on; what is left out stays. `limits` are those of a new key: all that it is to have."""

    role: Role | None = None
    limits: Limits | None = None
    note: Note | None = None


@router.get("/v1/keys")
async def list_keys(service: ServiceDep, caller: AdminDep) -> Response:
    """List the keys of the caller's tenant, for the operator those of all, without their texts."""
    keys = await service.threads.manage(service.guards.keys.all)
    return Json({"object": "list", "data": [_view(key, caller) for key in keys.values() if _concerns(key, caller)]})


@router.post("/v1/keys")
async def add_key(body: NewKey, service: ServiceDep, caller: AdminDep) -> Response:
    """Add a key. Its text is in this answer, and nowhere else."""
    tenant, own = body.tenant or caller.tenant, caller.key
    if tenant != caller.tenant and caller.tenant != MAIN:
        raise ApiError(403, f"an admin's keys are of tenant {caller.tenant}", param="tenant", code="wrong_tenant")
    expires = body.expires if own is None else _expiry_within(body, own)
    limits = _limits_within(body.limits, caller)
    parent = own if caller.tenant != MAIN else None

    def check(keys: Mapping[str, Key]) -> None:
        _check_caller(keys, own)
        if not keys and (tenant, body.role) != (MAIN, "admin"):
            raise ApiError(
                409,
                f"the first key closes the server to all others: let it be an admin's of tenant {MAIN}",
                param="role",
                code="first_key",
            )
        if sum(key.tenant == tenant for key in keys.values()) >= MOST:
            raise ApiError(409, f"tenant {tenant} has {MOST} keys: revoke some", code="too_many")

    text, key = await service.threads.manage(
        lambda: service.guards.keys.add(tenant, body.role, expires, limits, one_line(body.note), check, parent)
    )
    _log("a key was added", key, caller)
    return Json({"key": text, **_view(key, caller)}, 201)


@router.patch("/v1/keys/{id}")
async def change_key(id: str, body: ChangedKey, service: ServiceDep, caller: AdminDep, last: Last = False) -> Response:
    """Change a key's role, limits or note. What is under way with it ends; its sessions go on, as what it is then."""

    def check(keys: Mapping[str, Key]) -> None:
        key = _key_of(keys, id, caller)
        if body.role not in (None, "admin") and not last:
            _check_another_admin(keys, key)

    def changed(key: Key) -> Key:
        more = body.role is not None and not RIGHTS[body.role] <= RIGHTS[key.role]
        note = key.note if body.note is None else one_line(body.note)
        limits = key.limits if body.limits is None else _limits_within(body.limits, caller, key)
        key = replace(key, role=body.role or key.role, limits=limits, note=note)
        return _bounded(key, caller) if more else key

    key = await service.threads.manage(service.guards.keys.change, id, changed, check)
    _log("a key was changed", key, caller)
    return Json(_view(key, caller))


@router.delete("/v1/keys/{id}")
async def revoke_key(id: str, service: ServiceDep, caller: AdminDep, last: Last = False) -> Response:
    """Revoke a key: what is under way with it ends within a second, the caller's own too, as `own` says."""

    def check(keys: Mapping[str, Key]) -> None:
        key = _key_of(keys, id, caller)
        if not last:
            _check_another_admin(keys, key)

    key = await service.threads.manage(service.guards.keys.revoke, id, check)
    _log("a key was revoked", key, caller)
    return Json({**_view(key, caller), "deleted": True})


def _key_of(keys: Mapping[str, Key], id: str, caller: Caller) -> Key:
    """The key of this id, if it is the caller's business. Raises ApiError, also as `_check_caller` does."""
    _check_caller(keys, caller.key)
    key = keys.get(id)
    if key is None or not _concerns(key, caller):
        raise ApiError(404, f"there is no key {id[:100]!r}: GET /v1/keys lists those there are", param="id")
    return key


def _check_another_admin(keys: Mapping[str, Key], key: Key) -> None:
    """Raises ApiError where nobody could add keys to its tenant without this one."""
    others = (other for other in keys.values() if other.id != key.id and other.tenant == key.tenant)
    if _rules(key) and not any(map(_rules, others)):
        raise ApiError(
            409,
            f"this is the last admin's key of tenant {key.tenant}: add another, or say ?last=true; then "
            "`halka keys add` on the server's machine makes one",
            param="id",
            code="last_admin",
        )


def _check_caller(keys: Mapping[str, Key], own: Key | None) -> None:
    """Raises ApiError where the caller's key was revoked meanwhile, or there are keys now and the caller has none."""
    if (keys.get(own.id) != own or own.expired) if own else keys:
        raise unauthorized("the key was revoked, or keys are needed now", "invalid_api_key")


def _rules(key: Key) -> bool:
    """Whether keys can be added with this one."""
    return key.role == "admin" and not key.expired


def _concerns(key: Key, caller: Caller) -> bool:
    """Whether a key is the caller's business: of the own tenant, or any, for the operator."""
    return caller.tenant in (MAIN, key.tenant)


def _view(key: Key, caller: Caller) -> dict[str, Any]:
    return {"object": "key", **key.shown, "own": caller.key is not None and caller.key.id == key.id}


def _expiry_within(body: NewKey, own: Key) -> datetime | None:
    """When the new key expires. Raises ApiError for a time after the own key's."""
    if own.expires is None or (body.expires is not None and body.expires <= own.expires):
        return body.expires
    if "expires" in body.model_fields_set:
        raise ApiError(403, f"your own key expires at {own.expires.isoformat()}: no other may later", param="expires")
    return own.expires


def _most(caller: Caller) -> Limits:
    """The most that the caller may give: a tenant's admin no more than the server's own limits allow."""
    if caller.key is None:
        return Limits()
    return caller.key.limits if caller.tenant == MAIN else caller.lease.limits


def _limits_within(limits: Limits, caller: Caller, before: Key | None = None) -> Limits:
    """The limits that the caller gives a new key, or one that had others `before`. Raises ApiError for one beyond.

    What is left out is as the own key's. Where the operator made a key, which shares its limits with no other, a
    tenant's admin lowers them alone: each key raised to the own's would multiply what the tenant has.
    """
    own, most = caller.key.limits if caller.key else Limits(), _most(caller)
    if caller.tenant != MAIN and before is not None and before.root is None:
        own, most = own.within(before.limits), most.within(before.limits)
    for name, bound in vars(most).items():
        value = getattr(limits, name)
        if bound is not None and value is not None and value > bound:
            raise ApiError(403, f"{bound:,} is the most that you may give this key", param=f"limits.{name}")
    return limits.within(own)


def _bounded(key: Key, caller: Caller) -> Key:
    """A key that is to have a higher role, with no more and for no longer than the caller's own."""
    ends = [when for when in (key.expires, caller.key and caller.key.expires) if when is not None]
    return replace(key, limits=key.limits.within(_most(caller)), expires=min(ends, default=None))


def _log(message: str, key: Key, caller: Caller) -> None:
    by = caller.key and caller.key.id
    fields = {"key": key.id, "tenant": key.tenant, "role": key.role, "by": by, "request": caller.request}
    log.info(message, extra={"fields": fields})

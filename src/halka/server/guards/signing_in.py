"""`/v1/session`: who the caller is; a key becomes a cookie, for the page, until somebody signs out."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Response
from pydantic import AwareDatetime, BaseModel, Field
from starlette.requests import Request as HttpRequest

from halka.server.errors import ApiError
from halka.server.guards.access import SESSION, Caller
from halka.server.guards.browser import check_page, over_tls
from halka.server.guards.keys import Key, Role
from halka.server.guards.limits import Lease
from halka.server.guards.sessions import Session, Sessions, cookie_name
from halka.server.requests import Body

router = APIRouter(tags=["session"])


class SignIn(Body):
    """The key that the session is to stand for."""

    key: Annotated[str, Field(min_length=1, max_length=200)]


class Who(BaseModel):
    """Who calls: nobody, with a key where keys are needed, or this machine where they are not.

    key      the key's id; None: no key
    expires  when the session, or without one the key, ends; None: never
    """

    tenant: str | None = None
    role: Role | None = None
    key: str | None = None
    expires: AwareDatetime | None = None
    keys_required: bool = True


async def anyone(request: HttpRequest) -> Caller | None:
    """Who makes this request; None: nobody that the server knows."""
    return getattr(request.state, "caller", None)


AnyoneDep = Annotated[Caller | None, Depends(anyone)]


@router.get(SESSION)
async def get_session(caller: AnyoneDep) -> Who:
    """Say who calls."""
    if caller is None:
        return Who()
    if caller.key is None:
        return Who(tenant=caller.tenant, role=caller.role, keys_required=False)
    return _who(caller.key, caller.session)


@router.post(SESSION, status_code=201)
async def begin_session(body: SignIn, request: HttpRequest, response: Response, caller: AnyoneDep) -> Who:
    """Sign a page in: the cookie that comes with the answer stands for the key."""
    check_page(request.scope)
    if caller is not None and caller.key is None:
        raise ApiError(400, "there are no keys here: whoever is on this machine may call", code="no_keys")
    sessions, limiter = _sessions(request), request.app.state.service.guards.limiter
    key = sessions.key(body.key, request.client.host if request.client else "")
    if caller is None or caller.key != key:  # else the request is counted already
        lease = Lease(limiter, *limiter.uses(key))
        lease.begin()
        lease.end()
    cookie, session = sessions.begin(key)
    if caller is not None and caller.session is not None:
        sessions.end(caller.session.id)
    life = int((session.ends - datetime.now(UTC)).total_seconds())
    tls = over_tls(request.scope)
    response.set_cookie(cookie_name(tls), cookie, life, httponly=True, samesite="strict", secure=tls)
    return _who(key, session)


@router.delete(SESSION, status_code=204)
async def end_session(request: HttpRequest, response: Response, caller: AnyoneDep) -> None:
    """Sign out: the session of the cookie ends, and with it what it has under way."""
    check_page(request.scope)
    if caller is not None and caller.session is not None:
        _sessions(request).end(caller.session.id)
    tls = over_tls(request.scope)
    response.delete_cookie(cookie_name(tls), httponly=True, samesite="strict", secure=tls)


def _sessions(request: HttpRequest) -> Sessions:
    return request.app.state.service.guards.sessions


def _who(key: Key, session: Session | None) -> Who:
    return Who(tenant=key.tenant, role=key.role, key=key.id, expires=session.ends if session else key.expires)

"""Who calls: every route asks for a key, or for a session's cookie, but for `OPEN` and the page's files; without keys,
only this machine may call.

The middleware runs before anything reads the request's body, and knows no routes: what is not open is guarded, be it a
route, a mounted application, a file, or nothing at all.
"""

from __future__ import annotations

import ipaddress
import logging
import re
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

from fastapi import Depends
from starlette.requests import Request as HttpRequest
from starlette.types import ASGIApp, Receive, Scope, Send

from halka.server.errors import ApiError
from halka.server.folders import NO_FOLDERS, Folders
from halka.server.guards.browser import SAFE, check_page, values_of
from halka.server.guards.keys import MAIN, Key, Keys, Role
from halka.server.guards.limits import Lease
from halka.server.guards.sessions import Session, Sessions, cookie_of, unauthorized
from halka.server.page import is_page
from halka.util.errors import DamagedFolderError, HalkaError

if TYPE_CHECKING:
    from halka.engine import Answer

log = logging.getLogger("halka.server")

OPEN = frozenset({"/healthz", "/readyz"})
"""The paths that need no key, beside the page's (`halka.server.page`)."""
SESSION = "/v1/session"
"""Sign-in. Answers callers with and without a session."""
RIGHTS: dict[Role, frozenset[Role]] = {
    "monitor": frozenset({"monitor"}),
    "user": frozenset({"user"}),
    "manager": frozenset({"user", "manager"}),
    "admin": frozenset({"monitor", "user", "manager", "admin"}),
}
NEEDED: dict[str, Role] = {"/metrics": "monitor"}
"""The right that a path needs, if it is not that of a user; routes may ask for more, with `needs`."""
OPERATORS = frozenset({"/metrics"})
"""The paths whose answers are about all tenants: for keys of tenant `main`, the operator's."""
HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(?::[0-9]+)?")
PROXIED = (b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-real-ip", b"via")


@dataclass(frozen=True)
class Caller:
    """Whose request it is. Without keys: an admin of tenant `main`.

    held     what the request holds of its key's limits; None before `Limiting`, as in the log
    request  the id that the log has of it
    folders  what no message to the caller names
    since    when the request came, by `time.monotonic`
    session  the session that stands for the key; None: the request has the key itself
    answers  those that are made for it, as they begin
    """

    tenant: str = MAIN
    role: Role = "admin"
    key: Key | None = None
    held: Lease | None = None
    request: str | None = None
    folders: Folders = NO_FOLDERS
    since: float = field(default_factory=time.monotonic, compare=False)
    session: Session | None = None
    answers: list[Collection[Answer]] = field(default_factory=list["Collection[Answer]"], compare=False)

    @property
    def tokens(self) -> int:
        """How many tokens were made for it so far."""
        return sum(len(answer.tokens) for answers in self.answers for answer in answers)

    @property
    def lease(self) -> Lease:
        """What a route may hold of the key's limits."""
        assert self.held is not None
        return self.held

    def may(self, right: Role) -> bool:
        return right in RIGHTS[self.role]


def check_host(host: str, keys: Keys) -> None:
    """Raises HalkaError where others than this machine could call without keys."""
    if not keys.required and not is_loopback(host):
        raise HalkaError(
            f"host is {host!r}, which others can reach, and there are no keys: add one "
            "(`halka keys add`), or listen at 127.0.0.1"
        )


def is_loopback(host: str) -> bool:
    """Whether a host, as a URL writes it, is this machine and no other."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def is_open(method: str, path: str, root: str = "") -> bool:
    """Whether a request needs no key. root: its root path; routes see what of `path` is below it."""
    return path in OPEN or (method in ("GET", "HEAD") and not root and is_page(path))


def unreadable_keys(error: Exception, request: str | None) -> ApiError:
    """What a caller gets whose key cannot be looked up; the log has why."""
    log.error("the keys cannot be read", exc_info=error, extra={"fields": {"request": request}})
    return ApiError(503, "the server cannot check this key now", code="keys_unreadable", headers={"retry-after": "10"})


class Access:
    """Middleware that puts the caller into the request's state, or refuses the request with 401 or 403.

    At `SESSION` nobody is no caller, and is not refused.

    folders  what no message to a caller names
    origins  the web pages that may call without a key, as CORS allows them
    """

    def __init__(self, app: ASGIApp, keys: Keys, sessions: Sessions, folders: Folders, origins: Collection[str] = ()):
        self.app, self.keys, self.sessions = app, keys, sessions
        self.folders, self.origins = folders, frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008})
        if scope["type"] == "http" and not is_open(scope["method"], scope["path"], scope.get("root_path", "")):
            state = scope.setdefault("state", {})
            request = state.get("request_id")
            try:
                if (caller := self._caller(scope)) is not None:
                    state["caller"] = replace(caller, request=request, folders=self.folders)
            except ApiError as error:
                return await error.response()(scope, receive, send)
            except (DamagedFolderError, OSError) as error:
                return await unreadable_keys(error, request).response()(scope, receive, send)
        await self.app(scope, receive, send)

    def _caller(self, scope: Scope) -> Caller | None:
        caller = self._with_key(scope) if self.keys.required else self._without_keys(scope)
        if scope["path"] == SESSION:
            return caller
        if caller is None:
            raise unauthorized("give one API key, in one header: Authorization: Bearer KEY", None)
        check_right(caller, NEEDED.get(scope["path"], "user"))
        if scope["path"] in OPERATORS and caller.tenant != MAIN:
            raise ApiError(403, f"this is about all tenants: it needs a key of tenant {MAIN}", code="wrong_tenant")
        return caller

    def _with_key(self, scope: Scope) -> Caller | None:
        """The caller by a key, or by a cookie where there is no such header; None: the request has neither."""
        values = values_of(scope, b"authorization")
        if not values:
            return self._with_cookie(scope)
        scheme, _, text = values[0].partition(b" ") if len(values) == 1 else (b"", b"", b"")
        if scheme.lower() != b"bearer":
            raise unauthorized("give one API key, in one header: Authorization: Bearer KEY", None)
        if (key := self.keys.find(text.strip())) is None:
            raise unauthorized("the API key is wrong, revoked or has expired", "invalid_api_key")
        return Caller(key.tenant, key.role, key)

    def _with_cookie(self, scope: Scope) -> Caller | None:
        try:
            if (cookie := cookie_of(scope)) is None:
                return None
            session, key = self.sessions.find(cookie)
        except ApiError:
            if scope["path"] == SESSION:  # whose session has ended may sign in again
                return None
            raise
        if scope["method"] not in SAFE:
            check_page(scope)
        return Caller(key.tenant, key.role, key, session=session)

    def _without_keys(self, scope: Scope) -> Caller:
        """The caller, if it is a program on this machine: no page of a browser's, and nobody behind a proxy."""
        for host in values_of(scope, b"host") or [b""]:
            name = HOST.fullmatch(host.decode("latin-1"))
            if name is None or not is_loopback(name[1]):
                raise ApiError(403, "without API keys the server answers to localhost only", code="wrong_host")
        if any(values_of(scope, header) for header in PROXIED):
            raise ApiError(403, "a proxy is in front: that needs API keys (`halka keys add`)", code="keys_needed")
        for origin in (value.decode("latin-1") for value in values_of(scope, b"origin")):
            if origin not in self.origins and not is_loopback(_host_of(origin)):
                raise ApiError(403, "without API keys no web page may call", code="wrong_origin")
        if b"cross-site" in values_of(scope, b"sec-fetch-site") and not values_of(scope, b"origin"):
            raise ApiError(403, "without API keys no web page may call", code="wrong_origin")
        return Caller()


async def caller(request: HttpRequest) -> Caller:
    """Who makes this request."""
    caller = getattr(request.state, "caller", None)
    if caller is None:
        raise unauthorized("this needs an API key", None)
    return caller


CallerDep = Annotated[Caller, Depends(caller)]
"""A route's parameter that is its caller."""


def check_right(caller: Caller, right: Role) -> None:
    """Raises ApiError where the caller has not this right."""
    if not caller.may(right):
        roles = " or ".join(role for role, rights in RIGHTS.items() if right in rights)
        raise ApiError(403, f"this needs a key of the role {roles}; yours is {caller.role}", code="role_too_low")


def needs(right: Role) -> Callable[[HttpRequest], Awaitable[Caller]]:
    """A dependency that is the caller, who must have this right."""

    async def allowed(request: HttpRequest) -> Caller:
        who = await caller(request)
        check_right(who, right)
        return who

    return allowed


ManagerDep = Annotated[Caller, Depends(needs("manager"))]
"""A route's parameter that is its caller, who may change what the tenant has."""
AdminDep = Annotated[Caller, Depends(needs("admin"))]
"""A route's parameter that is its caller, who may say who else may call."""


def _host_of(origin: str) -> str:
    try:
        return urlsplit(origin).hostname or ""
    except ValueError:
        return ""

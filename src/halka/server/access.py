"""Who calls: the tenant and role that a request's key stands for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends
from starlette.requests import Request as HttpRequest

from halka.server.tenants import MAIN


@dataclass(frozen=True)
class Caller:
    """Whose request it is."""

    tenant: str = MAIN
    role: str = "admin"
    key: str | None = None


async def caller(request: HttpRequest) -> Caller:
    """Who makes this request."""
    return request.scope.get("state", {}).get("caller", Caller())


Who = Annotated[Caller, Depends(caller)]
"""A route's parameter that is its caller."""

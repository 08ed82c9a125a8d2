"""`/v1/usage`: what the caller's tenant has asked and stores, and for the operator what each has."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from halka.server.guards.access import CallerDep
from halka.server.guards.keys import MAIN
from halka.server.service import Service, ServiceDep
from halka.server.wire import Json

KEPT = 5.0  # seconds for which the bytes that a tenant stores are not counted again
router = APIRouter(tags=["usage"])


@router.get("/v1/usage")
async def get_usage(service: ServiceDep, caller: CallerDep) -> Response:
    """Tokens and answers by adapter since the server began, and what is stored of what may be."""
    own = await _usage(service, caller.tenant)
    own["storage"]["allowed"] = caller.lease.limits.storage
    tenants = None
    if caller.tenant == MAIN and caller.may("admin"):
        names = {*await service.threads.read(service.tenants.names), *service.guards.usage.tenants()}
        tenants = [await _usage(service, name) for name in sorted(names)]
    return Json({"object": "usage", "since": service.created, **own, "tenants": tenants})


async def _usage(service: Service, tenant: str) -> dict[str, Any]:
    """What a tenant has asked and stores."""
    counted, stored = service.stored.get(tenant, (float("-inf"), 0))
    if time.monotonic() - counted > KEPT:
        stored = await service.threads.read(service.tenants.of(tenant).storage.used)
        service.stored[tenant] = time.monotonic(), stored
    return {"tenant": tenant, "adapters": service.guards.usage.of(tenant), "storage": {"used": stored}}

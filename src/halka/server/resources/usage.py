"""`/v1/usage`: what the caller's tenant has asked and stores, and for the operator what each has."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from halka.server.guards.access import CallerDep
from halka.server.guards.keys import MAIN
from halka.server.service import Service, ServiceDep
from halka.server.wire import Json

router = APIRouter(tags=["usage"])


@router.get("/v1/usage")
async def get_usage(service: ServiceDep, caller: CallerDep) -> Response:
    """Tokens and answers by adapter since the server began, and what is stored of what may be."""
    own = await _usage(service, caller.tenant)
    own["storage"]["allowed"] = caller.lease.limits.storage
    tenants = None
    if caller.tenant == MAIN and caller.may("admin"):
        names = {*await service.threads.manage(service.tenants.names), *service.guards.usage.tenants()}
        tenants = [await _usage(service, name) for name in sorted(names)]
    return Json({"object": "usage", "since": service.created, **own, "tenants": tenants})


async def _usage(service: Service, tenant: str) -> dict[str, Any]:
    """What a tenant has asked and stores."""
    stored = await service.threads.manage(service.tenants.of(tenant).storage.used)
    return {"tenant": tenant, "adapters": service.guards.usage.of(tenant), "storage": {"used": stored}}

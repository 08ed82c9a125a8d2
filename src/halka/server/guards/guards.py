"""`Guards`: what stands before every route, from the outside in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from halka.server.guards.access import Access
from halka.server.guards.bodies import Bodies
from halka.server.guards.cancellation import Cancellation
from halka.server.guards.drain import Drain, Draining
from halka.server.guards.edge import Edge
from halka.server.guards.keys import Keys, Limits
from halka.server.guards.limits import Limiter, Limiting
from halka.server.guards.metrics import Metrics
from halka.server.guards.quota import Quota
from halka.server.guards.sessions import Sessions
from halka.server.guards.usage import Usage
from halka.server.settings import GB, MB, ServerSettings

if TYPE_CHECKING:
    from halka.engine import Engine

METHODS = ("GET", "POST", "DELETE", "PUT", "PATCH")


@dataclass(frozen=True)
class Guards:
    """What they know between requests."""

    settings: ServerSettings
    keys: Keys
    sessions: Sessions
    limiter: Limiter
    metrics: Metrics
    usage: Usage
    drain: Drain
    quota: Quota

    @classmethod
    def of(cls, settings: ServerSettings, keys: Keys, engine: Engine, quota: Quota) -> Guards:
        storage = None if settings.storage is None else int(settings.storage * GB)
        default = Limits(settings.requests_per_minute, settings.tokens_per_minute, settings.concurrency, storage)
        usage = Usage(settings.metric_adapters)
        return cls(
            settings,
            keys,
            Sessions(keys),
            Limiter(default, settings.all_rows + settings.queue),
            Metrics(engine, settings.all_rows, settings.metric_adapters, settings.metric_tenants, usage),
            usage,
            Drain(),
            quota,
        )

    def middleware(self) -> list[Middleware]:
        """From the outside in: whoever has no key ends at `Access`, before anything of a body is read."""
        settings, cors = self.settings, list[Middleware]()
        if settings.cors:
            cors.append(
                Middleware(CORSMiddleware, allow_origins=settings.cors, allow_methods=METHODS, allow_headers=["*"])
            )
        return [
            Middleware(Edge, self.metrics, settings.log_prompts),
            *cors,
            Middleware(Draining, self.drain),
            Middleware(Access, self.keys, self.sessions, settings.folders, settings.cors),
            Middleware(Limiting, self.limiter),
            Middleware(Bodies, int(settings.body_size * MB), int(settings.upload_size * MB), self.quota.reserve),
            Middleware(Cancellation, self.keys, self.sessions, settings.timeout, self.drain),
        ]

"""OpenAI's API over the engine: keys and tenants, adapters, documents, jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from halka.server.app import create_app
    from halka.server.settings import ServerSettings

__all__ = ["ServerSettings", "create_app"]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use: `halka keys` and jobs' processes need neither FastAPI nor the engine."""
    if name == "create_app":
        from halka.server.app import create_app

        return create_app
    if name == "ServerSettings":
        from halka.server.settings import ServerSettings

        return ServerSettings
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

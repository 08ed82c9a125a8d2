"""OpenAI's API over the engine: keys and tenants, adapters, documents, jobs."""

from halka.server.app import create_app
from halka.server.settings import ServerSettings

__all__ = ["ServerSettings", "create_app"]

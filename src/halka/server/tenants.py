"""`Tenants`: who has adapters, collections and jobs, and where. Within the engine an adapter is "tenant/name"."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from halka.server.guards.keys import MAIN
from halka.server.resources.adapter_files import stored_inside
from halka.server.settings import ServerSettings
from halka.server.storage import Storage
from halka.storage.adapter_store import AdapterStore, Stored, name_and_version
from halka.util.errors import UnknownAdapterError
from halka.util.files import is_portable_name, portable_name


@dataclass(frozen=True)
class Tenant:
    """One tenant's name and places; none of the folders need exist."""

    name: str
    store: AdapterStore
    collections: Path
    jobs: Path
    files: Path
    reserved: Path

    @property
    def storage(self) -> Storage:
        """What counts against the tenant's limit."""
        return Storage((self.store.folder, self.collections, self.jobs, self.files), self.reserved)

    def engine_name(self, adapter: str) -> str:
        """What the engine calls this tenant's adapter."""
        return f"{self.name}/{adapter}"


class Tenants:
    """The tenants of a server: `main` has --store and --collections, every other a folder in --data.

    For the engine it is the store of all of them. The settings have whole paths.
    """

    def __init__(self, settings: ServerSettings):
        self._folder = settings.data / "tenants"
        own = self._folder / MAIN
        self._main = Tenant(
            MAIN,
            AdapterStore(settings.store or own / "adapters"),
            settings.collections or own / "collections",
            own / "jobs",
            own / "files",
            own / "reserved",
        )

    def of(self, name: str) -> Tenant:
        """The tenant of that name, whether it has anything yet or not. Raises HalkaError for what is no name."""
        if name == MAIN:
            return self._main
        folder = self._folder / portable_name(name, "be a tenant's name")
        store = AdapterStore(folder / "adapters")
        return Tenant(name, store, *(folder / part for part in ("collections", "jobs", "files", "reserved")))

    def names(self) -> list[str]:
        """Every tenant that has a folder, and `main`."""
        folders = self._folder.iterdir() if self._folder.is_dir() else ()
        return sorted({MAIN, *(folder.name for folder in folders if is_portable_name(folder.name))})

    def all(self) -> list[Tenant]:
        """The tenants as they are now."""
        return [self.of(name) for name in self.names()]

    def job_folders(self) -> list[Path]:
        """Where their jobs lie."""
        return [tenant.jobs for tenant in self.all()]

    def get(self, name: str) -> Stored:
        """The newest version of "tenant/adapter", or that of "tenant/adapter@version".

        Raises UnknownAdapterError, which names no folder.
        """
        tenant, _, adapter = name.partition("/")
        try:
            return stored_inside(self.of(tenant).store, *name_and_version(adapter))
        except UnknownAdapterError:
            raise UnknownAdapterError(f"there is no model {adapter!r}: GET /v1/models lists them") from None

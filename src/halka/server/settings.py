"""`ServerSettings`: what `halka serve` is started with, each field a flag, a key in a file and a variable."""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from halka.server.folders import Folders
from halka.server.guards.keys import MAIN
from halka.util.base_folders import cache_dir, is_base_folder
from halka.util.dtypes import Dtype, Quantize
from halka.util.errors import HalkaError
from halka.util.settings import documented, split_key

MB, GB = 10**6, 10**9
ORIGIN = re.compile(r"null|[a-z][a-z0-9+.-]*://[^/?#\s]+")  # as browsers send it
LEAST = {
    **dict.fromkeys(("rows", "new_tokens", "requests_per_minute", "tokens_per_minute", "concurrency"), 1),
    "document_characters": 1,
    **dict.fromkeys(("temperature", "storage", "queue", "drain", "metric_adapters"), 0),
    **dict.fromkeys(("memory", "adapter_memory", "pinned", "jobs", "jobs_kept"), 0),
    **dict.fromkeys(("scale_up_after", "scale_down_after", "vllm_storage"), 0),
    "adapters_in_memory": 1,
}


@documented
@dataclass(frozen=True)
class ServerSettings:
    """What one server serves, to whom, and how much of the machine it takes."""

    base: str = field(
        metadata={"help": "short name, folder or hub name of the base", "metavar": "NAME", "beside": is_base_folder}
    )
    store: Path | None = field(default=None, metadata={"help": "the adapters of tenant main", "metavar": "FOLDER"})
    collections: Path | None = field(
        default=None, metadata={"help": "the document collections of tenant main", "metavar": "FOLDER"}
    )
    data: Path = field(
        default=Path("halka-server"),
        metadata={"help": "what the server keeps: keys, jobs, and the other tenants", "metavar": "FOLDER"},
    )
    name: str | None = field(
        default=None, metadata={"help": "what clients call the base; its short or last name if not given"}
    )
    host: str = field(default="127.0.0.1", metadata={"help": "the address to listen at", "metavar": "HOST"})
    port: int = field(default=8000, metadata={"help": "the port to listen at; 0: any that is free"})
    rows: int = field(default=32, metadata={"help": "answers that are made at the same time"})
    memory: float | None = field(
        default=None, metadata={"help": "for keys and values; what the rows can need if not given", "metavar": "GB"}
    )
    adapter_memory: float = field(
        default=2.0, metadata={"help": "for adapters that are loaded from stores", "metavar": "GB"}
    )
    adapters_in_memory: int | None = field(
        default=None, metadata={"help": "the most adapters there; none: as many as have room"}
    )
    pinned: float = field(
        default=0.5, metadata={"help": "the share of it that pinned adapters of a tenant may take; 1: all of it"}
    )
    new_tokens: int = field(default=1024, metadata={"help": "the most tokens of an answer whose request does not say"})
    temperature: float = field(
        default=0.0, metadata={"help": "where a request names none; 0: always the most likely token"}
    )
    adapter_roots: tuple[Path, ...] = field(
        default=(),
        metadata={
            "help": "folders that tenant main, or the one that is named, may import adapters from; may be repeated",
            "metavar": "[TENANT=]FOLDER",
            "keyed": True,
        },
    )
    comparisons: tuple[Path, ...] = field(
        default=(),
        metadata={
            "help": "folders with what `halka compare` wrote, shown to tenant main, or the one that is named; may be "
            "repeated",
            "metavar": "[TENANT=]FOLDER",
            "keyed": True,
        },
    )
    jobs: int = field(default=1, metadata={"help": "jobs that run at a time; 0: none is started here"})
    jobs_kept: int = field(
        default=100, metadata={"help": "jobs that a tenant may have, those that have ended included"}
    )
    dtype: Literal[Dtype, "auto"] = field(
        default="bfloat16", metadata={"help": "precision of the base: bfloat16, float32, …"}
    )
    device: str | None = field(default=None, metadata={"help": "cuda, mps or cpu; the first there is"})
    quantize: Quantize | None = field(
        default=None, metadata={"help": "pack the base's layers into fewer bits: nf4 or int8", "metavar": "QUANTIZE"}
    )
    vllm: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "vLLM processes with the same base, which answer what they do as the engine does; several with "
            "commas between",
            "metavar": "URL",
        },
    )
    vllm_base: bool = field(default=True, metadata={"help": "let them answer for the bare base, too"})
    vllm_folder: Path | None = field(
        default=None,
        metadata={
            "help": "where they read LoRAs, under the same path as the server; in --data if not given",
            "metavar": "FOLDER",
        },
    )
    vllm_storage: float = field(
        default=20.0,
        metadata={
            "help": "for LoRAs there that are no links to the stores' files; 0: for what is in use",
            "metavar": "GB",
        },
    )

    on: str | None = field(
        default=None,
        metadata={
            "help": "answer by replicas of the engine on a Ray cluster: ray, or ray://HOST:10001 for another "
            "machine's; rows, memory and adapters in memory are each one's then",
            "metavar": "CLUSTER",
        },
    )
    replicas: str = field(
        default="1", metadata={"help": "how many; MIN-MAX: as many as there is to do for", "metavar": "N"}
    )
    scale_up_after: float = field(
        default=10.0, metadata={"help": "add replicas when so long there was more to do", "metavar": "SECONDS"}
    )
    scale_down_after: float = field(
        default=60.0, metadata={"help": "remove replicas when so long there was less to do", "metavar": "SECONDS"}
    )

    requests_per_minute: int | None = field(
        default=None, metadata={"help": "of a key that has no limit of its own; none: no limit"}
    )
    tokens_per_minute: int | None = field(
        default=None, metadata={"help": "of a key that has no limit of its own: prompts, and answers at their longest"}
    )
    concurrency: int | None = field(
        default=64, metadata={"help": "requests and answers at once of a key that has no limit of its own"}
    )
    storage: float | None = field(
        default=10.0,
        metadata={
            "help": "adapters, documents, jobs and uploads of a tenant, where its key has no limit",
            "metavar": "GB",
        },
    )
    queue: int = field(default=256, metadata={"help": "answers that may wait for a row; more are refused with 429"})
    body_size: float = field(default=4.0, metadata={"help": "the most of a request in JSON", "metavar": "MB"})
    upload_size: float = field(default=1024.0, metadata={"help": "the most of an upload", "metavar": "MB"})
    document_characters: int = field(
        default=20_000_000, metadata={"help": "the most of one document's text; longer ones are not taken in"}
    )
    timeout: float = field(
        default=300.0, metadata={"help": "end a request of which nothing was sent for so long", "metavar": "SECONDS"}
    )
    drain: float = field(
        default=60.0, metadata={"help": "what requests under way have left after SIGTERM", "metavar": "SECONDS"}
    )
    cors: tuple[str, ...] = field(
        default=(), metadata={"help": "web pages that may call, such as https://example.org", "metavar": "ORIGIN,…"}
    )
    log_prompts: bool = field(default=False, metadata={"help": "write the bodies of requests into the log"})
    metric_adapters: int = field(default=100, metadata={"help": "adapters with metrics of their own"})
    metric_tenants: bool = field(default=False, metadata={"help": "name tenants in metrics"})

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            if (value := getattr(self, name)) is not None and value < least:
                raise HalkaError(f"{name} is {value}: it is {least} or more")
        if self.pinned > 1:
            raise HalkaError(f"pinned is {self.pinned}: it is a share, from 0 to 1")
        for name in ("body_size", "upload_size", "timeout"):
            if getattr(self, name) <= 0:
                raise HalkaError(f"{name} is {getattr(self, name)}: it is more than 0")
        for url in self.vllm:
            _check_address(url)
        if len({url.rstrip("/") for url in self.vllm}) < len(self.vllm):
            raise HalkaError("vllm names an address twice: name each process once")
        for origin in self.cors:
            if origin != "*" and not ORIGIN.fullmatch(origin):
                raise HalkaError(f"cors: {origin!r} is no origin: scheme and host alone, such as https://example.org")
        least, most = self.replica_range
        if self.on is None and most > 1:
            raise HalkaError(f"replicas is {self.replicas}: they need a cluster, such as on=ray")
        if not 1 <= least <= most:
            raise HalkaError(f"replicas is {self.replicas}: it is 1 or more, and MIN no more than MAX")
        if not 0 <= self.port < 2**16:
            raise HalkaError(f"port is {self.port}: it is a number from 0 to 65535")

    def absolute(self) -> ServerSettings:
        """The settings with whole paths: messages hide these from clients."""
        base = Path(self.base).expanduser()
        folders = {"data": self.data, "store": self.store, "collections": self.collections}
        folders |= {"vllm_folder": self.vllm_folder}
        return replace(
            self,
            base=str(base.absolute()) if is_base_folder(base) else self.base,
            adapter_roots=_absolute(self.adapter_roots),
            comparisons=_absolute(self.comparisons),
            **{name: folder and folder.absolute() for name, folder in folders.items()},
        )

    @property
    def all_rows(self) -> int:
        """Answers that are made at the same time, by as many replicas as there may be."""
        return self.rows * self.replica_range[1]

    @property
    def replica_range(self) -> tuple[int, int]:
        """The least and the most replicas. Raises HalkaError for what is no number, nor two."""
        least, dash, most = self.replicas.partition("-")
        if not (least.isdecimal() and (most.isdecimal() or not dash)):
            raise HalkaError(f"replicas is {self.replicas!r}: it is a number, or MIN-MAX such as 1-4")
        return int(least), int(most or least)

    @cached_property
    def folders(self) -> Folders:
        """What no message to a client names."""
        own = [
            self.data,
            self.store,
            self.collections,
            self.vllm_folder,
            *(folder for _, folder in _keyed(self.adapter_roots + self.comparisons)),
        ]
        own += [Path(self.base)] if is_base_folder(Path(self.base)) else []
        places = [cache_dir(), Path(tempfile.gettempdir()), Path(sys.prefix), Path.cwd(), Path.home()]
        return Folders([folder.absolute() for folder in own if folder is not None] + places)

    def roots_of(self, tenant: str) -> tuple[Path, ...]:
        """The folders that a tenant may import adapters from."""
        return _of_tenant(self.adapter_roots, tenant)

    def comparisons_of(self, tenant: str) -> tuple[Path, ...]:
        """The folders whose comparisons a tenant may see."""
        return _of_tenant(self.comparisons, tenant)

    @property
    def public_name(self) -> str:
        """What clients call the base."""
        return self.name or (Path(self.base).name if is_base_folder(Path(self.base)) else self.base)


def _check_address(url: str) -> None:
    """Raises HalkaError for what is no address of vLLM, without what may be a password in it."""
    such = "an address such as http://127.0.0.1:8001"
    if not {*"@?#"}.isdisjoint(url):
        raise HalkaError(f"vllm has a user, a password or a query: it is {such}, and its key is VLLM_API_KEY's")
    try:
        parts = urlsplit(url)
        right = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # of a host or port that is none
        right = False
    if not right or not (url.isascii() and url.isprintable()) or " " in url:
        raise HalkaError(f"vllm is {url!r}: it is {such}")


def _keyed(folders: Iterable[Path]) -> list[tuple[str, Path]]:
    """The folders with their "TENANT="."""
    return [(key, Path(folder)) for key, folder in map(split_key, map(str, folders))]


def _absolute(folders: Iterable[Path]) -> tuple[Path, ...]:
    return tuple(Path(f"{key}{folder.absolute()}") for key, folder in _keyed(folders))


def _of_tenant(folders: Iterable[Path], tenant: str) -> tuple[Path, ...]:
    return tuple(folder for key, folder in _keyed(folders) if (key or f"{MAIN}=") == f"{tenant}=")

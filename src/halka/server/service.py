"""`Service`: what one server holds: the base, its engine, and the tenants."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Annotated, Any

from fastapi import Depends
from starlette.requests import Request as HttpRequest

from halka.core import AdaptedModel
from halka.engine import AsyncEngine, Engine
from halka.engine.adapters import Adapters
from halka.models import adapt, context
from halka.models.loading import load_base
from halka.server.answers.logprobs import TokenTexts
from halka.server.backends.replicas.backend import open_replicas
from halka.server.backends.router import Backend, Holder, Router
from halka.server.backends.vllm.backend import Vllm
from halka.server.backends.vllm.loras import Loras
from halka.server.backends.vllm.process import open_processes
from halka.server.guards.access import check_host
from halka.server.guards.guards import Guards
from halka.server.guards.keys import Keys
from halka.server.guards.quota import Quota
from halka.server.jobs.queue import JobQueue
from halka.server.one_at_a_time import OneAtATime
from halka.server.previews.looks import Looks
from halka.server.resources.embedders import Embedders
from halka.server.settings import GB, ServerSettings
from halka.server.tenants import Tenants
from halka.server.threads import Threads


@dataclass
class Service:
    """What requests are answered with.

    engine    verifies adapters with a thread of its own; it makes the answers, too, where no replicas do
    holder    answers for every adapter, and has those in memory: the engine, or replicas of it
    backend   makes the answers to requests: the holder, or others with it
    tenants   where each has adapters, collections and jobs
    guards    what a request passes before its route
    threads   where blocking work is done
    looks     where drafts of trainings are looked at
    reading   whose turn it is to have large data read
    stored    when the bytes that a tenant stores were counted, by `time.monotonic`, and how many they were
    created   when the server began, in seconds of Unix time
    file_life  seconds that a file of data is kept which nothing uses yet
    close     ends what outlives this process, if `aclose` has not: the replicas
    """

    settings: ServerSettings
    model: AdaptedModel
    engine: AsyncEngine
    holder: Holder
    backend: Backend
    tenants: Tenants
    guards: Guards
    embedders: Embedders
    jobs: JobQueue
    threads: Threads
    looks: Looks = field(default_factory=Looks)
    reading: OneAtATime = field(default_factory=OneAtATime)
    stored: dict[str, tuple[float, int]] = field(default_factory=dict[str, tuple[float, int]])
    created: int = field(default_factory=lambda: int(time.time()))
    file_life: int = 3600
    close: Callable[[], None] = lambda: None

    @classmethod
    def open(
        cls, settings: ServerSettings, model: AdaptedModel | None = None, embedders: Embedders | None = None
    ) -> Service:
        """Load the base, if there is no `model` of it yet, and start its engine. Raises HalkaError as these do,
        where others could call without keys, for a vLLM process that is not there, or has another base, and as
        `open_replicas`.
        """
        settings = settings.absolute()
        keys = Keys(settings.data / "keys.json")
        check_host(settings.host, keys)
        if model is None:
            base = load_base(
                settings.base,
                dtype=settings.dtype,
                device=settings.device if settings.on is None else "cpu",
                quantize=settings.quantize,
                kind="causal-lm",
            )
            model = adapt(*base)
        folder = settings.vllm_folder or settings.data / "vllm"
        processes = open_processes(settings.vllm, model, folder, settings.timeout)
        tenants = Tenants(settings)
        engine = Engine(
            model,
            tenants,
            rows=settings.rows if settings.on is None else 1,
            memory=None if settings.memory is None or settings.on else int(settings.memory * GB),
            adapter_memory=int(settings.adapter_memory * GB),
            most_adapters=settings.adapters_in_memory,
        )
        jobs = JobQueue(tenants.job_folders, settings.data / "jobs.lock", settings.jobs)
        guards = Guards.of(settings, keys, engine, Quota(tenants, threads := Threads()))
        with ExitStack() as opening:
            replicas = None if settings.on is None else open_replicas(settings, model, engine, tenants)
            if replicas is not None:
                opening.callback(replicas.close)
            running = AsyncEngine(engine) if replicas is None else replicas.engine
            holder: Holder = replicas or running
            backend: Backend = holder
            states = [] if replicas is None else [replicas.states]
            if processes:
                loras = Loras(running, tenants, folder, int(settings.vllm_storage * GB))
                vllm = Vllm(running, loras, processes, settings.vllm_base)
                states, backend = [*states, vllm.states], Router([vllm], holder)
            guards.metrics.backends = lambda: chain.from_iterable(state() for state in states)
            embedders = embedders or Embedders()
            service = cls(settings, model, running, holder, backend, tenants, guards, embedders, jobs, threads)
            service.close = opening.pop_all().close
        return service

    @property
    def name(self) -> str:
        """What clients call the base."""
        return self.settings.public_name

    @property
    def own_names(self) -> tuple[str, str]:
        """Models that are the server's own, the base and the embedder: no adapter is called so."""
        return self.name, self.embedders.default

    @property
    def adapters(self) -> Adapters:
        """Those that the engine knows, by "tenant/name"."""
        return self.engine.engine.adapters

    @property
    def tokenizer(self) -> Any:
        return self.model.tokenizer

    @cached_property
    def token_texts(self) -> TokenTexts:
        return TokenTexts(self.tokenizer, self.engine.engine.ends)

    @property
    def context(self) -> int | None:
        """The positions that the base has for a text; None: no end."""
        return context(self.model)

    async def aclose(self) -> None:
        """Cancel what is under way and give everything back; jobs go on by themselves."""
        try:
            await self.jobs.aclose()
        finally:
            await self.backend.aclose()


async def service_of(request: HttpRequest) -> Service:
    return request.app.state.service


ServiceDep = Annotated[Service, Depends(service_of)]
"""A route's parameter that is the server's service."""

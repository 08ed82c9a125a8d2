"""`/metrics`: what Prometheus reads. Labels are bounded, and name tenants only if the operator asks for it."""

from __future__ import annotations

import time
from collections import Counter as Tally
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from anyio import to_thread
from fastapi import APIRouter
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from halka.server.guards.usage import OTHER, Usage, cached_tokens

if TYPE_CHECKING:
    from halka.engine import Answer, Engine, Request

ENGINE = "engine"
"""The label of what the engine in this process has answered."""
BASE = "(base)"  # no adapter's name, as OTHER
SECONDS = tuple(round(0.005 * 1.3**step, 4) for step in range(40))  # up to 140 s
GATEWAYS = "vllm:lora_requests_info"
"""The name under which gateways look for the adapters that a server works for."""

NUMBERS = {
    "running": ("halka_replica_answers_running", "Answers that have a row of a replica"),
    "waiting": ("halka_replica_answers_waiting", "Answers that wait for a row of a replica"),
    "met": ("halka_replica_requests_met", "Requests that met their adapter in a replica's memory"),
    "missed": ("halka_replica_requests_missed", "Requests whose adapter a replica had to load, or was loading"),
    "loads": ("halka_replica_adapter_loads", "Adapters that a replica has loaded"),
    "evictions": ("halka_replica_adapter_evictions", "Adapters that a replica has evicted"),
}
"""What backends say of themselves beside whether they are there: metrics, each with a help."""

router = APIRouter()


@router.get("/metrics")
async def metrics(request: HttpRequest) -> Response:
    """What the server counts, as Prometheus reads it."""
    text = await to_thread.run_sync(generate_latest, request.app.state.service.guards.metrics.registry)
    return Response(text, media_type=CONTENT_TYPE_PLAIN_0_0_4)


class BackendState(NamedTuple):
    """Who else than the engine makes answers: its name, whether it can be asked, how many adapters it has.

    numbers  what else it says of itself, by the names of `NUMBERS`
    """

    name: str
    up: bool
    adapters: int
    numbers: Mapping[str, float] = {}


@dataclass(eq=False)
class Tracked:
    """One request to the engine; `answers` are those of its `n` answers that have begun, as they come.

    since  when the server got the request, by `time.monotonic`
    first  when an answer's first token was there to be sent
    """

    request: Request
    n: int
    answers: Collection[Answer]
    since: float
    first: dict[Answer, float] = field(default_factory=dict)

    def see(self, answer: Answer) -> None:
        """The answer has become longer, or has ended."""
        self.first.setdefault(answer, time.monotonic())


class Metrics:
    """What a server counts.

    rows      answers that the engine makes at once
    adapters  the most adapters with a label of their own; all others are counted as one
    tenants   whether labels are "tenant/adapter"; without, adapters of one name are counted as one
    usage     what is counted for the tenants themselves
    backends  who else makes answers
    """

    def __init__(self, engine: Engine, rows: int, adapters: int, tenants: bool, usage: Usage):
        self.usage = usage
        self.backends: Callable[[], Iterable[BackendState]] = tuple
        self.registry = CollectorRegistry()
        self._most, self._tenants, self._labels = adapters, tenants, set[str]()
        self._under_way = dict[Tracked, None]()
        self._requests = self._counter("halka_requests", "Requests", "route", "status")
        self._seconds = self._histogram("halka_request_seconds", "From a request's head to its end", "route")
        self._answers = self._counter("halka_answers", "Answers by how they ended", "adapter", "finish")
        self._by_backend = self._counter("halka_backend_answers", "Answers by who made them", "backend", "finish")
        self._tokens = self._counter("halka_tokens", "Tokens: prompt, cached of these, completion", "adapter", "kind")
        self._first = self._histogram("halka_time_to_first_token_seconds", "From request to first token", "adapter")
        self._between = self._histogram("halka_time_between_tokens_seconds", "Mean of each answer", "adapter")
        self._queue = self._histogram("halka_queue_seconds", "From request to row, of this process's engine", "adapter")
        self.registry.register(_Gauges(self, engine, rows))

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count a request that has ended."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    @contextmanager
    def track(self, request: Request, n: int, answers: Collection[Answer], since: float) -> Iterator[Tracked]:
        """Within the block the engine answers a request; `answers` has each from its beginning on."""
        tracked = Tracked(request, n, answers, since)
        self._under_way[tracked] = None
        refused = False
        try:
            yield tracked
        except Exception:
            refused = not answers
            raise
        finally:
            del self._under_way[tracked]
            if not refused:
                self._count(tracked)

    def label(self, name: str | None) -> str:
        """The label of the adapter that the engine knows as "tenant/adapter"."""
        if name is None:
            return BASE
        label = name if self._tenants else name.partition("/")[2]
        if label not in self._labels and len(self._labels) >= self._most:
            return OTHER
        self._labels.add(label)
        return label

    def under_way(self) -> tuple[Tally[str], Tally[str]]:
        """The answers that have begun and those that wait, by label."""
        running, waiting = Tally[str](), Tally[str]()
        for tracked in [*self._under_way]:
            label, answers = self.label(tracked.request.adapter), [*tracked.answers]
            running[label] += sum(answer.finish is None for answer in answers)
            waiting[label] += tracked.n - len(answers)
        return +running, +waiting

    def _count(self, tracked: Tracked) -> None:
        self.usage.count(tracked.request, tracked.n, tracked.answers)
        label = self.label(tracked.request.adapter)
        self._tokens.labels(label, "prompt").inc(len(tracked.request.prompt))
        self._tokens.labels(label, "cached").inc(cached_tokens(tracked.answers))
        self._answers.labels(label, "cancelled").inc(tracked.n - len(tracked.answers))
        for answer in tracked.answers:
            times = answer.times
            self._answers.labels(label, answer.finish or "cancelled").inc()
            self._by_backend.labels(answer.backend or ENGINE, answer.finish or "cancelled").inc()
            self._tokens.labels(label, "completion").inc(len(answer.tokens))
            if times.begun is not None:
                self._queue.labels(label).observe(times.begun - tracked.since)
            if times.first is not None and times.last is not None:
                self._first.labels(label).observe(tracked.first[answer] - tracked.since)
                if len(answer.tokens) > 1:
                    self._between.labels(label).observe((times.last - times.first) / (len(answer.tokens) - 1))

    def _counter(self, name: str, help: str, *labels: str) -> Counter:
        return Counter(name, help, labels, registry=self.registry)

    def _histogram(self, name: str, help: str, *labels: str) -> Histogram:
        return Histogram(name, help, labels, registry=self.registry, buckets=SECONDS)


class _Gauges(Collector):
    """What is so at the moment: answers under way, adapters in memory."""

    def __init__(self, metrics: Metrics, engine: Engine, rows: int):
        self.metrics, self.engine, self.rows = metrics, engine, rows

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        running, waiting = self.metrics.under_way()
        yield _gauge("halka_answers_running", "Answers that have a token, and have not ended", running)
        yield _gauge("halka_answers_waiting", "Answers that have no token yet, with a row or without", waiting)
        residents, loaded = self.engine.adapters.residents, Tally[str]()
        for version in [*residents.versions]:
            if "/" in (version.name or ""):  # not an upload that is verified
                loaded[self.metrics.label(version.name)] += version.bytes
        yield _gauge("halka_adapter_bytes", "Memory of the adapters that are loaded", loaded)
        yield CounterMetricFamily("halka_adapter_loads", "Adapters that were loaded", residents.loads)
        yield CounterMetricFamily("halka_adapter_evictions", "Adapters that were evicted", residents.evictions)
        others = [*self.metrics.backends()]
        up, have = {state.name: state.up for state in others}, {state.name: state.adapters for state in others}
        yield _gauge("halka_backend_up", "Whether another backend than the engine can be asked", up, "backend")
        yield _gauge("halka_backend_adapters", "Adapters of this server that it has", have, "backend")
        for name, (metric, help) in NUMBERS.items():
            values = {state.name: state.numbers[name] for state in others if name in state.numbers}
            yield _gauge(metric, help, values, "backend")
        names = ("running_lora_adapters", "waiting_lora_adapters", "max_lora")
        info = GaugeMetricFamily(GATEWAYS, "Adapters with answers under way", labels=names)
        adapters = [",".join(sorted({*labels} - {BASE, OTHER})) for labels in (running, waiting)]
        info.add_metric([*adapters, str(self.rows)], time.time())
        yield info


def _gauge(name: str, help: str, values: Mapping[str, float], by: str = "adapter") -> GaugeMetricFamily:
    gauge = GaugeMetricFamily(name, help, labels=(by,))
    for label, value in values.items():
        gauge.add_metric([label], value)
    return gauge

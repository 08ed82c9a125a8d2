"""`/v1/comparisons`: what `halka compare` measured, as data: methods, their runs, answers side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.responses import Response

from halka.server.errors import api_error
from halka.server.guards.access import Caller, CallerDep
from halka.server.resources.comparison_files import Comparison, comparison_named, comparisons_in
from halka.server.service import Service, ServiceDep
from halka.server.wire import Json
from halka.util.errors import DamagedFolderError

router = APIRouter(tags=["comparisons"])

HEAD = ("experiment", "task", "base", "headline", "finished", "total")
OF_RUNS = ("status", "error", "method", "lr", "seed", "purpose", "validation_loss", "scores", "train", "date")
LISTED, PAGE = 200, 100  # comparisons, and items of the test split, at a time
Start = Annotated[int, Query(ge=0, lt=2**31)]


@router.get("/v1/comparisons")
async def list_comparisons(
    service: ServiceDep,
    caller: CallerDep,
    start: Start = 0,
    count: Annotated[int, Query(ge=1, le=LISTED)] = LISTED,
) -> Response:
    """List the comparisons that the caller may see, from `start` on. A damaged one has the reason as its `error`."""

    def views() -> Response:
        comparisons = comparisons_in(service.settings.comparisons_of(caller.tenant))
        heads = [_head(comparison, caller) for comparison in comparisons[start : start + count]]
        return Json({"object": "list", "start": start, "total": len(comparisons), "data": heads})

    return await service.threads.read(views)


@router.get("/v1/comparisons/{name}")
async def get_comparison(name: str, service: ServiceDep, caller: CallerDep) -> Response:
    """A comparison: the summary that `halka compare` wrote, and its runs."""

    def view() -> Response:
        comparison = _named(service, caller, name)
        head = _head(comparison, caller)
        if "error" in head:
            return Json({**head, "summary": None, "runs": []})
        runs = [_run(key, run) for key, run in comparison.runs().items()]
        shown = {"summary": comparison.summary, "runs": runs}
        return Json({**head, **caller.folders.hidden_in(shown)})

    return await service.threads.read(view)


@router.get("/v1/comparisons/{name}/answers")
async def get_answers(
    name: str,
    service: ServiceDep,
    caller: CallerDep,
    start: Start = 0,
    count: Annotated[int, Query(ge=1, le=PAGE)] = 20,
) -> Response:
    """What the methods answered, side by side: items of the test split from `start` on."""

    def view() -> Response:
        answers = _named(service, caller, name).answers(start, count)
        return Json({"object": "list", "start": start, "data": answers})

    return await service.threads.read(view)


def _named(service: Service, caller: Caller, name: str) -> Comparison:
    return comparison_named(service.settings.comparisons_of(caller.tenant), name)


def _run(key: str, run: Mapping[str, Any]) -> dict[str, Any]:
    """A run without the curve of its losses, which is long."""
    shown = {"key": key, **{field: run.get(field) for field in OF_RUNS}}
    if isinstance(train := shown["train"], dict):
        shown["train"] = {name: value for name, value in train.items() if name != "curve"}
    return shown


def _head(comparison: Comparison, caller: Caller) -> dict[str, Any]:
    head = {"object": "comparison", "name": comparison.name}
    try:
        summary = comparison.summary
    except (DamagedFolderError, OSError) as error:
        return {**head, **dict.fromkeys((*HEAD, "methods", "date")), "error": api_error(error, caller).message}
    provenance = summary.get("provenance")
    date = provenance.get("last") if isinstance(provenance, dict) else None
    shown = {**{field: summary.get(field) for field in HEAD}, "methods": len(summary["rows"]), "date": date}
    return {**head, **caller.folders.hidden_in(shown)}

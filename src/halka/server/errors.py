"""Errors as OpenAI writes them: {"error": {message, type, param, code}}, without paths, traces or other tenants."""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest

from halka.server.folders import NO_FOLDERS
from halka.server.wire import Json
from halka.util.errors import (
    ContextLengthError,
    HalkaError,
    OutOfMemoryError,
    PinnedFullError,
    StoreAwayError,
    UnknownAdapterError,
)
from halka.util.text import one_line

if TYPE_CHECKING:
    from halka.server.guards.access import Caller

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
CODES = {404: "not_found", 405: "method_not_allowed", 413: "too_large", 429: "rate_limit_exceeded"}
log = logging.getLogger("halka.server")


class Detail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    error: Detail


DOCUMENTED: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "What is wrong with the request", "model": ErrorBody},
    "5XX": {"description": "What is wrong with the server", "model": ErrorBody},
}
"""Every route's errors, for OpenAPI."""


class ApiError(Exception):
    """What the client gets instead of an answer."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.headers = status, message, param, dict(headers or {})
        self.type = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
        self.code = code or CODES.get(status)

    @property
    def body(self) -> dict[str, Any]:
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": error}

    def response(self) -> Json:
        return Json(self.body, self.status, self.headers)


def unknown_model(name: str) -> ApiError:
    """No model of that name, for this tenant."""
    message = f"the model {name!r} does not exist, or is not yours: GET /v1/models lists those that are"
    return ApiError(404, one_line(message), param="model", code="model_not_found")


def refusal(
    error: Exception,
    status: int = 400,
    *,
    caller: Caller | None = None,
    param: str | None = None,
    code: str | None = None,
    message: str = "",
) -> ApiError:
    """An error as this caller may read it, with its own message or this one.

    Memory that is full, and a server of passages that is away, have a status and code of their own: what was asked for
    is right, and may be done later.
    """
    if isinstance(error, ContextLengthError):
        code = "context_length_exceeded"
    if isinstance(error, OutOfMemoryError):
        log.error("memory ran out", exc_info=error, extra={"fields": {"request": caller and caller.request}})
        status, param, code = 503, None, "out_of_memory"
    if isinstance(error, PinnedFullError):
        status, param, code = 503, None, "adapters_pinned"
    if isinstance(error, StoreAwayError):
        log.error(
            "a collection's server is away", exc_info=error, extra={"fields": {"request": caller and caller.request}}
        )
        status, param, code, message = 503, None, "documents_away", "the server of these documents does not answer now"
    return ApiError(status, public(message or str(error), caller), param=param, code=code)


def api_error(error: BaseException, caller: Caller | None = None) -> ApiError:
    """What a caller may know of an error. One that Halka does not know is logged, under the request's id or one of its
    own.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, UnknownAdapterError):
        return refusal(error, 404, caller=caller, param="model", code="model_not_found")
    if isinstance(error, HalkaError):
        return refusal(error, caller=caller)
    if isinstance(error, RequestValidationError):
        return _invalid(error)
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, str(error.detail), headers=error.headers)
    return unexpected(error, (caller and caller.request) or uuid.uuid4().hex)


def unexpected(error: BaseException, id: str) -> ApiError:
    """What a caller may know of an error that Halka does not know; the log has the rest, under this id."""
    log.error("a request failed", exc_info=error, extra={"fields": {"request": id}})
    return ApiError(500, f"the server failed at this request; its log says more of {id}", code="internal_error")


def public(message: str, caller: Caller | None = None) -> str:
    """A message without folders, and with the adapters' names as the caller's tenant writes them."""
    message = one_line((caller.folders if caller else NO_FOLDERS).hidden(message))
    return re.sub(rf"(?<![\w./-]){re.escape(caller.tenant)}/", "", message) if caller else message


def _invalid(error: RequestValidationError) -> ApiError:
    """The first thing that is wrong with a request's body, path or query; of a field of several types, the deepest."""
    details = error.errors()
    errors = [(_place(detail["loc"], error.body, detail["type"] == "missing"), detail) for detail in details]
    begun, _ = errors[0]
    within = [(place, detail) for place, detail in errors if place[: len(begun)] == begun]
    place, first = max(within, key=lambda one: (len(one[0]), not one[1]["type"].endswith("_type")))
    param = first.get("ctx", {}).get("param") or ".".join(place) or None
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"unknown parameter {param!r}", param=param, code="unknown_parameter")
    code = "unsupported_parameter" if first["type"] == "unsupported" else None
    return ApiError(400, one_line(f"{param}: {message}" if param else message), param=param, code=code)


def _place(location: Sequence[Any], body: Any, missing: bool) -> list[str]:
    """Where in the request something is wrong, or missing, without pydantic's names for a field's types.

    The first name is a field, or the request's kind.
    """
    where, *inner = location or ("",)
    if where != "body":
        return [str(part) for part in (inner if where in ("", "query", "path", "header") else location)]
    place, value = list[str](), body
    for number, part in enumerate(inner, start=1):
        there = part in value if isinstance(value, dict) else isinstance(value, list) and part in range(len(value))
        if there:
            value = value[part]
        if there or number == 1 or (missing and number == len(inner)):
            place.append(str(part))
    return place


def install(app: FastAPI) -> None:
    """Let every error that a route raises become a response."""

    async def handle(request: HttpRequest, error: Exception) -> Json:
        caller = request.scope.get("state", {}).get("caller")
        return api_error(error, caller).response()

    for kind in (ApiError, HalkaError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, handle)

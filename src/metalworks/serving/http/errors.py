"""Errors of FastAPI's routes, in the form of all errors."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException as AnyHTTPException

from metalworks.serving.predict.failures import CODES

_CODES = {**CODES, 404: "ENDPOINT_NOT_FOUND", 503: "TEMPORARILY_UNAVAILABLE"}


def error_response(
    request: Request, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
) -> Response:
    """Return an error in the form that MLflow's clients read, and below /v2 also in that of its protocol."""
    more = {"error": message} if request.url.path.startswith("/v2") else {}
    body = json.dumps({"error_code": code, "message": message, **more})
    return Response(body, status, headers, "application/json")


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Answer a request that a route refuses or that has no route."""
    assert isinstance(error, AnyHTTPException)  # noqa: S101 (the type that the handler is registered for)
    code = _CODES.get(error.status_code, "BAD_REQUEST")
    return error_response(request, error.status_code, code, error.detail, error.headers)


async def on_validation_error(request: Request, error: Exception) -> Response:
    """Answer a request whose form is not the one that its route declares."""
    assert isinstance(error, RequestValidationError)  # noqa: S101 (as above)
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    return error_response(request, 400, "BAD_REQUEST", f"{where}: {first['msg']}")


HANDLERS: dict[int | type[Exception], Callable[[Request, Any], Coroutine[Any, Any, Response]]] = {
    AnyHTTPException: on_http_exception,
    RequestValidationError: on_validation_error,
}

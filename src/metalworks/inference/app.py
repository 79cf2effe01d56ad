"""The HTTP side: routes, limits, and which model answers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import metadata
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response
from fastapi.security import HTTPBearer
from mlflow.pyfunc.utils.environment import _simulate_serving_environment
from starlette.exceptions import HTTPException as AnyHTTPException

from metalworks.inference import schema
from metalworks.inference.access import RequireToken
from metalworks.inference.schema import Version, Working, error
from metalworks.inference.scoring import ServedModel
from metalworks.inference.settings import Settings

# The server's own logger, because it has a handler already: what is said here reaches the journal.
_logger = logging.getLogger("uvicorn.error")
_open = APIRouter()
_closed = APIRouter()
# Says in the schema what RequireToken sees to, for routes and for what is none.
_token = Depends(HTTPBearer(auto_error=False, description="A token of this platform."))
_CODES = {404: "ENDPOINT_NOT_FOUND", 503: "TEMPORARILY_UNAVAILABLE"}


def create_app(settings: Settings) -> FastAPI:
    """Return the server of one model; the model is loaded when the server starts."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # Models with type hints hold callers to them only where MLflow is told that it serves.
        with _simulate_serving_environment():
            served = app.state.served = ServedModel.load(settings.model_dir)
            _logger.info("Serving model %s version %s as %s", served.card.name, served.card.version, settings.service)
            yield

    app = FastAPI(
        title=f"Inference: {settings.service}",
        version=metadata.version("metalworks"),
        lifespan=lifespan,
        # Beside the schema itself, which is right behind any gateway and whatever it takes off the path.
        servers=[{"url": "."}],
        # These pages load programs from a stranger's server, and a browser has no token to open them with.
        docs_url=None,
        redoc_url=None,
        # A redirect would lead past the gateway's prefix.
        redirect_slashes=False,
        exception_handlers={AnyHTTPException: _refused},
    )
    app.state.settings = settings
    app.state.served = None
    app.include_router(_open)
    if settings.tokens_sha256:
        app.include_router(_closed, dependencies=[_token], responses=schema.UNAUTHENTICATED)
        app.add_middleware(RequireToken, digests=settings.tokens_sha256)
    else:
        app.include_router(_closed)
        _logger.warning("Everybody who reaches this port may ask for predictions: no token is set")
    return app


def from_environment() -> FastAPI:
    """Return the server that the environment describes; for uvicorn's --factory."""
    return create_app(Settings.model_validate({}))


def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


def _served(request: Request) -> ServedModel:
    served: ServedModel | None = request.app.state.served
    if served is None:
        raise HTTPException(503, "The model is not loaded yet")
    return served


async def _refused(_: Request, refusal: Exception) -> Response:
    """Answer what has no route, and what a route refuses, in the form of all errors."""
    assert isinstance(refusal, AnyHTTPException)  # noqa: S101 (the type that the handler is registered for)
    code = _CODES.get(refusal.status_code, "BAD_REQUEST")
    return error(refusal.status_code, code, refusal.detail, dict(refusal.headers or {}))


_Configured = Annotated[Settings, Depends(_settings)]
_Served = Annotated[ServedModel, Depends(_served)]


@_open.get("/health", include_in_schema=False)
@_open.get("/ping", responses=schema.NOT_LOADED)
async def ping(_: _Served) -> Working:
    """Answer 200 when the model is loaded."""
    return Working()


@_closed.get("/version", responses=schema.NOT_LOADED)
async def version(settings: _Configured, served: _Served) -> Version:
    """Say which version of which model is served."""
    card = served.card
    return Version(
        service=settings.service,
        model=card.name,
        version=card.version,
        alias=card.alias,
        run_id=card.run_id,
        git_commit=card.git_commit,
        requirements_sha256=settings.requirements_sha256,
        mlflow=metadata.version("mlflow"),
        metalworks=metadata.version("metalworks"),
    )


@_closed.post("/invocations", openapi_extra=schema.PAYLOAD, responses=schema.INVOCATIONS | schema.NOT_LOADED)
async def invocations(request: Request, settings: _Configured, served: _Served) -> Response:
    """Predict."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > settings.max_body_bytes:
            message = f"The request body is longer than {settings.max_body_bytes} bytes"
            return error(413, "MAX_READ_SIZE_EXCEEDED", message)
    work = asyncio.to_thread(served.answer, bytes(body), request.headers.get("content-type", ""))
    try:
        answer = await asyncio.wait_for(work, settings.request_timeout)
    except TimeoutError:
        return error(504, "DEADLINE_EXCEEDED", "Request processing time exceeded limit")  # as MLflow words it
    return Response(answer.body, answer.status, media_type=answer.media_type)

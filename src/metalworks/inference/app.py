"""The HTTP side: routes, limits, and which model answers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import metadata
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response
from mlflow.pyfunc.utils.environment import _simulate_serving_environment
from pydantic import BaseModel

from metalworks.inference.access import RequireToken
from metalworks.inference.scoring import JSON, ServedModel
from metalworks.inference.settings import Settings

# The server's own logger, because it has a handler already: what is said here reaches the journal.
_logger = logging.getLogger("uvicorn.error")
_router = APIRouter()

_PAYLOAD = {
    "requestBody": {
        "required": True,
        "description": "MLflow's scoring protocol: JSON with exactly one of dataframe_split, dataframe_records, "
        "instances and inputs (and params, if the model takes any), or CSV with a header line.",
        "content": {JSON: {"schema": {"type": "object"}}, "text/csv": {"schema": {"type": "string"}}},
    }
}


class Version(BaseModel):
    """What is served, and where it came from."""

    service: str
    model: str
    version: str
    alias: str
    run_id: str | None
    git_commit: str | None
    requirements_sha256: str | None
    mlflow: str
    metalworks: str


def create_app(settings: Settings) -> FastAPI:
    """Return the server of one model; the model is loaded when the server starts."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # Models with type hints hold callers to them only where MLflow is told that it serves.
        with _simulate_serving_environment():
            served = app.state.served = ServedModel.load(settings.model_dir)
            _logger.info("Serving model %s version %s as %s", served.card.name, served.card.version, settings.service)
            yield

    app = FastAPI(title=f"Inference: {settings.service}", version=metadata.version("metalworks"), lifespan=lifespan)
    app.state.settings = settings
    app.state.served = None
    app.include_router(_router)
    if settings.tokens_sha256:
        app.add_middleware(RequireToken, digests=settings.tokens_sha256)
    else:
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


_Configured = Annotated[Settings, Depends(_settings)]
_Served = Annotated[ServedModel, Depends(_served)]


@_router.get("/health", include_in_schema=False)
@_router.get("/ping")
async def ping(_: _Served) -> Response:
    """Answer 200 when the model is loaded."""
    return Response("\n", media_type=JSON)


@_router.get("/version")
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


@_router.post("/invocations", openapi_extra=_PAYLOAD)
async def invocations(request: Request, settings: _Configured, served: _Served) -> Response:
    """Predict."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > settings.max_body_bytes:
            return _text(413, f"The request body is longer than {settings.max_body_bytes} bytes")
    work = asyncio.to_thread(served.answer, bytes(body), request.headers.get("content-type", ""))
    try:
        answer = await asyncio.wait_for(work, settings.request_timeout)
    except TimeoutError:
        return Response("Request processing time exceeded limit", 504, media_type=JSON)  # as MLflow words it
    return Response(answer.body, answer.status, media_type=answer.media_type)


def _text(status: int, message: str) -> Response:
    return Response(message, status, media_type="text/plain")

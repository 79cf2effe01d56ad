"""The application of a worker process: its layers, and the routes for health, version, metrics and documentation."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import metadata, resources
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse, PlainTextResponse
from fastapi.security import HTTPBearer
from fastapi.staticfiles import StaticFiles

from metalworks.contracts import STATE
from metalworks.serving.http import errors, invocations, openinference, schema
from metalworks.serving.http.asgi import App, Scope
from metalworks.serving.http.authentication import Authentication
from metalworks.serving.http.body_limits import BodyLimits
from metalworks.serving.http.invocations import Invocations
from metalworks.serving.http.schema import Version, Working
from metalworks.serving.predict.data_plane import DataPlane
from metalworks.serving.predict.variants import Route, Variant
from metalworks.serving.settings import Settings
from metalworks.serving.telemetry.metrics import add_up, read_stats, render_metrics

_open = APIRouter(tags=["The service"])
_closed = APIRouter(tags=["The service"])
# The layer Authentication checks tokens; this puts them into the schema.
_token = Depends(HTTPBearer(auto_error=False, description="A token of this platform."))

OPEN = frozenset({"/ping", "/health", "/docs", "/v2/health/live", "/v2/health/ready"})
"""Paths that anyone may ask: whether the service works, and the page that asks for a token itself."""
OPEN_FILES = "/docs/"


def create_app(plane: DataPlane, publish: Callable[[], None]) -> App:
    """Return the application of one worker process: layers, each of which passes a request on to the next.

    Authentication, limits of the body, POST /invocations by `plane`, and everything else by FastAPI.
    """
    settings, stats = plane.settings, plane.stats
    app: App = openinference.CountErrors(create_api(plane, publish), plane)
    app = Invocations(app, plane)
    app = BodyLimits(app, settings, stats, _reads_body)
    if settings.tokens_sha256:
        app = Authentication(app, settings.tokens_sha256, stats, _is_open)
    return app


def _is_open(path: str) -> bool:
    return path in OPEN or path.startswith(OPEN_FILES)


def _reads_body(scope: Scope) -> bool:
    """Return whether the body is needed: a caller without a token may not make the server read one."""
    path: str | None = scope.get("path")  # the server's own events have none
    if path == invocations.PATH:
        method: str = scope["method"]
        return method == "POST"
    return path is not None and not _is_open(path)


def create_api(plane: DataPlane, publish: Callable[[], None]) -> FastAPI:
    """Return all routes but /invocations; `publish` writes the counts of this process for /metrics."""
    settings = plane.settings
    app = FastAPI(
        title=f"Inference: {settings.service}",
        version=metadata.version("metalworks"),
        # Relative to the schema, so that it is right behind any gateway, whatever prefix that removes.
        servers=[{"url": "."}],
        # FastAPI's pages load scripts from another server, and a browser has no token to open them with.
        docs_url=None,
        redoc_url=None,
        # A redirect would lead past the gateway's prefix.
        redirect_slashes=False,
        exception_handlers=errors.HANDLERS,
    )
    app.state.settings, app.state.route, app.state.plane = settings, plane.route, plane
    app.state.publish = publish
    app.include_router(_open)
    if settings.tokens_sha256:
        app.include_router(_closed, dependencies=[_token], responses=schema.UNAUTHENTICATED)
        app.include_router(openinference.router, dependencies=[_token], responses=schema.UNAUTHENTICATED)
    else:
        app.include_router(_closed)
        app.include_router(openinference.router)
    app.include_router(openinference.open_router)
    app.mount("/docs/files", StaticFiles(packages=[("fastapi_offline", "static")]))
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _openapi(app: FastAPI) -> dict[str, Any]:
    """Return the schema for the model in service now."""
    document = get_openapi(title=app.title, version=app.version, routes=app.routes, servers=app.servers)
    champion = app.state.route.champion
    if champion:
        card = champion.version.card
        about = [f"Model {card['name']}, version {card['version']}", *champion.version.verdict.get("warnings", [])]
        document["info"]["description"] = "; ".join(about)
    operation = schema.invocations(champion.version if champion else None)
    if app.state.settings.tokens_sha256:
        ping = document["paths"]["/version"]["get"]
        operation |= {"security": ping["security"]}
        operation["responses"]["401"] = ping["responses"]["401"]
    for path in document["paths"].values():
        for each in path.values():
            each["responses"].pop("422", None)  # FastAPI's own; such requests are answered with 400
    schemas = document["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    # Decoded by the route itself, so FastAPI does not know it.
    asked = openinference.InferenceRequest.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= {**asked.pop("$defs"), "InferenceRequest": asked}
    document["paths"] = {invocations.PATH: {"post": operation}, **document["paths"]}
    return document


def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


def _champion(request: Request) -> Variant:
    champion: Variant | None = request.app.state.route.champion
    if champion is None:
        raise HTTPException(503, "The model is not loaded yet", {"Retry-After": "5"})
    return champion


_Configured = Annotated[Settings, Depends(_settings)]
_Champion = Annotated[Variant, Depends(_champion)]


@_open.get("/health", include_in_schema=False)
@_open.get("/ping", responses=schema.NOT_LOADED)
async def ping(champion: _Champion) -> Working:
    """Answer 200 when the model is loaded, with what the platform cannot check about it."""
    return Working(warnings=champion.version.verdict.get("warnings", []))


@_open.get("/docs", include_in_schema=False)
async def docs(settings: _Configured) -> HTMLResponse:
    """Return the page that shows and tries the API; it asks for the token by itself."""
    page = resources.files("metalworks.serving.http") / "docs.html"
    wants = "true" if settings.tokens_sha256 else "false"
    return HTMLResponse(page.read_text().replace("@service@", settings.service).replace("@token@", wants))


@_closed.get("/version", responses=schema.NOT_LOADED)
async def version(settings: _Configured, champion: _Champion, request: Request) -> Version:
    """Say which version of which model is served, by what, and why by that."""
    route: Route = request.app.state.route
    served = champion.version
    return Version(
        service=settings.service,
        model=served.card["name"],
        version=served.number,
        alias=settings.alias,
        run_id=served.card.get("run_id"),
        git_commit=served.card.get("git_commit"),
        requirements_sha256=served.environment or None,
        executor=served.executor,
        executor_reason=served.verdict["reason"],
        warnings=served.verdict.get("warnings", []),
        canary=route.canary.version.number if route.canary else None,
        shadow=route.shadow.version.number if route.shadow else None,
        mlflow=served.facts["mlflow"],
        metalworks=metadata.version("metalworks"),
    )


@_closed.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(settings: _Configured, request: Request) -> PlainTextResponse:
    """Return the counts of all processes of this service on this host, for Prometheus."""
    state = request.app.state
    state.publish()
    variants: list[Variant] = [
        variant for variant in (state.route.champion, state.route.canary, state.route.shadow) if variant
    ]
    info = [
        {
            "role": variant.role,
            "model": variant.version.card["name"],
            "version": variant.version.number,
            "executor": variant.version.executor,
        }
        for variant in variants
    ]
    counts = add_up(read_stats(settings.runtime))
    text = render_metrics(counts, info, len(_refused_versions(settings)), _set_aside(settings))
    return PlainTextResponse(text, media_type="text/plain; version=0.0.4")


def _refused_versions(settings: Settings) -> set[str]:
    """Return the versions that were refused, here or by the model follower."""
    found = set(_read(settings.runtime / STATE).get("refused", ()))
    if settings.fetched is not None:
        roles = _read(settings.fetched).get("roles", {}).values()
        found |= {each["version"] for each in roles if each.get("state") == "refused"}
    return found


def _set_aside(settings: Settings) -> int:
    """Return how many requests fit no file of the prediction log."""
    try:
        return int(settings.fetched.with_suffix(".set-aside").read_text()) if settings.fetched is not None else 0
    except FileNotFoundError:
        return 0


def _read(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(file.read_text())
    except FileNotFoundError:
        return {}
    return content

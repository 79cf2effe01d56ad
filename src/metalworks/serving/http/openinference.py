"""The Open Inference Protocol, version 2, over HTTP with JSON tensors."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from fastapi import APIRouter, HTTPException, Path, Request, Response
from pydantic import BaseModel, Field

from metalworks.serving.http import schema
from metalworks.serving.http.asgi import App, Message, Receive, Scope, Send
from metalworks.serving.http.errors import error_response
from metalworks.serving.predict.codecs import open_inference
from metalworks.serving.predict.codecs.open_inference import DATATYPES
from metalworks.serving.predict.data_plane import DataPlane
from metalworks.serving.predict.failures import Failure
from metalworks.serving.predict.variants import LoadedVersion, Variant

BINARY = "inference-header-content-length"
"""Header of the protocol's extension for binary tensors: the length of the JSON before them."""


def _is_infer(path: str) -> bool:
    return path.startswith("/v2/") and path.endswith("/infer")


class CountErrors:
    """Counts error responses to requests for a prediction, also those that FastAPI gives."""

    def __init__(self, app: App, plane: DataPlane) -> None:
        """Count in the data plane's counts."""
        self.app, self.plane = app, plane

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        infers = scope["type"] == "http" and scope["method"] == "POST" and _is_infer(scope["path"])
        await self.app(scope, receive, self._counting(send) if infers else send)

    def _counting(self, send: Send) -> Send:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] >= 400:
                status, plane = message["status"], self.plane
                if status == 503 and plane.route.champion is None:
                    plane.stats.error("no_model")
                else:
                    plane.stats.failed(status)
            await send(message)

        return counted


router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])
open_router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])


class Tensor(BaseModel):
    """A tensor of a request or a response."""

    name: str
    shape: list[int] = Field(description="The first size is the number of rows.")
    datatype: str
    data: list[Any] = Field(description="Its values, flat in rows, or as nested lists.")
    parameters: dict[str, Any] | None = None


class InferenceRequest(BaseModel):
    """One tensor per column; or the one tensor of a model that has no columns."""

    id: str | None = None
    inputs: list[Tensor]
    outputs: list[dict[str, Any]] | None = None
    parameters: dict[str, Any] | None = None


class TensorMetadata(BaseModel):
    """Name, type and shape of a tensor."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """A model's inputs and outputs."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ServerMetadata(BaseModel):
    """Name and version of the server."""

    name: str = "metalworks"
    version: str
    extensions: list[str] = []


class Ready(BaseModel):
    """Whether something is ready."""

    ready: Literal[True] = True


class Live(BaseModel):
    """Whether the server runs."""

    live: Literal[True] = True


_REFUSED: dict[int | str, dict[str, Any]] = {
    400: {"description": "A tensor is missing, too much, or not what the model wants.", "model": schema.Error},
    404: {"description": "Another model is served here, or another version.", "model": schema.Error},
    **schema.NOT_LOADED,
}
_INFER: dict[int | str, dict[str, Any]] = {
    **_REFUSED,
    200: {"description": "The model's outputs.", "content": {"application/json": {"schema": {"type": "object"}}}},
    408: {"description": "The body did not come in time.", "model": schema.Error},
    415: {"description": "The body has an encoding that the server does not read.", "model": schema.Error},
    413: {
        "description": "The body is too long, or has more rows, values or nesting than the service takes.",
        "model": schema.Error,
    },
    500: {"description": "The model's process ended while it worked on this.", "model": schema.Error},
    502: {"description": "The model's process ended and does not come back.", "model": schema.Error},
    504: {"description": "The model took too long.", "model": schema.Error},
}


def _variant(request: Request, model: str, version: str | None) -> Variant:
    route = request.app.state.route
    champion: Variant | None = route.champion
    if champion is None:
        raise HTTPException(503, "The model is not loaded yet", {"Retry-After": "5"})
    service = request.app.state.settings.service
    if model not in (service, champion.version.card["name"]):
        raise HTTPException(404, f"Model {model} is not served here; {service} is")
    if version is None:
        variant: Variant = route.choose() or champion
        return variant
    if version != champion.version.number:
        raise HTTPException(404, f"LoadedVersion {version} is not served; version {champion.version.number} is")
    return champion


_Model = Annotated[str, Path(description="Name of the service, or of its model.")]


@router.get("")
async def server(request: Request) -> ServerMetadata:
    """Return name and version of this server."""
    return ServerMetadata(version=request.app.version)


@open_router.get("/health/live")
async def live() -> Live:
    """Answer 200 when the server runs."""
    return Live()


@open_router.get("/health/ready", responses=schema.NOT_LOADED)
async def ready(request: Request) -> Ready:
    """Answer 200 when the model is loaded."""
    _variant(request, request.app.state.settings.service, None)
    return Ready()


@router.get("/models/{model}/ready", responses=_REFUSED)
@router.get("/models/{model}/versions/{version}/ready", responses=_REFUSED)
async def model_ready(request: Request, model: _Model, version: str | None = None) -> Ready:
    """Answer 200 when this model, in this version, is served."""
    _variant(request, model, version)
    return Ready()


@router.get("/models/{model}", responses=_REFUSED)
@router.get("/models/{model}/versions/{version}", responses=_REFUSED)
async def model_metadata(request: Request, model: _Model, version: str | None = None) -> ModelMetadata:
    """Return the model's inputs and outputs."""
    served = _variant(request, model, version).version
    return ModelMetadata(
        name=request.app.state.settings.service,
        versions=[served.number],
        platform=f"mlflow_{(served.facts['flavors'] or ['python_function'])[0]}",
        inputs=inputs_of(served),
        outputs=_outputs_of(served),
    )


def inputs_of(served: LoadedVersion) -> list[TensorMetadata]:
    """Return the tensors that a model takes; none if requests are left to MLflow."""
    if served.decode is None:
        return []
    return [
        TensorMetadata(name=each.name, datatype=each.datatype, shape=each.shape)
        for each in open_inference.expected_tensors(served.facts)
    ]


def _outputs_of(served: LoadedVersion) -> list[TensorMetadata]:
    if served.decode is None:
        return []
    types = served.facts["output_types"]
    names = served.facts["form"]["names"] or ["predictions"]
    datatypes = ["BYTES" if each == "text" else DATATYPES[np.dtype(each).name] for each in types]
    return [TensorMetadata(name=n, datatype=d, shape=[-1]) for n, d in zip(names, datatypes, strict=True)]


_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/InferenceRequest"}}},
    }
}


@router.post("/models/{model}/infer", responses=_INFER, openapi_extra=_BODY)
@router.post("/models/{model}/versions/{version}/infer", responses=_INFER, openapi_extra=_BODY)
async def infer(request: Request, model: _Model, version: str | None = None) -> Response:
    """Predict."""
    variant = _variant(request, model, version)
    plane: DataPlane = request.app.state.plane
    body = await request.body()
    # The protocol does not ask for a content type, and its clients send several, or none.
    if request.headers.get(BINARY, str(len(body))) != str(len(body)):
        raise HTTPException(400, "Send the tensors as JSON: this server does not take binary data after it")
    inferred = await plane.infer(variant, body)
    if isinstance(inferred, Failure):
        headers = {name.decode(): value.decode() for name, value in inferred.headers}
        return error_response(request, inferred.status, inferred.code, inferred.message, headers)
    request_id, outputs = inferred
    served = variant.version
    names = served.facts["form"]["names"] or ["predictions"]
    response: dict[str, Any] = {
        "model_name": plane.settings.service,
        "model_version": served.number,
        "outputs": [
            {
                "name": name,
                "datatype": "BYTES" if each.dtype.kind == "O" else DATATYPES[each.dtype.name],
                "shape": list(each.shape),
                "data": each.ravel().tolist(),
            }
            for name, each in zip(names, outputs, strict=True)
        ],
    }
    if request_id is not None:
        response["id"] = request_id
    return Response(msgspec.json.encode(response), media_type="application/json")

"""The Open Inference Protocol, version 2, over HTTP with JSON tensors."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from fastapi import APIRouter, HTTPException, Path, Request, Response
from metalworks_model_runner.signature import NUMPY
from pydantic import BaseModel, Field

from metalworks.inference import schema
from metalworks.inference.invocations import Invocations, error
from metalworks.inference.rows import LARGEST
from metalworks.inference.served import Arm, Arrays, Version

router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])
open_router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])

_DATATYPES = {
    "bool": "BOOL",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    "object": "BYTES",
}
_NUMPY = {said: name for name, said in _DATATYPES.items()}


class Tensor(BaseModel):
    """A tensor of a request or an answer."""

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
    """What a tensor is."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """What a model takes and answers."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ServerMetadata(BaseModel):
    """What the server is."""

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
    413: {"description": "The body is too long.", "model": schema.Error},
    500: {"description": "The model's process ended while it worked on this.", "model": schema.Error},
    502: {"description": "The model's process ended and does not come back.", "model": schema.Error},
    504: {"description": "The model took too long.", "model": schema.Error},
}


def _arm(request: Request, model: str, version: str | None) -> Arm:
    route = request.app.state.route
    champion: Arm | None = route.champion
    if champion is None:
        raise HTTPException(503, "The model is not loaded yet", {"Retry-After": "5"})
    service = request.app.state.settings.service
    if model not in (service, champion.version.card["name"]):
        raise HTTPException(404, f"Model {model} is not served here; {service} is")
    if version is None:
        arm: Arm = route.choose() or champion
        return arm
    if version != champion.version.number:
        raise HTTPException(404, f"Version {version} is not served; version {champion.version.number} is")
    return champion


_Model = Annotated[str, Path(description="Name of the service, or of its model.")]


@router.get("")
async def server(request: Request) -> ServerMetadata:
    """Say what this server is."""
    return ServerMetadata(version=request.app.version)


@open_router.get("/health/live")
async def live() -> Live:
    """Answer 200 when the server runs."""
    return Live()


@open_router.get("/health/ready", responses=schema.NOT_LOADED)
async def ready(request: Request) -> Ready:
    """Answer 200 when the model is loaded."""
    _arm(request, request.app.state.settings.service, None)
    return Ready()


@router.get("/models/{model}/ready", responses=_REFUSED)
@router.get("/models/{model}/versions/{version}/ready", responses=_REFUSED)
async def model_ready(request: Request, model: _Model, version: str | None = None) -> Ready:
    """Answer 200 when this model, in this version, is served."""
    _arm(request, model, version)
    return Ready()


@router.get("/models/{model}", responses=_REFUSED)
@router.get("/models/{model}/versions/{version}", responses=_REFUSED)
async def model_metadata(request: Request, model: _Model, version: str | None = None) -> ModelMetadata:
    """Say what the model takes and answers."""
    served = _arm(request, model, version).version
    return ModelMetadata(
        name=request.app.state.settings.service,
        versions=[served.number],
        platform=f"mlflow_{(served.facts['flavors'] or ['python_function'])[0]}",
        inputs=inputs_of(served),
        outputs=_outputs_of(served),
    )


def inputs_of(served: Version) -> list[TensorMetadata]:
    """Return the tensors that a model takes; none where requests are left to MLflow."""
    if served.decode is None:
        return []
    if tensor := served.facts["tensor"]:
        return [TensorMetadata(name="input", datatype=_DATATYPES[tensor["dtype"]], shape=tensor["shape"])]
    return [
        TensorMetadata(name=each["name"], datatype=_DATATYPES[NUMPY[each["type"]]], shape=[-1])
        for each in served.facts["columns"]
    ]


def _outputs_of(served: Version) -> list[TensorMetadata]:
    if served.decode is None:
        return []
    types = served.facts["output_types"]
    names = served.facts["form"]["names"] or ["predictions"]
    said = ["BYTES" if each == "text" else _DATATYPES[np.dtype(each).name] for each in types]
    return [TensorMetadata(name=n, datatype=d, shape=[-1]) for n, d in zip(names, said, strict=True)]


@router.post("/models/{model}/infer", responses=_INFER)
@router.post("/models/{model}/versions/{version}/infer", responses=_INFER)
async def infer(request: Request, model: _Model, body: InferenceRequest, version: str | None = None) -> Response:
    """Predict."""
    arm = _arm(request, model, version)
    served = arm.version
    entry: Invocations = request.app.state.entry
    began = time.perf_counter()
    try:
        arrays = _arrays(served, body)
    except HTTPException as refusal:
        arm.series.observe(time.perf_counter() - began, refusal.status_code)
        raise
    arm.working += 1
    try:
        (status, media_type, text), outputs = await entry.ask_arrays(arm, arrays)
    finally:
        arm.working -= 1
    seconds = time.perf_counter() - began
    arm.series.observe(seconds, status)
    if outputs is None:
        headers = {"Retry-After": "1"} if status == 503 else {}
        said = json.loads(text)
        text = error(said["error_code"], said["message"], "/v2")
        return Response(text, status, headers, media_type)
    written = served.write(outputs) if served.write else b""
    entry.copy(arm, (arrays, outputs), (b"", b""), (200, written, seconds), lambda other: _arrays(other, body))
    names = served.facts["form"]["names"] or ["predictions"]
    answer = {
        "model_name": request.app.state.settings.service,
        "model_version": served.number,
        "outputs": [
            {
                "name": name,
                "datatype": "BYTES" if each.dtype.kind == "O" else _DATATYPES[each.dtype.name],
                "shape": list(each.shape),
                "data": each.ravel().tolist(),
            }
            for name, each in zip(names, outputs, strict=True)
        ],
    }
    if body.id is not None:
        answer["id"] = body.id
    return Response(msgspec.json.encode(answer), media_type="application/json")


def _arrays(served: Version, body: InferenceRequest) -> Arrays:
    """Return the request's tensors in the order of the model's columns; refuse what is not just these."""
    if served.decode is None:
        raise HTTPException(400, "This model takes MLflow's scoring protocol alone: POST /invocations")
    wanted = {each.name: each for each in inputs_of(served)}
    given = {each.name: each for each in body.inputs}
    if len(given) < len(body.inputs):
        raise HTTPException(400, "An input's name comes twice")
    tensor = served.facts["tensor"]
    if tensor and len(given) == 1:
        wanted = dict.fromkeys(given, wanted["input"])  # a tensor without a name has any
    if missing := wanted.keys() - given.keys():
        raise HTTPException(400, f"Inputs are missing: {', '.join(sorted(missing))}")
    if unknown := given.keys() - wanted.keys():
        raise HTTPException(400, f"The model has no inputs {', '.join(sorted(unknown))}")
    arrays = [_array(given[name], said, bool(tensor)) for name, said in wanted.items()]
    if len({len(each) for each in arrays}) > 1:
        raise HTTPException(400, "The inputs have different numbers of rows")
    if not len(arrays[0]):
        raise HTTPException(400, "There are no rows")
    if not tensor and len({each.datatype for each in wanted.values()}) == 1 and arrays[0].dtype.kind != "O":
        return [np.column_stack(arrays)]
    return arrays


def _array(given: Tensor, wanted: TensorMetadata, tensor: bool) -> np.ndarray:
    """Return one tensor's values, of the very type that the model wants."""
    where = f"Input {given.name}"
    if given.datatype != wanted.datatype:
        raise HTTPException(400, f"{where}: its datatype is {wanted.datatype}, not {given.datatype}")
    sizes = given.shape[1:]
    fits = sizes == wanted.shape[1:] if tensor else sizes in ([], [1])
    if not given.shape or given.shape[0] < 0 or not fits:
        raise HTTPException(400, f"{where}: its shape is {wanted.shape}, not {given.shape}")
    values: list[Any] = []
    pending: list[Any] = [given.data]
    while pending:
        value = pending.pop()
        if isinstance(value, list):
            pending.extend(reversed(value))
        else:
            values.append(value)
    count = int(np.prod(given.shape, dtype=object))
    if len(values) != count:
        raise HTTPException(400, f"{where}: it has {len(values)} values, not the {count} of its shape")
    dtype = np.dtype(_NUMPY[wanted.datatype])
    kinds: tuple[type, ...] = {"b": (bool,), "i": (int,), "u": (int,), "f": (int, float), "O": (str,)}[dtype.kind]
    for value in values:
        if not isinstance(value, kinds) or (dtype.kind != "b" and isinstance(value, bool)):
            raise HTTPException(400, f"{where}: {str(value)[:40]!r} is no value of type {wanted.datatype}")
    try:
        array = np.array(values, dtype=dtype)
    except (OverflowError, ValueError) as wrong:
        raise HTTPException(400, f"{where}: {wrong}") from wrong
    if dtype.kind == "f" and not bool((np.abs(array) < LARGEST).all()):
        raise HTTPException(400, f"{where}: numbers must be finite and below {LARGEST:g}")
    return array.reshape([given.shape[0], *sizes] if tensor else [given.shape[0]])

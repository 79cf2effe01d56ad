"""Parts of /openapi.json: the model's own columns, and every response that may come back."""

from __future__ import annotations

import math
from typing import Any

from metalworks_model_runner.facts import ColumnFacts
from pydantic import BaseModel, Field

from metalworks.contracts import Facts
from metalworks.serving.predict.variants import LoadedVersion

JSON, CSV, PARQUET, TEXT = "application/json", "text/csv", "application/vnd.apache.parquet", "text/plain"


class Version(BaseModel):
    """The version in service, its executor, and where it came from."""

    service: str
    model: str
    version: str
    alias: str
    run_id: str | None
    git_commit: str | None
    requirements_sha256: str | None = Field(description="Digest of the lock that the model's environment is made from.")
    executor: str = Field(description="onnx, native, pyfunc or mlflow.")
    executor_reason: str
    warnings: list[str] = Field(
        description="What could not be checked, such as requests to a model without a signature."
    )
    canary: str | None = Field(description="Version that gets a share of the requests.")
    shadow: str | None = Field(description="Version that gets a copy of them.")
    mlflow: str
    metalworks: str


class Working(BaseModel):
    """The model is loaded."""

    status: str = "ok"
    warnings: list[str] = Field([], description="As in /version.")


class Error(BaseModel):
    """An error, in the form that MLflow's clients read."""

    error_code: str = Field(description="One of MLflow's names of errors.")
    message: str
    error: str | None = Field(None, description="The message once more, for clients of the Open Inference Protocol.")
    stack_trace: str | None = Field(None, description="Where in the model or in MLflow it happened.")


def _refusal(description: str) -> dict[str, Any]:
    return {"description": description, "model": Error}


UNAUTHENTICATED: dict[int | str, dict[str, Any]] = {
    401: {
        **_refusal("No token of this platform came with the request."),
        "headers": {"WWW-Authenticate": {"schema": {"const": "Bearer"}, "required": True}},
    }
}
NOT_LOADED: dict[int | str, dict[str, Any]] = {503: _refusal("No model is loaded yet, or too many requests wait.")}
_ERROR = {"schema": {"$ref": "#/components/schemas/Error"}}
_JSON_TYPES = {
    "boolean": {"type": "boolean"},
    "integer": {"type": "integer"},
    "long": {"type": "integer"},
    "float": {"type": "number"},
    "double": {"type": "number"},
    "string": {"type": "string"},
}
_ROW: dict[str, Any] = {"type": "array", "description": "One value per column."}


def _refused(description: str) -> dict[str, Any]:
    return {"description": description, "content": {JSON: _ERROR}}


def _column(column: ColumnFacts) -> dict[str, Any]:
    described = dict(_JSON_TYPES.get(column["type"], {}))
    return (
        described
        if column["required"] or "type" not in described
        else {**described, "type": [described["type"], "null"]}
    )


def _forms(facts: Facts | dict[str, Any]) -> dict[str, Any]:
    """Return MLflow's four forms of a request, with the model's columns where it has any."""
    columns, tensor = facts["columns"], facts["tensor"]
    record: dict[str, Any] = {"type": "object"}
    row = _ROW
    names: dict[str, Any] = {"type": "array", "items": {"type": "string"}}
    table: dict[str, Any] = {"type": ["array", "object"], "description": "Tensors or columns, by name or all in one."}
    if columns:
        required = [each["name"] for each in columns if each["required"]]
        properties = {each["name"]: _column(each) for each in columns}
        record = {"type": "object", "properties": properties, "required": required}
        names["examples"] = [[each["name"] for each in columns]]
        lists = {name: {"type": "array", "items": described} for name, described in properties.items()}
        table["properties"] = lists
    elif tensor:
        table = {"type": "array", "description": f"A tensor of shape {tensor['shape']} of {tensor['dtype']}."}
    return {
        "dataframe_split": {
            "type": "object",
            "description": "A table as pandas' to_dict('split') makes it.",
            "properties": {"columns": names, "index": {"type": "array"}, "data": {"type": "array", "items": row}},
            "required": ["data"],
        },
        "dataframe_records": {"type": "array", "description": "A table as list of rows.", "items": record},
        "instances": {"type": "array", "description": "Tensors or rows, one per element."},
        "inputs": table,
    }


def _strict(value: Any) -> Any:
    """Return a value of MLflow's JSON as strict JSON: null for NaN, which a request may use too."""
    if isinstance(value, dict):
        return {name: _strict(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_strict(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def invocations(served: LoadedVersion | None) -> dict[str, Any]:
    """Return OpenAPI's description of POST /invocations for the model in service."""
    facts: Facts | dict[str, Any] = served.facts if served else {"columns": None, "tensor": None, "example": None}
    forms = _forms(facts)
    payload: dict[str, Any] = {
        "schema": {
            "type": "object",
            "properties": {**forms, "params": {"description": "Object; a model without any ignores it."}},
            "oneOf": [{"required": [form]} for form in forms],
        }
    }
    if facts["example"] is not None:
        payload["example"] = _strict(facts["example"])
    answer: dict[str, Any] = {
        "schema": {"type": "object", "properties": {"predictions": {}}, "required": ["predictions"]}
    }
    if served and facts["example_answer"] is not None:
        answer["example"] = _strict(facts["example_answer"])
    return {
        "summary": "Predict",
        "operationId": "invocations",
        "tags": ["MLflow's scoring protocol"],
        "description": "MLflow's scoring protocol: JSON with exactly one of dataframe_split, dataframe_records, "
        "instances and inputs (and params, if the model takes any), CSV with a header line, or Parquet.",
        "requestBody": {
            "required": True,
            "content": {
                JSON: payload,
                CSV: {"schema": {"type": "string"}},
                PARQUET: {"schema": {"type": "string", "format": "binary"}},
            },
        },
        "responses": {
            "200": {"description": "What the model predicts, one entry per row.", "content": {JSON: answer}},
            "400": _refused("The body cannot be read, or is not what the model wants: the message names the column."),
            "408": _refused("The body did not come in time."),
            "413": _refused(
                "The body is too long, or has more rows, columns, values or nesting than the service takes."
            ),
            "415": {
                "description": "The body is of a type, or in a charset or encoding, that the server does not read.",
                "content": {TEXT: {"schema": {"type": "string"}}, JSON: _ERROR},
            },
            "500": _refused("The model's process ended while it worked on this."),
            "502": _refused("The model's process ended and does not come back; another host may answer."),
            "503": {
                **_refused("No model is loaded yet, or too many requests wait."),
                "headers": {"Retry-After": {"schema": {"type": "string"}}},
            },
            "504": _refused("The model took too long."),
        },
    }

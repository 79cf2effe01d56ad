"""What the server says of itself in /openapi.json: what may be sent, and every answer that may come back."""

from __future__ import annotations

from typing import Any

from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

JSON = "application/json"
CSV = "text/csv"
PARQUET = "application/vnd.apache.parquet"
TEXT = "text/plain"


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


class Working(BaseModel):
    """The model is loaded."""

    status: str = "ok"


class Predictions(BaseModel):
    """One prediction per row, as MLflow writes them."""

    predictions: Any = Field(description="A list of values or of objects, as the model answers.")


class Error(BaseModel):
    """Why a request was not answered, in the form that MLflow's clients read."""

    error_code: str = Field(description="One of MLflow's names of errors.")
    message: str
    stack_trace: str | None = Field(None, description="Where in the model or in MLflow it happened.")


def error(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """Return an error as an answer."""
    return JSONResponse({"error_code": code, "message": message}, status, headers)


def _refusal(description: str, *, text: bool = False) -> dict[str, Any]:
    """Return the description of an error; some of MLflow's are `text` instead of JSON."""
    return (
        {"description": description, "content": {TEXT: {"schema": {"type": "string"}}}}
        if text
        else {"description": description, "model": Error}
    )


UNAUTHENTICATED: dict[int | str, dict[str, Any]] = {
    401: {
        **_refusal("No token of this platform came with the request."),
        "headers": {"WWW-Authenticate": {"schema": {"const": "Bearer"}, "required": True}},
    }
}
NOT_LOADED: dict[int | str, dict[str, Any]] = {503: _refusal("The model is not loaded yet.")}
INVOCATIONS: dict[int | str, dict[str, Any]] = {
    200: {"description": "What the model predicts.", "model": Predictions},
    400: _refusal("The body cannot be read, or is not what the model wants."),
    413: _refusal("The body is too long."),
    415: _refusal("The body is of a type, or in a charset, that the server does not read.", text=True),
    504: _refusal("The model took too long."),
}

# The four forms of MLflow's scoring protocol: exactly one of the fields says which.
_ROW = {"type": "array", "description": "One value per column."}
_FORMS: dict[str, dict[str, Any]] = {
    "dataframe_split": {
        "type": "object",
        "description": "A table as pandas' to_dict('split') makes it.",
        "properties": {
            "columns": {"type": "array", "items": {"type": "string"}},
            "index": {"type": "array"},
            "data": {"type": "array", "items": _ROW},
        },
        "required": ["data"],
    },
    "dataframe_records": {
        "type": "array",
        "description": "A table as list of rows.",
        "items": {"type": "object"},
    },
    "instances": {"type": "array", "description": "Tensors or rows, one per element."},
    "inputs": {"type": ["array", "object"], "description": "Tensors or columns, by name or all in one."},
}
PAYLOAD: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "MLflow's scoring protocol: JSON with exactly one of dataframe_split, dataframe_records, "
        "instances and inputs (and params, if the model takes any), CSV with a header line, or Parquet.",
        "content": {
            JSON: {
                "schema": {
                    "type": "object",
                    "properties": {**_FORMS, "params": {"description": "Object; a model without any ignores it."}},
                    "oneOf": [{"required": [form]} for form in _FORMS],
                }
            },
            CSV: {"schema": {"type": "string"}},
            PARQUET: {"schema": {"type": "string", "format": "binary"}},
        },
    }
}

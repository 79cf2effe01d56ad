"""Describes a model's inputs for the processes that decode requests, which do not have MLflow."""

from __future__ import annotations

from typing import Any

import numpy as np

NUMPY: dict[str, str] = {
    "boolean": "bool",
    "integer": "int32",
    "long": "int64",
    "float": "float32",
    "double": "float64",
    "string": "object",
}
"""Types of columns that are decoded straight into arrays, with the arrays' types."""


def describe(schema: Any) -> dict[str, Any]:
    """Return the columns or the tensor of an MLflow input schema, if requests can be decoded by them.

    `columns` is [{name, type, required}] for named columns of plain types; `tensor` is {dtype, shape} for one unnamed
    tensor. If both are null, requests are left to MLflow.
    """
    nothing: dict[str, Any] = {"columns": None, "tensor": None}
    if schema is None or not schema.inputs:
        return nothing
    if schema.is_tensor_spec():
        if len(schema.inputs) > 1 or schema.has_input_names():
            return nothing
        spec = schema.inputs[0]
        shape = [int(size) for size in spec.shape]
        fits = np.dtype(spec.type).kind in "fiu" and shape[0] == -1 and -1 not in shape[1:]
        return {**nothing, "tensor": {"dtype": np.dtype(spec.type).name, "shape": shape}} if fits else nothing
    if not schema.has_input_names():
        return nothing
    columns = [
        {"name": spec.name, "type": getattr(spec.type, "name", ""), "required": _is_required(spec)}
        for spec in schema.inputs
    ]
    plain = all(each["type"] in NUMPY and _is_plain(each["name"]) for each in columns)
    unique = len({each["name"] for each in columns}) == len(columns)
    return {**nothing, "columns": columns} if plain and unique else nothing


def _is_required(spec: Any) -> bool:
    return bool(spec.required if hasattr(spec, "required") else not spec.optional)  # since MLflow 2.10


def _is_plain(name: Any) -> bool:
    """Return whether a column's name is text that any request can have: no half of a surrogate pair."""
    return isinstance(name, str) and name == name.encode(errors="replace").decode()

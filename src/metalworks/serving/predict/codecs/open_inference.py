"""Decodes requests of the Open Inference Protocol, which must have exactly the model's columns."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from metalworks_model_runner.signature import NUMPY

from metalworks.contracts import Facts
from metalworks.serving.arrays import Arrays
from metalworks.serving.predict.codecs.mlflow_request import LARGEST, RequestRefusedError, refuse_rows

DATATYPES = {
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
_NUMPY = {datatype: name for name, datatype in DATATYPES.items()}
_QUOTED = 200
"""Characters of the caller's input that an error repeats."""


class MalformedError(RequestRefusedError):
    """A body does not have the protocol's form."""


class _Tensor(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    data: msgspec.Raw
    parameters: dict[str, Any] | None = None


class _InferRequest(msgspec.Struct):
    inputs: list[_Tensor]
    id: str | None = None
    outputs: list[dict[str, Any]] | None = None
    parameters: dict[str, Any] | None = None


class TensorSpec(msgspec.Struct):
    """A tensor that a model takes."""

    name: str
    datatype: str
    shape: list[int]


_request = msgspec.json.Decoder(_InferRequest)
_FLAT: dict[str, Any] = {
    "b": msgspec.json.Decoder(list[bool]),
    "f": msgspec.json.Decoder(list[float]),
    "O": msgspec.json.Decoder(list[str]),
}
"""Decoders for flat lists. Integers are checked one by one, since a decoder would take 1.0 for one."""


def expected_tensors(facts: Facts) -> list[TensorSpec]:
    """Return the tensors that this model takes."""
    if tensor := facts["tensor"]:
        return [TensorSpec("input", DATATYPES[tensor["dtype"]], tensor["shape"])]
    return [TensorSpec(each["name"], DATATYPES[NUMPY[each["type"]]], [-1]) for each in facts["columns"] or ()]


def decode(facts: Facts, most: int, body: bytes) -> tuple[str | None, Arrays]:
    """Return a request's id and its tensors in the order of the model's columns.

    Raises RequestRefusedError unless it has exactly these, with at most `most` rows.
    """
    try:
        request = _request.decode(body)
    except (msgspec.DecodeError, ValueError, RecursionError) as wrong:  # also half a surrogate pair
        reason = "it is nested too deeply" if isinstance(wrong, RecursionError) else str(wrong)
        raise MalformedError(400, f"The body is no request of this protocol: {reason}") from wrong
    given = {each.name: each for each in request.inputs}
    if len(given) < len(request.inputs):
        raise RequestRefusedError(400, "An input's name comes twice")
    tensor = bool(facts["tensor"])
    wanted = {each.name: each for each in expected_tensors(facts)}
    if tensor and len(given) == 1:
        wanted = dict.fromkeys(given, wanted["input"])  # an unnamed tensor may have any name
    if missing := wanted.keys() - given.keys():
        raise RequestRefusedError(400, f"Inputs are missing: {', '.join(sorted(missing))}")
    if unknown := given.keys() - wanted.keys():
        raise RequestRefusedError(400, f"The model has no inputs {', '.join(sorted(unknown))}"[:_QUOTED])
    arrays = [_array(given[name], spec, tensor) for name, spec in wanted.items()]
    if len({len(each) for each in arrays}) > 1:
        raise RequestRefusedError(400, "The inputs have different numbers of rows")
    if not len(arrays[0]):
        raise RequestRefusedError(400, "There are no rows")
    refuse_rows(len(arrays[0]), most)
    if not tensor and len({each.datatype for each in wanted.values()}) == 1 and arrays[0].dtype.kind != "O":
        arrays = [np.column_stack(arrays)]
    return request.id, arrays


def _array(given: _Tensor, wanted: TensorSpec, tensor: bool) -> np.ndarray:
    """Return one tensor's values; refuse any but the model's type."""
    where = f"Input {given.name[:_QUOTED]}"
    if given.datatype != wanted.datatype:
        raise RequestRefusedError(400, f"{where}: its datatype is {wanted.datatype}, not {given.datatype[:_QUOTED]}")
    sizes = given.shape[1:]
    fits = sizes == wanted.shape[1:] if tensor else sizes in ([], [1])
    if not given.shape or given.shape[0] < 0 or not fits:
        raise RequestRefusedError(400, f"{where}: its shape is {wanted.shape}, not {str(given.shape)[:_QUOTED]}")
    dtype = np.dtype(_NUMPY[wanted.datatype])
    values = _values(given.data, dtype, where)
    count = int(np.prod(given.shape, dtype=object))
    if len(values) != count:
        raise RequestRefusedError(400, f"{where}: it has {len(values)} values, not the {count} of its shape")
    try:
        array = np.array(values, dtype=dtype)
    except (OverflowError, ValueError) as wrong:
        raise RequestRefusedError(400, f"{where}: {wrong}") from wrong
    if dtype.kind == "f" and not bool((np.abs(array) < LARGEST).all()):
        raise RequestRefusedError(400, f"{where}: numbers must be finite and below {LARGEST:g}")
    return array.reshape([given.shape[0], *sizes] if tensor else [given.shape[0]])


def _values(data: msgspec.Raw, dtype: np.dtype[Any], where: str) -> list[Any]:
    """Return a tensor's values, flat."""
    if flat := _FLAT.get(dtype.kind):
        try:
            return flat.decode(data)  # type: ignore[no-any-return]
        except (msgspec.DecodeError, ValueError):
            pass  # nested or wrong: check one by one
    try:
        nested = msgspec.json.decode(data)
    except (msgspec.DecodeError, ValueError, RecursionError) as wrong:
        raise MalformedError(400, f"{where}: its data cannot be read: {wrong}") from wrong
    if not isinstance(nested, list):
        raise MalformedError(400, f"{where}: its data is no list")
    kinds: tuple[type, ...] = {"b": (bool,), "i": (int,), "u": (int,), "f": (int, float), "O": (str,)}[dtype.kind]
    values: list[Any] = []
    pending: list[Any] = [nested]
    while pending:
        value = pending.pop()
        if isinstance(value, list):
            pending.extend(reversed(value))
        elif not isinstance(value, kinds) or (dtype.kind != "b" and isinstance(value, bool)):
            raise RequestRefusedError(400, f"{where}: {str(value)[:40]!r} is no value of type {DATATYPES[dtype.name]}")
        else:
            values.append(value)
    return values

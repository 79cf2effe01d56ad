"""Encodes predictions as MLflow's scoring server does."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
from metalworks_model_runner.facts import FormFacts

_encode = msgspec.json.Encoder().encode
_START, _END = b'{"predictions": ', b"}"


def _values(array: np.ndarray) -> bytes:
    values = array.tolist()
    if array.dtype.kind == "f":
        # For a few numbers, a sum is faster than numpy; if it overflows, the slower encoder is used.
        finite = math.isfinite(sum(values)) if array.ndim == 1 else np.isfinite(array).all()
        if not finite:
            return json.dumps(values).encode()  # NaN, as MLflow writes it
    return _encode(values)


def _list(outputs: Sequence[np.ndarray]) -> bytes:
    return b"".join((_START, _values(outputs[0]), _END))


def writer(form: FormFacts) -> Callable[[Sequence[np.ndarray]], bytes]:
    """Return a function that encodes outputs (one array each, with one entry per row) in the form of the model.

    The kind of `form` is list, records or dict; the latter two use the outputs' names.
    """
    names: list[str] = form["names"]

    def records(outputs: Sequence[np.ndarray]) -> bytes:
        rows = zip(*(each.tolist() for each in outputs), strict=True)
        return json.dumps({"predictions": [dict(zip(names, row, strict=True)) for row in rows]}).encode()

    def table(outputs: Sequence[np.ndarray]) -> bytes:
        columns = {name: each.tolist() for name, each in zip(names, outputs, strict=True)}
        return json.dumps({"predictions": columns}).encode()

    return {"list": _list, "records": records, "dict": table}[form["kind"]]

"""A loaded model, and the functions that predict with it."""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST
from mlflow.pyfunc import PyFuncModel, load_model, scoring_server

from metalworks_model_runner import memory
from metalworks_model_runner.cost import check_cost
from metalworks_model_runner.limits import Limits, TooMuchError
from metalworks_model_runner.signature import describe

RELEASE_BYTES, ECHO_BYTES = 2**20, 2**16
"""After a body longer than the first, memory is given back; an error may repeat one up to the second."""
Arrays = Sequence[np.ndarray]
"""One array per column with one value per row; or a single array: a tensor, or a matrix of columns of one type."""
Outputs = list[np.ndarray]
"""One array per output, with one entry per row."""
_RAW = {"sklearn": "sklearn_model", "xgboost": "xgb_model", "lightgbm": "lgb_model", "pytorch": "pytorch_model"}
"""Attribute in which MLflow's wrapper of each flavor holds the model."""


class UnfitError(Exception):
    """A model's result cannot be sent as arrays; the message says why."""


@dataclass(frozen=True)
class Form:
    """How MLflow encodes a model's predictions: a `list`, `records` (one object per row) or a `dict` of lists."""

    kind: str
    names: tuple[str, ...] = ()


class Model:
    """One model, loaded as MLflow loads it for serving."""

    def __init__(self, folder: Path) -> None:
        """Load the model in `folder`; raises whatever its code raises."""
        self.folder = folder
        self.pyfunc: PyFuncModel = load_model(str(folder))
        self.schema = self.pyfunc.metadata.get_input_schema()
        self.flavors: dict[str, Any] = self.pyfunc.metadata.flavors
        self.signature = describe(self.schema)
        self.names = [each["name"] for each in self.signature["columns"] or ()]

    def answer(self, body: bytes, about: str | Sequence[Any]) -> tuple[int, str, bytes]:
        """Answer a request with the functions of `mlflow models serve`; return status, media type and body.

        `about` is the content type, or a list of it and the limits that the request must keep.
        """
        given: Sequence[Any] = [about] if isinstance(about, str) else about
        content_type, numbers = given[0], given[1:]
        try:
            if numbers:
                self._check(body, content_type, Limits(*numbers))
            result = scoring_server.invocations(_data(body, content_type), content_type, self.pyfunc, self.schema)
        except TooMuchError as error:
            problem = {"error_code": "MAX_READ_SIZE_EXCEEDED", "message": str(error)}
            return 413, "application/json", json.dumps(problem).encode()
        except MlflowException as error:
            return error.get_http_status_code(), "application/json", error.serialize_as_json().encode()
        except (ValueError, RecursionError) as error:
            # what MLflow does not expect, such as numbers with thousands of digits
            reason = "It is nested too deeply." if isinstance(error, RecursionError) else str(error)
            refusal = MlflowException(f"Invalid input. {reason}", error_code=BAD_REQUEST)
            return 400, "application/json", refusal.serialize_as_json().encode()
        finally:
            if len(body) > RELEASE_BYTES:
                memory.release_soon()
        return result.status, result.mimetype, result.response.encode()

    @staticmethod
    def _check(body: bytes, content_type: str, limits: Limits) -> None:
        try:
            check_cost(body, content_type, limits)
        except (ValueError, RecursionError):
            # MLflow's message is better, but repeats the body several times.
            if len(body) > ECHO_BYTES:
                raise

    def table(self, arrays: Arrays) -> Any:
        """Return what MLflow would make of the request: a DataFrame, or the tensor."""
        if self.signature["tensor"]:
            return arrays[0]
        import pandas as pd

        if len(arrays) == 1 and arrays[0].ndim == 2:
            return pd.DataFrame(arrays[0], columns=self.names)
        return pd.DataFrame(dict(zip(self.names, arrays, strict=True)))

    def by_pyfunc(self, arrays: Arrays) -> Any:
        """Predict through MLflow, which enforces the schema."""
        return self.pyfunc.predict(self.table(arrays))

    def raw(self) -> Any:
        """Return the model as its own library loaded it."""
        if hasattr(self.pyfunc, "get_raw_model"):  # since MLflow 2.16
            return self.pyfunc.get_raw_model()
        names = [name for flavor, name in _RAW.items() if flavor in self.flavors]
        if not names:
            raise UnfitError("this version of MLflow does not give access to the model itself")
        return getattr(self.pyfunc._model_impl, names[0])

    @property
    def has_type_hints(self) -> bool:
        """Whether the signature comes from type hints, so MLflow passes objects instead of a table to the model."""
        asked = getattr(self.pyfunc.metadata, "_is_signature_from_type_hint", None)  # since MLflow 2.20
        return bool(asked and asked())

    def example_request(self) -> tuple[bytes | None, bool]:
        """Return the recorded example as the body of a request, and whether MLflow recorded it in this form.

        None if there is no example, or none that a request can have.
        """
        served = self.folder / "serving_input_example.json"  # since MLflow 2.15
        if served.is_file():
            return served.read_bytes(), True
        about = self.pyfunc.metadata.saved_input_example_info or {}
        recorded = self.folder / str(about.get("artifact_path", ""))
        if about.get("format") == "tf-serving":  # an array
            return recorded.read_bytes(), False
        if about.get("type") == "dataframe" and about.get("pandas_orient") == "split":
            return b'{"dataframe_split": %s}' % recorded.read_bytes(), False
        return None, False

    def load_example(self) -> Any:
        """Return the recorded example as MLflow loads it; None if there is none."""
        return self.pyfunc.metadata.load_input_example(str(self.folder))

    def native(self) -> dict[str, Callable[[Arrays], Any]]:
        """Return functions by name, fastest first, that predict without MLflow."""
        for flavor in ("sklearn", "xgboost", "lightgbm", "pytorch", "onnx"):
            if flavor in self.flavors:
                functions: dict[str, Callable[[Arrays], Any]] = getattr(_Native(self), flavor)()
                return functions
        return {}


class _Native:
    """Predicts with the flavors' own libraries."""

    def __init__(self, model: Model) -> None:
        self.model = model

    @functools.cached_property
    def raw(self) -> Any:
        return self.model.raw()

    def sklearn(self) -> dict[str, Callable[[Arrays], Any]]:
        from sklearn import config_context

        # Columns are in the order of the signature already.
        warnings.filterwarnings("ignore", message="X does not have valid feature names")
        name = self.model.flavors["python_function"].get("predict_fn") or "predict"
        predict = getattr(self.raw, name)

        def on_frame(arrays: Arrays) -> Any:
            return predict(self.model.table(arrays))

        def on_array(arrays: Arrays) -> Any:
            # The decoder accepts only finite numbers.
            with config_context(assume_finite=True, skip_parameter_validation=True):
                return predict(_matrix(arrays))

        # A frame is slower, since names are checked, but a pipeline may select columns by name.
        return {"arrays": on_array, "frame": on_frame}

    def xgboost(self) -> dict[str, Callable[[Arrays], Any]]:
        xgboost = importlib.import_module("xgboost")
        booster = self.raw if isinstance(self.raw, xgboost.Booster) else None

        def on_array(arrays: Arrays) -> Any:
            if booster is None:
                return self.raw.predict(_matrix(arrays))
            return booster.predict(xgboost.DMatrix(_matrix(arrays), feature_names=booster.feature_names))

        return {"arrays": on_array}

    def lightgbm(self) -> dict[str, Callable[[Arrays], Any]]:
        return {"arrays": lambda arrays: self.raw.predict(_matrix(arrays))}

    def pytorch(self) -> dict[str, Callable[[Arrays], Any]]:
        import torch

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        network = self.raw.to(device)
        with contextlib.suppress(NotImplementedError):  # a traced graph has only one mode
            network.eval()
        frame = not self.model.signature["tensor"]

        def on_tensor(arrays: Arrays) -> Any:
            values = _matrix(arrays)
            if frame:
                values = values.astype(np.float32, copy=False)  # as MLflow converts tables
            with torch.inference_mode():
                result = network(torch.from_numpy(np.array(values)).to(device)).cpu().numpy()
            # For a table, MLflow returns a table with numbered columns.
            return _Named({str(i): result[:, i] for i in range(result.shape[1])}) if frame else result

        return {"cuda" if device.type == "cuda" else "arrays": on_tensor}

    def onnx(self) -> dict[str, Callable[[Arrays], Any]]:
        # On the CPU, the worker processes run it themselves.
        return {}


class _Named(dict[str, np.ndarray]):
    """Named outputs that MLflow encodes as records."""


def _data(body: bytes, content_type: str) -> bytes | str:
    """Return a body as every version of MLflow takes it: before 2.21, CSV had to be text."""
    if content_type.partition(";")[0].strip() == "text/csv":
        with contextlib.suppress(UnicodeDecodeError):  # MLflow says what is wrong
            return body.decode()
    return body


def _matrix(arrays: Arrays) -> np.ndarray:
    if len(arrays) == 1 and arrays[0].ndim != 1:
        return arrays[0]
    if any(array.dtype == object for array in arrays):
        raise UnfitError("there are columns of text")
    return np.column_stack(arrays)


def outputs_of(result: Any, rows: int) -> tuple[Form, Outputs]:
    """Return a model's result as arrays, and how MLflow would encode it.

    Raises UnfitError unless it has one entry for each of `rows` rows.
    """
    pandas = importlib.import_module("pandas")
    if isinstance(result, pandas.Series):
        result = pandas.DataFrame(result)  # as MLflow does: it becomes records
    if isinstance(result, pandas.DataFrame):
        names = tuple(map(str, result.columns))
        # JSON turns integer names into strings.
        if len(set(names)) < len(names) or not all(type(name) in (str, int) for name in result.columns):
            raise UnfitError("its columns have no names of their own")
        form, arrays = Form("records", names), [result[name].to_numpy() for name in result.columns]
    elif isinstance(result, dict):
        kind = "records" if isinstance(result, _Named) else "dict"
        form, arrays = Form(kind, tuple(result)), [np.asarray(each) for each in result.values()]
    elif isinstance(result, np.ndarray):
        form, arrays = Form("list"), [result]
    elif isinstance(result, list) and all(isinstance(each, int | float | str) for each in result):
        form, arrays = Form("list"), [_of_list(result)]
    else:
        raise UnfitError(f"it answers with {type(result).__name__}")
    arrays = [array.astype(object) if array.dtype.kind == "U" else array for array in arrays]  # labels, mostly
    for array in arrays:
        if array.ndim == 0 or len(array) != rows:
            raise UnfitError(f"it answers {rows} rows with something else than {rows} values")
        if array.dtype.kind not in "fiubO" or (array.dtype == object and not all(isinstance(x, str) for x in array)):
            raise UnfitError(f"it answers with values of type {array.dtype}")
    return form, arrays


def _of_list(values: list[Any]) -> np.ndarray:
    types = {type(each) for each in values}
    if len(types) > 1:
        raise UnfitError("it answers with a list of several types")
    return np.array(values, dtype=object) if types == {str} else np.array(values)

"""A converted model in ONNX Runtime, inside the worker process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime


@dataclass(frozen=True)
class Feed:
    """The form in which a converted model takes its inputs."""

    double: bool
    """Numbers in double precision, otherwise single."""
    columns: bool
    """One input per column with one value per row, otherwise one matrix."""


class OnnxModel:
    """Computes outputs from arrays."""

    def __init__(
        self,
        file: Path,
        feed: Feed,
        output_types: Sequence[str],
        output_shapes: Sequence[Sequence[int]],
        threads: int = 1,
    ) -> None:
        """Load `file`; outputs get the types (numpy's names, or text) and shapes that MLflow's predictions have."""
        options = onnxruntime.SessionOptions()
        # Requests run in parallel already; threads that spin would take time from other processes.
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.load_model_format", "ONNX")  # its own format is validated less
        options.log_severity_level = 4  # it raises what it refuses, so a log line per request adds nothing
        self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        inputs = self.session.get_inputs()
        self._names = [each.name for each in inputs]
        self._outputs = [each.name for each in self.session.get_outputs()]
        self._types = [None if each == "text" else np.dtype(each) for each in output_types]
        self._flat = [not list(each) for each in output_shapes]
        if len(self._types) != len(self._outputs):
            raise ValueError(f"it has {len(self._outputs)} outputs, not {len(self._types)}")
        self._number = np.dtype(np.float64 if feed.double else np.float32)
        # No bound method as an attribute: that cycle would keep the model in memory after its version is gone.
        self._by_columns = feed.columns
        self._exact = [np.dtype(_NUMPY[each.type]) if each.type in _NUMPY else None for each in inputs]
        self._number = self._exact[0] if not feed.columns and self._exact[0] is not None else self._number
        self._run = self.session._sess.run  # skips checks that are made here already

    def __call__(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return one array per output."""
        fed = self._columns(arrays) if self._by_columns else self._matrix(arrays)
        results = self._run(self._outputs, fed, None)
        return [*map(_fit, results, self._types, self._flat)]

    def _matrix(self, arrays: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        matrix = arrays[0]
        return {self._names[0]: matrix if matrix.dtype is self._number else matrix.astype(self._number, copy=False)}

    def _columns(self, arrays: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        columns = arrays[0].T if len(arrays) == 1 and arrays[0].ndim == 2 else arrays
        return {
            name: column.reshape(-1, 1) if wanted is None else column.astype(wanted).reshape(-1, 1)
            for name, column, wanted in zip(self._names, columns, self._exact, strict=True)
        }


_NUMPY = {
    "tensor(double)": "float64",
    "tensor(float)": "float32",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(bool)": "bool",
}


def _fit(array: Any, wanted: np.dtype[Any] | None, flat: bool) -> np.ndarray:
    result: np.ndarray = array if type(array) is np.ndarray else np.asarray(array)
    if flat and result.ndim == 2 and result.shape[1] == 1:
        result = result.ravel()  # converters make one value per row a column
    dtype = result.dtype
    return result if wanted is None or dtype is wanted or dtype == wanted else result.astype(wanted)

"""Decodes requests of MLflow's scoring protocol by the model's columns.

Only plain requests are decoded here: all columns are there, and every value has exactly its column's type, is finite
and not null (or null, if the equivalence check found that the executor treats NaN as MLflow does). Everything else
(other forms, other types, mistakes) is left to MLflow's own functions in the model's process, which give the response
or the error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from metalworks_model_runner.facts import ColumnFacts
from metalworks_model_runner.limits import Limits
from metalworks_model_runner.signature import NUMPY

from metalworks.contracts import Facts
from metalworks.serving.arrays import Arrays

LIMITS = Limits()
LARGEST = 3.0e38
"""Beyond single precision, some libraries refuse a number and others treat it as infinite."""
_TYPES: dict[str, Any] = {"boolean": bool, "integer": int, "long": int, "float": float, "double": float, "string": str}

_Decoder = msgspec.json.Decoder[Any]

MORE_COLUMNS = 256
"""Unknown columns that are skipped here; a request with more is left to MLflow."""


class RequestRefusedError(Exception):
    """A request is refused, with an HTTP status and a message."""

    def __init__(self, status: int, message: str) -> None:
        """Refuse with an HTTP status."""
        super().__init__(status, message)
        self.status, self.message = status, message


class _Split(msgspec.Struct, forbid_unknown_fields=True):
    columns: list[str]
    data: msgspec.Raw
    index: list[int | float | str] | msgspec.UnsetType | None = msgspec.UNSET


class _ScoringRequest(msgspec.Struct, forbid_unknown_fields=True):
    dataframe_split: _Split | msgspec.UnsetType = msgspec.UNSET
    dataframe_records: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    instances: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    inputs: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


@dataclass
class TableDecoder:
    """Decodes tables with named columns.

    `arrays_of` returns one matrix (rows x columns) if all columns are numbers of one type, otherwise one array per
    column, in the order of the signature.
    """

    columns: Sequence[ColumnFacts]
    nulls: bool
    names: list[str] = field(init=False)

    def __post_init__(self) -> None:
        """Prepare the decoders that do not depend on a request."""
        self.names = [each["name"] for each in self.columns]
        types = [_TYPES[each["type"]] for each in self.columns]
        if self.nulls:  # null becomes NaN, which only double columns can hold
            types = [t | None if each["type"] == "double" else t for t, each in zip(types, self.columns, strict=True)]
        self._types = dict(zip(self.names, types, strict=True))
        self._dtypes = [np.dtype(NUMPY[each["type"]]) for each in self.columns]
        one = {each["type"] for each in self.columns}
        self._matrix = self._dtypes[0] if len(one) == 1 and one != {"string"} else None
        self._request = msgspec.json.Decoder(_ScoringRequest)
        self._quick = self._quick_decoder(types[0]) if self._matrix is not None else None
        self._orders: dict[tuple[str, ...], tuple[Any, list[int]] | None] = {}
        self._record_fields = [f"c{i}" for i in range(len(types))]
        self._records, self._table = self._decoders_by_name(types)

    def _decoders_by_name(self, types: Sequence[Any]) -> tuple[_Decoder | None, _Decoder | None]:
        """Return decoders for a list of records and for a table of columns.

        None for columns whose names msgspec takes for no field, such as `say "hi"`: then only split tables, which
        have names as values, are decoded here.
        """
        fields = [*zip(self._record_fields, types, strict=True)]
        renamed = dict(zip(self._record_fields, self.names, strict=True))
        try:
            record = msgspec.defstruct("Record", fields, rename=renamed)
            table = msgspec.defstruct("Table", [(name, list[t]) for name, t in fields], rename=renamed)  # type: ignore[valid-type]
        except ValueError:
            return None, None
        return msgspec.json.Decoder(list[record]), msgspec.json.Decoder(table)  # type: ignore[valid-type]

    @staticmethod
    def _quick_decoder(kind: Any) -> msgspec.json.Decoder[Any]:
        """Return a decoder for a whole split table whose values are all of one type, in any column order."""
        split = msgspec.defstruct(
            "Split",
            [("columns", list[str]), ("data", list[list[kind]]), ("index", list[int | float | str] | None, None)],
            forbid_unknown_fields=True,
        )
        return msgspec.json.Decoder(
            msgspec.defstruct("Request", [("dataframe_split", split)], forbid_unknown_fields=True)
        )

    def arrays_of(self, body: bytes) -> Arrays | None:
        """Return the request's columns; None to leave it to MLflow."""
        try:
            if self._quick is not None and body.startswith(b'{"dataframe_split"'):
                split = self._quick.decode(body).dataframe_split
                if split.index is not None and len(split.index) != len(split.data):
                    return None
                return self._ordered(split.columns, split.data)
            return self._any_form(self._request.decode(body))
        except (msgspec.DecodeError, ValueError, OverflowError, RecursionError):
            return None

    def _any_form(self, request: _ScoringRequest) -> Arrays | None:
        given = [name for name in request.__struct_fields__ if getattr(request, name) is not msgspec.UNSET]
        if len(given) != 1:
            return None
        if isinstance(request.dataframe_split, _Split):
            return self._split(request.dataframe_split)
        if self._records is None or self._table is None:
            return None
        if given[0] == "inputs":
            table = self._table.decode(request.inputs)  # type: ignore[arg-type]
            values = [getattr(table, name) for name in self._record_fields]
            return self._checked(values) if len({len(each) for each in values}) == 1 and values[0] else None
        records = self._records.decode(getattr(request, given[0]))
        if not records:
            return None
        return self._checked([[getattr(record, name) for record in records] for name in self._record_fields])

    def _ordered(self, columns: list[str], data: list[list[Any]]) -> Arrays | None:
        matrix = np.array(data, self._matrix)
        # For a single row, Python checks faster than numpy.
        sound = len(data) == 1 and not self.nulls and min(data[0]) > -LARGEST and max(data[0]) < LARGEST
        if matrix.shape != (len(data), len(columns)) or not data:
            return None
        if columns != self.names:
            order = self._order(tuple(columns))
            if order is None:
                return None
            matrix = np.ascontiguousarray(matrix[:, order[1]])
        return [matrix] if sound or self._sound(matrix) else None

    def _order(self, columns: tuple[str, ...]) -> tuple[Any, list[int]] | None:
        """Return a decoder for rows with these columns, and the positions of the model's columns among them."""
        if len(columns) > len(self.names) + MORE_COLUMNS:
            return None
        if columns not in self._orders:
            if len(self._orders) > 64:  # callers choose the keys
                self._orders.clear()
            known = None
            if len(set(columns)) == len(columns) and set(self.names) <= set(columns):
                kinds: Any = tuple(self._types.get(name, Any) for name in columns)
                rows: Any = list[tuple[kinds]]
                known = (msgspec.json.Decoder(rows), [columns.index(name) for name in self.names])
            self._orders[columns] = known
        return self._orders[columns]

    def _split(self, split: _Split) -> Arrays | None:
        order = self._order(tuple(split.columns))
        if order is None:
            return None
        data = order[0].decode(split.data)
        if not data or (isinstance(split.index, list) and len(split.index) != len(data)):
            return None
        turned = list(zip(*data, strict=True))
        return self._checked([turned[i] for i in order[1]])

    def _checked(self, values: Sequence[Sequence[Any]]) -> Arrays | None:
        arrays = [_array(each, dtype) for each, dtype in zip(values, self._dtypes, strict=True)]
        if self._matrix is not None:
            arrays = [np.column_stack(arrays)]
        return arrays if all(map(self._sound, arrays)) else None

    def _sound(self, array: np.ndarray) -> bool:
        if array.dtype.kind != "f":
            return True
        if self.nulls and np.isnan(array).any():
            array = np.nan_to_num(array, nan=0.0, posinf=np.inf, neginf=-np.inf)
        # A comparison with NaN is false, too.
        return bool(array.min() > -LARGEST and array.max() < LARGEST)


def _array(values: Sequence[Any], dtype: np.dtype[Any]) -> np.ndarray:
    if dtype.kind == "O":
        array = np.empty(len(values), dtype=object)
        array[:] = values
        return array
    return np.array(values, dtype=dtype)


@dataclass
class TensorDecoder:
    """Decodes `instances` and `inputs` for models that take one unnamed tensor."""

    dtype: str
    shape: Sequence[int]
    """The first size is -1: the rows."""

    def __post_init__(self) -> None:
        """Prepare a decoder for lists of numbers, nested as deep as the shape is long."""
        kind: Any = float if np.dtype(self.dtype).kind == "f" else int
        for _ in self.shape:
            kind = list[kind]
        self._request = msgspec.json.Decoder(_ScoringRequest)
        self._values = msgspec.json.Decoder(kind)

    def arrays_of(self, body: bytes) -> Arrays | None:
        """Return the tensor; None to leave the request to MLflow."""
        try:
            request = self._request.decode(body)
            given = [name for name in request.__struct_fields__ if getattr(request, name) is not msgspec.UNSET]
            if len(given) != 1 or given[0] not in ("instances", "inputs"):
                return None
            array = np.array(self._values.decode(getattr(request, given[0])), dtype=self.dtype)
        except (msgspec.DecodeError, ValueError, OverflowError, RecursionError):
            return None
        if list(array.shape[1:]) != list(self.shape[1:]) or not len(array):
            return None
        if array.dtype.kind == "f" and not (array.min() > -LARGEST and array.max() < LARGEST):
            return None
        return [array]


def most_rows(facts: Facts, limits: Limits) -> int:
    """Return how many rows a request to this model may have."""
    columns, tensor = facts["columns"], facts["tensor"]
    width = len(columns) if columns else math.prod(tensor["shape"][1:]) if tensor else 1
    return min(limits.rows, limits.cells // max(width, 1))


def refuse_rows(count: int, most: int) -> None:
    """Refuse more rows than a request may have."""
    if count > most:
        limit = f"its options max_rows, and max_cells for all columns: for this model {most}"
        raise RequestRefusedError(413, f"The request has {count} rows, more than this service takes: {limit}")


def decoder(facts: Facts, limits: Limits = LIMITS) -> Callable[[bytes], Arrays | None]:
    """Return a function that decodes request bodies for the model that `facts` describes.

    It raises RequestRefusedError for more rows than a request may have.
    """
    if columns := facts["columns"]:
        arrays_of = TableDecoder(columns, bool(facts.get("nulls"))).arrays_of
    elif tensor := facts["tensor"]:
        arrays_of = TensorDecoder(tensor["dtype"], tensor["shape"]).arrays_of
    else:
        raise ValueError("the model has neither plain columns nor one tensor")
    most = most_rows(facts, limits)

    def decode(body: bytes) -> Arrays | None:
        arrays = arrays_of(body)
        if arrays is not None and len(arrays[0]) > most:
            refuse_rows(len(arrays[0]), most)
        return arrays

    return decode

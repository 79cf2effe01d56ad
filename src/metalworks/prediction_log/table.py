"""Convert lines of the prediction log to tables: one row per predicted row, one table per day."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

_FIRST = {
    "time": pa.timestamp("us", tz="UTC"),
    "request": pa.string(),
    "host": pa.string(),
    "role": pa.string(),
    "version": pa.string(),
    "row": pa.int32(),
}
_LAST = {
    "status": pa.int16(),
    "seconds": pa.float64(),
    "difference": pa.float64(),
    "raw": pa.string(),
}
KINDS: dict[str, pa.DataType] = {
    "boolean": pa.bool_(),
    "integer": pa.int64(),
    "long": pa.int64(),
    "float": pa.float64(),
    "double": pa.float64(),
    "string": pa.string(),
}
"""MLflow's column types → Arrow types: as few as possible, so that a column has the same type in all files."""
MOST_STRANGE = 1000
"""Maximum number of columns per file that are in no signature: clients can invent them, and each takes space."""
MOST_NESTED = 32
"""Maximum depth of lists in a column of lists; Parquet's readers refuse a schema of about a hundred."""
_UNFIT = (pa.ArrowException, ValueError, TypeError, OverflowError, RecursionError, KeyError)


class File(NamedTuple):
    """A Parquet file and its number of rows."""

    rows: int
    content: bytes


@dataclass
class _Columns:
    """Columns that are padded to the same length as rows are added."""

    rows: int = 0
    values: dict[str, list[Any]] = field(default_factory=dict)

    def add(self, count: int, values: Mapping[str, Sequence[Any]]) -> None:
        for name, more in values.items():
            if name not in self.values:
                self.values[name] = [None] * self.rows
            self.values[name].extend(more)
        self.rows += count
        for column in self.values.values():
            if missing := self.rows - len(column):
                column.extend([None] * missing)


@dataclass(frozen=True, slots=True)
class _Line:
    text: bytes
    count: int
    columns: Mapping[str, Sequence[Any]]


def files(lines: Iterable[bytes], host: str, kinds: Mapping[str, str]) -> tuple[dict[str, File], list[bytes]]:
    """Return UTC day → the file of its lines, and the lines that cannot be read or written.

    `kinds`: column → its MLflow type, if known.
    """
    days: dict[str, list[_Line]] = {}
    aside: list[bytes] = []
    strange: set[str] = set()
    for text in lines:
        try:
            when, count, values = _read(text, host)
            if values.keys() - kinds.keys() - strange:
                if len(strange | (values.keys() - kinds.keys())) > MOST_STRANGE:
                    when, count, values = _read(text, host, tables=False)
                strange |= values.keys() - kinds.keys()
        except _UNFIT:  # incomplete because its process was killed, or a client's invention
            aside.append(text)
            continue
        days.setdefault(f"{when:%Y-%m-%d}", []).append(_Line(text, count, values))
    written: dict[str, File] = {}
    for day, those in days.items():
        try:
            written[day] = _file(those, kinds)
        except _UNFIT:
            # No request is known to lead here; if one does, it must not hold up the others.
            fit, unfit = _parted(those, kinds)
            aside += [line.text for line in unfit]
            if fit:
                try:
                    written[day] = _file(fit, kinds)
                except _UNFIT:  # the lines only conflict with each other, which text columns avoid
                    written[day] = _file(fit, None)
    return written, aside


def _parted(lines: Sequence[_Line], kinds: Mapping[str, str]) -> tuple[list[_Line], list[_Line]]:
    """Return the lines that can be written to a file, and the others."""
    fit: list[_Line] = []
    unfit: list[_Line] = []
    for line in lines:
        try:
            _file([line], kinds)
        except _UNFIT:
            unfit.append(line)
        else:
            fit.append(line)
    return fit, unfit


def _file(lines: Sequence[_Line], kinds: Mapping[str, str] | None) -> File:
    joined = _Columns()
    for line in lines:
        joined.add(line.count, line.columns)
    content = io.BytesIO()
    pq.write_table(_table(joined.values, kinds), content, compression="zstd")
    return File(joined.rows, content.getvalue())


def _read(line: bytes, host: str, tables: bool = True) -> tuple[datetime, int, dict[str, Sequence[Any]]]:
    """Return time, number of rows and columns of a request; with `tables`, also of bodies that MLflow parsed."""
    entry = _text(json.loads(line))
    when = datetime.fromtimestamp(entry["time"], UTC)
    answered = _predictions(entry["predictions"]) if entry["status"] == 200 else {}
    inputs, raw = entry["inputs"], entry["raw"]
    count = entry["rows"] if inputs else max([1, *map(len, answered.values())])
    if tables and not inputs and raw is not None and answered and (inputs := _rows_of(raw, count)):
        raw = None
    columns: dict[str, Sequence[Any]] = {f"input_{name}": column for name, column in (inputs or {}).items()}
    if any(len(column) != count for column in columns.values()):
        raise ValueError
    if any(len(column) != count for column in answered.values()):  # one prediction for all rows
        answered = {"prediction": [json.dumps(entry["predictions"]), *[None] * (count - 1)]}
    columns |= answered
    same = {"time": when, "request": entry["request"], "host": host, "role": entry["role"], "version": entry["version"]}
    same |= {"status": entry["status"], "seconds": entry["seconds"], "difference": entry["difference"]}
    columns |= {name: [value] * count for name, value in same.items()}
    # It is as large as the request, so store it once.
    columns |= {"row": range(count), "raw": [raw, *[None] * (count - 1)]}
    return when, count, columns


def _predictions(answer: Any) -> dict[str, list[Any]]:
    """Return the predictions by column: `prediction`, or `prediction_<name>` for each of several outputs."""
    if isinstance(answer, str):  # it contains NaN, which is not valid JSON
        try:
            answer = _text(json.loads(answer))
        except (ValueError, RecursionError):
            return {"prediction": [answer]}
        if isinstance(answer, dict) and "predictions" in answer:
            answer = answer["predictions"]
    if answer is None:
        return {}
    if isinstance(answer, dict) and answer and all(isinstance(column, list) for column in answer.values()):
        return _named(answer)
    if not isinstance(answer, list):
        return {"prediction": [answer]}
    if answer and all(isinstance(row, dict) for row in answer):
        names = list(dict.fromkeys(name for row in answer for name in row))
        return _named({name: [row.get(name) for row in answer] for name in names})
    if answer and all(isinstance(row, list) and row and len(row) == len(answer[0]) for row in answer):
        return _named({str(number): list(column) for number, column in enumerate(zip(*answer, strict=True))})
    return {"prediction": answer} if answer else {}


def _named(columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
    if len(columns) == 1:
        return {"prediction": next(iter(columns.values()))}
    return {f"prediction_{name}": column for name, column in columns.items()}


def _rows_of(raw: str, count: int) -> dict[str, Sequence[Any]] | None:
    """Return the columns of a body that MLflow parsed, if it is JSON with named columns."""
    try:
        body = _text(json.loads(raw))
        if split := body.get("dataframe_split"):
            columns = dict(zip(split["columns"], zip(*split["data"], strict=True), strict=True))
        elif rows := body.get("dataframe_records") or body.get("instances"):
            columns = {name: [row.get(name) for row in rows] for name in {name: None for row in rows for name in row}}
        else:
            columns = dict(body["inputs"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    fits = all(isinstance(name, str) and isinstance(column, list | tuple) for name, column in columns.items())
    return columns if fits and all(len(column) == count for column in columns.values()) else None


def _text(value: Any) -> Any:
    """Replace lone surrogates in the strings of a JSON value, because Arrow cannot write them."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    if isinstance(value, list):
        return [_text(each) for each in value]
    if isinstance(value, dict):
        return {_text(name): _text(each) for name, each in value.items()}
    return value


def _table(columns: Mapping[str, list[Any]], kinds: Mapping[str, str] | None) -> pa.Table:
    """Return a table with the columns in order and, as far as possible, with the same types every day.

    Without `kinds`, inputs and predictions are text.
    """
    inputs = [name for name in columns if name.startswith("input_")]
    outputs = [name for name in columns if name.startswith("prediction")] or ["prediction"]
    arrays = {name: pa.array(columns[name], kind) for name, kind in _FIRST.items()}
    absent = [None] * len(columns["time"])
    for name in [*inputs, *outputs]:
        values = columns.get(name, absent)
        arrays[name] = _as_json(values) if kinds is None else _array(values, kinds.get(name, ""))
    arrays |= {name: pa.array(columns[name], kind) for name, kind in _LAST.items()}
    return pa.table(arrays)


def _array(values: Sequence[Any], kind: str) -> pa.Array:
    if kind in KINDS:
        try:
            return pa.array(values, KINDS[kind])
        except _UNFIT:
            return pa.array([_as(value, KINDS[kind]) for value in values], KINDS[kind])
    try:
        array = pa.array(values)
    except _UNFIT:
        return _as_json(values)
    if not _plain(array.type):
        return _as_json(values)
    # Integers today may be fractions tomorrow.
    return array.cast(pa.float64(), safe=False) if pa.types.is_integer(array.type) else array


def _plain(kind: pa.DataType) -> bool:
    """Tell whether a type is a number, text or list of these: objects differ between requests, or are empty."""
    depth = 0
    while pa.types.is_list(kind):
        kind, depth = kind.value_type, depth + 1
    return depth <= MOST_NESTED and not pa.types.is_nested(kind)


def _as_json(values: Sequence[Any]) -> pa.Array:
    return pa.array([_json(value) for value in values], pa.string())


def _json(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value)


def _as(value: Any, kind: pa.DataType) -> Any:
    """Convert a value as MLflow did for the model; None if it cannot be converted."""
    if pa.types.is_string(kind):
        return _json(value)
    try:
        return pa.scalar(float(value) if pa.types.is_floating(kind) else value, kind).as_py()
    except _UNFIT:
        return None

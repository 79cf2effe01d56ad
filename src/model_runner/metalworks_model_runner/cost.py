"""Checks what a request would cost before it is decoded: rows, columns, values and nesting of JSON, CSV and Parquet.

Decoding can take hundreds of times a body's length: an empty list has three bytes and takes 64, a column name takes two
kilobytes, and Parquet can repeat a value millions of times in a few bytes.
"""

from __future__ import annotations

import csv
import importlib
import io
import json
from collections.abc import Iterable
from typing import Any

import numpy as np

from metalworks_model_runner.limits import TEXT_PER_CELL, Limits, TooMuchError

CHUNK = 2**18
"""Bytes that are scanned at a time, to save memory and to let other threads run."""
BYTES_PER_CELL = 128
"""Bytes that a value of a Parquet file may take, on average, when it is unpacked."""
_FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")


def check_cost(body: bytes, content_type: str, limits: Limits) -> None:
    """Raise TooMuchError for a body that exceeds the limits.

    Raises ValueError or RecursionError for malformed JSON.
    """
    media_type = content_type.partition(";")[0].strip()
    if media_type in ("application/json", "text/csv") and _tiny(body, limits):
        return
    if media_type == "application/json":
        _judge_json(body, limits)
    elif media_type == "text/csv":
        _judge_csv(body, limits)
    elif media_type == "application/vnd.apache.parquet":
        _judge_parquet(body, limits)


def _tiny(body: bytes, limits: Limits) -> bool:
    """Return whether a body of this length cannot exceed the limits, whatever it contains."""
    length = len(body)
    return (
        length * length <= limits.cells
        and length <= min(limits.rows, limits.columns)
        and body.count(b"[") + body.count(b"{") <= limits.depth
    )


def _judge_json(body: bytes, limits: Limits) -> None:
    encoding = json.detect_encoding(body)
    if not encoding.startswith("utf-8"):
        body = body.decode(encoding, "surrogatepass").encode("utf-8", "surrogatepass")
    values = scan_json(body, limits)
    value = json.loads(body)
    if not isinstance(value, dict):
        return
    for form in _FORMS:
        if form in value:
            _check_table(form, value[form], limits)
            # MLflow turns these into arrays, in which each text takes as much room as the longest.
            if form in ("instances", "inputs") and values * len(body) > TEXT_PER_CELL * limits.cells:
                limits.check_texts(max((_room(each) for each in _arrays(value[form])), default=0))


def scan_json(body: bytes, limits: Limits) -> int:
    """Return an upper bound of the number of values in JSON, without decoding it; raise TooMuchError."""
    if b"\\" in body:  # an escaped quote ends no text
        body = body.replace(b"\\\\", b"__").replace(b'\\"', b"__")
    commas = containers = depth = inside = 0
    for start in range(0, len(body), CHUNK):
        part = np.frombuffer(body, np.uint8, min(CHUNK, len(body) - start), start)
        quotes = np.cumsum(part == 0x22, dtype=np.uint32)
        outside = (quotes + inside) % 2 == 0
        inside = (inside + int(quotes[-1])) % 2
        brackets = part | 0x20  # turns [ into { and ] into }
        opening, closing = (brackets == 0x7B) & outside, (brackets == 0x7D) & outside
        commas += int(np.count_nonzero((part == 0x2C) & outside))
        containers += int(np.count_nonzero(opening))
        depths = np.cumsum(opening.view(np.int8) - closing.view(np.int8), dtype=np.int32)
        limits.check(cells=max(commas, containers), depth=depth + int(depths.max()))
        depth += int(depths[-1])
    return commas + 1


def _check_table(form: str, value: Any, limits: Limits) -> None:
    """Check the size of the whole table: short rows are filled up, and every name is a column of all rows."""
    named = True
    if form == "dataframe_split":
        if not isinstance(value, dict):
            return
        rows, columns, _ = _size(value.get("data"))
        rows, columns = max(rows, _length(value.get("index"))), max(columns, _length(value.get("columns")))
    else:
        rows, columns, named = _size(value)
        named = named or form == "dataframe_records"
    limits.check(rows=rows, columns=columns if named else 0, cells=rows * max(columns, 1))


def _size(data: Any) -> tuple[int, int, bool]:
    """Return how many rows and columns the table would have, and whether its columns have names."""
    if isinstance(data, dict):
        inner = [each for each in data.values() if isinstance(each, dict)]
        return max([_names(inner), *map(_length, data.values())], default=0), len(data), True
    if isinstance(data, list):
        objects = [each for each in data if isinstance(each, dict)]
        widest = max((len(each) for each in data if isinstance(each, list)), default=0)
        return len(data), max(widest, _names(objects)), bool(objects)
    return 0, 0, False


def _names(objects: Iterable[dict[str, Any]]) -> int:
    return len(set().union(*objects))


def _length(value: Any) -> int:
    return len(value) if isinstance(value, list | dict) else 0


def _arrays(value: Any) -> Iterable[Any]:
    """Return the lists that become arrays."""
    if isinstance(value, dict):
        return value.values()
    if isinstance(value, list) and any(isinstance(each, dict) for each in value):
        columns: dict[str, list[Any]] = {}
        for each in value:
            for name, value in each.items() if isinstance(each, dict) else ():
                columns.setdefault(name, []).append(value)
        return columns.values()
    return [value]


def _room(values: Any) -> int:
    """Return how many characters an array of these values takes."""
    count = longest = 0
    pending = [values]
    while pending:
        value = pending.pop()
        if isinstance(value, list):
            pending.extend(value)
        else:
            count += 1
            if isinstance(value, str):
                longest = max(longest, len(value))
    return count * longest


def _judge_csv(body: bytes, limits: Limits) -> None:
    """Count as if no text contained a comma or a line break; count precisely only if that exceeds a limit."""
    commas, ends = _places(body, b",", limits), _places(body, b"\n\r", limits)
    ends = np.append(ends, len(body))
    columns = int(np.diff(np.searchsorted(commas, ends), prepend=0).max()) + 1
    rows = int(np.count_nonzero(np.diff(ends, prepend=-1) > 1)) - 1  # without blank lines and the header
    try:
        limits.check(rows, columns, max(len(commas), rows * columns))
    except TooMuchError:
        try:
            exactly = _csv_size(body, limits) if b'"' in body else None
        except csv.Error:
            exactly = None
        if exactly is None:
            raise
        limits.check(*exactly)


def _csv_size(body: bytes, limits: Limits) -> tuple[int, int, int]:
    """Return rows, columns and values of a table."""
    rows, columns = -1, 0
    for row in csv.reader(io.StringIO(body.decode(errors="replace"), newline="")):
        rows, columns = rows + bool(row), max(columns, len(row))
        limits.check(rows, columns, rows * columns)
    return rows, columns, rows * columns


def _places(body: bytes, marks: bytes, limits: Limits) -> np.ndarray:
    """Return the positions of marks; raise TooMuchError if there are far more than values allowed."""
    found, count = [np.empty(0, np.int64)], 0
    for start in range(0, len(body), CHUNK):
        part = np.frombuffer(body, np.uint8, min(CHUNK, len(body) - start), start)
        found.append(np.flatnonzero(np.logical_or.reduce([part == mark for mark in marks])) + start)
        count += len(found[-1])
        limits.check(cells=count // 4)
    return np.concatenate(found)


def _judge_parquet(body: bytes, limits: Limits) -> None:
    """Check the file's metadata, and its texts, since one stored text may occur in many rows."""
    try:
        parquet, compute, arrow = (importlib.import_module(f"pyarrow{name}") for name in (".parquet", ".compute", ""))
        about = parquet.read_metadata(io.BytesIO(body))
    except Exception:  # MLflow says what is wrong
        return
    limits.check(about.num_rows, about.num_columns, about.num_rows * max(about.num_columns, 1))
    limits.check(columns=about.num_row_groups * about.num_columns // 100)
    cells = size = 0
    for group in map(about.row_group, range(about.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            cells += column.num_values  # a list has several per row
            size += column.total_uncompressed_size
    limits.check(cells=cells)
    limits.check_texts(size // (BYTES_PER_CELL // TEXT_PER_CELL))
    schema = about.schema.to_arrow_schema()
    texts = [f.name for f in schema if arrow.types.is_string(f.type) or arrow.types.is_binary(f.type)]
    if texts:
        table = parquet.read_table(io.BytesIO(body), columns=texts, read_dictionary=texts)
        characters = 0
        for chunk in (chunk for column in table.columns for chunk in column.chunks):
            if arrow.types.is_dictionary(chunk.type):
                lengths = compute.binary_length(chunk.dictionary).take(chunk.indices)
            else:
                lengths = compute.binary_length(chunk)
            characters += compute.sum(lengths).as_py() or 0
        limits.check_texts(characters)

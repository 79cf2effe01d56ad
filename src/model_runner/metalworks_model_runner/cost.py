"""What a request may cost, known before it is decoded: rows, columns, values and nesting of JSON, CSV and Parquet.

A parser of any of these makes hundreds of times of some bodies' length: an empty list is three bytes and becomes 64, a
name of a column becomes two kilobytes, and Parquet says in some bytes that a value comes millions of times.
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
"""Bytes that are looked at together: little memory, and other threads get their turn."""
BYTES_PER_CELL = 128
"""What values of a Parquet file may take when they are unpacked."""
_FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")


def check_cost(body: bytes, content_type: str, limits: Limits) -> None:
    """Raise TooMuchError for a body that MLflow's functions are not to read.

    Raises ValueError or RecursionError for JSON that is none.
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
    """Tell whether nothing of this length can be too much, whatever is in it."""
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
            # Of these MLflow makes arrays, of the columns or of all.
            if form in ("instances", "inputs") and values * len(body) > TEXT_PER_CELL * limits.cells:
                limits.check_texts(max((_room(each) for each in _arrays(value[form])), default=0))


def scan_json(body: bytes, limits: Limits) -> int:
    """Return how many values there are at most in JSON, of which nothing is decoded; raise TooMuchError."""
    if b"\\" in body:  # what is escaped ends no text
        body = body.replace(b"\\\\", b"__").replace(b'\\"', b"__")
    commas = containers = depth = inside = 0
    for start in range(0, len(body), CHUNK):
        part = np.frombuffer(body, np.uint8, min(CHUNK, len(body) - start), start)
        quotes = np.cumsum(part == 0x22, dtype=np.uint32)
        outside = (quotes + inside) % 2 == 0
        inside = (inside + int(quotes[-1])) % 2
        brackets = part | 0x20  # [ is { then, and ] is }
        opening, closing = (brackets == 0x7B) & outside, (brackets == 0x7D) & outside
        commas += int(np.count_nonzero((part == 0x2C) & outside))
        containers += int(np.count_nonzero(opening))
        depths = np.cumsum(opening.view(np.int8) - closing.view(np.int8), dtype=np.int32)
        limits.check(cells=max(commas, containers), depth=depth + int(depths.max()))
        depth += int(depths[-1])
    return commas + 1


def _check_table(form: str, value: Any, limits: Limits) -> None:
    """Look at what a table becomes: shorter rows are filled up, and every name is a column of all rows."""
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
    """Return how many rows and columns a table of these would have, and whether the columns have names."""
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
    """Return what becomes an array each."""
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
    """Return how many characters an array of these has room for."""
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
    """Count as if no comma and no line break were part of a text, and only where that is too much, precisely."""
    commas, ends = _places(body, b",", limits), _places(body, b"\n\r", limits)
    ends = np.append(ends, len(body))
    columns = int(np.diff(np.searchsorted(commas, ends), prepend=0).max()) + 1
    rows = int(np.count_nonzero(np.diff(ends, prepend=-1) > 1)) - 1  # blank lines are none, nor is the first
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
    """Return where marks are; raise TooMuchError where these are far more than there may be values."""
    found, count = [np.empty(0, np.int64)], 0
    for start in range(0, len(body), CHUNK):
        part = np.frombuffer(body, np.uint8, min(CHUNK, len(body) - start), start)
        found.append(np.flatnonzero(np.logical_or.reduce([part == mark for mark in marks])) + start)
        count += len(found[-1])
        limits.check(cells=count // 4)
    return np.concatenate(found)


def _judge_parquet(body: bytes, limits: Limits) -> None:
    """Look at what the file says of itself, and at its texts, of which one may stand for many."""
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
            cells += column.num_values  # of lists there are more than rows
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

"""Requests to an inference server: every form that MLflow accepts, and every kind of invalid one."""

from __future__ import annotations

import json
from io import BytesIO
from typing import Any

import numpy as np
import pandas as pd

JSON, CSV, PARQUET = "application/json", "text/csv", "application/vnd.apache.parquet"
Request = tuple[str | None, bytes]
"""Content type and body."""

# Values as JSON writes them, including invalid ones.
ODD = [
    *("null", "true", '"x"', '""', '"5"', "5", "5.0", "1.5", "-0.0", "1e2", "[1]", '{"a": 1}', '"2024-01-01"'),
    *("NaN", "Infinity", "-Infinity", "1e400", "1e39", "-1e39", "3.4e38", "1e-320", "2147483648", "-2147483649"),
    *("9007199254740993", "9223372036854775807", "9223372036854775808", "18446744073709551616", "1" * 26),
    *("01", "1.", "+1", "0x1", "'x'", '"\\ud800"', '"\\u0000"', '"ü"', '"\\n"'),
]
QUIRKS: dict[str, Request] = {
    "empty": (JSON, b""),
    "cut off": (JSON, b'{"dataframe_split"'),
    "more behind": (JSON, b'{"inputs": [1]} x'),
    "not UTF-8": (JSON, b"\xff\xfe{"),
    "byte order mark": (JSON, b'\xef\xbb\xbf{"inputs": [1]}'),
    "UTF-16": (JSON, '{"inputs": [1]}'.encode("utf-16")),
    "list": (JSON, b"[]"),
    "number": (JSON, b"5"),
    "null": (JSON, b"null"),
    "no field": (JSON, b"{}"),
    "no known field": (JSON, b'{"rows": []}'),
    "two fields": (JSON, b'{"inputs": [], "instances": []}'),
    "field twice": (JSON, b'{"inputs": [[1, 2]], "inputs": [[1, 2, 3]]}'),
    "split not a dictionary": (JSON, b'{"dataframe_split": 5}'),
    "split a list": (JSON, b'{"dataframe_split": []}'),
    "split null": (JSON, b'{"dataframe_split": null}'),
    "split without columns and data": (JSON, b'{"dataframe_split": {}}'),
    "records not a list": (JSON, b'{"dataframe_records": {}}'),
    "records of rows": (JSON, b'{"dataframe_records": [[1, 2, 3]]}'),
    "records of numbers": (JSON, b'{"dataframe_records": [1]}'),
    "no rows": (JSON, b'{"dataframe_records": []}'),
    "empty row": (JSON, b'{"dataframe_records": [{}]}'),
    "inputs null": (JSON, b'{"inputs": null}'),
    "inputs a number": (JSON, b'{"inputs": 5}'),
    "inputs empty": (JSON, b'{"inputs": []}'),
    "inputs an empty object": (JSON, b'{"inputs": {}}'),
    "inputs too narrow": (JSON, b'{"inputs": [[1.0]]}'),
    "inputs ragged": (JSON, b'{"inputs": [[1.0, 2.0, 3.0], [1.0]]}'),
    "inputs too deep": (JSON, b'{"inputs": [[[1.0, 2.0, 3.0]]]}'),
    "instances null": (JSON, b'{"instances": null}'),
    "instances an object": (JSON, b'{"instances": {"a": 1}}'),
    "instances empty": (JSON, b'{"instances": []}'),
    "messages": (JSON, b'{"messages": [{"role": "user", "content": "x"}]}'),
    "csv empty": (CSV, b""),
    "csv of a blank": (CSV, b"\n"),
    "csv not UTF-8": (CSV, b"\xff\xfe\xfd"),
    "parquet that is none": (PARQUET, b"junk"),
    "parquet empty": (PARQUET, b""),
    "unknown type": ("text/plain", b"x"),
    "form": ("application/x-www-form-urlencoded", b"a=b"),
    "no type": ("", b"x"),
    "other charset": ("text/csv; charset=latin-1", b"x"),
    "unknown parameter of the type": (JSON + "; version=1", b"{}"),
}


def _json(**fields: Any) -> Request:
    return JSON, json.dumps(fields).encode()


def _split(columns: list[str], rows: list[list[str]], more: str = "") -> Request:
    """Return a table with the values inserted literally."""
    data = ", ".join(f"[{', '.join(row)}]" for row in rows)
    return JSON, f'{{"dataframe_split": {{"columns": {json.dumps(columns)}, "data": [{data}]{more}}}}}'.encode()


def _parquet(frame: pd.DataFrame) -> Request:
    file = BytesIO()
    frame.to_parquet(file)
    return PARQUET, file.getvalue()


def of_table(frame: pd.DataFrame) -> dict[str, Request]:
    """Return requests to a model that takes such a table, by what is special about them."""
    split, records, lists = frame.to_dict("split"), frame.to_dict("records"), frame.to_dict("list")
    turned = frame[frame.columns[::-1]]
    names = list(frame.columns)
    data = split["data"]
    return {
        "split": _json(dataframe_split=split),
        "split, one row": _json(dataframe_split=frame[:1].to_dict("split")),
        "split without index": _json(dataframe_split={"columns": names, "data": data}),
        "split, data first": _json(dataframe_split={"data": data, "columns": names}),
        "split, index of words": _json(dataframe_split={**split, "index": [f"r{i}" for i in range(len(frame))]}),
        "split, index of another length": _json(dataframe_split={**split, "index": [0]}),
        "split, index null": _json(dataframe_split={**split, "index": None}),
        "split, index not a list": _json(dataframe_split={**split, "index": 5}),
        "split, more fields": _json(dataframe_split={**split, "more": 1}),
        "split without columns": _json(dataframe_split={"data": data}),
        "split without data": _json(dataframe_split={"columns": names}),
        "split without rows": _json(dataframe_split={"columns": names, "data": []}),
        "split, empty row": _json(dataframe_split={"columns": names, "data": [[]]}),
        "split, row null": _json(dataframe_split={"columns": names, "data": [None]}),
        "split ragged": _json(dataframe_split={"columns": names, "data": [data[0], data[1][:-1]]}),
        "split, all rows short": _json(dataframe_split={"columns": names, "data": [row[:-1] for row in data]}),
        "split, all rows long": _json(dataframe_split={"columns": names, "data": [[*row, 1] for row in data]}),
        "split, columns null": _json(dataframe_split={"columns": None, "data": data}),
        "split, columns numbers": _json(dataframe_split={"columns": list(range(len(names))), "data": data}),
        "split, column twice": _json(
            dataframe_split={"columns": [*names, names[0]], "data": [[*row, row[0]] for row in data]}
        ),
        "split, unknown column twice": _json(
            dataframe_split={"columns": [*names, "x", "x"], "data": [[*row, 1, 2] for row in data]}
        ),
        "split, column missing": _json(dataframe_split=frame[names[1:]].to_dict("split")),
        "split, column renamed": _json(dataframe_split=frame.rename(columns={names[0]: "ü"}).to_dict("split")),
        "split, reordered": _json(dataframe_split=turned.to_dict("split")),
        "split, one column more": _json(dataframe_split=frame.assign(more=1).to_dict("split")),
        "split, column of text more": _json(dataframe_split=frame.assign(more="ü").to_dict("split")),
        "split, column of lists more": _json(
            dataframe_split={"columns": ["more", *names], "data": [[[1], *row] for row in data]}
        ),
        "split, params": _json(dataframe_split=split, params={"factor": 3.5}),
        "split, params an integer": _json(dataframe_split=split, params={"factor": 3}),
        "split, params empty": _json(dataframe_split=split, params={}),
        "split, params null": _json(dataframe_split=split, params=None),
        "split, params not a dictionary": _json(dataframe_split=split, params=5),
        "split, param of wrong type": _json(dataframe_split=split, params={"factor": "x"}),
        "split, unknown param": _json(dataframe_split=split, params={"speed": 1}),
        "split, unknown field": _json(dataframe_split=split, more=1),
        "split, spaces": (JSON, b'  {  "dataframe_split" : ' + json.dumps(split).encode() + b"\n}\n"),
        "split, escaped name": (
            JSON,
            json.dumps({"dataframe_split": split}).replace(names[0][0], f"\\u{ord(names[0][0]):04x}", 1).encode(),
        ),
        "split and records": _json(dataframe_split=split, dataframe_records=records),
        "split, with charset": (JSON + "; charset=utf-8", json.dumps({"dataframe_split": split}).encode()),
        "split, with charset in capitals": (JSON + ";charset=UTF-8", json.dumps({"dataframe_split": split}).encode()),
        "split as csv": (CSV, json.dumps({"dataframe_split": split}).encode()),
        "records": _json(dataframe_records=records),
        "records, one": _json(dataframe_records=records[:1]),
        "records, reordered": _json(dataframe_records=turned.to_dict("records")),
        "records, one column more": _json(dataframe_records=frame.assign(more="x").to_dict("records")),
        "records, column missing in one": _json(
            dataframe_records=[records[0], {k: v for k, v in records[1].items() if k != names[0]}]
        ),
        "records, column missing": _json(dataframe_records=frame[names[1:]].to_dict("records")),
        "records, null record": _json(dataframe_records=[records[0], None]),
        "records, column twice": (
            JSON,
            json.dumps({"dataframe_records": records[:1]}).replace("[{", f'[{{"{names[0]}": 1, ', 1).encode(),
        ),
        "records, column twice, the last counts": (
            JSON,
            json.dumps({"dataframe_records": records[:1]}).replace("}]", f', "{names[0]}": null}}]', 1).encode(),
        ),
        "records, params": _json(dataframe_records=records, params={"factor": 3.5}),
        "instances of records": _json(instances=records),
        "instances, one column more": _json(instances=frame.assign(more=1).to_dict("records")),
        "instances, column missing": _json(instances=frame[names[1:]].to_dict("records")),
        "instances of rows": _json(instances=data),
        "inputs by column": _json(inputs=lists),
        "inputs by column, reordered": _json(inputs=turned.to_dict("list")),
        "inputs by column, one more": _json(inputs={**lists, "more": [1] * len(frame)}),
        "inputs by column, one missing": _json(inputs=frame[names[1:]].to_dict("list")),
        "inputs by column, of different lengths": _json(inputs={**lists, names[0]: lists[names[0]][:1]}),
        "inputs by column, without rows": _json(inputs={name: [] for name in names}),
        "inputs of one row": _json(inputs=records[0]),
        "inputs of records": _json(inputs=records),
        "inputs of rows": _json(inputs=data),
        "csv": (CSV, frame.to_csv(index=False).encode()),
        "csv, with charset": (CSV + "; charset=utf-8", frame.to_csv(index=False).encode()),
        "csv, reordered": (CSV, turned.to_csv(index=False).encode()),
        "csv, index": (CSV, frame.to_csv().encode()),
        "csv, column missing": (CSV, frame[names[1:]].to_csv(index=False).encode()),
        "csv, header alone": (CSV, frame[:0].to_csv(index=False).encode()),
        "csv, wrong type": (CSV, frame.astype(object).assign(**{names[-1]: "late"}).to_csv(index=False).encode()),
        "csv, null": (CSV, (",".join(names) + "\n" + "," * (len(names) - 1) + "\n").encode()),
        "parquet": _parquet(frame),
        "parquet, reordered": _parquet(turned),
        "parquet, column missing": _parquet(frame[names[1:]]),
        "parquet, wrong type": _parquet(frame.astype(str)),
        "body in pieces of JSON that says split": (JSON, b'{"dataframe_split": {"columns": ["a"], "data": [[1]]'),
    }


def odd_values(frame: pd.DataFrame) -> dict[str, Request]:
    """Return requests in which one value may or may not have its column's type."""
    names = list(frame.columns)
    written = [[json.dumps(value) for value in row] for row in frame.to_numpy(dtype=object).tolist()]
    requests: dict[str, Request] = {}
    for kind, at in {str(dtype): i for i, dtype in enumerate(frame.dtypes)}.items():
        for value in ODD:
            row = [*written[0]]
            row[at] = value
            requests[f"{kind} {value[:20]} in split"] = _split(names, [row])
            if not at:
                requests[f"{kind} {value[:20]} in the second row"] = _split(names, [written[0], row])
    for value in ODD:
        one = ", ".join(f"{json.dumps(n)}: {value if not i else written[0][i]}" for i, n in enumerate(names))
        column = ", ".join(f"{json.dumps(n)}: [{value if not i else written[0][i]}]" for i, n in enumerate(names))
        requests[f"{value[:20]} in records"] = JSON, f'{{"dataframe_records": [{{{one}}}]}}'.encode()
        requests[f"{value[:20]} in inputs"] = JSON, f'{{"inputs": {{{column}}}}}'.encode()
    return requests


def of_tensor(tensor: np.ndarray) -> dict[str, Request]:
    """Return requests to a model that takes such a tensor."""
    rows = tensor.tolist()
    frame = pd.DataFrame(tensor)
    requests: dict[str, Request] = {
        "instances": _json(instances=rows),
        "instances, one": _json(instances=rows[:1]),
        "instances, flat": _json(instances=rows[0]),
        "instances, params": _json(instances=rows, params={}),
        "instances ragged": _json(instances=[rows[0], rows[1][:-1]]),
        "instances, too wide": _json(instances=[[*row, 1.0] for row in rows]),
        "instances, integers": _json(instances=[[1, 2, 3]]),
        "instances by name": _json(instances=[{"input": row} for row in rows]),
        "inputs": _json(inputs=rows),
        "inputs by name": _json(inputs={"input": rows}),
        "inputs and instances": _json(inputs=rows, instances=rows),
        "inputs, unknown field": _json(inputs=rows, more=1),
        "inputs, empty row": _json(inputs=[[]]),
        "inputs without rows": _json(inputs=[]),
        "split": _json(dataframe_split=frame.to_dict("split")),
        "records": _json(dataframe_records=frame.to_dict("records")),
        "csv": (CSV, frame.to_csv(index=False).encode()),
        "parquet": _parquet(frame.rename(columns=str)),
    }
    for value in ODD:
        requests[f"{value[:20]} in inputs"] = JSON, f'{{"inputs": [[{value}, 2.0, 3.0]]}}'.encode()
        requests[f"{value[:20]} in instances"] = JSON, f'{{"instances": [[1.0, 2.0, {value}], [1, 2, 3]]}}'.encode()
    return requests


def requests_to(rows: pd.DataFrame | np.ndarray | list[str], odd: bool = True) -> dict[str, Request]:
    """Return requests to a model that takes rows of this kind, optionally with odd values."""
    if isinstance(rows, pd.DataFrame):
        return {**QUIRKS, **of_table(rows), **(odd_values(rows) if odd else {})}
    if isinstance(rows, np.ndarray):
        return {**QUIRKS, **of_tensor(rows)}
    more = {"texts": _json(inputs=rows), "numbers": _json(inputs=[1]), "split": _json(dataframe_split={"data": [rows]})}
    return {**QUIRKS, **more}

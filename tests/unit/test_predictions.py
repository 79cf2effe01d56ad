"""The prediction log as Parquet: content of the files, and nothing lost or duplicated after a kill."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as dataset
import pyarrow.parquet as parquet
import pytest

from metalworks.model_sync import log_shipping as watches
from metalworks.model_sync import main
from metalworks.model_sync.config import Config, Service
from metalworks.model_sync.log_shipping import LogShipping
from metalworks.prediction_log import spool as spools
from metalworks.prediction_log import table
from metalworks.prediction_log.ship import ASIDE, ShipError, kinds, ship
from metalworks.prediction_log.spool import Spool
from metalworks.prediction_log.table import files
from metalworks.serving.http.app import _set_aside
from metalworks.serving.settings import Settings

NOON = 1764072000.0  # 2025-11-25, 12:00 UTC


def line(**changes: Any) -> bytes:
    said = {
        "time": NOON, "request": "1f", "role": "champion", "version": "4", "rows": 2,
        "inputs": {"distance": [187.0, 2475.5], "carrier": ["UA", "B6"]}, "raw": None, "predictions": [1.5, -2.0],
        "status": 200, "seconds": 0.002, "difference": None,
    }  # fmt: skip
    return json.dumps(said | changes).encode() + b"\n"


def raw(body: str, **changes: Any) -> bytes:
    return line(**{"inputs": None, "raw": body, "rows": 1} | changes)


def tables(lines: list[bytes], kinds: dict[str, str]) -> tuple[dict[str, pa.Table], int]:
    written, aside = files(lines, "gpu-1", kinds)
    return {day: parquet.read_table(io.BytesIO(file.content)) for day, file in written.items()}, len(aside)


def rows(*lines: bytes, **kinds: str) -> list[dict[str, Any]]:
    days, aside = tables([*lines], kinds)
    assert (len(days), aside) == (1, 0)
    return list(next(iter(days.values())).to_pylist())


# -- Content of the files


def test_a_row_is_a_predicted_row() -> None:
    first, second = rows(line(role="shadow", difference=0.25))
    assert first == {
        "time": pd.Timestamp(NOON, unit="s", tz="UTC"), "request": "1f", "host": "gpu-1", "role": "shadow",
        "version": "4", "row": 0, "input_distance": 187.0, "input_carrier": "UA", "prediction": 1.5, "status": 200,
        "seconds": 0.002, "difference": 0.25, "raw": None,
    }  # fmt: skip
    assert (second["row"], second["input_distance"], second["prediction"]) == (1, 2475.5, -2.0)


def test_a_day_is_a_table() -> None:
    days, _ = tables([line(), line(time=NOON + 86400), line(time=NOON + 43199.9)], {})
    assert {day: len(table) for day, table in days.items()} == {"2025-11-25": 4, "2025-11-26": 2}


@pytest.mark.parametrize(
    ("predictions", "expected"),
    [
        ([1, 2], {"prediction": [1.0, 2.0]}),
        (["a", "b"], {"prediction": ["a", "b"]}),
        ([[1.0], [2.0]], {"prediction": [1.0, 2.0]}),
        ([[1.0, 3.0], [2.0, 4.0]], {"prediction_0": [1.0, 2.0], "prediction_1": [3.0, 4.0]}),
        ([{"low": 1.0, "high": 3.0}, {"low": 2.0}], {"prediction_low": [1.0, 2.0], "prediction_high": [3.0, None]}),
        ({"low": [1.0, 2.0], "high": ["x", "y"]}, {"prediction_low": [1.0, 2.0], "prediction_high": ["x", "y"]}),
        ({"arr_delay": [1.0, 2.0]}, {"prediction": [1.0, 2.0]}),
        ([1, "a"], {"prediction": ["1", "a"]}),
        ([0.5], {"prediction": ["[0.5]", None]}),
        ("yes", {"prediction": ['"yes"', None]}),
        (None, {"prediction": [None, None]}),
    ],
)
def test_predictions_are_columns(predictions: Any, expected: dict[str, list[Any]]) -> None:
    found = rows(line(predictions=predictions))
    names = [name for name in found[0] if name.startswith("prediction")]
    assert {name: [row[name] for row in found] for name in names} == expected


def test_nan_is_a_prediction() -> None:
    """The log keeps a response that is not valid JSON as text."""
    found = rows(line(predictions='{"predictions": [NaN, 2.5]}'), prediction="double")
    assert [str(row["prediction"]) for row in found] == ["nan", "2.5"]


def test_column_types_come_from_the_signature() -> None:
    known = {"input_distance": "double", "input_seats": "long", "input_jet": "boolean", "input_carrier": "string"}
    inputs = {"distance": [1, 2], "seats": [180, None], "jet": [True, False], "carrier": [None, None]}
    table = tables([line(inputs=inputs)], known | {"prediction": "double"})[0]["2025-11-25"]
    assert [table.schema.field(name).type for name in known] == [pa.float64(), pa.int64(), pa.bool_(), pa.string()]
    assert table.schema.field("prediction").type == pa.float64()
    assert table.schema.field("time").type == pa.timestamp("us", tz="UTC")


def test_values_of_another_type_become_null() -> None:
    body = json.dumps({"dataframe_records": [{"distance": "12.5", "carrier": 7}, {"distance": "far", "carrier": "B6"}]})
    found = rows(line(), raw(body), input_distance="double", input_carrier="string")
    assert [row["input_distance"] for row in found] == [187.0, 2475.5, 12.5, None]
    assert [row["input_carrier"] for row in found] == ["UA", "B6", "7", "B6"]


def test_versions_with_other_columns_share_a_file() -> None:
    found = rows(line(), line(version="5", inputs={"distance": [1.0, 2.0], "wind": [3.0, 4.0]}))
    assert [row["input_wind"] for row in found] == [None, None, 3.0, 4.0]
    assert [row["input_carrier"] for row in found] == ["UA", "B6", None, None]


@pytest.mark.parametrize(
    "body",
    [
        {"dataframe_split": {"columns": ["distance", "carrier"], "data": [[1, "UA"], [2, "B6"]]}},
        {"dataframe_records": [{"distance": 1, "carrier": "UA"}, {"carrier": "B6", "distance": 2}]},
        {"instances": [{"distance": 1, "carrier": "UA"}, {"distance": 2, "carrier": "B6"}]},
        {"inputs": {"distance": [1, 2], "carrier": ["UA", "B6"]}},
    ],
)
def test_bodies_parsed_by_mlflow_get_columns(body: dict[str, Any]) -> None:
    found = rows(raw(json.dumps(body)))
    assert [(row["input_distance"], row["input_carrier"], row["raw"]) for row in found] == [
        (1.0, "UA", None),
        (2.0, "B6", None),
    ]


@pytest.mark.parametrize("body", ["distance\n1\n2\n", '{"instances": [[1], [2]]}', '{"inputs": [1, 2]}', '{"inp', "7"])
def test_raw_bodies_are_kept_once(body: str) -> None:
    assert [(row["row"], row["prediction"], row["raw"]) for row in rows(raw(body))] == [(0, 1.5, body), (1, -2.0, None)]


def test_a_refused_request_is_a_row_without_prediction() -> None:
    refused = {"error_code": "BAD_REQUEST", "message": "no column distance"}
    (row,) = rows(raw('{"dataframe_records": [{}]}', status=400, predictions=refused))
    assert (row["status"], row["prediction"], row["raw"]) == (400, None, '{"dataframe_records": [{}]}')


def test_tensors_are_lists() -> None:
    assert [row["input_tensor"] for row in rows(line(inputs={"tensor": [[1.0, 2.0], [3.0, 4.0]]}))] == [
        [1.0, 2.0],
        [3.0, 4.0],
    ]


@pytest.mark.parametrize("broken", [line()[:40], b"\xff\n", b"{}\n", line(inputs={"distance": [1.0]})])
def test_an_unreadable_line_does_not_hold_up_the_others(broken: bytes) -> None:
    days, aside = tables([broken, line()], {})
    assert (aside, days["2025-11-25"].num_rows) == (1, 2)


HALF = "\ud800"
"""A lone surrogate: allowed in Python strings and JSON, but not a valid character."""


def record(body: str) -> bytes:
    """Return the line of a one-row request that MLflow parsed."""
    return raw(f'{{"dataframe_records": [{body}]}}', predictions=[1.5])


@pytest.mark.parametrize(
    "said",
    [
        record('{"z": {}}'),
        record('{"z": {}, "y": NaN}'),
        record('{"z": [{}]}'),
        record('{"z": [[], [[]]]}'),
        record('{"z": "\\ud800"}'),
        record('{"\\ud800": 1}'),
        record('{"z": {"\\udfff": 1}}'),
        record(f'{{"z": 1{"0" * 400}}}'),
        record('{"z": 9007199254740993}'),
        record(f'{{"z": {"[" * 900}1{"]" * 900}}}'),
        record(f'{{"z": {"[" * 90}1{"]" * 90}}}'),
        raw("\ud800 is no JSON", status=400),
        line(inputs={"distance": [HALF, {}]}),
        line(predictions=[HALF, {}]),
        line(predictions={HALF: [1.0, 2.0], "y": [[], {}]}),
        line(predictions='{"predictions": ["\\ud800", NaN]}'),
        line(request=HALF, role=HALF, version=HALF),
    ],
)
def test_no_request_can_hold_up_the_others(folder: Path, said: bytes) -> None:
    store = Store()
    segment(folder, 1, said, line(request="next"))
    assert send(folder, store)["files"] == 1
    assert "next" in store.requests()
    assert list(folder.iterdir()) == []


def test_unwritable_lines_are_set_aside_and_counted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = table._table

    def refuses(columns: Any, kinds: Any) -> pa.Table:
        if "bad" in columns["version"]:
            raise pa.ArrowInvalid("a value that nobody thought of")
        return known(columns, kinds)

    monkeypatch.setattr(table, "_table", refuses)
    store, bad = Store(), line(version="bad")
    segment(folder, 1, line(request="r1"), bad, line(request="r2"), line(version="bad", time=NOON + 86400))
    assert send(folder, store) == {"service": "delay", "files": 1, "rows": 4, "set_aside": 2}
    assert store.requests() == ["r1", "r1", "r2", "r2"]
    assert (folder.parent / ASIDE).read_bytes().startswith(bad)
    assert list(folder.iterdir()) == []


def test_invented_columns_are_limited() -> None:
    wide = [record(json.dumps({f"c{i}-{j}": 1 for j in range(600)})) for i in range(4)]
    found = tables([*wide, line()], {})[0]["2025-11-25"]
    assert (found.num_rows, found.num_columns < 1100) == (6, True)
    assert [len(text or "") > 5000 for text in found.column("raw").to_pylist()] == [
        False,
        True,
        True,
        True,
        False,
        False,
    ]
    known = {f"input_c{i}-{j}": "double" for i in range(4) for j in range(600)}
    assert tables([*wide, line()], known)[0]["2025-11-25"].num_columns > 2400


def model(folder: Path, version: str, inputs: dict[str, str], *outputs: str) -> None:
    said = [json.dumps([{"name": name, "type": kind, "required": True} for name, kind in inputs.items()])]
    said.append(json.dumps([{"name": f"y{number}", "type": kind} for number, kind in enumerate(outputs)]))
    (folder / "versions" / version / "model").mkdir(parents=True)
    text = f"signature:\n  inputs: '{said[0]}'\n  outputs: '{said[1]}'\n"
    (folder / "versions" / version / "model" / "MLmodel").write_text(text)


def test_types_come_from_signatures_that_agree(tmp_path: Path) -> None:
    model(tmp_path, "4", {"distance": "double", "hour": "long"}, "long")
    model(tmp_path, "5", {"distance": "double", "hour": "double", "wind": "float"}, "double")
    assert kinds(tmp_path) == {
        "input_distance": "double",
        "input_hour": "",
        "input_wind": "float",
        "prediction": "double",
    }
    (tmp_path / "versions/5/model/MLmodel").write_text("flavors: {}\n")
    (tmp_path / "versions/6/model").mkdir(parents=True)
    (tmp_path / "versions/6/model/MLmodel").write_text("[")
    model(tmp_path, "7", {}, "string", "float")
    found = {"input_distance": "double", "input_hour": "long", "prediction": "double"}
    assert kinds(tmp_path) == found | {"prediction_y0": "string", "prediction_y1": "double"}


# -- Shipping


class Store:
    """A fake bucket that can stop responding after some objects."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.patience = 1000

    def put(self, key: str, content: bytes) -> None:
        self.patience -= 1
        if self.patience < 0:
            raise ShipError("it does not answer")
        self.objects[key] = content

    def requests(self) -> list[str]:
        found = [parquet.read_table(io.BytesIO(content)) for content in self.objects.values()]
        return sorted(name for table in found for name in table.column("request").to_pylist())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "spool").mkdir()
    return tmp_path / "spool"


def segment(folder: Path, number: int, *lines: bytes, suffix: str = "jsonl") -> Path:
    file = folder / f"{int(NOON) + number}000000000-77.{suffix}"
    file.write_bytes(b"".join(lines) or line(request=f"r{number}", rows=1, inputs={"x": [1.0]}, predictions=[2.0]))
    return file


def send(folder: Path, store: Store) -> dict[str, Any]:
    return ship(Spool(folder), "delay", "gpu-1", folder.parent, store.put)


def test_segments_become_a_file_and_are_removed(folder: Path) -> None:
    store = Store()
    segment(folder, 2)
    segment(folder, 1)
    segment(folder, 3, suffix="part")
    assert send(folder, store) == {"service": "delay", "files": 1, "rows": 2, "set_aside": 0}
    (key,) = store.objects
    assert key == f"delay/date=2025-11-25/gpu-1-{int(NOON) + 1}000000000-77.parquet"
    assert [file.suffix for file in folder.iterdir()] == [".part"]
    metadata = parquet.ParquetFile(io.BytesIO(store.objects[key])).metadata
    assert metadata.row_group(0).column(0).compression == "ZSTD"
    assert send(folder, store)["files"] == 0


def test_files_form_one_table_partitioned_by_day(folder: Path, tmp_path: Path) -> None:
    store = Store()
    segment(folder, 1, line(), line(time=NOON + 86400))
    send(folder, store)
    segment(folder, 2, line(predictions=None, status=400), line(inputs={"distance": [1, 2]}, predictions=[1, 2]))
    send(folder, store)
    for key, content in store.objects.items():
        (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / key).write_bytes(content)
    read = dataset.dataset(tmp_path / "delay", partitioning="hive").to_table().to_pandas()
    assert len(read) == 8
    assert sorted(read["date"].astype(str).unique()) == ["2025-11-25", "2025-11-26"]
    assert read["prediction"].dtype == read["input_distance"].dtype == "float64"


def test_large_logs_become_several_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store()
    size = segment(folder, 0).stat().st_size
    monkeypatch.setattr(spools, "BATCH_BYTES", int(2.5 * size))
    for number in range(1, 5):
        segment(folder, number)
    assert send(folder, store)["files"] == 3
    assert store.requests() == [f"r{number}" for number in range(5)]


def test_segments_of_a_killed_server_are_sent(folder: Path) -> None:
    store = Store()
    part = segment(folder, 1, suffix="part")
    send(folder, store)
    os.utime(part, (0, 0))
    send(folder, store)
    assert store.requests() == ["r1"]


class KilledError(BaseException):
    """Stands for a kill at this point."""


CUTS: list[tuple[Any, str]] = [
    (Path, "rename"),
    (Path, "unlink"),
    (os, "fsync"),
    (Store, "put"),
]


@pytest.mark.parametrize("calls", range(1, 7))
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("cut", CUTS, ids=lambda cut: cut[1])
def test_a_kill_at_any_point_loses_and_duplicates_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, cut: tuple[Any, str], when: str, calls: int
) -> None:
    store = Store()
    segment(folder, 1)
    segment(folder, 2, line(request="r2"), line(request="r2", time=NOON + 86400))
    segment(folder, 4)
    owner, name = cut
    original, left = getattr(owner, name), calls

    def killed(*arguments: Any, **options: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0 and when == "before":
            raise KilledError
        done = original(*arguments, **options)
        if left == 0:
            raise KilledError
        return done

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, killed)
        with contextlib.suppress(KilledError):
            send(folder, store)
    # A segment that began earlier is finished later, and would become the first of a new batch.
    segment(folder, 0)
    send(folder, store)
    assert store.requests() == ["r0", "r1", "r2", "r2", "r2", "r2", "r4"]
    assert list(folder.iterdir()) == []


def test_an_unreachable_store_gets_the_log_later(folder: Path) -> None:
    store = Store()
    store.patience = 1
    segment(folder, 1, line(request="r1"), line(request="r1", time=NOON + 86400))
    with pytest.raises(ShipError):
        send(folder, store)
    store.patience = 1000
    segment(folder, 2)
    assert send(folder, store)["files"] == 3
    assert store.requests() == ["r1"] * 4 + ["r2"]


def test_a_second_process_at_the_same_time_does_nothing(folder: Path) -> None:
    store = Store()
    segment(folder, 1)

    def put(key: str, content: bytes) -> None:
        assert send(folder, store)["files"] == 0
        store.put(key, content)

    ship(Spool(folder), "delay", "gpu-1", folder.parent, put)
    assert store.requests() == ["r1"]


def test_segments_are_sent_by_age_or_size(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(folder)
    assert not Spool(folder / "absent").due(0)
    assert not spool.due(0)
    young = segment(folder, 1)
    young = young.rename(folder / f"{time.time_ns()}-1.jsonl")
    assert not spool.due(300)
    assert spool.due(0)
    monkeypatch.setattr(spools, "BATCH_BYTES", young.stat().st_size)
    assert spool.due(300)
    monkeypatch.undo()
    segment(folder, 1)
    assert spool.due(300)


# -- The command and the daemon


@pytest.fixture
def config(tmp_path: Path, folder: Path) -> Config:
    (tmp_path / "home" / "delay").mkdir(parents=True)
    file = tmp_path / "config.json"
    values = {"host": "gpu-1", "services": [{"name": "delay", "model": "flight-delay"}], "ship_seconds": 0}
    (tmp_path / "run").mkdir()
    values |= {
        "home": str(tmp_path / "home"),
        "runtime": str(tmp_path / "run"),
        "spools": str(tmp_path / "spool"),
        "bucket": "predictions",
    }
    file.write_text(json.dumps(values))
    return Config.read(file)


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1",
        "AWS_ACCESS_KEY_ID": "inference",
        "AWS_SECRET_ACCESS_KEY": "a-secret-of-ours",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("http_proxy", "HTTP_PROXY"):  # Arrow's S3 client would use a proxy even for this machine
        monkeypatch.delenv(name, raising=False)


def test_the_commands_errors_name_the_problem(
    config: Config, folder: Path, nowhere: None, capsys: pytest.CaptureFixture[str]
) -> None:
    segment(folder, 1)
    command = ["--config", str(config.file), "ship", "--service"]
    assert main([*command, "weather"]) == 1
    assert main([*command, "delay"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "metalworks-model: no service weather on this host; its services: delay"
    assert said[1].startswith("metalworks-model: cannot write s3://predictions/delay/date=2025-11-25/gpu-1-17")
    assert "http://127.0.0.1:1" in said[1]
    assert sorted(file.suffix for file in folder.iterdir()) == [".batch", ".jsonl"]


def test_an_unreachable_store_is_logged_once(
    config: Config, folder: Path, nowhere: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(watches, "RETRY_SECONDS", 0.0)
    segment(folder, 1)
    watch, service = LogShipping(config, threading.Event()), config.services[0]
    watch.look(service)
    watch.look(service)
    assert len(caplog.messages) == 1
    assert (
        "delay: cannot send the prediction log, keeping it here: metalworks-model: cannot write s3://predictions/"
        in caplog.messages[0]
    )
    done: Callable[..., Any] = lambda *_, **__: type("Done", (), {"returncode": 0, "stderr": "", "stdout": ""})  # noqa: E731
    monkeypatch.setattr(watch.programs, "run", done)
    watch.look(service)
    watch.look(service)
    assert caplog.messages[1:] == ["delay: sending the prediction log works again"]


def test_no_process_is_started_without_segments(config: Config, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = LogShipping(config, threading.Event())
    monkeypatch.setattr(watch.programs, "run", lambda *_, **__: pytest.fail("it was started"))
    watch.look(Service("delay", "flight-delay"))


def test_set_aside_lines_are_logged_and_counted_for_the_metrics(
    config: Config, folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment(folder, 1)
    said = {"returncode": 0, "stderr": "", "stdout": '{"files": 1, "rows": 1, "set_aside": 3}'}
    watch = LogShipping(config, threading.Event())
    monkeypatch.setattr(watch.programs, "run", lambda *_, **__: type("Done", (), said))
    watch.look(config.services[0])
    watch.look(config.services[0])
    assert caplog.messages[0].startswith("delay: 3 requests could not be written as Parquet; they are in ")
    settings = Settings(
        service="delay", desired=folder, runtime=folder, state=folder, fetched=config.status_file(config.services[0])
    )
    assert _set_aside(settings) == 6

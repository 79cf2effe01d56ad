"""The example project's own functions: features, decisions, versions, and what its client sends."""

from __future__ import annotations

import importlib
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pandas as pd
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PROJECT = ROOT / "examples" / "flights"
sys.path.insert(0, str(PROJECT))
features, rules, service, versions = (
    importlib.import_module(f"flights.{name}") for name in ("features", "rules", "service", "versions")
)

LOCK = """
schema: '2.0'
stages:
  prepare:
    outs:
    - {path: data/other, md5: 0000.dir}
    - {path: data/features, md5: 6e46bb1f23ae92f4878607cc28aa7880.dir, nfiles: 3}
"""


def flight(**changes: object) -> dict[str, object]:
    return {
        "scheduled_hour": "2013-07-05 17:00:00", "minute": 45, "carrier": "UA", "origin": "EWR", "dest": "SFO",
        "distance": 2565, "dep_delay": 4, "arr_delay": -11, "seats": 189, "temp": 88.0, "wind_speed": 9.2,
        "precip": 0.0, "visib": 10.0, "scheduled_minutes": 372,
    } | changes  # fmt: skip


def test_a_flight_becomes_features() -> None:
    table = features.build(pd.DataFrame([flight()]))
    assert list(table.columns) == [*features.FEATURES, "arr_delay"]
    row = table.iloc[0]
    assert row["departure_hour"] == 17.75
    assert row["weekday"] == 4  # a Friday
    assert row["holiday"] == 1  # the day after Independence Day
    assert row["arr_delay"] == -11


@pytest.mark.parametrize(("day", "near"), [("2013-07-03", 1), ("2013-07-06", 0), ("2013-01-01", 1), ("2013-01-31", 0)])
def test_days_beside_a_holiday_count(day: str, near: int) -> None:
    table = features.build(pd.DataFrame([flight(scheduled_hour=f"{day} 23:00:00")]))
    assert table["holiday"].tolist() == [near]


def test_flights_that_never_arrived_are_left_out_and_gaps_stay() -> None:
    rows = [flight(arr_delay=None), flight(dep_delay=None), flight(temp=None, seats=None), flight()]
    table = features.build(pd.DataFrame(rows))
    assert len(table) == 2
    assert table["temp"].isna().tolist() == [True, False]


def test_every_number_is_a_float() -> None:
    table = features.build(pd.DataFrame([flight()]))
    assert {str(kind) for kind in table[[*features.NUMBERS, "arr_delay"]].dtypes} == {"float64"}


def contender(month: str, rmse: float) -> object:
    return rules.Contender(month, rmse)


@pytest.mark.parametrize(
    ("champion", "takes_over", "why"),
    [
        (None, True, "first"),
        (contender("2013-03", 19.0), True, "18.000 against the champion's 19.000 on 2013-04"),
        (contender("2013-03", 17.0), False, "against"),
        (contender("2013-04", 18.0), False, "against"),  # as good is not better
        (contender("2013-05", 30.0), False, "2013-05 already"),
        (contender("2013-03", float("inf")), True, "columns"),
    ],
)
def test_only_what_is_better_takes_over(champion: object, takes_over: bool, why: str) -> None:
    verdict, reason = rules.verdict(contender("2013-04", 18.0), champion)
    assert verdict is takes_over
    assert why in reason


def test_a_month_is_new_until_a_version_has_learnt_from_it() -> None:
    months = ["2013-01", "2013-02", "2013-03"]
    assert rules.new_months(months, None) == months
    assert rules.new_months(months, "2013-02") == ["2013-03"]
    assert rules.new_months(months, "2013-03") == []


def test_the_version_of_the_data_comes_from_dvc_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert versions.data() is None
    (tmp_path / "dvc.lock").write_text(LOCK)
    assert versions.data() == "6e46bb1f23ae92f4878607cc28aa7880"


def test_the_version_of_deployed_code_is_its_archive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METALWORKS_FLOW_CODE", "s3://flow-code/flights/4d9f0c1.tar.gz")
    assert versions.commit() == "4d9f0c1"
    assert versions.dirty() is False


def test_a_request_keeps_every_bit_and_sends_gaps_as_null() -> None:
    rows = pd.DataFrame(
        {"departure_hour": [17 + 41 / 60, 0.1 + 0.2], "temp": [float("nan"), 55.94], "dest": ["X", "Y"]}
    )
    sent = json.loads(json.dumps(service.payload(rows)))["dataframe_split"]
    assert sent["columns"] == ["departure_hour", "temp", "dest"]
    assert sent["data"] == [[17 + 41 / 60, None, "X"], [0.1 + 0.2, 55.94, "Y"]]


class Model(BaseHTTPRequestHandler):
    """Answers one prediction per row, and says which version it is."""

    def do_GET(self) -> None:
        self.answer({"version": "7"})

    def do_POST(self) -> None:
        rows = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["dataframe_split"]["data"]
        self.answer({"predictions": [float(row[0]) for row in rows]})

    def answer(self, content: object) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def url() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Model)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_the_client_asks_the_service(url: str) -> None:
    assert service.ask(f"{url}/", pd.DataFrame({"dep_delay": [3.5, -1.0]})) == [3.5, -1.0]
    assert service.served(url) == 7


def test_nothing_is_served_where_nothing_answers(url: str) -> None:
    assert service.served("http://127.0.0.1:9") is None


def test_deployments_name_flows_and_pools_that_exist() -> None:
    deployments = yaml.safe_load((PROJECT / "prefect.yaml").read_text())["deployments"]
    assert {entry["name"]: entry["work_pool"]["name"] for entry in deployments} == {
        "retrain": "cpu",
        "prepare": "cpu",
        "train": "gpu",
    }
    for entry in deployments:
        path, name = entry["entrypoint"].split(":")
        assert f"\ndef {name}(" in (PROJECT / path).read_text()
        assert set(entry["work_pool"]["job_variables"]["env"]) == {
            "METALWORKS_FLOW_CODE",
            "METALWORKS_FLOW_CODE_SHA256",
        }


def test_the_stage_depends_on_all_the_code_it_runs() -> None:
    stage = yaml.safe_load((PROJECT / "dvc.yaml").read_text())["stages"]["prepare"]
    assert set(stage["deps"]) == {f"flights/{name}.py" for name in ("features", "prepare", "raw")}
    assert stage["outs"] == [str(versions.DATA)]


def test_the_lab_takes_the_whole_project_along() -> None:
    play = yaml.safe_load((PROJECT / "lab.yml").read_text())[0]
    packed = play["vars"]["flights_pack"].split("--exclude=__pycache__")[1].split("|")[0].split()
    assert all((PROJECT / path).exists() for path in packed)
    of_the_lab = {"lab.yml", "customer_db.yml", "customer_db.sql"}
    made_here = {".venv", ".ruff_cache", ".mypy_cache", ".pytest_cache", "__pycache__", "data", "dvc.lock"}
    there = {path.name for path in PROJECT.iterdir()} - of_the_lab - made_here
    assert there == {path.split("/")[0] for path in packed}


def test_same_platform_same_versions() -> None:
    """What talks to MLflow, Prefect and the store speaks the platform's version."""
    platform = (ROOT / "pyproject.toml").read_text()
    for pin in ("mlflow==", "prefect==", "dvc[s3]=="):
        here = next(line for line in (PROJECT / "pyproject.toml").read_text().splitlines() if f'"{pin}' in line)
        assert here.split('"')[1] in platform

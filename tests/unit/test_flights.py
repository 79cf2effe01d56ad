"""The example project's functions: features, decisions, versions, and its client's requests."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PROJECT = ROOT / "examples" / "flights"
sys.path.insert(0, str(PROJECT))
card, checks, drift, errors, features, plots, registry, repository, rules, service, versions = (
    importlib.import_module(f"flights.{name}")
    for name in (
        "card",
        "checks",
        "drift",
        "errors",
        "features",
        "plots",
        "registry",
        "repository",
        "rules",
        "service",
        "versions",
    )
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


def test_flights_that_never_arrived_are_dropped_and_gaps_kept() -> None:
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
    ("champion", "takes_over", "part"),
    [
        (None, True, "first"),
        (contender("2013-03", 19.0), True, "18.000 against the champion's 19.000 on 2013-04"),
        (contender("2013-03", 17.0), False, "against"),
        (contender("2013-04", 18.0), False, "against"),  # equal is not better
        (contender("2013-05", 30.0), False, "2013-05 already"),
        (contender("2013-03", float("inf")), True, "columns"),
    ],
)
def test_only_a_better_model_becomes_champion(champion: object, takes_over: bool, part: str) -> None:
    verdict, reason = rules.verdict(contender("2013-04", 18.0), champion)
    assert verdict is takes_over
    assert part in reason


def test_a_month_is_new_until_a_version_is_trained_with_it() -> None:
    months = ["2013-01", "2013-02", "2013-03"]
    assert rules.new_months(months, None) == months
    assert rules.new_months(months, "2013-02") == ["2013-03"]
    assert rules.new_months(months, "2013-03") == []


def test_the_version_of_the_data_comes_from_dvc_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert versions.data() is None
    (tmp_path / "dvc.lock").write_text(LOCK)
    assert versions.data() == "6e46bb1f23ae92f4878607cc28aa7880"


@pytest.mark.parametrize(
    ("tags", "counts"),
    [
        ({"dvc.data/features": '{"recorded": "6e46.dir", "md5": null}'}, True),
        ({"dvc.data/features": '{"recorded": "6e46.dir", "md5": "6e46.dir"}', "git.dirty": "false"}, True),
        ({"dvc.data/features": '{"recorded": "6e46.dir"}', "git.dirty": "true"}, False),
        ({"dvc.data/features": '{"recorded": "6e46.dir"}', "metalworks.reproduces": "0a1b"}, False),
        ({"dvc.data/features": '{"recorded": "ffff.dir"}'}, False),
        ({"dvc.data/features": '{"recorded": null}'}, False),
        ({}, False),
    ],
)
def test_only_runs_with_this_code_and_data_count(tags: dict[str, str], counts: bool) -> None:
    assert registry.of_this_state(tags, "6e46") is counts


def test_no_run_is_recorded_without_the_platforms_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(errors.FlightsError, match="PYTHONPATH must contain its folder"):
        versions.require_plugin()


def test_a_reproduction_registers_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METALWORKS_REPRODUCES", "0a1b")
    with pytest.raises(errors.FlightsError, match="only for comparison"):
        registry.promote()


def whole(month: str = "2013-04", a_day: int = 4) -> pd.DataFrame:
    """Return a month of raw flights as from the database."""
    days = pd.period_range(f"{month}-01", periods=pd.Period(month).days_in_month)
    rows = [flight(scheduled_hour=f"{day} {hour:02}:00:00") for day in days for hour in range(6, 6 + a_day)]
    rows[0] |= {"dep_delay": None, "arr_delay": None, "seats": None, "scheduled_minutes": None}
    return pd.DataFrame(rows).astype({"scheduled_hour": "datetime64[us]"})


def test_a_complete_month_has_no_problems() -> None:
    assert checks.problems("2013-04", whole(), [124, 112, 124]) == []
    assert checks.problems("2013-02", whole("2013-02"), []) == []


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        (lambda rows: rows[:0], "no flights"),
        (lambda rows: rows.drop(columns=["dest"]), "no column dest"),
        (lambda rows: rows[rows["scheduled_hour"].dt.day <= 15], "15 of 30 days without (enough) flights: 16, 17, 18"),
        (lambda rows: rows[rows["scheduled_hour"].dt.day != 7], "1 of 30 days without (enough) flights: 7"),
        (lambda rows: rows[:40], "40 flights where 124 are usual"),
        (lambda rows: pd.concat([rows] * 3), "360 flights where 124 are usual"),
        (lambda rows: rows.assign(arr_delay=None), "arr_delay is empty in 100%"),
        (lambda rows: rows.assign(arr_delay="late"), "arr_delay is not a number in 120 flights, for example 'late'"),
        (lambda rows: rows.assign(distance="2565"), "distance is not a number in 120 flights, for example '2565'"),
        (lambda rows: rows.assign(carrier=3), "carrier is not text in 120 flights, for example '3'"),
        (lambda rows: rows.assign(arr_delay=9000.0), "arr_delay is outside -180…2880 in 120 flights, for example 9000"),
        (lambda rows: rows.assign(scheduled_hour=pd.Timestamp("2012-04-01")), "120 flights of another month"),
    ],
)
def test_problems_of_a_broken_month_are_named(broken: Callable[[pd.DataFrame], pd.DataFrame], problem: str) -> None:
    assert problem in ", ".join(checks.problems("2013-04", broken(whole()), [124, 112, 124]))


def test_missing_months_between_others_are_found() -> None:
    assert checks.gaps(["2012-11", "2013-02"]) == ["2012-12", "2013-01"]
    assert checks.gaps(["2012-11", "2013-02"], ["2012-12"]) == ["2013-01"]
    assert checks.gaps(["2013-03", "2013-04"]) == checks.gaps([]) == []


def test_a_report_names_what_is_broken_and_what_waits() -> None:
    text = checks.report({"2013-04": ["no flights"]}, ["2013-04", "2013-05"])
    assert text == "2013-04: no flights; 2013-05 would be complete and must wait"


HISTORY = [
    {"version": 1, "model": "ridge", "month": "2013-03", "rmse": 18.0, "champion": None, "champion_rmse": None,
     "promoted": True, "verdict": "the first version"},
    {"version": 2, "model": "boosting", "month": "2013-04", "rmse": 17.5, "champion": 1, "champion_rmse": 19.5,
     "promoted": False, "verdict": "rmse <b>"},
]  # fmt: skip


def test_the_picture_of_the_months_is_the_same_each_time() -> None:
    picture = plots.over_months(HISTORY)
    assert picture == plots.over_months(HISTORY)
    assert picture.startswith("<svg")
    assert all(text in picture for text in (">2013-03<", ">2013-04<", ">v1<", ">v2<", ">becomes champion<"))


def test_the_card_loads_nothing_else() -> None:
    from mlflow.entities import Param, Run, RunData, RunInfo, RunTag

    tags = {"mlflow.source.git.commit": "4d9f0c1", "mlflow.source.git.repoURL": "git@git:flights.git",
            "dvc.data/features": '{"recorded": "6e46.dir"}'}  # fmt: skip
    run = Run(
        RunInfo("0a1b", "1", "ml1", "FINISHED", 0, 1, "active"),
        RunData(params=[Param("rows", "30000"), Param("alpha", "1.0")], tags=[RunTag(*tag) for tag in tags.items()]),
    )
    version = {"version": 2, "model": "boosting", "data.months": "2013-03 2013-04", "trained_on": "gpu-1"}
    table = pd.DataFrame({"hour": [6, 6, 7], "carrier": ["UA", "B6", "UA"],
                          "challenger": [3.0, -4.0, 5.0], "champion": [6.0, 8.0, 0.0]})  # fmt: skip
    page = card.page(version, HISTORY[1], run, table, HISTORY)
    assert page.count("<svg") == page.count("</svg>") == 3
    assert not any(outside in page for outside in ("<script", "<link", "<img", 'src="', "<b>:"))
    assert "rmse &lt;b&gt;" in page
    for cell in ("4.08", "5.77", "30000", "1.0", "gpu-1", "2013-03 2013-04 (the newest one held out)"):
        assert f"<td>{cell}</td>" in page
    assert "<td>4d9f0c1 of git@git:flights.git</td>" in page
    summary = card.summary(version, HISTORY[1], run)
    assert summary.startswith("**Not promoted**: rmse <b>.")
    assert "- data: data/features 6e46 (DVC)" in summary


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create a bare repository with a project, and the variables that a worker would get for it."""
    for name, value in {"GIT_CONFIG_GLOBAL": tmp_path / "gitconfig", "DVC_GLOBAL_CONFIG_DIR": tmp_path}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    for name in ("METALWORKS_REPRODUCES", "METALWORKS_GIT_DIRTY", "METALWORKS_GIT_FOLDER"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "gitconfig").write_text("[user]\nname = Worker\nemail = worker@example.org\n")
    bare, clone = tmp_path / "remote.git", tmp_path / "clone"
    git(tmp_path, "init", "--quiet", "--bare", "--initial-branch=main", str(bare))
    git(tmp_path, "clone", "--quiet", str(bare), str(clone))
    (clone / ".dvc").mkdir()
    (clone / ".dvc/config").write_text(
        f"[core]\n remote = s\n analytics = false\n['remote \"s\"']\n url = {tmp_path}/s\n"
    )
    (clone / ".dvc/.gitignore").write_text("/config.local\n/tmp\n/cache\n")
    (clone / "params.yaml").write_text("# Of the newest, nothing is learnt.\nmonths: ['2013-01']\ntrain: {rows: 5}\n")
    stage = {"cmd": "mkdir -p data && cp params.yaml data/features", "params": ["months"], "outs": ["data/features"]}
    (clone / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"prepare": stage}}))
    deploy(clone, monkeypatch, "code.py", "1")
    monkeypatch.setenv("METALWORKS_GIT_REMOTE", str(bare))
    return bare


def deploy(clone: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> str:
    (clone / name).write_text(text)
    git(clone, "add", "--all")
    git(clone, "commit", "--quiet", "--message=Code")
    git(clone, "push", "--quiet", "origin", "HEAD:main")
    commit = git(clone, "rev-parse", "HEAD")
    monkeypatch.setenv("METALWORKS_GIT_COMMIT", commit)
    return commit


@pytest.fixture
def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Path]:
    """Create the empty folder of another flow run, and change to it."""

    def make() -> Path:
        folder = tmp_path / f"run-{len(list(tmp_path.glob('run-*')))}"
        folder.mkdir()
        monkeypatch.chdir(folder)
        monkeypatch.setattr(repository, "START", folder)
        return folder

    return make


def test_data_is_handed_over_by_a_commit(remote: Path, run_folder: Callable[[], Path]) -> None:
    run_folder()
    commit = repository.prepare(["2013-01", "2013-02"], "Data until 2013-02")
    assert git(remote, "rev-parse", "retrain") == commit
    assert git(remote, "log", "-1", "--format=%an %s", "retrain") == "Worker Data until 2013-02"
    assert git(remote, "rev-parse", "retrain~") == os.environ["METALWORKS_GIT_COMMIT"]
    changed = git(remote, "diff", "--name-only", "main", "retrain").split()
    assert changed == ["data/.gitignore", "dvc.lock", "params.yaml"]
    assert repository.prepare(["2013-01", "2013-02"], "Again") == commit  # as a retried flow does
    other = run_folder()
    repository.get(commit)
    assert "2013-02" in (other / "data/features").read_text()
    assert git(other, "rev-parse", "HEAD") == commit
    assert git(other, "status", "--porcelain") == ""


def test_retraining_uses_the_deployed_code(
    remote: Path, run_folder: Callable[[], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(repository, "_dvc", lambda *arguments: None)
    first = os.environ["METALWORKS_GIT_COMMIT"]

    def made(month: str) -> tuple[list[str], str]:
        (run_folder() / "data").mkdir()
        Path("dvc.lock").write_text(month)
        monkeypatch.setattr(repository, "_dvc", lambda *arguments: Path("dvc.lock").write_text(month))
        Path("data/.gitignore").write_text("/features")
        commit = repository.prepare([month], f"Data {month}")
        parents = git(remote, "rev-list", "--parents", "-1", commit).split()[1:]
        return parents, git(remote, "show", f"{commit}:code.py")

    assert made("2013-02") == ([first], "1")
    data = git(remote, "rev-parse", "retrain")
    assert made("2013-03") == ([data], "1")
    data = git(remote, "rev-parse", "retrain")
    second = deploy(tmp_path / "clone", monkeypatch, "code.py", "2")
    (joined,), code = made("2013-04")
    assert code == "2"
    assert git(remote, "rev-list", "--parents", "-1", joined).split()[1:] == [second, data]
    # Parameters are code, too: deploying an earlier commit restores them.
    deploy(tmp_path / "clone", monkeypatch, "params.yaml", "months: []\ntrain: {rows: 6}\n")
    made("2013-04")
    assert "rows: 6" in git(remote, "show", "retrain:params.yaml")
    monkeypatch.setenv("METALWORKS_GIT_COMMIT", second)
    made("2013-04")
    assert "rows: 5" in git(remote, "show", "retrain:params.yaml")
    monkeypatch.setenv("METALWORKS_GIT_COMMIT", first)  # back to what is in the branch's history
    (joined,), code = made("2013-05")
    assert code == "1"
    assert git(remote, "show", "retrain:params.yaml").splitlines() == [
        "# Of the newest, nothing is learnt.",
        'months: ["2013-05"]',
        "train: {rows: 5}",
    ]


def test_months_are_changed_in_place_or_refused() -> None:
    with pytest.raises(errors.FlightsError, match="on one line"):
        repository._with_months("months:\n- 2013-01\n", ["2013-02"])


def test_unusable_code_is_refused_before_anything_is_pushed(
    remote: Path, run_folder: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_folder()
    monkeypatch.setenv("METALWORKS_GIT_DIRTY", "true")
    with pytest.raises(errors.FlightsError, match="commit, push, deploy again"):
        repository.prepare(["2013-01"], "Data")
    monkeypatch.setenv("METALWORKS_GIT_DIRTY", "false")
    monkeypatch.setenv("METALWORKS_GIT_COMMIT", "0" * 40)
    with pytest.raises(errors.FlightsError, match=r"No branch of .* contains the deployed commit 0000"):
        repository.prepare(["2013-01"], "Data")
    assert git(remote, "branch", "--format=%(refname:short)") == "main"


def test_a_reproduction_stays_where_it_was_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METALWORKS_REPRODUCES", "0a1b")
    repository.get("4d9f0c1")
    assert list(tmp_path.iterdir()) == []


def test_a_request_keeps_every_bit_and_sends_gaps_as_null() -> None:
    rows = pd.DataFrame(
        {"departure_hour": [17 + 41 / 60, 0.1 + 0.2], "temp": [float("nan"), 55.94], "dest": ["X", "Y"]}
    )
    sent = json.loads(json.dumps(service.payload(rows)))["dataframe_split"]
    assert sent["columns"] == ["departure_hour", "temp", "dest"]
    assert sent["data"] == [[17 + 41 / 60, None, "X"], [0.1 + 0.2, 55.94, "Y"]]


class Model(BaseHTTPRequestHandler):
    """Returns one prediction per row, and a version."""

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


def test_no_version_is_served_if_nothing_responds(url: str) -> None:
    assert service.served("http://127.0.0.1:9") is None


def test_deployments_name_flows_and_pools_that_exist() -> None:
    deployments = yaml.safe_load((PROJECT / "prefect.yaml").read_text())["deployments"]
    assert {entry["name"]: entry["work_pool"]["name"] for entry in deployments} == {
        "retrain": "cpu",
        "prepare": "cpu",
        "train": "gpu",
        "drift": "cpu",
    }
    for entry in deployments:
        path, name = entry["entrypoint"].split(":")
        assert f"\ndef {name}(" in (PROJECT / path).read_text()


def test_the_stage_depends_on_all_the_code_it_runs() -> None:
    stage = yaml.safe_load((PROJECT / "dvc.yaml").read_text())["stages"]["prepare"]
    assert set(stage["deps"]) == {f"flights/{name}.py" for name in ("checks", "features", "prepare", "raw")}
    assert stage["outs"] == [str(versions.DATA)]


def test_the_lab_copies_the_whole_project() -> None:
    plays = yaml.safe_load((PROJECT / "lab.yml").read_text())
    packer = next(play["vars"]["flights_pack"] for play in plays if "flights_pack" in play.get("vars", {}))
    packed = packer.split("--exclude=__pycache__")[1].split("|")[0].split()
    assert all((PROJECT / path).exists() for path in packed)
    of_the_lab = {"lab.yml", "developers.yml", "replay.yml", "replay_month.yml", "customer_db.yml", "customer_db.sql"}
    made_here = {".venv", ".ruff_cache", ".mypy_cache", ".pytest_cache", "__pycache__", "data", "dvc.lock"}
    there = {path.name for path in PROJECT.iterdir()} - of_the_lab - made_here
    assert there == {path.split("/")[0] for path in packed}


def test_versions_are_those_of_the_platform() -> None:
    """The clients of MLflow, Prefect and the store have the platform's versions."""
    platform = (ROOT / "pyproject.toml").read_text()
    for pin in ("mlflow==", "prefect==", "dvc[s3]=="):
        here = next(line for line in (PROJECT / "pyproject.toml").read_text().splitlines() if f'"{pin}' in line)
        assert here.split('"')[1] in platform


def flights_of(days: int, delay: float = 0.0, carrier: str = "UA") -> pd.DataFrame:
    """Return 1000 flights, half of them of one carrier."""
    table = pd.DataFrame({name: [float(number % 97) for number in range(1000)] for name in features.NUMBERS})
    table["dep_delay"] += delay
    table["seats"] = table["seats"].where(table["seats"] > 10)
    for name in features.CATEGORIES:
        table[name] = [carrier if number % 2 else f"c{number % 40}" for number in range(1000)]
    return table.assign(day=pd.Timestamp.now("UTC") - pd.Timedelta(days=days))


@pytest.fixture
def logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Create a prediction log in a folder, and prepared data with the same flights."""
    read = pd.read_parquet
    monkeypatch.setenv("METALWORKS_PREDICTIONS_BUCKET", "predictions")
    monkeypatch.setattr(drift.pd, "read_parquet", lambda path, **how: read(path.replace("s3:/", str(tmp_path)), **how))
    monkeypatch.setitem(sys.modules, "flights.prepare", SimpleNamespace(load=lambda: {"2013-01": flights_of(0)}))

    def log(table: pd.DataFrame, **facts: Any) -> None:
        folder = tmp_path / "predictions" / "delay" / f"date={table['day'].iloc[0]:%Y-%m-%d}"
        folder.mkdir(parents=True, exist_ok=True)
        columns = {name: f"input_{name}" for name in features.FEATURES}
        kept = table[features.FEATURES].rename(columns=columns).assign(**({"role": "champion", "status": 200} | facts))
        kept.to_parquet(folder / f"gpu-1-{len(list(folder.iterdir()))}.parquet")

    return log


def test_unchanged_flights_are_alike(logged: Callable[..., None]) -> None:
    logged(flights_of(1))
    logged(flights_of(1, delay=500.0), role="shadow")
    logged(flights_of(1, delay=500.0), status=400)
    logged(flights_of(8, delay=500.0))
    assert {(row["psi"], row["verdict"]) for row in drift.report(days=7)} == {(0.0, "alike")}


def test_drifted_features_are_named(logged: Callable[..., None]) -> None:
    logged(flights_of(0, delay=30.0, carrier="XX"))
    found = {row["feature"]: row["verdict"] for row in drift.report(days=7)}
    assert [name for name, verdict in found.items() if verdict != "alike"] == list(found)[:4]
    assert set(list(found)[:4]) == {"dep_delay", *features.CATEGORIES}
    assert found["dep_delay"] == "something else"


def test_more_missing_values_count_as_drift(logged: Callable[..., None]) -> None:
    learnt, seen = flights_of(0)["seats"], flights_of(0)["seats"].where(lambda seats: seats > 40)
    assert drift.psi(learnt, seen) > drift.OTHER


def test_too_few_flights_are_an_error(logged: Callable[..., None]) -> None:
    with pytest.raises(errors.FlightsError, match="0 flights were logged in 7 days"):
        drift.report(days=7)
    logged(flights_of(1).head(100))
    with pytest.raises(errors.FlightsError, match="100 flights were logged in 7 days"):
        drift.report(days=7)

"""`metalworks compare` with a real MLflow store."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from metalworks import cli

if TYPE_CHECKING:
    from mlflow import MlflowClient

DATA = {"md5": "1a2b3c4d5e6f.dir", "size": 12_300_000, "remote": "s3://training-data", "clean": True, "pushed": True}
USUAL = {
    "mlflow.source.git.branch": "main",
    "mlflow.source.git.repoURL": "https://git.example.org/flights.git",
    "git.dirty": "false",
    "git.pushed": "true",
    "git.folder": "",
    "metalworks.command": '["python", "-m", "flights", "train"]',
    "metalworks.host": "dev-1",
    "python.version": "3.11.2",
    "dvc.data/features": json.dumps(DATA),
}
REQUIREMENTS = "# of the plugin\nnumpy==2.3.1\nScikit_Learn==1.7.0\nflights @ file:///home/anna/flights\n"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Return a clone and its two commits."""
    folder = tmp_path_factory.mktemp("clone")
    commits = []
    options = ["-c", "user.name=Anna", "-c", "user.email=anna@example.org"]
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    for text in ("rows: 1\n", "rows: 2\nseed: 13\n"):
        (folder / "params.yaml").write_text(text)
        subprocess.run(["git", "add", "."], cwd=folder, check=True)
        subprocess.run(["git", *options, "commit", "--quiet", "--message", "one"], cwd=folder, check=True)
        line = ["git", "rev-parse", "HEAD"]
        commits.append(subprocess.run(line, cwd=folder, check=True, capture_output=True, text=True).stdout.strip())
    return folder, commits


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def client(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}/mlflow.db")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.chdir(tmp_path)
    from mlflow import MlflowClient

    return MlflowClient()


def record(
    client: MlflowClient,
    store: Path,
    tags: Mapping[str, str] | None = None,
    *,
    name: str = "ridge",
    experiment: str = "flights",
    params: Mapping[str, Any] | None = None,
    metrics: Mapping[str, float] | None = None,
    requirements: str | None = REQUIREMENTS,
) -> str:
    """Record a run and return its id."""
    found = client.get_experiment_by_name(experiment)
    place = found.experiment_id if found else client.create_experiment(experiment, f"file://{store}/{experiment}")
    run = str(client.create_run(place, run_name=name, tags=USUAL if tags is None else tags).info.run_id)
    for key, value in (params or {"alpha": 1.0, "seed": 13}).items():
        client.log_param(run, key, value)
    for key, number in (metrics or {"rmse": 25.5, "r2": 0.25}).items():
        client.log_metric(run, key, number)
    if requirements is not None:
        client.log_text(run, requirements, "versions/requirements.txt")
    return run


@pytest.fixture
def pair(client: MlflowClient, store: Path, repository: tuple[Path, list[str]]) -> list[str]:
    """Return two runs that differ in every section."""
    first, second = repository[1]
    other = {
        "git.dirty": "true",
        "metalworks.host": "gpu-1",
        "dvc.data/features": json.dumps(DATA | {"md5": "99aabbccdd.dir", "size": 900, "pushed": False}),
        "dvc.data/weather": json.dumps(DATA),
    }
    return [
        record(client, store, {**USUAL, "mlflow.source.git.commit": first}, metrics={"rmse": 25.5, "r2": 0.25}),
        record(
            client,
            store,
            {**USUAL, **other, "mlflow.source.git.commit": second},
            params={"alpha": 2.0, "seed": 13, "rows": 9},
            metrics={"rmse": 24.0, "r2": 0.25},
            requirements=REQUIREMENTS.replace("1.7.0", "1.8.0") + "extra==1.0\n",
        ),
    ]


def shown(line: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(["compare", *line]) == 0, capsys.readouterr()
    return capsys.readouterr().out


def rows(text: str) -> dict[str, list[str]]:
    """Return first word → the other words of each line."""
    return {words[0]: words[1:] for words in map(str.split, text.splitlines()) if words}


@pytest.mark.parametrize("columns", [80, 160])
def test_differences_are_shown_side_by_side(
    columns: int,
    pair: list[str],
    repository: tuple[Path, list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.chdir(repository[0])
    text = shown(pair, capsys)
    found = rows(text)
    first, second = repository[1]
    assert found["commit"] == [first[:10], second[:10]]
    assert found["dirty"] == ["false", "true"]
    assert found["alpha"] == ["1.0", "2.0"]
    assert found["rows"] == ["-", "9"]
    assert found["rmse"] == ["25.5", "24", "-1.5"]
    assert found["scikit-learn"] == ["1.7.0", "1.8.0"]
    assert found["extra"] == ["-", "1.0"]
    assert found["host"] == ["dev-1", "gpu-1"]
    assert "1a2b3c4d.dir" in found["data/features"][0]
    assert "12.3 MB" in text
    assert "not pushed" in " ".join(text.split())
    assert f"git diff --stat {first[:10]} {second[:10]}" in text
    assert "1 file changed, 2 insertions(+), 1 deletion(-)" in text
    equal = " ".join(text[text.index("Equal:") :].split())
    assert equal.startswith(
        "Equal: code (5 of 7); parameters (seed); scores (r2); environment (Python, flights, numpy)."
    )
    assert max(map(len, text[text.index("\n\n") :].splitlines())) <= columns
    assert not {"seed", "numpy", "branch"} & found.keys()


def test_equal_values_are_shown_on_request(pair: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    found = rows(shown([*pair, "--all"], capsys))
    assert found["seed"] == ["13", "13"]
    assert found["numpy"] == ["2.3.1", "2.3.1"]
    assert found["r2"] == ["0.25", "0.25", "+0"]


def test_json_has_the_same_content(
    pair: list[str],
    repository: tuple[Path, list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(repository[0])
    data = json.loads(shown([*pair, "--json"], capsys))
    assert [run["id"] for run in data["runs"]] == pair
    assert data["code"]["commit"] == repository[1]
    assert data["scores"] == {"rmse": [25.5, 24.0]}
    assert data["parameters"] == {"alpha": ["1.0", "2.0"], "rows": [None, "9"]}
    assert data["equal"]["scores"] == ["r2"]
    assert "params.yaml" in data["diff"][0]


def test_identical_runs_are_equal(client: MlflowClient, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [record(client, store, metrics={"rmse": float("nan")}) for _ in range(3)]
    text = shown(runs, capsys)
    assert "rmse" not in rows(text)
    assert "scores (rmse)" in " ".join(text.split())


def test_runs_without_the_plugin_give_unknown(
    client: MlflowClient, store: Path, pair: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    bare = [record(client, store, {}, requirements=None) for _ in range(2)]
    found = rows(shown([pair[0], bare[0]], capsys))
    assert found["branch"] == ["main", "unknown"]
    assert found["packages"] == ["3", "unknown"]
    assert "numpy" not in found  # otherwise it would list all packages of the other run
    assert found["data/features"][-1] == "unknown"
    text = " ".join(shown(bare, capsys).split())
    assert "Not recorded: code (7 of 7); environment (Python, host, packages)" in text


def test_a_broken_tag_is_unknown(client: MlflowClient, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = {**USUAL, "dvc.data/features": "{", "metalworks.command": "python -m flights"}
    found = rows(shown([record(client, store), record(client, store, broken)], capsys))
    assert found["data/features"][-1] == "unknown"
    assert found["command"][-1] == "unknown"


def test_a_run_is_found_by_id_name_and_model(
    client: MlflowClient, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = record(client, store, name='Anna\'s "best"', experiment="names")
    named = record(client, store, name="Anna's", experiment="names")
    client.create_registered_model("delay")
    client.create_model_version("delay", f"file://{store}/model", run_id=run)
    client.set_registered_model_alias("delay", "champion", "1")
    names = [run[:6], "models:/delay/1", "models:/delay@champion", "Anna's"]
    data = json.loads(shown([run, *names, "--experiment", "names", "--json"], capsys))
    assert [one["id"] for one in data["runs"]] == [run] * 4 + [named]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone", "no run in any experiment has this name"),
        ("0" * 32, "not found"),
        ("models:/gone/1", "Model Version (name=gone, version=1) not found"),
        ("models:/gone/latest", "use models:/NAME/VERSION"),
        ("both\"and'", "cannot search for a name with both kinds of quotes"),
    ],
)
def test_an_unknown_run_is_an_error(
    name: str, message: str, pair: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["compare", pair[0], name]) == 1
    assert message in capsys.readouterr().err


def test_ambiguous_names_and_deleted_runs_are_errors(
    client: MlflowClient, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [record(client, store, name="twice", experiment=experiment) for experiment in ("one", "two")]
    assert cli.main(["compare", runs[0], "twice"]) == 1
    told = capsys.readouterr().err
    assert all(run in told for run in runs)
    client.delete_run(runs[0])
    assert cli.main(["compare", runs[0], "twice"]) == 1
    assert "is deleted" in capsys.readouterr().err


def test_without_a_server_the_error_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert cli.main(["compare", "a", "b"]) == 1
    assert "MLFLOW_TRACKING_URI is not set" in capsys.readouterr().err

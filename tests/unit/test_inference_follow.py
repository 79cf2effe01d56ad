"""`metalworks-model fetch` against a real MLflow server, with uv resolving from a folder of small wheels."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from fastapi.testclient import TestClient
from mlflow import MlflowClient
from mlflow.models import infer_signature
from sklearn.linear_model import Ridge

from metalworks.inference import Settings, create_app
from metalworks.models import ModelCard, lock, main, registry
from metalworks.models.errors import FetchError
from tests.unit.inference_wheels import SERVER, UV, server_lock, wheels

__all__ = ["server_lock", "wheels"]

FRAME = pd.DataFrame({"distance": [187.0, 2475.5, 1065.25], "wind": [0.1, 12.7, 3.3]})
TARGET = pd.Series([-3.0, 41.5, 7.25])


def wait_until_healthy(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        assert server.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError):
            try:
                server.wait(0.1)
            except subprocess.TimeoutExpired:
                continue
    pytest.fail(f"MLflow did not come up:\n{log.read_text()}")


@pytest.fixture(scope="module")
def tracking_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run an MLflow server with an artifact proxy on the loopback interface."""
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", folder / "files"]
    log = folder / "log"
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with log.open("wb") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output, env=environment, cwd=folder)
    try:
        uri = f"http://127.0.0.1:{port}"
        wait_until_healthy(f"{uri}/health", server, log)
        mlflow.set_tracking_uri(uri)
        yield uri
        mlflow.set_tracking_uri(None)  # what it was before as a URL would outrank the variable in later tests
    finally:
        server.terminate()
        server.wait(30)


Fetch = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def fetch(
    tracking_uri: str,
    wheels: Path,
    server_lock: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Fetch:
    """Return the program: it takes model and alias and gives exit code, JSON and standard error."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)

    def run(model: str, alias: str = "champion") -> tuple[int, dict[str, Any], str]:
        capsys.readouterr()
        arguments = ["fetch", "--model", model, "--alias", alias, "--dest", str(tmp_path / "served")]
        code = main([*arguments, "--server-lock", str(server_lock), "--uv", UV])
        out, err = capsys.readouterr()
        return code, json.loads(out.splitlines()[-1]) if out else {}, err

    return run


@functools.cache
def logged(slope: float) -> str:
    """Train and log a model; return its URI."""
    with mlflow.start_run():
        mlflow.set_tag("mlflow.source.git.commit", "0123abc")
        return mlflow.sklearn.log_model(
            Ridge().fit(FRAME, TARGET * slope),
            name="model",
            signature=infer_signature(FRAME, TARGET),
            pip_requirements=[f"mlflow=={SERVER['mlflow']}", "scaler"],
        ).model_uri


def register(name: str, slope: float = 1.0) -> str:
    """Register a model and make it the champion; return its version."""
    version = str(mlflow.register_model(logged(slope), name).version)
    MlflowClient().set_registered_model_alias(name, "champion", version)
    return version


def test_fetches_once(fetch: Fetch, tmp_path: Path) -> None:
    version = register("once")
    folder = tmp_path / "served" / version
    locked = folder / "requirements.lock"
    code, said, _ = fetch("once")
    assert code == 0
    assert said == {
        "missing": False,
        "version": version,
        "changed": True,
        "path": str(folder),
        "requirements": str(locked),
        "requirements_sha256": hashlib.sha256(locked.read_bytes()).hexdigest(),
    }
    assert sorted(path.name for path in folder.iterdir()) == ["model", "model.json", "requirements.lock"]
    card = ModelCard.read(folder)
    assert (card.name, card.version, card.alias, card.git_commit) == ("once", version, "champion", "0123abc")
    assert card.run_id
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert fetch("once") == (0, {**said, "changed": False}, "")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_what_is_fetched_predicts_as_the_trained_model(fetch: Fetch, tmp_path: Path) -> None:
    register("predicts", slope=2.0)
    _, said, _ = fetch("predicts")
    with TestClient(create_app(Settings(service="x", model_dir=Path(said["path"])))) as client:
        answer = client.post("/invocations", json={"dataframe_split": FRAME.to_dict(orient="split")})
    assert answer.json()["predictions"] == Ridge().fit(FRAME, TARGET * 2.0).predict(FRAME).tolist()


def test_says_that_a_model_or_alias_does_not_exist_yet(fetch: Fetch, tmp_path: Path) -> None:
    assert fetch("nothing") == (3, {"missing": True}, "")
    register("somebody")
    assert fetch("somebody", "challenger") == (3, {"missing": True}, "")
    assert not (tmp_path / "served").exists()


def test_moved_alias_brings_the_new_version_beside_the_old(fetch: Fetch, tmp_path: Path) -> None:
    first = register("moves")
    _, old, _ = fetch("moves")
    second = register("moves", slope=2.0)
    code, new, _ = fetch("moves")
    assert (code, new["version"], new["changed"]) == (0, second, True)
    assert (tmp_path / "served" / first / "model" / "MLmodel").is_file()
    assert new["requirements_sha256"] == old["requirements_sha256"]
    MlflowClient().set_registered_model_alias("moves", "champion", first)
    assert fetch("moves")[1] == {**old, "changed": False}


def test_other_alias_of_the_same_version_costs_no_download(fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    version = register("renamed")
    fetch("renamed")
    MlflowClient().set_registered_model_alias("renamed", "challenger", version)
    monkeypatch.delattr(registry, "download")
    code, said, _ = fetch("renamed", "challenger")
    assert (code, said["changed"], ModelCard.read(Path(said["path"])).alias) == (0, True, "challenger")


def test_model_registered_anew_replaces_the_files_under_its_number(fetch: Fetch) -> None:
    register("anew")
    _, old, _ = fetch("anew")
    created = ModelCard.read(Path(old["path"])).created
    MlflowClient().delete_registered_model("anew")
    assert register("anew", slope=2.0) == old["version"]
    code, new, _ = fetch("anew")
    assert (code, new["path"], new["changed"]) == (0, old["path"], True)
    assert ModelCard.read(Path(new["path"])).created > created
    assert (
        mlflow.sklearn.load_model(new["path"] + "/model").coef_.tolist()
        == Ridge().fit(FRAME, TARGET * 2.0).coef_.tolist()
    )


def test_broken_download_leaves_nothing_that_looks_whole(
    fetch: Fetch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = register("broken")

    def half(tracking_uri: str, card: ModelCard, into: Path) -> None:
        into.mkdir(parents=True)
        (into / "MLmodel").write_text("half")
        raise FetchError("the connection broke")

    with monkeypatch.context() as patch:
        patch.setattr(registry, "download", half)
        assert fetch("broken") == (1, {}, "metalworks-model: the connection broke\n")
    served = tmp_path / "served"
    assert not (served / version).exists()
    assert (served / f"{version}.partial").exists()
    assert fetch("broken")[0] == 0
    assert sorted(path.name for path in served.iterdir()) == [".lock", version]


def test_files_that_are_gone_are_named(fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "resolve", lambda *_: ModelCard("gone", "77", "champion", "", 0))
    code, _, err = fetch("gone")
    assert (code, "the files of model gone version 77 cannot be fetched" in err) == (1, True)


def test_environment_that_cannot_be_leaves_the_old_version(
    fetch: Fetch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = register("impossible")
    fetch("impossible")
    second = register("impossible", slope=2.0)
    with monkeypatch.context() as patch:
        patch.setattr(lock, "SERVER_REQUIREMENTS", (*lock.SERVER_REQUIREMENTS, "no-such-package"))
        code, said, err = fetch("impossible")
    assert (code, said, "no-such-package was not found" in err) == (1, {}, True)
    served = tmp_path / "served"
    assert (served / first / "requirements.lock").is_file()
    assert not (served / second / "requirements.lock").exists()
    assert fetch("impossible")[1]["version"] == second


def test_server_that_does_not_answer_is_named(fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    code, _, err = fetch("any")
    assert (code, "MLflow at http://127.0.0.1:9 does not answer for model any" in err) == (1, True)


def test_tracking_uri_is_required(fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    code, _, err = fetch("any")
    assert (code, "MLFLOW_TRACKING_URI is not set" in err) == (1, True)

"""`metalworks-model` against a real MLflow server, with uv installing from a folder of small wheels."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.models import infer_signature
from sklearn.linear_model import Ridge

from metalworks.errors import FetchError, RegistryError
from metalworks.model_sync import ModelCard, download, main
from metalworks.model_sync import follow as module
from metalworks.model_sync import wait as waiting
from metalworks.model_sync.config import Config, Service
from metalworks.model_sync.follow import Follower
from metalworks.model_sync.programs import Programs
from metalworks.model_sync.registry import Registry
from tests.unit.inference_wheels import MLFLOW, UV, wheels

__all__ = ["wheels"]

FRAME = pd.DataFrame({"distance": [187.0, 2475.5, 1065.25], "wind": [0.1, 12.7, 3.3]})
TARGET = pd.Series([-3.0, 41.5, 7.25])
TAG = "metalworks.inference.delay.gpu-1"
CANARY_TAG = "metalworks.inference.delay.canary"


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
        mlflow.set_tracking_uri(None)  # a URL set before would override the variable in later tests
    finally:
        server.terminate()
        server.wait(30)


@functools.cache
def logged(slope: float, *requirements: str) -> str:
    """Train and log a model; return its URI."""
    with mlflow.start_run():
        mlflow.set_tag("mlflow.source.git.commit", "0123abc")
        return mlflow.sklearn.log_model(
            Ridge().fit(FRAME, TARGET * slope),
            name="model",
            signature=infer_signature(FRAME, TARGET),
            pip_requirements=[f"mlflow=={MLFLOW}", *(requirements or ["scaler"])],
        ).model_uri


def register(name: str, alias: str = "champion", *requirements: str, slope: float = 1.0) -> str:
    """Register a model, point an alias to it, and return its version."""
    version = str(mlflow.register_model(logged(slope, *requirements), name).version)
    MlflowClient().set_registered_model_alias(name, alias, version)
    return version


def point(name: str, alias: str, version: str) -> None:
    MlflowClient().set_registered_model_alias(name, alias, version)


def tags(name: str, version: str) -> dict[str, str]:
    return MlflowClient().get_model_version(name, version).tags


class Host:
    """A host with one service: its follower, and the state of a fake server."""

    def __init__(self, folder: Path, uri: str, model: str) -> None:
        self.service = Service("delay", model, shadow="challenger", canary="canary")
        self.config = Config("gpu-1", (self.service,), folder / "home", folder / "run", f"{folder}/state-{{name}}.json",
                             0.1, sys.executable, UV)  # fmt: skip
        self.root = self.config.folder(self.service)
        self.config.runtime.mkdir()
        self.uri = uri
        self.start()

    def start(self) -> None:
        programs = Programs(threading.Event())
        self.follower = Follower(self.config, self.service, Registry(self.uri), programs, MLFLOW)

    def round(self) -> dict[str, Any]:
        """Run the follower until nothing is being installed; return the desired state."""
        self.follower.round()
        while coming := [future for _, future in self.follower._coming.values()]:
            futures.wait(coming)
            self.follower.round()
        return self.desired()

    def desired(self) -> dict[str, Any]:
        return dict(json.loads((self.root / "desired.json").read_text()))

    def versions(self) -> dict[str, str | None]:
        return {role: entry and entry["version"] for role, entry in self.round().items()}

    def serves(self, **state: Any) -> None:
        """Write the state of the server."""
        Path(self.config.servers.format(name="delay")).write_text(json.dumps(state))

    def status(self) -> dict[str, Any]:
        return dict(json.loads(self.config.status_file(self.service).read_text()))

    def write_config(self, folder: Path) -> Path:
        file = folder / "follower.json"
        services = [{"name": "delay", "model": self.service.model, "shadow": "challenger", "canary": "canary"}]
        values = {"host": "gpu-1", "home": str(self.config.home), "runtime": str(self.config.runtime)}
        values |= {"servers": self.config.servers, "uv": UV, "python": sys.executable}
        file.write_text(json.dumps({**values, "services": services, "poll_seconds": 0.1}))
        return file


@pytest.fixture
def host(tracking_uri: str, wheels: Path, tmp_path: Path, request: Any, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
    run = Programs.run

    def quicker(self: Programs, command: list[str], **more: Any) -> subprocess.CompletedProcess[str]:
        """Download in this process, where MLflow is already loaded."""
        if "metalworks.model_sync.download" in command:
            return subprocess.CompletedProcess(command, download.main(command[-3:]), "", "")
        return run(self, command, **more)

    monkeypatch.setattr(Programs, "run", quicker)
    return Host(tmp_path, tracking_uri, request.node.originalname.removeprefix("test_"))


@pytest.fixture
def questions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the requests to the registry."""
    asked: list[str] = []
    ask = Registry._ask

    def listen(self: Registry, method: str, path: str, **values: str) -> Any:
        asked.append(path)
        return ask(self, method, path, **values)

    monkeypatch.setattr(Registry, "_ask", listen)
    return asked


@pytest.fixture
def go(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """An event that installations wait for; it is set, and clearing it delays new installations."""
    event, install = threading.Event(), Follower._install

    def slowly(self: Follower, card: ModelCard) -> dict[str, str]:
        assert event.wait(60)
        return install(self, card)

    monkeypatch.setattr(Follower, "_install", slowly)
    event.set()
    return event


def test_a_version_is_installed_completely_and_once(host: Host, questions: list[str]) -> None:
    version = register(host.service.model)
    entry = host.round()["champion"]
    folder = host.root / "versions" / version
    lock = (folder / "requirements.lock").read_bytes()
    assert entry["version"] == version
    assert entry["path"] == str(folder)
    assert entry["environment"] == hashlib.sha256(lock).hexdigest()
    assert Path(entry["python"]).parent.parent.parent == host.root / "environments"
    subprocess.run([entry["python"], "-c", ""], check=True)
    card = ModelCard.read(folder)
    assert (card.name, card.version, card.alias, card.git_commit) == (
        host.service.model,
        version,
        "champion",
        "0123abc",
    )
    assert card.run_id
    loaded = mlflow.sklearn.load_model(str(folder / "model"))
    assert loaded.predict(FRAME).tolist() == Ridge().fit(FRAME, TARGET).predict(FRAME).tolist()
    assert host.desired() == {"champion": entry, "shadow": None, "canary": None}
    before = {path: path.stat().st_mtime_ns for path in host.root.rglob("*")}
    questions.clear()
    host.round()
    assert questions == ["registered-models/get"]
    assert {path: path.stat().st_mtime_ns for path in host.root.rglob("*")} == before
    host.start()
    assert host.round()["champion"] == entry


def test_nothing_is_desired_before_there_is_a_model(host: Host) -> None:
    assert host.versions() == {"champion": None, "shadow": None, "canary": None}
    register(host.service.model, "somebody")
    assert host.versions() == {"champion": None, "shadow": None, "canary": None}
    assert host.status()["roles"]["champion"]["state"] == "missing"


def test_a_moved_alias_installs_the_new_version_and_rolls_back(host: Host) -> None:
    first = register(host.service.model)
    old = host.round()["champion"]
    second = register(host.service.model, slope=2.0)
    new = host.round()["champion"]
    assert (new["version"], new["python"]) == (second, old["python"])  # they have the same requirements
    assert Path(old["path"], "model/MLmodel").is_file()
    point(host.service.model, "champion", first)
    assert host.round()["champion"] == old


def test_a_rollback_does_not_wait_for_installations(host: Host) -> None:
    first = register(host.service.model)
    old = host.round()["champion"]
    register(host.service.model, slope=2.0)
    host.round()
    point(host.service.model, "champion", first)
    with host.follower.programs.turn:  # another service's
        host.follower.round()
        assert host.desired()["champion"] == old
    host.round()


def test_the_champion_is_followed_while_a_canary_is_installed(host: Host, go: threading.Event) -> None:
    first = register(host.service.model)
    host.round()
    second = register(host.service.model, slope=2.0)
    host.round()
    go.clear()
    canary = register(host.service.model, "canary", slope=3.0)
    host.follower.round()
    assert host.status()["roles"]["canary"]["state"] == "installing"
    point(host.service.model, "champion", first)
    host.follower.round()
    assert host.desired()["champion"]["version"] == first
    point(host.service.model, "champion", second)
    host.follower.round()
    assert host.desired()["champion"]["version"] == second
    assert host.desired()["canary"] is None
    go.set()
    assert host.versions() == {"champion": second, "shadow": None, "canary": canary}


def test_aliases_are_followed_while_a_champion_is_installed(host: Host, go: threading.Event) -> None:
    first = register(host.service.model)
    host.round()
    second = register(host.service.model, slope=2.0)
    host.round()
    go.clear()
    third = register(host.service.model, slope=3.0)
    point(host.service.model, "challenger", first)
    host.serves(champion={"version": second, "executor": "onnx", "since": 1764000000.0})
    host.follower.round()
    said = host.status()["roles"]
    assert (said["champion"]["version"], said["champion"]["state"]) == (third, "installing")
    assert {role: entry and entry["version"] for role, entry in host.desired().items()} == {
        "champion": second, "shadow": first, "canary": None,
    }  # fmt: skip
    assert tags(host.service.model, second)[TAG].startswith("serving since")
    for version in (second, first):  # back, and to another installed version
        point(host.service.model, "champion", version)
        host.follower.round()
        assert host.desired()["champion"]["version"] == version
        assert host.status()["roles"]["champion"]["state"] == "installed"
    go.set()
    assert host.versions()["champion"] == first  # the version installed meanwhile is not wanted any more
    point(host.service.model, "champion", third)
    host.follower.round()
    assert host.desired()["champion"]["version"] == third


def test_a_round_does_not_wait_for_other_services(host: Host) -> None:
    version = register(host.service.model)
    once = threading.Thread(target=host.follower.round, daemon=True)
    with host.follower.programs.turn:
        once.start()
        once.join(30)
        assert not once.is_alive()
        assert host.desired()["champion"] is None
        assert host.status()["roles"]["champion"]["state"] == "installing"
    assert host.versions()["champion"] == version


def test_the_serving_version_is_not_its_own_canary(host: Host, go: threading.Event) -> None:
    first = register(host.service.model)
    point(host.service.model, "canary", first)  # as after a withdrawal
    host.round()
    go.clear()
    register(host.service.model, slope=2.0)
    host.follower.round()
    assert {role: entry and entry["version"] for role, entry in host.desired().items()} == {
        "champion": first, "shadow": None, "canary": None,
    }  # fmt: skip
    go.set()


def test_a_version_that_fails_to_install_is_refused(
    host: Host, go: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    go.clear()
    version = register(host.service.model)
    host.follower.round()

    def refuse(*_: Any) -> None:
        raise FetchError("requirements.txt is missing")

    with monkeypatch.context() as patch:
        patch.setattr(Follower, "_find", refuse)
        host.follower.round()
    go.set()
    assert host.status()["roles"]["champion"]["state"] == "refused"
    host.config.retry_file.touch()
    assert host.versions()["champion"] == version


def test_a_canary_with_invalid_files_is_refused_and_the_champion_followed(host: Host) -> None:
    register(host.service.model)
    host.round()
    canary = register(host.service.model, "canary", slope=2.0)
    host.round()
    odd = Path(host.desired()["canary"]["path"], "model", "requirements.txt")
    odd.chmod(0o644)
    odd.write_bytes(b"\xff\xfe")
    (host.root / "desired.json").unlink()
    host.start()
    second = register(host.service.model, slope=3.0)
    assert host.versions() == {"champion": second, "shadow": None, "canary": None}
    said = host.status()["roles"]["canary"]
    assert (said["version"], said["state"]) == (canary, "refused")
    assert said["reason"].startswith("cannot read the model's requirements.txt: 'utf-8' codec can't decode byte")


def test_a_version_without_its_alias_is_still_served(host: Host) -> None:
    version = register(host.service.model)
    host.round()
    MlflowClient().delete_registered_model_alias(host.service.model, "champion")
    assert host.versions()["champion"] == version
    MlflowClient().delete_registered_model(host.service.model)
    assert host.versions()["champion"] == version


def test_the_file_of_an_earlier_release_is_adopted(host: Host) -> None:
    version = register(host.service.model)
    host.round()
    desired, earlier = host.root / "desired.json", host.root / "wanted.json"
    MlflowClient().delete_registered_model_alias(host.service.model, "champion")
    desired.replace(earlier)
    desired.write_text('{"champion": null}')  # from before a return to the earlier release
    host.start()
    assert not earlier.exists()
    assert host.versions()["champion"] == version


def test_a_model_registered_again_is_another_version(host: Host) -> None:
    register(host.service.model)
    old = host.round()["champion"]
    MlflowClient().delete_registered_model(host.service.model)
    assert register(host.service.model, slope=2.0) == old["version"]
    new = host.round()["champion"]
    assert (new["version"], new["path"] == old["path"]) == (old["version"], False)
    for path, slope in ((new["path"], 2.0), (old["path"], 1.0)):  # the old one may still be answering
        found = mlflow.sklearn.load_model(path + "/model").coef_.tolist()
        assert found == Ridge().fit(FRAME, TARGET * slope).coef_.tolist()


def test_shadow_and_canary(host: Host) -> None:
    one = register(host.service.model)
    two, three = (register(host.service.model, alias, slope=2.0) for alias in ("challenger", "canary"))
    assert host.versions() == {"champion": one, "shadow": two, "canary": three}
    before = ModelCard.read(Path(host.desired()["canary"]["path"]))
    point(host.service.model, "champion", three)  # it is not a canary then
    assert host.versions() == {"champion": three, "shadow": two, "canary": None}
    assert ModelCard.read(Path(host.desired()["champion"]["path"])) == before
    point(host.service.model, "canary", two)  # it answers requests, so it is not a shadow, too
    assert host.versions() == {"champion": three, "shadow": None, "canary": two}


def test_an_uninstallable_version_is_refused_and_the_old_one_served(
    host: Host, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, wheels: Path
) -> None:
    now = time.time()
    monkeypatch.setattr(module.time, "time", lambda: now)
    first = register(host.service.model)
    host.round()
    second = register(host.service.model, "champion", "sauce")
    downloads: list[Any] = []
    lock = host.follower.resolver.ensure_lock
    monkeypatch.setattr(type(host.follower.resolver), "ensure_lock", lambda _, at: (downloads.append(at), lock(at))[1])
    host.serves(champion={"version": first, "executor": "onnx", "since": 0})
    assert host.versions()["champion"] == first
    assert [record.levelname for record in caplog.records if "sauce was not found" in record.message] == ["ERROR"]
    assert tags(host.service.model, second)[TAG].startswith(
        "refused: no environment satisfies the model's requirements"
    )
    for later, attempts in ((0, 1), (59, 1), (61, 2), (61 + 119, 2), (61 + 121, 3), (61 + 121 + 241, 4)):
        monkeypatch.setattr(module.time, "time", lambda later=later: now + later)
        assert host.versions()["champion"] == first
        assert len(downloads) == attempts, later
    refused = host.status()["roles"]["champion"]
    assert refused["state"] == "refused"
    assert refused["retry_at"] - refused["at"] == 480
    host.config.retry_file.touch()
    os.utime(host.config.retry_file, (now + 500, now + 500))
    host.round()
    assert len(downloads) == 5
    third = register(host.service.model)  # another version is tried at once
    assert host.versions()["champion"] == third
    assert host.status()["roles"]["champion"] == {"alias": "champion", "version": third, "state": "installed"}


def test_a_broken_download_leaves_nothing(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    version = register(host.service.model)
    run = Programs.run

    def broken(self: Programs, command: list[str], **more: Any) -> Any:
        if "metalworks.model_sync.download" in command:
            Path(command[-1]).mkdir()
            return subprocess.CompletedProcess(command, 1, "", "the connection broke\n")
        return run(self, command, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Programs, "run", broken)
        assert host.versions()["champion"] is None
    assert "version 1: the connection broke" in host.status()["roles"]["champion"]["reason"]
    assert list((host.root / "versions").iterdir()) == []
    (host.root / "versions/1.partial").mkdir()  # as after a kill
    host.start()
    assert list((host.root / "versions").iterdir()) == []
    assert host.versions()["champion"] == version


def test_an_unreachable_server_changes_nothing(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    register(host.service.model)
    wanted = host.round()
    there = host.follower.registry
    host.follower.registry = Registry("http://127.0.0.1:9")
    for _ in range(3):
        assert host.round() == wanted
    assert [record.levelname for record in caplog.records if "does not respond" in record.message] == ["WARNING"]
    assert "MLflow at http://127.0.0.1:9 does not respond" in host.status()["mlflow"]
    host.follower.registry = there
    host.round()
    assert "MLflow responds again" in caplog.text
    assert "MLflow responds again" in caplog.text
    assert host.status()["mlflow"] == "answers"


def test_a_closed_connection_is_reopened(host: Host) -> None:
    version = register(host.service.model)
    registry = host.follower.registry
    assert registry.model(host.service.model)
    kept = registry.connection
    assert kept is not None
    kept.sock.shutdown(socket.SHUT_RDWR)
    model = registry.model(host.service.model)
    assert model is not None
    assert model.aliases == {"champion": version}


def test_old_versions_are_removed_except_served_ones(host: Host) -> None:
    numbers = [register(host.service.model)]
    host.round()
    host.serves(champion={"version": numbers[0], "executor": "onnx", "since": 0})
    for _ in range(5):
        numbers.append(register(host.service.model))
        host.round()
    kept = [numbers[0], *numbers[-4:]]  # served, desired, and three more
    assert sorted(path.name for path in (host.root / "versions").iterdir()) == kept
    assert len(list((host.root / "environments").iterdir())) == 1


def test_removed_files_are_fetched_again(host: Host) -> None:
    register(host.service.model)
    entry = host.round()["champion"]
    Path(entry["python"]).unlink()
    (Path(entry["python"]).parent.parent / ".complete").unlink()
    host.round()
    subprocess.run([entry["python"], "-c", ""], check=True)
    (host.root / "desired.json").unlink()
    assert host.round()["champion"] == entry


# -- Tags in MLflow


def test_versions_are_tagged_with_where_they_serve(host: Host, questions: list[str]) -> None:
    first = register(host.service.model)
    host.round()
    assert TAG not in tags(host.service.model, first)
    host.serves(champion={"version": first, "executor": "onnx", "since": 1764000000.0})
    host.round()
    assert tags(host.service.model, first)[TAG] == "serving since 2025-11-24 16:00:00 UTC as onnx"
    host.start()
    questions.clear()
    host.round()
    assert "model-versions/set-tag" not in questions
    second = register(host.service.model, slope=2.0)
    host.serves(champion={"version": first, "executor": "onnx", "since": 1764000000.0},
                refused={second: {"reason": "it answers\nnothing", "at": 1.0}})  # fmt: skip
    host.round()
    assert tags(host.service.model, second)[TAG] == "refused: it answers nothing"
    host.serves(champion={"version": second, "executor": "mlflow", "since": 1764000060.0},
                shadow={"version": first, "executor": "onnx", "since": 1764000060.0})  # fmt: skip
    host.round()
    assert tags(host.service.model, second)[TAG] == "serving since 2025-11-24 16:01:00 UTC as mlflow"
    assert tags(host.service.model, first)[TAG].startswith("shadow since")
    host.serves(champion={"version": second, "executor": "mlflow", "since": 1764000060.0})
    host.round()
    assert tags(host.service.model, first)[TAG].startswith("no longer in service since")


def test_refused_tags_are_logged_once_and_stop_nothing(
    host: Host, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    version = register(host.service.model)
    host.serves(champion={"version": version, "executor": "onnx", "since": 1764000000.0})

    def refuse(*_: str) -> None:
        raise RegistryError("answers with 403")

    with monkeypatch.context() as patch:
        patch.setattr(Registry, "tag", refuse)
        for _ in range(3):
            host.follower.report.not_before = 0.0  # a minute later
            assert host.versions()["champion"] == version
    assert len([record for record in caplog.records if "cannot tag versions in MLflow" in record.message]) == 1
    assert host.versions()["champion"] == version
    host.follower.report.not_before = 0.0
    host.round()
    assert tags(host.service.model, version)[TAG].startswith("serving since")


@pytest.mark.parametrize("verdict", ["promote", "withdraw"])
def test_a_canary_is_promoted_or_withdrawn_once(
    host: Host, verdict: str, questions: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    champion = register(host.service.model)
    canary = register(host.service.model, "canary", slope=2.0)
    assert host.versions()["canary"] == canary
    said = {"champion": champion, "version": canary, "verdict": verdict, "reason": "12 of 200 failed", "at": 1.0}
    host.serves(canary_verdict=said)
    host.round()
    best = canary if verdict == "promote" else champion
    assert host.versions() == {"champion": best, "shadow": None, "canary": None}
    aliases = MlflowClient().get_registered_model(host.service.model).aliases
    assert (aliases["champion"], aliases["canary"]) == (best, best)
    became = "promoted" if verdict == "promote" else "withdrawn"
    assert tags(host.service.model, canary)[CANARY_TAG].startswith(f"{became} by gpu-1 at ")
    assert tags(host.service.model, canary)[CANARY_TAG].endswith("12 of 200 failed")
    # Rolling back to the old champion, or pointing the alias to it again, does not repeat the trial.
    point(host.service.model, "champion", champion)
    point(host.service.model, "canary", canary)
    assert host.versions() == {"champion": champion, "shadow": None, "canary": None}
    host.serves()
    host.round()
    questions.clear()
    host.round()
    assert questions == ["registered-models/get", "model-versions/get", "runs/get"]  # the canary's tag can be cleared
    assert caplog.text.count(f"version {canary} does not become a canary again: it was {became}") == 1
    MlflowClient().set_model_version_tag(host.service.model, canary, CANARY_TAG, "")
    assert host.versions() == {"champion": champion, "shadow": None, "canary": canary}


def test_a_former_champion_under_the_canary_alias_is_not_a_canary(host: Host) -> None:
    """A withdrawal leaves the alias there, without a user's request."""
    champion = register(host.service.model)
    canary = register(host.service.model, "canary", slope=2.0)
    assert host.versions()["canary"] == canary
    host.serves(canary_verdict={"version": canary, "verdict": "withdraw", "reason": "12 of 200 failed", "at": 1.0})
    host.round()
    host.serves()
    assert host.versions() == {"champion": champion, "shadow": None, "canary": None}
    following = register(host.service.model, slope=3.0)
    assert MlflowClient().get_registered_model(host.service.model).aliases["canary"] == champion
    assert tags(host.service.model, champion)[CANARY_TAG] == f"served when version {canary} was withdrawn"
    assert host.versions() == {"champion": following, "shadow": None, "canary": None}


def test_a_canary_that_was_compared_with_another_champion_is_not_promoted(host: Host) -> None:
    champion = register(host.service.model)
    canary = register(host.service.model, "canary", slope=2.0)
    assert host.versions()["canary"] == canary
    following = register(host.service.model, slope=3.0)
    verdict = {"champion": champion, "version": canary, "verdict": "promote", "reason": "better", "at": 1.0}
    for serves in (champion, following):  # before and after the next one serves
        host.serves(champion={"version": serves}, canary_verdict=verdict)
        assert host.versions() == {"champion": following, "shadow": None, "canary": canary}


def test_a_verdict_on_another_version_is_ignored(host: Host) -> None:
    champion = register(host.service.model)
    canary = register(host.service.model, "canary", slope=2.0)
    host.serves(canary_verdict={"version": champion, "verdict": "withdraw", "reason": "bad", "at": 1.0})
    host.round()
    assert host.versions() == {"champion": champion, "shadow": None, "canary": canary}


# -- The commands

Wait = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def wait(host: Host, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Wait]:
    """Run the daemon; return `wait`, which gives exit code, JSON and standard error."""
    config = host.write_config(tmp_path)
    command = [sys.executable, "-c", "from metalworks.model_sync import main; raise SystemExit(main())"]
    daemon = subprocess.Popen([*command, "--config", config, "follow"], stderr=subprocess.PIPE, text=True)

    def run(*arguments: str, service: str = "delay") -> tuple[int, dict[str, Any], str]:
        capsys.readouterr()
        code = main(["--config", str(config), "wait", "--service", service, *arguments])
        out, err = capsys.readouterr()
        return code, json.loads(out) if out else {}, err

    yield run
    status = Path(f"/proc/{daemon.pid}/status").read_text()
    began = time.monotonic()
    daemon.send_signal(signal.SIGTERM)
    _, said = daemon.communicate(timeout=10)
    assert (daemon.returncode, time.monotonic() - began < 1) == (0, True), said
    assert "Traceback" not in said
    # MLflow's client alone would take more.
    assert int(status.partition("VmHWM:")[2].split()[0]) < 60_000


def test_wait_names_a_follower_of_an_earlier_release(host: Host) -> None:
    status = {"polled": time.time() + 60, "mlflow": "answers", "roles": {"champion": {"version": "3", "is": "here"}}}
    host.config.status_file(host.service).write_text(json.dumps(status))
    outcome = waiting.wait(host.config, host.service, 0.1)
    assert outcome.code == 1
    assert "model-follower does not run this release yet: restart it" in outcome.complaint


def test_wait_reports_the_outcome(host: Host, wait: Wait) -> None:
    model = host.service.model
    assert wait() == (
        3,
        {"service": "delay", "model": model, "alias": "champion", "missing": True, "serving": None},
        "",
    )
    version = register(model)
    code, said, _ = wait("--installed")
    assert (code, said["version"], said["installed"]) == (0, version, True)
    code, said, err = wait("--timeout", "0.5")
    assert (code, said) == (1, {})
    assert f"version {version} is being loaded and checked (see `journalctl -u inference-delay -u models-delay`)" in err
    host.serves(champion={"version": version, "executor": "onnx", "reason": "it is exact", "since": 1.0})
    code, said, _ = wait()
    assert (code, said["missing"], said["version"], said["executor"]) == (0, False, version, "onnx")
    bad = register(model, slope=2.0)
    host.serves(
        champion={"version": version, "executor": "onnx"}, refused={bad: {"reason": "it does not load", "at": 1}}
    )
    code, _, err = wait()
    assert (code, f"version {bad} of {model} is refused: it does not load" in err) == (1, True)
    assert f"`journalctl -u inference-delay -u models-delay`. Version {version} is served." in err
    worse = register(model, "champion", "sauce")
    code, _, err = wait()
    assert (code, f"version {worse} of {model} is refused: no environment" in err) == (1, True)
    assert "`journalctl -u model-follower`" in err
    first = host.status()["roles"]["champion"]["at"]
    assert wait()[0] == 1  # and it was tried again: the cause may have been fixed
    assert host.status()["roles"]["champion"]["at"] > first


def test_wait_reports_a_running_installation(
    host: Host, go: threading.Event, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, stop = str(host.write_config(tmp_path)), threading.Event()
    go.clear()
    version = register(host.service.model)
    host.follower.round()
    rounds = threading.Thread(target=module._follow, args=(host.follower, stop, 0.05))
    rounds.start()
    try:
        assert main(["--config", config, "wait", "--service", "delay", "--installed", "--timeout", "2"]) == 1
        assert f"version {version} is being installed" in capsys.readouterr().err
        go.set()
        assert main(["--config", config, "wait", "--service", "delay", "--installed", "--timeout", "60"]) == 0
    finally:
        go.set()
        stop.set()
        rounds.join()
    assert host.desired()["champion"]["version"] == version


def test_wait_names_what_does_not_respond(host: Host, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(host.write_config(tmp_path))
    assert main(["--config", config, "wait", "--service", "delay", "--timeout", "0.3"]) == 1
    assert "model-follower has not polled MLflow since" in capsys.readouterr().err
    host.follower.registry = Registry("http://127.0.0.1:9")
    host.follower.round()
    assert main(["--config", config, "wait", "--service", "delay", "--timeout", "0.3"]) == 1
    assert "MLflow at http://127.0.0.1:9 does not respond" in capsys.readouterr().err
    assert main(["--config", config, "wait", "--service", "other"]) == 1
    assert "no service other on this host; its services: delay" in capsys.readouterr().err
    assert main(["--config", str(tmp_path / "none"), "wait", "--service", "delay"]) == 1
    assert f"cannot read {tmp_path}/none" in capsys.readouterr().err


def test_the_daemon_stops_although_a_server_is_silent(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        config = host.write_config(tmp_path)
        command = [sys.executable, "-c", "from metalworks.model_sync import main; raise SystemExit(main())"]
        with subprocess.Popen([*command, "--config", config, "follow"]) as daemon:
            silent.settimeout(30)
            with silent.accept()[0]:  # it has sent a request, and waits
                began = time.monotonic()
                daemon.terminate()
                assert daemon.wait(15) == 0
                assert time.monotonic() - began < 5

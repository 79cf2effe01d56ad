"""The platform's additions to MLflow's and Prefect's servers: authorization, and the watchdog."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts.common import environment
from tests.unit.repository import ROOT, load, role_templar

# -- MLflow


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the module of the function that MLflow's auth.ini names."""
    folder = tmp_path_factory.mktemp("auth")
    (folder / "auth.ini").write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{folder}/auth.db\n"
    )
    patched = pytest.MonkeyPatch()
    patched.setenv("MLFLOW_AUTH_CONFIG_PATH", str(folder / "auth.ini"))
    yield load("roles/mlflow/files/metalworks_authenticate.py")
    patched.undo()


SET, CREATE = "/2.0/mlflow/registered-models/set-tag", "/2.0/mlflow/experiments/create"
PROMPT = {"name": "m", "key": "mlflow.prompt.is_prompt", "value": "true"}


@pytest.mark.parametrize("prefix", ["/api", "/ajax-api"])
@pytest.mark.parametrize(
    ("path", "body", "refused"),
    [
        (SET, PROMPT, True),
        (SET, json.dumps(PROMPT), True),  # JSON within JSON, as older clients send it
        (SET.replace("set", "delete"), PROMPT, True),
        (SET, PROMPT | {"key": "colour"}, False),
        (CREATE, {"name": "e"}, False),
        (CREATE, {"name": "e", "artifact_location": ""}, False),
        (CREATE, {"name": "e", "artifact_location": "mlflow-artifacts:/x"}, False),
        (CREATE, {"name": "e", "artifact_location": "file:///var/lib/mlflow"}, True),
        (CREATE, {"name": "e", "artifactLocation": "http://127.0.0.1:9000/"}, True),
        ("/2.0/mlflow/runs/set-tag", PROMPT, False),
    ],
)
def test_actions_that_permissions_cannot_express_are_refused(
    door: Any, prefix: str, path: str, body: Any, refused: bool
) -> None:
    from flask import Flask

    with Flask(__name__).test_request_context(prefix + path, method="POST", json=body):
        assert bool(door.objection()) is refused


PARAM, FIND = "/2.0/mlflow/runs/log-parameter", "/2.0/mlflow/experiments/get-by-name?experiment_name="


@pytest.mark.parametrize(
    ("path", "body", "refused"),
    [
        (PARAM, {"key": "k", "value": "a\0b"}, True),
        (PARAM, {"key": "k", "value": "\ud800"}, True),
        (PARAM, json.dumps({"key": "k\0"}), True),
        (PARAM, {"tags": [{"key": "k", "value": "\0"}]}, True),
        (PARAM, {"key": "k", "value": "\\u0000 \U0001f600"}, False),
        ("/2.0/mlflow/upload-artifact", {"key": "\0"}, False),
        ("/2.0/mlflow-artifacts/artifacts/a.json", {"key": "\0"}, False),
        (f"{FIND}a%00b", None, True),
        (f"{FIND}ab", None, False),
    ],
)
def test_text_that_the_database_cannot_store_is_refused_and_not_tried_again(
    door: Any, path: str, body: Any, refused: bool
) -> None:
    """PostgreSQL's error would be a 500, which clients repeat for minutes."""
    from flask import Flask

    with Flask(__name__).test_request_context(f"/api{path}", method="POST" if body else "GET", json=body):
        assert bool(door.objection()) is refused


def test_invalid_json_is_left_to_mlflow(door: Any) -> None:
    from flask import Flask

    for text in ("", "{", "[]", '"{"'):
        with Flask(__name__).test_request_context(f"/api{SET}", method="POST", data=text):
            assert door.objection() == ""


# -- Prefect


def test_the_event_loop_feeds_systemds_watchdog(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    serve = load("roles/prefect_server/files/serve.py")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "n"))
        systemd.settimeout(0.3)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "n"))
        monkeypatch.setenv("WATCHDOG_USEC", "100000")

        def told() -> bool:
            try:
                return systemd.recv(64) == b"WATCHDOG=1"
            except TimeoutError:
                return False

        async def application(scope: Any, *_: Any) -> None:
            assert scope["type"] == "lifespan"
            assert [await asyncio.to_thread(told) for _ in range(3)] == [True] * 3
            while told():  # busy: read what has arrived; nothing else will
                continue

        monkeypatch.setattr(serve, "create_app", lambda: application)
        asyncio.run(serve.Server()({"type": "lifespan"}, None, None))
        assert not told(), "the end of the server is the end of its signs of life"


@pytest.mark.parametrize(("days", "kinds"), [(30, {"events", "flow_runs", "orphans"}), (0, {"events", "orphans"})])
def test_prefect_understands_how_long_to_keep_runs_and_events(days: int, kinds: set[str]) -> None:
    templar = role_templar(
        ROOT / "roles/prefect_server", prefect_server_run_retention_days=days, prefect_server_event_retention_days=5
    )
    settings = templar.available_variables["__prefect_server_environment"]
    kept = {name: str(templar.template(settings[name])) for name in settings if "VACUUM" in name or "RETENTION" in name}
    program = """
import json
from prefect.settings.models.server.root import ServerSettings
found = ServerSettings()
vacuum = found.services.db_vacuum
overrides = {name: period.days for name, period in vacuum.event_retention_overrides.items()}
print(json.dumps([sorted(vacuum.enabled_vacuum_types), vacuum.retention_period.days,
                  found.events.retention_period.days, overrides]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env={**environment(), **kept}, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == [sorted(kinds), days or 90, 5, {"prefect.flow-run.heartbeat": 1}]

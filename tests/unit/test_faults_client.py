"""What became of acknowledged writes, asked of a real MLflow server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scripts.tests.faults import client
from scripts.tests.faults.ledger import lost
from tests.unit.test_inference_follow import tracking_uri

__all__ = ["tracking_uri"]


@pytest.fixture
def logged(tracking_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Log a run on a real server, as the load does; return its acknowledged writes."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
    # The object store is not asked: there is no data among the writes.
    monkeypatch.setattr(client, "store", lambda: None)
    (tmp_path / ".mlflow").mkdir()
    text = "[mlflow]\nmlflow_tracking_username = ml1\nmlflow_tracking_password = p%w\n"
    (tmp_path / ".mlflow/credentials").write_text(text)
    writes: list[dict[str, Any]] = []
    client.log_run(7, client.experiment(), writes.append)
    return writes


def test_an_acknowledged_run_is_found_again(logged: list[dict[str, Any]]) -> None:
    assert [one["kind"] for one in logged] == ["run", "facts", "file", "run"]
    assert client.verify(logged, "training-data") == {}


def test_a_deleted_run_is_found_to_be_lost(logged: list[dict[str, Any]]) -> None:
    assert client.sabotage(logged, "training-data") == 3
    missing = lost(logged, client.verify(logged, "training-data"))
    run = logged[0]["id"]
    assert missing == [f"run {run}: it is deleted", f"facts {run}: it is deleted", f"run {run}: it is deleted"]


def test_other_content_is_a_lost_write(logged: list[dict[str, Any]]) -> None:
    run, facts, file, finished = logged
    changed = [facts | {"number": 8}, facts | {"word": "other"}, file | {"sha256": "0"}, run | {"id": "0" * 32}]
    assert {*client.verify(changed, "training-data")} == {"0", "1", "2", "3"}
    client.mlflow("mlflow/runs/update", "POST", {"run_id": run["id"], "status": "RUNNING"})
    assert client.verify([run, finished], "training-data") == {"1": "it is RUNNING"}

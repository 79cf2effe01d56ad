"""scripts/lab: the output at the end of `make lab`, and which work is done."""

from __future__ import annotations

import io
import json
import socket
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from scripts.lab import __main__ as lab
from scripts.lab import hosts as lab_hosts
from scripts.site import build_go

LISTED: dict[str, Any] = {
    "_meta": {"hostvars": {"a": {"ansible_host": "198.51.100.11"}, "b": {"ansible_host": "198.51.100.31"}}},
    "services": {"hosts": ["a"]},
    "cpu": {"hosts": ["b"]},
    "gpu": {},
    "mlflow": {"children": ["services"]},
    "prefect_worker": {"children": ["gpu", "cpu"]},
}


def shown(what: object) -> str:
    sink = io.StringIO()
    Console(file=sink, width=160).print(what)
    return sink.getvalue()


def test_the_overview_follows_the_inventory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab, "listed_inventory", lambda _: LISTED)
    text = shown(lab.overview())
    assert "https://mlflow.metalworks.internal" in text
    assert "198.51.100.31" in text
    assert "PostgreSQL" not in text


def test_the_scores_and_the_champion_are_shown() -> None:
    models = [{"rmse": 41.23456, "name": "ridge"}, {"rmse": 38.9, "name": "trees"}]
    lines = shown(lab.scores({"models": models, "champion": "trees"})).splitlines()
    assert ["ridge", "41.23"] in [line.split() for line in lines]
    assert ["trees", "(champion)", "38.9"] in [line.split() for line in lines]


def test_the_scheduled_retraining_is_shown() -> None:
    retrained = {"prepared_on": "cpu-1", "trained_on": "gpu-1", "version": 2, "verdict": "better"}
    text = lab.outcome({"retrained": retrained})
    assert "prepared on cpu-1, trained on gpu-1: version 2, better" in text
    assert "Prediction" not in text


def test_the_verdict_has_flat_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab, "VERDICT", tmp_path / "lab.json")
    lab.write_verdict(100.5, {"platform": 60.0}, 7)
    verdict = json.loads((tmp_path / "lab.json").read_text())
    assert verdict["ok"] is True
    assert verdict["figures"] == {"total_seconds": 100.5, "platform_seconds": 60.0, "changes": 7}
    assert verdict["measured_on"]["cores"]


def test_listening_ports_are_detected() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert lab.listens("127.0.0.1", port)
    assert not lab.listens("127.0.0.1", port)


def test_an_outside_host_is_set_up_again_if_it_or_its_recipe_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = {"git": {"Id": "one"}}
    monkeypatch.setattr(lab_hosts, "containers", lambda: identity)
    recipe = tmp_path / "git_host.yml"
    recipe.write_text("first")
    stamps = [lab.stamp(recipe, "git")]
    recipe.write_text("second")
    stamps.append(lab.stamp(recipe, "git"))
    (tmp_path / "files").mkdir()
    (tmp_path / "files/git_host.conf").write_text("server")
    stamps.append(lab.stamp(recipe, "git"))
    identity["git"]["Id"] = "two"
    stamps.append(lab.stamp(recipe, "git"))
    assert len(set(stamps)) == 4


def test_minio_is_not_built_beside_the_lab_when_it_is_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("started a build")

    monkeypatch.setattr(build_go.Program, "cached", lambda self: True)
    monkeypatch.setattr(build_go.subprocess, "Popen", refuse)
    with build_go.in_background():
        pass

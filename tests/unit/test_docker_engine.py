"""scripts/lab/docker_engine.py: a running engine is used as it is, and one is started only if needed and allowed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from scripts.common import ProblemError
from scripts.lab import docker_engine


@pytest.fixture(autouse=True)
def no_real_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("touched the machine")

    monkeypatch.delenv("DOCKER_HOST", raising=False)
    for name in ("install", "start", "logged", "apt_install"):
        monkeypatch.setattr(docker_engine, name, refuse)
    monkeypatch.setattr(docker_engine, "PID_FILE", tmp_path / "dockerd.pid")


def test_a_running_engine_is_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker_engine, "answers", lambda: True)
    assert docker_engine.ensure() == "runs already"


def test_a_remote_engine_that_is_down_is_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker_engine, "answers", lambda: False)
    monkeypatch.setenv("DOCKER_HOST", "tcp://elsewhere:2375")
    with pytest.raises(ProblemError, match="tcp://elsewhere:2375"):
        docker_engine.ensure()


def test_an_ordinary_user_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker_engine, "answers", lambda: False)
    monkeypatch.setattr(docker_engine.os, "geteuid", lambda: 1000)
    with pytest.raises(ProblemError, match="group `docker`"):
        docker_engine.ensure()


def test_only_what_is_missing_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    installed: list[str] = []
    monkeypatch.setattr(docker_engine.shutil, "which", lambda name: None if name == "iptables" else f"/usr/bin/{name}")
    monkeypatch.setattr(docker_engine, "apt_install", lambda *names, reason: installed.extend(names))
    assert docker_engine.install() is True
    assert installed == ["iptables"]


def test_an_engine_that_this_did_not_start_is_not_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("sent a signal")

    monkeypatch.setattr(docker_engine, "answers", lambda: True)
    monkeypatch.setattr(os, "kill", refuse)
    assert docker_engine.stop_own() is False

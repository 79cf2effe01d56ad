"""A flow's hooks run in its own environment when its process can no longer run them."""

from __future__ import annotations

import logging
import sys
import uuid
from typing import Any

import prefect.flow_engine
import pytest
from prefect import flow
from prefect.client.schemas.objects import FlowRun

from metalworks.flow_run import hooks

called: list[tuple[str, str, str]] = []


def first(flow: Any, flow_run: Any, state: Any) -> None:
    called.append(("first", state.name, state.message))
    raise RuntimeError("a hook of somebody's")


async def second(flow: Any, flow_run: Any, state: Any) -> None:
    called.append(("second", state.name, state.message))


@flow(on_cancellation=[first, second], on_crashed=[second])
def demo() -> None:
    """Never run."""


@pytest.fixture(autouse=True)
def run(monkeypatch: pytest.MonkeyPatch) -> str:
    found = FlowRun(id=uuid.uuid4(), flow_id=uuid.uuid4(), name="demo-run")
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", str(found.id))
    monkeypatch.setattr(prefect.flow_engine, "load_flow_run", lambda flow_run_id: found)
    monkeypatch.setattr(prefect.flow_engine, "load_flow", lambda flow_run: demo)
    monkeypatch.setattr("prefect.logging.loggers.flow_run_logger", lambda flow_run: logging.getLogger("run"))
    called.clear()
    return str(found.id)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["cancellation"],
            [("first", "Cancelling", "Flow run was cancelled."), ("second", "Cancelling", "Flow run was cancelled.")],
        ),
        (["crashed", "Too much memory."], [("second", "Crashed", "Too much memory.")]),
        (["crashed", ""], [("second", "Crashed", "Flow run process was killed.")]),
    ],
)
def test_each_hook_hears_the_state_whatever_another_does(
    arguments: list[str], expected: list[tuple[str, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["-", *arguments])
    hooks.main()
    assert called == expected


def test_a_flow_that_does_not_load_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def gone(flow_run: FlowRun) -> None:
        raise ImportError("gone")

    monkeypatch.setattr(prefect.flow_engine, "load_flow", gone)
    monkeypatch.setattr(sys, "argv", ["-", "crashed"])
    with caplog.at_level(logging.WARNING):
        hooks.main()
    assert "could not be loaded to run its on_crashed hooks" in caplog.text

"""Retraining when a new month has arrived: prepared where CPUs are cheap, trained where the GPUs are.

Each part is a deployment of its own on the work pool of its machines; `retrain` calls them one after another.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from prefect import flow, runtime
from prefect.artifacts import create_table_artifact
from prefect.deployments import run_deployment
from prefect.states import Completed, State

from flights import handover, raw, registry, rules, versions
from flights.train import train as train_models


@flow(log_prints=True)
def retrain() -> State[Any]:
    """Look for a month that no registered version has learnt from; if there is one, prepare and train."""
    arrived = raw.arrived_months()
    new = rules.new_months(arrived, registry.learnt())
    if not new:
        return Completed(message="No new month: nothing to do")
    print(f"New: {', '.join(new)}")
    prepared = _run("prepare/prepare", months=arrived)
    version = handover.get(_run("train/train", prepared=prepared))
    took_over = "the new champion" if version["champion"] else "not promoted"
    return Completed(
        message=f"Version {version['version']} ({version['model']}) with {new[-1]}, "
        f"prepared on {version['prepared_on']}, trained on {version['trained_on']}: {took_over}, {version['verdict']}"
    )


@flow(log_prints=True)
def prepare(months: list[str]) -> None:
    """Features of these months as a version of the data in the store."""
    _without_git()
    params = Path("params.yaml")
    params.write_text(yaml.safe_dump(yaml.safe_load(params.read_text()) | {"months": months}, sort_keys=False))
    _dvc("repro", "prepare")
    _dvc("push", "prepare")
    lock = Path("dvc.lock").read_text()
    handover.put(runtime.flow_run.id, {"lock": lock, "host": socket.gethostname()})
    print(f"Data version {versions.data()}")


@flow(log_prints=True)
def train(prepared: str) -> None:
    """Models of exactly the data that the flow run `prepared` made; the best becomes a registered version."""
    _without_git()
    outcome = handover.get(prepared)
    Path("dvc.lock").write_text(outcome["lock"])
    _dvc("pull", "prepare")
    train_models({"prepared_on": outcome["host"], "prefect.flow_run": runtime.flow_run.id})
    create_table_artifact(key="flight-delay-models", table=registry.runs(), description=versions.data())
    handover.put(runtime.flow_run.id, registry.promote())


def _run(deployment: str, **parameters: Any) -> str:
    """Run a deployment to its end; the id of its flow run."""
    flow_run = run_deployment(deployment, parameters=parameters, poll_interval=2)
    if flow_run.state is None or not flow_run.state.is_completed():
        raise RuntimeError(f"{deployment} ({flow_run.name}) ended as {flow_run.state}")
    return str(flow_run.id)


def _without_git() -> None:
    """Code comes to a worker as an archive: DVC finds no Git there and must not look for it."""
    Path(".dvc/config.local").write_text("[core]\n    no_scm = true\n")


def _dvc(*arguments: str) -> None:
    """Run DVC with its output in the flow's log; the stages it runs find this environment's python first."""
    path = f"{sys.prefix}/bin:{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        env=os.environ | {"PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    print(done.stdout)
    done.check_returncode()

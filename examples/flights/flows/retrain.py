"""Retraining when a new month has arrived, each part a deployment of its own on the machines made for it."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.deployments import run_deployment
from prefect.states import Completed, State

from flights import handover, raw, registry, rules

# A part that takes longer than these seconds is given up, so that the next run on schedule has its turn.
PATIENCE = 3600


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


def _run(deployment: str, **parameters: Any) -> str:
    """Run a deployment to its end; the id of its flow run."""
    flow_run = run_deployment(deployment, parameters=parameters, poll_interval=2, timeout=PATIENCE)
    if flow_run.state is None or not flow_run.state.is_completed():
        raise RuntimeError(f"{deployment} ({flow_run.name}) ended as {flow_run.state}")
    return str(flow_run.id)

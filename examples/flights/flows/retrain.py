"""Retrain when a new month has arrived; each part is a separate deployment on the hosts made for it."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.deployments import run_deployment
from prefect.states import Completed, Failed, State

from flights import checks, handover, raw, registry, rules
from flights.prepare import broken_months

# Time limit for a part, so that the next scheduled run can start.
PATIENCE = 3600


@flow(log_prints=True)
def retrain() -> State[Any]:
    """Look for months that no registered version was trained with; if they are complete, prepare and train.

    In any case, the champion stays unless there is a better one.
    """
    arrived = raw.arrived_months()
    new = rules.new_months(arrived, registry.learnt())
    if not new:
        return Completed(name="Nothing new", message="No new month: nothing to do")
    print(f"New: {', '.join(new)}")
    learnt = [month for month in arrived if month not in new]
    broken = {month: ["nothing has arrived"] for month in checks.gaps([*learnt[-1:], *new], raw.left_out())}
    broken |= broken_months(new, learnt or new)
    if broken:
        return Failed(name="Broken month", message=f"Nothing was trained. {checks.report(broken, new)}")
    prepared = handover.get(_run("prepare/prepare", months=arrived))
    version = handover.get(_run("train/train", commit=prepared["commit"], prepared_on=prepared["host"]))
    return Completed(
        name="Promoted" if version["champion"] else "Not promoted",
        message=f"Version {version['version']} ({version['model']}) with {new[-1]}, "
        f"prepared on {version['prepared_on']}, trained on {version['trained_on']}: {version['verdict']}",
    )


def _run(deployment: str, **parameters: Any) -> str:
    """Run a deployment to its end; return the id of its flow run."""
    flow_run = run_deployment(deployment, parameters=parameters, poll_interval=2, timeout=PATIENCE)
    if flow_run.state is None or not flow_run.state.is_completed():
        raise RuntimeError(f"{deployment} ({flow_run.name}) ended as {flow_run.state}")
    return str(flow_run.id)

"""The deployment that `metalworks deploy` has scheduled."""

from __future__ import annotations

RETRAIN = "retrain/retrain"


def schedule() -> dict[str, str | None]:
    """Return the deployed commit and the time of its next scheduled run, each None if there is none."""
    from prefect import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId, FlowRunFilterStateType
    from prefect.client.schemas.filters import FlowRunFilterState as State
    from prefect.client.schemas.objects import StateType
    from prefect.client.schemas.sorting import FlowRunSort
    from prefect.exceptions import ObjectNotFound

    with get_client(sync_client=True) as client:
        try:
            deployment = client.read_deployment_by_name(RETRAIN)
        except ObjectNotFound:
            return {"deployed": None, "next_run": None}
        due = FlowRunFilter(
            deployment_id=FlowRunFilterDeploymentId(any_=[deployment.id]),
            state=State(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
        )
        runs = client.read_flow_runs(flow_run_filter=due, sort=FlowRunSort.NEXT_SCHEDULED_START_TIME_ASC, limit=1)
    return {"deployed": deployment.version, "next_run": str(runs[0].next_scheduled_start_time) if runs else None}

"""Run the deployed retraining flow ahead of its schedule."""

from __future__ import annotations

import time

from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort

from flights import raw, registry, rules
from flights.schedule import RETRAIN


def retrain(timeout: int, wait: bool) -> None:
    """Run retraining until no new month is left: join a run in progress, start one, or wait for one."""
    deadline = time.monotonic() + timeout
    while rules.new_months(raw.arrived_months(), registry.learnt()):
        with get_client(sync_client=True) as client:
            run = _under_way(client)
            if run is None and wait:
                if time.monotonic() > deadline:
                    raise SystemExit(f"No run of {RETRAIN} started: check its schedule, and its work pool's workers.")
                time.sleep(1)
                continue
            run = _ended(client, run or _started(client), deadline)
        if run.state and (run.state.is_failed() or run.state.is_crashed()):
            raise SystemExit(f"The flow run {run.name} ended as {run.state}: see `prefect flow-run logs {run.id}`.")
        # If it was cancelled in favour of a scheduled run, or died with its worker, months are left: go on.
        began = f" (by {run.created_by.type.lower()})" if run.created_by and run.created_by.type else ""
        print(f"{run.name}{began}: {run.state}")


def _started(client: SyncPrefectClient) -> FlowRun:
    return client.create_flow_run_from_deployment(client.read_deployment_by_name(RETRAIN).id)


def _under_way(client: SyncPrefectClient) -> FlowRun | None:
    deployment = client.read_deployment_by_name(RETRAIN)
    active = FlowRunFilter(
        deployment_id=FlowRunFilterDeploymentId(any_=[deployment.id]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.PENDING, StateType.RUNNING])),
    )
    runs = client.read_flow_runs(flow_run_filter=active, sort=FlowRunSort.START_TIME_DESC)
    return next((run for run in runs if _lives(client, run)), None)


def _ended(client: SyncPrefectClient, run: FlowRun, deadline: float) -> FlowRun:
    """Wait for a run, as long as it is alive."""
    while not (run.state and run.state.is_final()) and _lives(client, run):
        if time.monotonic() > deadline:
            raise SystemExit(f"The flow run {run.name} is still {run.state}: check its work pool's workers.")
        time.sleep(2)
        run = client.read_flow_run(run.id)
    return run


def _lives(client: SyncPrefectClient, run: FlowRun) -> bool:
    """Tell whether a run in progress holds the deployment's only slot; a dead run soon loses it."""
    if run.state is None or run.state.type not in (StateType.PENDING, StateType.RUNNING):
        return True
    limit = client.read_deployment_by_name(RETRAIN).global_concurrency_limit
    return limit is None or limit.active_slots > 0

"""Put this commit on a schedule."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import boto3

from flights import versions

RETRAIN = "retrain/retrain"


def deploy(schedule: str) -> None:
    """Upload the code of the commit and apply prefect.yaml with it."""
    if versions.dirty():
        raise SystemExit("A deployment is of a commit: commit or drop the changes that `git status` shows.")
    commit = versions.commit()
    bucket, key = os.environ["METALWORKS_FLOW_CODE_BUCKET"], f"flights/{commit}.tar.gz"
    archive = subprocess.run(["git", "archive", "--format=tar.gz", commit], check=True, capture_output=True).stdout
    boto3.client("s3").put_object(Bucket=bucket, Key=key, Body=archive)
    values = {
        "METALWORKS_FLOW_CODE": f"s3://{bucket}/{key}",
        "METALWORKS_FLOW_CODE_SHA256": hashlib.sha256(archive).hexdigest(),
        "FLIGHTS_COMMIT": commit,
        "FLIGHTS_SCHEDULE": schedule,
    }
    subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"], check=True, env=os.environ | values
    )


def schedule() -> dict[str, str | None]:
    """The commit that is deployed, and when the schedule runs it next; None: nothing is, it does not."""
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

"""End flow runs whose whole host is lost, and report runs that wait for each other. Runs beside the server.

Flow runs that `metalworks-flow-run` starts send heartbeats. A run whose heartbeats have stopped is ended as if its
worker had been killed, and rescheduled if its flow has retries. So is a run that a worker was about to start with this
command when its host was lost, before the first heartbeat. Other runs that never sent a heartbeat are left alone: for
example, a flow served from a user's shell, or started by another command.
"""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from typing import Any

from metalworks.flow_run import jam
from metalworks.flow_run.api import Api, ApiError
from metalworks.flow_run.end import HEARTBEAT, end

COMMAND = "metalworks-flow-run"
SILENT_SECONDS = 120.0
"""Four missed heartbeats."""
LOOK_SECONDS = 15.0


def unfinished(api: Api) -> list[dict[str, Any]]:
    """Return the flow runs in progress."""
    return api.flow_runs({"state": {"type": {"any_": ["PENDING", "RUNNING", "CANCELLING"]}}})


def command(api: Api, run: dict[str, Any]) -> str:
    """Return what the worker starts for a run of a work pool: its own choice, its deployment's, or the pool's."""
    chosen = dict(run["job_variables"] or {})
    if run["deployment_id"]:
        chosen = api.ask("GET", f"/deployments/{run['deployment_id']}")["job_variables"] | chosen
    if "command" in chosen:
        return str(chosen["command"])
    template = api.ask("GET", f"/work_pools/{run['work_pool_name']}")["base_job_template"]
    return str(template.get("variables", {}).get("properties", {}).get("command", {}).get("default", ""))


def silence(api: Api, run: dict[str, Any], now: datetime) -> float | None:
    """Return the seconds since the last sign of life by the server's clock, or None if the run gives none.

    A worker that takes a run says so; the first heartbeat follows at once, before the environment is prepared.
    """
    said = datetime.fromisoformat(run["state"]["timestamp"])
    wanted = {"event": {"name": [HEARTBEAT]}, "resource": {"id": [f"prefect.flow-run.{run['id']}"]}, "order": "DESC"}
    events = api.ask("POST", "/events/filter", {"filter": wanted, "limit": 1})["events"]
    if events:
        # The heartbeats of a rescheduled run may be those of its previous process, so count from its last state, too.
        said = max(said, datetime.fromisoformat(events[0]["received"]))
    elif run["state"]["type"] != "PENDING" or not run["work_pool_name"] or COMMAND not in command(api, run):
        return None
    return (now - said).total_seconds()


def look(api: Api) -> list[str]:
    """End the flow runs that are silent for too long; return a line about each."""
    now = datetime.now(UTC)
    lines = []
    for run in unfinished(api):
        seconds = silence(api, run, now)
        if seconds is not None and seconds > SILENT_SECONDS:
            state = end(api, run["id"], f"Its host has sent no heartbeat for {seconds:.0f} s.")
            lines.append(f"{run['name']} ({run['id']}): no heartbeat for {seconds:.0f} s, state is now {state}")
    return lines


def main() -> None:
    """Look regularly. After an outage, all runs first get the time to send a heartbeat again.

    The server's health is checked through the gateway, as workers reach it: if the gateway is down, all runs are silent
    but none are lost.
    """
    api = Api(os.environ)
    gateway = Api({**os.environ, "METALWORKS_PREFECT_SOCKET": ""})
    judge_from = time.monotonic() + SILENT_SECONDS
    away = False
    told = set[str]()
    while True:
        try:
            gateway.ask("GET", "/health")
            if time.monotonic() >= judge_from:
                for line in look(api):
                    print(line, flush=True)
            away = False
        except ApiError as error:
            judge_from = time.monotonic() + SILENT_SECONDS
            if not away:
                print(f"{error} Retrying every {LOOK_SECONDS:.0f} s.", flush=True)
            away = True
        else:
            try:
                for line in jam.look(api, unfinished(api), told):
                    print(line, flush=True)
            except ApiError as error:  # whoever is lost is judged all the same
                print(f"Whether runs wait for each other is not known: {error}", flush=True)
        time.sleep(LOOK_SECONDS)


if __name__ == "__main__":
    main()

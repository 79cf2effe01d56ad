"""Flow runs whose whole host is gone: beside the server, for nobody on such a host can report anything.

A flow run that was started by `metalworks-flow-run` gives signs of life. One that has given them and is silent for
long is ended as if its worker had been killed, and goes back on schedule where its flow has retries. Whoever never
gave one is left alone: a flow served from somebody's own shell, or run by another command.
"""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from typing import Any

from metalworks.flow_run.api import Api, ApiError
from metalworks.flow_run.end import HEARTBEAT, end

SILENT_SECONDS = 120.0
"""Four signs of life that did not come."""
LOOK_SECONDS = 15.0
PAGE = 200


def unfinished(api: Api) -> list[dict[str, Any]]:
    """Return the flow runs that somebody is at work on."""
    found: list[dict[str, Any]] = []
    wanted = {"state": {"type": {"any_": ["PENDING", "RUNNING", "CANCELLING"]}}}
    while True:
        page = api.ask("POST", "/flow_runs/filter", {"flow_runs": wanted, "limit": PAGE, "offset": len(found)})
        found += page
        if len(page) < PAGE:
            return found


def silence(api: Api, run: dict[str, Any], now: datetime) -> float | None:
    """Return the seconds since the last sign of life, by the server's clock; None for a run that never gave one."""
    wanted = {"event": {"name": [HEARTBEAT]}, "resource": {"id": [f"prefect.flow-run.{run['id']}"]}, "order": "DESC"}
    events = api.ask("POST", "/events/filter", {"filter": wanted, "limit": 1})["events"]
    if not events:
        return None
    # A run that was put back begins anew: its earlier signs are those of the process that is gone.
    last = max(datetime.fromisoformat(text) for text in (events[0]["received"], run["state"]["timestamp"]))
    return (now - last).total_seconds()


def look(api: Api) -> list[str]:
    """End the flow runs that are silent for too long; return a line about each."""
    now = datetime.now(UTC)
    lines = []
    for run in unfinished(api):
        seconds = silence(api, run, now)
        if seconds is not None and seconds > SILENT_SECONDS:
            state = end(api, run["id"], f"Its host has not been heard of for {seconds:.0f} s.")
            lines.append(f"{run['name']} ({run['id']}): silent for {seconds:.0f} s, now {state}")
    return lines


def main() -> None:
    """Look again and again. After a time without answers everybody first gets the chance to be heard again.

    Whether the server answers is asked the way the workers go, through the gateway: were that closed, all would be
    silent and none lost.
    """
    api = Api(os.environ)
    gateway = Api({**os.environ, "METALWORKS_PREFECT_SOCKET": ""})
    judge_from = time.monotonic() + SILENT_SECONDS
    away = False
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
                print(f"{error} Asking again every {LOOK_SECONDS:.0f} s.", flush=True)
            away = True
        time.sleep(LOOK_SECONDS)


if __name__ == "__main__":
    main()

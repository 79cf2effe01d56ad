"""Report the end of a flow run that nobody else reports: its worker ended too, or the run could not start."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

from metalworks.flow_run.api import Api, ApiError
from metalworks.flow_run.group import RunGroup

REPORT_SECONDS = 10.0
"""A worker that is still alive this long after its flow ended has reported the end itself."""
BEAT_SECONDS = 30.0
"""Interval of a flow run's heartbeats. Without them, metalworks.flow_run.lost considers the host lost."""
HEARTBEAT = "prefect.flow-run.heartbeat"
"""Prefect's own heartbeat event. Prefect itself sends it only once the flow runs, and not while a library holds the
GIL."""
UNBEGUN_CRASHES = 3
"""How often a run that crashes before its flow's first line is rescheduled: it has not done anything yet."""


def alive(process: int) -> bool:
    """Tell whether a process exists, whichever user it belongs to."""
    return Path(f"/proc/{process}").exists()


def beat(api: Api, run: str) -> None:
    """Send a heartbeat for a flow run."""
    event = {
        "id": str(uuid.uuid4()),
        "occurred": datetime.now(UTC).isoformat(),
        "event": HEARTBEAT,
        "resource": {"prefect.resource.id": f"prefect.flow-run.{run}"},
    }
    api.ask("POST", "/events", [event])


def _set_state(api: Api, run: str, **state: object) -> bool:
    """Set a flow run's state; tell whether Prefect accepted it."""
    answer = api.ask("POST", f"/flow_runs/{run}/set_state", {"state": state})
    return bool(answer["status"] == "ACCEPT")


def end(api: Api, run: str, reason: str, again: bool = True) -> str:
    """End a flow run that has not ended, with this reason; return the name of its state afterwards.

    With `again`, a crashed run whose flow has retries left is rescheduled for another worker of its pool. This applies
    to runs that have crashed already, too: a flow that is told to stop reports that itself, as a crash.
    """
    found = api.ask("GET", f"/flow_runs/{run}")
    state = found["state"] or {"type": "PENDING", "name": "Pending"}
    if state["type"] == "CANCELLING":
        _set_state(api, run, type="CANCELLED", name="Cancelled", message=reason)
        return "Cancelled"
    if state["type"] in ("PENDING", "RUNNING"):
        if not _set_state(api, run, type="CRASHED", name="Crashed", message=reason):
            return str(state["name"])
    elif state["type"] != "CRASHED":
        return str(state["name"])
    states = api.ask("GET", f"/flow_run_states/?flow_run_id={run}")
    tries = max(found["run_count"], sum(each["type"] == "CRASHED" for each in states))
    policy = found["empirical_policy"]
    allowed = (policy["retries"] or 0) if found["run_count"] else UNBEGUN_CRASHES
    if not again or not found["deployment_id"] or tries > allowed:
        return "Crashed"
    due = datetime.now(UTC) + timedelta(seconds=policy["retry_delay"] or 0)
    details = {"scheduled_time": due.isoformat()}
    words = f"Retry after a crash: {reason}"
    taken = _set_state(api, run, type="SCHEDULED", name="AwaitingRetry", message=words, state_details=details)
    return "AwaitingRetry" if taken else "Crashed"


def watch(run: str, group: RunGroup) -> None:
    """Leave a process behind that gives signs of life, and ends the run when this process has ended.

    A worker reports what becomes of its flows, but one that is stopped kills them without a word: they would count as
    running for ever. The process left behind notices the end by a pipe that only this one holds open. Then it ends all
    other processes of the run: this one may have been killed before it could.
    """
    worker = os.getppid()
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(reading)
        os.waitpid(child, 0)
        return
    if os.fork():  # fork twice, so that the worker does not wait for the background process
        os._exit(0)
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # systemd stops the whole service; this process still has to report
    os.chdir("/")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    os.close(writing)
    try:
        api = Api(os.environ)
        ended = False
        while not ended:
            with contextlib.suppress(ApiError):  # the next heartbeat may get through
                beat(api, run)
            ended = bool(select.select([reading], [], [], BEAT_SECONDS)[0])
        group.end()
        group.remove()
        deadline = time.monotonic() + REPORT_SECONDS
        while alive(worker) and time.monotonic() < deadline:
            time.sleep(0.2)
        if not alive(worker):
            end(api, run, "The worker was stopped, restarted or killed while it was executing this run.")
    finally:
        os._exit(0)

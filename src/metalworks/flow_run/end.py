"""The end of a flow run that nobody else reports: its worker has ended with it, or it could not start."""

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

REPORT_SECONDS = 10.0
"""A worker that lives this long after its flow has reported the end itself."""
BEAT_SECONDS = 30.0
"""Between two signs of life of a flow run; without them its whole host counts as gone (metalworks.flow_run.lost)."""
HEARTBEAT = "prefect.flow-run.heartbeat"
"""Prefect's own name for such an event. Prefect would send them only once the flow runs, and not while a library
keeps Python's interpreter to itself."""
UNBEGUN_CRASHES = 3
"""A run that crashes before its flow's first line is put back this often: of what it does, nothing is done yet."""


def alive(process: int) -> bool:
    """Tell whether a process is there, whoever's it is."""
    return Path(f"/proc/{process}").exists()


def beat(api: Api, run: str) -> None:
    """Tell Prefect that a flow run's process is there."""
    event = {
        "id": str(uuid.uuid4()),
        "occurred": datetime.now(UTC).isoformat(),
        "event": HEARTBEAT,
        "resource": {"prefect.resource.id": f"prefect.flow-run.{run}"},
    }
    api.ask("POST", "/events", [event])


def _set_state(api: Api, run: str, **state: object) -> bool:
    """Tell whether Prefect took the state over."""
    answer = api.ask("POST", f"/flow_runs/{run}/set_state", {"state": state})
    return bool(answer["status"] == "ACCEPT")


def end(api: Api, run: str, reason: str, again: bool = True) -> str:
    """Make the reason the end of a flow run that has none; return the name of the state that it is in then.

    With `again` it goes back on schedule, for another worker of its pool, where its flow still has retries. Of a run
    that crashed already, only that is left to do: a flow that is told to stop says so itself, and counts as crashed.
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
    words = f"Once more after a crash: {reason}"
    taken = _set_state(api, run, type="SCHEDULED", name="AwaitingRetry", message=words, state_details=details)
    return "AwaitingRetry" if taken else "Crashed"


def watch(run: str) -> None:
    """Leave a process behind that gives signs of life, and ends the run when this process and its worker have ended.

    A worker reports what becomes of its flows, but one that is stopped kills them without a word: they would count as
    running for ever. The process left behind notices the end by a pipe that this one, and what it becomes, holds open.
    """
    worker = os.getppid()
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(reading)
        os.set_inheritable(writing, True)
        os.waitpid(child, 0)
        return
    if os.fork():  # the worker must not wait for a grandchild of its own
        os._exit(0)
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # systemd stops all of the service at once; this one has work then
    os.chdir("/")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    os.close(writing)
    try:
        api = Api(os.environ)
        ended = False
        while not ended:
            with contextlib.suppress(ApiError):  # the server is away: the next one may get through
                beat(api, run)
            ended = bool(select.select([reading], [], [], BEAT_SECONDS)[0])
        deadline = time.monotonic() + REPORT_SECONDS
        while alive(worker) and time.monotonic() < deadline:
            time.sleep(0.2)
        if not alive(worker):
            end(api, run, "The worker was stopped, restarted or killed while this run was on it.")
    finally:
        os._exit(0)

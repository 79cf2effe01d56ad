"""The end of a flow run that nobody else reports: its worker has ended with it, or it could not start."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from uuid import UUID

UNFINISHED = {"PENDING", "RUNNING", "CANCELLING"}
REPORT_SECONDS = 10.0
"""A worker that lives this long after its flow has reported the end itself."""


def alive(process: int) -> bool:
    """Tell whether a process is there, whoever's it is."""
    return Path(f"/proc/{process}").exists()


def crash(run: str, message: str) -> None:
    """Make a reason the final state of a flow run, unless it has one."""
    from prefect.client.orchestration import get_client
    from prefect.states import Crashed

    with get_client(sync_client=True) as client:
        state = client.read_flow_run(UUID(run)).state
        if state is None or state.type.value in UNFINISHED:
            client.set_flow_run_state(UUID(run), Crashed(message=message))


def watch(run: str) -> None:
    """Leave a process behind that ends the flow run in Prefect when both this process and its worker have ended.

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
        os.read(reading, 1)
        deadline = time.monotonic() + REPORT_SECONDS
        while alive(worker) and time.monotonic() < deadline:
            time.sleep(0.2)
        if not alive(worker):
            crash(run, "The worker was stopped, restarted or killed while this run was on it.")
    finally:
        os._exit(0)

"""Runs that start others: processes that outlive them, and flows that they wait for."""

from __future__ import annotations

import subprocess
import time
from typing import Any

from prefect import flow
from prefect.deployments import run_deployment


def note(flow: Any, flow_run: Any, state: Any) -> None:
    """Be a hook."""


@flow(on_cancellation=[note])
def leave(seconds: float = 0) -> None:
    """Start grandchildren, one in a session of its own, that hold the worker's pipe; go on for as long as told."""
    subprocess.run("sleep 86123 & setsid sleep 86123 &", shell=True, check=True)
    time.sleep(seconds)


@flow
def parent() -> None:
    """Hold a slot of the pool until the child, which needs one, has ended."""
    run_deployment("leave/leave", timeout=600, poll_interval=2)

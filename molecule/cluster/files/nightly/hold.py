"""A flow that runs for the given time and does not need the services host meanwhile."""

from __future__ import annotations

import socket
import time
from typing import Any

import tabulate
from prefect import flow
from prefect.states import Completed, State


@flow
def hold(seconds: float = 0) -> State[Any]:
    """Wait, then return the host and the version of a package."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(0.2)
    return Completed(message=f"tabulate {tabulate.__version__} on {socket.gethostname()}")

"""A run that takes as long as it is told, and needs nothing of the services host meanwhile."""

from __future__ import annotations

import socket
import time
from typing import Any

import tabulate
from prefect import flow
from prefect.states import Completed, State


@flow
def hold(seconds: float = 0) -> State[Any]:
    """Wait, then say where that was and what was there."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(0.2)
    return Completed(message=f"tabulate {tabulate.__version__} on {socket.gethostname()}")

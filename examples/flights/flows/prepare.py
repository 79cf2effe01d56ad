"""Prepare the months that have arrived, as a commit and a version of the data; runs on the pool `cpu`."""

from __future__ import annotations

import socket

from prefect import flow, runtime

from flights import handover, repository


# Retry after a crash: finished steps are not repeated.
@flow(log_prints=True, retries=1, retry_delay_seconds=5)
def prepare(months: list[str]) -> None:
    """Push the data and its commit, and hand the commit over to the training."""
    message = f"Data until {months[-1]}\n\nFlow-Run: {runtime.flow_run.id}"
    handover.put(runtime.flow_run.id, {"commit": repository.prepare(months, message), "host": socket.gethostname()})

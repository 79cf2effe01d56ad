"""Features of the months that have arrived, as a commit and a version of the data; on the pool `cpu`."""

from __future__ import annotations

import socket

from prefect import flow, runtime

from flights import handover, repository


# Once more after a crash: what is done already is not done again.
@flow(log_prints=True, retries=1, retry_delay_seconds=5)
def prepare(months: list[str]) -> None:
    """Push the data and the commit that names it; leave that for whoever trains."""
    message = f"Data until {months[-1]}\n\nFlow-Run: {runtime.flow_run.id}"
    handover.put(runtime.flow_run.id, {"commit": repository.prepare(months, message), "host": socket.gethostname()})

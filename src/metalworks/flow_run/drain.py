"""Prefect's command line with a worker that can be told to take no new runs: ``python -m metalworks.flow_run.drain``.

Prefect can pause a pool or a queue, for all workers, but not one worker. While the file DRAINING has a time in the
future, this one does not ask for runs; those that it has continue. After that time it asks again by itself.
"""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from prefect.cli import app
from prefect.types._datetime import now
from prefect.workers.process import ProcessWorker

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

DRAINING = Path("/run/metalworks/draining")
"""Seconds since 1970 until which no worker of the host takes a run. Root writes it; a reboot removes it."""


def draining() -> bool:
    """Tell whether the host's workers take no new runs."""
    try:
        return time.time() < float(DRAINING.read_text())
    except (OSError, ValueError):
        return False


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that this class takes the place of Prefect's own for pools of type process

    class DrainableWorker(ProcessWorker):
        """A process worker that asks for no runs while its host is drained."""

        type = "process"

        async def get_and_submit_flow_runs(self) -> list[FlowRun]:
            """Start the runs that are due, unless the host is drained; its health is that of a worker that asks."""
            if not draining():
                return await super().get_and_submit_flow_runs()
            self._last_polled_time = now("UTC")
            return []


if __name__ == "__main__":
    app()

"""Train models with exactly the code and data of one commit; runs on the pool `gpu`."""

from __future__ import annotations

import os

from prefect import flow, runtime
from prefect.artifacts import create_table_artifact

from flights import handover, registry, repository, versions
from flights.train import train as train_models


@flow(log_prints=True, retries=1, retry_delay_seconds=5)
def train(commit: str, prepared_on: str) -> None:
    """Train with the data of the commit, register the best model, make it champion if it is better."""
    repository.get(commit)
    train_models({"prepared_on": prepared_on})
    if registry.REPRODUCTION in os.environ:
        return
    create_table_artifact(key="flight-delay-models", table=registry.runs(), description=versions.data())
    handover.put(runtime.flow_run.id, registry.promote())

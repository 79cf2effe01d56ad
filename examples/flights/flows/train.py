"""Models of exactly the data that another flow run has prepared; on the pool `gpu`."""

from __future__ import annotations

from prefect import flow, runtime
from prefect.artifacts import create_table_artifact

from flights import data, handover, registry, versions
from flights.train import train as train_models


@flow(log_prints=True)
def train(prepared: str) -> None:
    """Get the data of the flow run `prepared`, train, and register the best model as a new version."""
    outcome = handover.get(prepared)
    data.get(outcome["lock"])
    train_models({"prepared_on": outcome["host"], "prefect.flow_run": runtime.flow_run.id})
    create_table_artifact(key="flight-delay-models", table=registry.runs(), description=versions.data())
    handover.put(runtime.flow_run.id, registry.promote())

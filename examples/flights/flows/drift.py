"""Compare the service's requests with its model's training data; runs on the pool `cpu`."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.states import Completed, Failed, State

from flights import drift as check
from flights import registry, repository


@flow(log_prints=True, retries=1, retry_delay_seconds=5)
def drift(service: str = "delay", days: int = 7) -> State[Any]:
    """Compare requests with the data of the champion's commit; a drifted feature fails the run."""
    champion = registry.champion()
    if champion is None:
        return Completed(name="No champion", message="Nothing is in service")
    repository.get(champion.tags[registry.COMMIT])
    found = check.report(service, days)
    create_table_artifact(key="flight-delay-drift", table=found, description=f"Version {champion.version}, {days} days")
    other = [f"{row['feature']} ({row['psi']})" for row in found if row["psi"] >= check.OTHER]
    if other:
        return Failed(
            name="Drifted", message=f"Version {champion.version} was trained on other data: {', '.join(other)}"
        )
    return Completed(name="Alike", message=f"Most changed: {found[0]['feature']} ({found[0]['psi']})")

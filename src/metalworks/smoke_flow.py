"""The flow that the platform's checks run on every work pool; workers find it in their own environment."""

import platform

from prefect import flow


@flow(name="metalworks-smoke", log_prints=True)
def smoke() -> str:
    """Return the name of the host that ran it."""
    print(f"iron on {platform.node()}")
    return platform.node()

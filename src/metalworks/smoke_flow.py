"""The flow that the smoke checks run on every work pool; it is installed in the workers' own environment."""

import platform

from prefect import flow


@flow(name="metalworks-smoke", log_prints=True)
def smoke() -> str:
    """Return the name of the host that ran it."""
    print(f"iron on {platform.node()}")
    return platform.node()

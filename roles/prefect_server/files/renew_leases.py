"""Renew all leases of concurrency slots before the server starts.

A holder renews its lease for 300 s every 225 s. While the server is down, leases expire. The server would revoke them
as soon as it starts, and Prefect ends a run that cannot renew its lease. A lease without a holder expires soon after.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from uuid import UUID

from prefect.server.concurrency.lease_storage.filesystem import ConcurrencyLeaseStorage

LENGTH = timedelta(seconds=300)


async def renew() -> int:
    """Renew all leases; return how many there are."""
    storage = ConcurrencyLeaseStorage()
    leases = [UUID(file.stem) for file in storage.storage_path.glob("*-*-*-*-*.json")]
    return sum([await storage.renew_lease(lease, LENGTH) for lease in leases])


if __name__ == "__main__":
    print(f"{asyncio.run(renew())} leases of concurrency slots renewed")

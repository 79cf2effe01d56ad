"""Run before the server starts: leases of concurrency slots last as if their holders had just asked for it.

A holder renews its lease every 225 s for 300 s. What ran out while nobody could renew it would be taken back the moment
the server starts, and Prefect ends a run that cannot renew. A lease whose holder is gone runs out a little later.
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

"""Leases of concurrency slots after an outage of the server, with Prefect's own lease storage."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

from scripts.common import ROOT, environment

PROGRAM = ROOT / "roles/prefect_server/files/renew_leases.py"


def renew(home: Path) -> str:
    done = subprocess.run(
        [sys.executable, PROGRAM],
        env={**environment(), "PREFECT_HOME": str(home)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_leases_that_expired_during_an_outage_are_renewed(tmp_path: Path) -> None:
    # Not at the top: all processes that share the tests would import Prefect's server.
    from prefect.server.concurrency.lease_storage import ConcurrencyLimitLeaseMetadata
    from prefect.server.concurrency.lease_storage.filesystem import ConcurrencyLeaseStorage

    leases = ConcurrencyLeaseStorage(tmp_path / "concurrency_leases")
    limit = uuid4()

    async def make(seconds: float) -> UUID:
        length, slots = timedelta(seconds=seconds), ConcurrencyLimitLeaseMetadata(slots=1)
        return (await leases.create_lease([limit], length, slots)).id

    ran_out, runs = asyncio.run(make(-60)), asyncio.run(make(60))
    assert asyncio.run(leases.read_expired_lease_ids()) == [ran_out]
    assert renew(tmp_path).startswith("2 leases")
    assert asyncio.run(leases.read_expired_lease_ids()) == []
    assert set(asyncio.run(leases.read_active_lease_ids())) == {ran_out, runs}
    kept = asyncio.run(leases.read_lease(ran_out))
    assert kept is not None
    assert kept.resource_ids == [limit]


def test_without_leases_there_is_nothing_to_do(tmp_path: Path) -> None:
    assert renew(tmp_path).startswith("0 leases")

"""The cluster as its users reach it: over SSH, as an ordinary user with sudo."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import clients
import pytest
import testinfra
from testinfra.host import Host

from scripts.lab import hosts as lab_hosts

Reach = Callable[[str], Host]


@pytest.fixture(scope="session")
def reach() -> Reach:
    """Return a function that connects to a host by name."""
    return lambda name: testinfra.get_host(f"ssh://{name}", ssh_config=str(lab_hosts.SSH_CONFIG), sudo=True)


@pytest.fixture(scope="module")
def authority(reach: Reach) -> Iterator[None]:
    """Import the CA's certificate on the outside host, so that it can verify the platform."""
    clients.import_authority()
    yield
    reach(clients.STRANGER).run_expect([0], "rm /tmp/ca.crt")

"""The cluster as its users reach it: over SSH, as an ordinary user with sudo.

Each folder in `together` is a lane: its tests, which count the same slots or move the same aliases, run one after the
other while those of other lanes run. Tests in `alone` run after them, in one process: they stop services, change what
others rely on, or compare everything on the site before and after.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import clients
import pytest
import testinfra
from testinfra.host import Host
from xdist.scheduler import LoadScopeScheduling

from scripts.lab import hosts as lab_hosts

Reach = Callable[[str], Host]
LANES = Path(__file__).parent / "together"


class Lanes(LoadScopeScheduling):
    """Gives the tests of a folder to one process."""

    def _split_scope(self, nodeid: str) -> str:
        return str(Path(nodeid.partition("::")[0]).parent)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Lanes:
    """Run each lane in one process."""
    return Lanes(config, log)


def alone(config: pytest.Config) -> bool:
    """Tell whether this session runs tests that need the platform for themselves."""
    return any(LANES not in Path(one.partition("::")[0]).absolute().parents for one in config.args)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return the number of processes; without any, pytest runs the tests itself."""
    return 0 if alone(config) else sum(1 for _ in LANES.glob("[a-z]*/"))


def pytest_configure(config: pytest.Config) -> None:
    """Keep the report of the tests that ran together."""
    if config.option.xmlpath and alone(config):
        report = Path(config.option.xmlpath)
        config.option.xmlpath = str(report.with_stem(f"{report.stem}-alone"))


@pytest.fixture(scope="session")
def reach() -> Reach:
    """Return a function that connects to a host by name."""
    return lambda name: testinfra.get_host(f"ssh://{name}", ssh_config=str(lab_hosts.SSH_CONFIG), sudo=True)


@pytest.fixture(scope="module")
def authority(reach: Reach) -> Iterator[None]:
    """Import the CA's certificate on the outside host, so that it can verify the platform."""
    clients.import_authority()
    yield
    reach(clients.STRANGER).run_expect([0], f"rm {clients.CA}")

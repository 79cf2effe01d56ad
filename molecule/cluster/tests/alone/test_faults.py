"""Faults that take a service away from everybody: a request that hangs Prefect, and the death of the services host."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator

import pytest
from clients import ADDRESSES, as_person
from conftest import Reach
from flows import PATIENCE, end_of, history, record, run_of, toolbox, wait_for

from scripts.common import wait_until
from scripts.lab import hosts as lab_hosts
from scripts.tests.faults import __main__ as faults_suite
from scripts.tests.faults.faults import all_faults

pytestmark = pytest.mark.usefixtures("authority")


def test_an_endless_pattern_ends_with_a_restart_and_service_resumes(reach: Reach) -> None:
    """Viewers cannot send a pattern at all; developers can, and a watchdog restarts the server."""
    attack = {
        "schema": {
            "type": "object",
            "properties": {"x": {"type": "string", "pattern": "^(([a-z])+.)+[A-Z]([a-z])+$"}},
        },
        "values": {"x": "a" * 60},
    }
    assert as_person("guest", "prefect", "/api/ui/schemas/validate", attack)[0] == 403
    services = reach("services-1")
    before = services.check_output("systemctl show prefect-server --property NRestarts --value")
    status, _ = as_person("ml1", "prefect", "/api/ui/schemas/validate", attack)
    assert status == 502
    wait_until(lambda: as_person("guest", "prefect", "/api/version")[0] == 200, "Prefect does not come back", 90)
    assert int(services.check_output("systemctl show prefect-server --property NRestarts --value")) == int(before) + 1


@pytest.fixture(scope="module")
def nightly(reach: Reach, authority: None) -> Iterator[None]:
    """A project of ml1's, deployed."""
    with toolbox(reach):
        yield


def answers() -> bool:
    """Tell whether Prefect responds."""
    try:
        return as_person("ml1", "prefect", "/api/health")[0] == 200
    except subprocess.CalledProcessError:  # the gateway is down
        return False


@pytest.mark.usefixtures("nightly")
def test_runs_survive_the_death_of_the_services_host(reach: Reach) -> None:
    """They also keep their slots: with a limit of one, the second run starts when the first has ended."""
    holder = run_of("alone", seconds=60)
    wait_for(holder, "Running")  # before the second one exists: if both are due, either may take the slot
    waiting = run_of("alone")
    worker = reach("cpu-1").run("systemctl show --property MainPID prefect-worker-cpu.service").stdout
    services = lab_hosts.Host("services-1", ADDRESSES["services-1"])
    names = lab_hosts.power_off(services)
    time.sleep(10)
    lab_hosts.power_on(services, names)
    deadline = time.monotonic() + PATIENCE
    while not answers():
        assert time.monotonic() < deadline
        time.sleep(2)
    assert [end_of(run)["type"] for run in (holder, waiting)] == ["COMPLETED", "COMPLETED"]
    assert history(holder).count("Running") == 1
    assert record(waiting)["start_time"] > record(holder)["end_time"]
    assert reach("cpu-1").run("systemctl show --property MainPID prefect-worker-cpu.service").stdout == worker


def test_no_acknowledged_write_is_lost() -> None:
    """The short form of `make test-faults`: both places where data lies, killed under load."""
    assert faults_suite.run(faults_suite.chosen(["kill-postgresql", "kill-minio"], all_faults()), break_ledger=False)

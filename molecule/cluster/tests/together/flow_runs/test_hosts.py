"""Every program runs where the inventory says, is enabled at boot, and its host resolves by name."""

from __future__ import annotations

import re

import pytest
from clients import PLATFORM
from conftest import Reach

UNITS = [
    ("services-1", "postgresql@15-main.service", 5432),
    ("services-1", "minio.service", 9000),
    ("services-1", "mlflow.service", None),
    ("services-1", "prefect-server.service", None),
    ("services-1", "prefect-lost-runs.service", None),
    ("services-1", "nginx.service", 443),
    ("services-1", "platform-status.service", None),
    ("gpu-1", "prefect-worker-gpu.service", None),
    ("gpu-1", "inference-delay.service", 8000),
    ("gpu-1", "models-delay.service", None),
    ("cpu-1", "prefect-worker-cpu.service", None),
]


@pytest.mark.parametrize(("name", "unit", "port"), UNITS)
def test_the_unit_is_running_and_enabled(reach: Reach, name: str, unit: str, port: int | None) -> None:
    host = reach(name)
    assert host.service(unit).is_running, host.run(f"journalctl -u {unit} -n 30 --no-pager").stdout
    assert host.service(unit).is_enabled
    if port:
        assert [socket for socket in host.socket.get_listening_sockets() if socket.endswith(f":{port}")]


@pytest.mark.parametrize("name", PLATFORM)
def test_no_unit_failed_and_no_platform_process_runs_as_root(reach: Reach, name: str) -> None:
    host = reach(name)
    assert host.run("systemctl list-units --state=failed --plain --no-legend").stdout == ""
    ours = host.run("ps -eo user:32=,args= | grep -E '/opt/metalworks/|/usr/local/bin/minio' | grep -v grep").stdout
    assert [line for line in ours.splitlines() if line.startswith("root ")] == []


@pytest.mark.parametrize("name", PLATFORM)
def test_every_host_resolves_every_other_by_name(reach: Reach, name: str) -> None:
    hosts_file = reach(name).file("/etc/hosts").content_string
    for other in [*PLATFORM, "customer-db", "git", "mlflow.metalworks.internal"]:
        assert other in hosts_file.split(), hosts_file


@pytest.mark.parametrize("name", PLATFORM)
def test_secrets_on_hosts_are_not_world_readable(reach: Reach, name: str) -> None:
    found = reach(name).run("find /etc/metalworks -name '*.env' -perm /007 2>/dev/null")
    assert found.stdout == ""


@pytest.mark.parametrize("name", PLATFORM)
def test_platform_files_are_not_world_writable(reach: Reach, name: str) -> None:
    nobody = "setpriv --reuid=nobody --regid=nogroup --clear-groups"
    found = reach(name).run(f"{nobody} find / -xdev -writable '(' -type f -o -type d ! -perm -1000 ')' 2>/dev/null")
    assert found.stdout == ""


TIMERS = [(name, f"metalworks-{job}") for name in PLATFORM for job in ("certificate", "disk-space")] + [
    ("services-1", "metalworks-mlflow-collect")
]
SANDBOXED = [(name, unit) for name, unit, _ in UNITS] + [(name, f"{job}.service") for name, job in TIMERS]


@pytest.mark.parametrize(("name", "unit"), SANDBOXED)
def test_units_are_sandboxed(reach: Reach, name: str, unit: str) -> None:
    """systemd's exposure level: 0 is best, 10 is worst. No unit of the platform is exempt."""
    said = reach(name).check_output("systemd-analyze security --no-pager %s", unit).splitlines()[-1]
    found = re.search(r"exposure level for .*: ([0-9.]+)", said)
    assert found, said
    assert float(found[1]) <= 2.0


@pytest.mark.parametrize(("name", "job"), TIMERS)
def test_what_runs_by_a_timer_is_due_and_works_now(reach: Reach, name: str, job: str) -> None:
    host = reach(name)
    assert host.service(f"{job}.timer").is_enabled
    assert host.check_output("systemctl show --property NextElapseUSecRealtime --value %s", f"{job}.timer")
    assert host.run(f"systemctl start {job}.service").rc == 0, host.run(f"journalctl -u {job} -n 30 --no-pager").stdout

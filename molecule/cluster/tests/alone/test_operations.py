"""Operation of a running platform: detect faults, recover from kills, add a host."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import yaml
from clients import ADDRESSES, PLATFORM, as_person, over_ssh
from conftest import Reach
from testinfra.host import Host

from scripts.common import BUILD, ROOT, environment, wait_until
from scripts.lab import hosts as lab_hosts
from scripts.site import inventory as edit_inventory
from scripts.tests.faults.site import UNITS

FIFTH = lab_hosts.Host("cpu-2", "198.51.100.32")


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)


def smoke() -> tuple[int, dict[str, object]]:
    code = run(sys.executable, "-m", "scripts.site.smoke").returncode
    return code, json.loads((BUILD / "smoke.json").read_text())


@pytest.fixture(scope="module")
def inventory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Add a host to the lab and yield a copy of its inventory with the host."""
    copy = tmp_path_factory.mktemp("site") / "lab"
    shutil.copytree(lab_hosts.INVENTORY, copy, ignore=shutil.ignore_patterns("00-product"))
    (copy / "group_vars/all/00-product").symlink_to(ROOT / "group_vars/all")
    lab_hosts.add(FIFTH)
    edit_inventory.add(copy, FIFTH.name, FIFTH.address, "cpu")
    yield copy
    lab_hosts.discard(FIFTH)


def test_smoke_names_a_stopped_service_and_exits_with_1(reach: Reach) -> None:
    services = reach("services-1")
    assert services.run("systemctl stop mlflow.service").rc == 0
    try:
        code, verdict = smoke()
    finally:
        assert services.run("systemctl start mlflow.service").rc == 0
        back(services, {"mlflow": "0"}, UNITS["services-1"])
    assert code == 1
    assert [failure for failure in verdict["failures"] if "mlflow.service" in failure]


EVERYWHERE = ("ssh", "chrony")
"""Units of the distribution that every host needs. chrony cannot run in a container, which cannot set a clock."""


def killed(host: Host, *units: str) -> dict[str, str]:
    """Kill the main processes of all units at once; return their PIDs."""
    shown = {unit: host.check_output("systemctl show --property MainPID --value %s", unit) for unit in units}
    assert "0" not in shown.values(), shown
    host.check_output(f"kill -KILL {' '.join(shown.values())}")
    return shown


def back(host: Host, before: dict[str, str], answers: dict[str, str]) -> None:
    """Wait until each unit has a new main process and works."""
    for unit, process in before.items():
        other = f"test $(systemctl show --property MainPID --value {unit}) != {process}"
        well = f"systemctl is-active --quiet {unit} && {other} && {answers.get(unit, 'true')}"
        done = host.run(f"timeout 120 sh -c 'until {well}; do sleep 0.5; done'")
        assert done.rc == 0, host.run(f"systemctl status --no-pager --lines 20 {unit}").stdout


def test_a_killed_database_comes_back_and_everything_works(reach: Reach) -> None:
    """As if the kernel had killed it for memory. No other unit must need a restart."""
    services = reach("services-1")
    others = [unit for unit in UNITS["services-1"] if not unit.startswith("postgresql")]
    show = f"systemctl show --property MainPID --value {' '.join(others)}"
    processes = services.check_output(show)
    back(services, killed(services, "postgresql@15-main"), UNITS["services-1"])
    assert services.check_output(show) == processes
    code, verdict = smoke()
    assert (code, verdict["failures"]) == (0, [])


def test_every_killed_unit_comes_back_by_itself(reach: Reach) -> None:
    before = {name: killed(reach(name), *units, "ssh") for name, units in UNITS.items()}
    for name, units in UNITS.items():
        machine = lab_hosts.Host(name, ADDRESSES[name])
        wait_until(partial(lab_hosts.lets_in, machine), f"{name} lets nobody in", 30)
        back(reach(name), before[name], units)


@pytest.mark.parametrize("name", PLATFORM)
def test_systemd_never_gives_up_restarting_a_unit(reach: Reach, name: str) -> None:
    units = [*UNITS.get(name, {}), *EVERYWHERE]
    shown = reach(name).check_output(f"systemctl show --property Id,Restart,StartLimitIntervalUSec {' '.join(units)}")
    found = [dict(line.split("=", 1) for line in block.splitlines()) for block in shown.split("\n\n")]
    assert [one["Id"] for one in found if one["Restart"] not in ("always", "on-failure")] == []
    assert [one["Id"] for one in found if one["StartLimitIntervalUSec"] != "0"] == []
    assert len(found) == len(units)


def test_an_added_host_takes_flow_runs(reach: Reach, inventory: Path) -> None:
    joined = run("ansible-playbook", "-i", str(inventory), "site.yml", "--limit", FIFTH.name)
    assert joined.returncode == 0, joined.stdout
    assert FIFTH.name in reach("services-1").file("/etc/hosts").content_string
    # With the pool's other worker stopped, only the new host can take the smoke check's run.
    assert reach("cpu-1").run("systemctl stop prefect-worker-cpu.service").rc == 0
    try:
        judged = run("ansible-playbook", "-i", str(inventory), "playbooks/smoke.yml", "--limit", FIFTH.name)
    finally:
        assert reach("cpu-1").run("systemctl start prefect-worker-cpu.service").rc == 0
    assert judged.returncode == 0, judged.stdout
    checks = json.loads((BUILD / "smoke.json").read_text())["checks"]
    assert [check["ok"] for check in checks if check["name"] == "flow on pool cpu"] == [True]


@pytest.mark.usefixtures("authority")
def test_a_removed_host_is_forgotten_and_its_secrets_are_worthless(reach: Reach, inventory: Path) -> None:
    vault = Path("group_vars/all/vault.yml")
    before = yaml.safe_load((inventory / vault).read_text())
    others = {path: path.read_text() for path in inventory.rglob("*.yml") if path.name not in ("hosts.yml", vault.name)}
    removed = run("ansible-playbook", "-i", str(inventory), "playbooks/remove_host.yml", "-e", f"host={FIFTH.name}")
    shutil.copyfile(inventory / vault, lab_hosts.INVENTORY / vault)  # the lab has the new secrets now
    assert removed.returncode == 0, removed.stdout
    assert FIFTH.name not in (inventory / "hosts.yml").read_text()
    assert others == {path: path.read_text() for path in others}
    assert FIFTH.name not in reach("services-1").file("/etc/hosts").content_string
    after = yaml.safe_load((inventory / vault).read_text())
    for kind in ("vault_machine_passwords", "vault_object_store_secret_keys"):
        assert {name for name in before[kind] if before[kind][name] != after[kind][name]} == {"worker-cpu"}
    status, workers = as_person("ml1", "prefect", "/api/work_pools/cpu/workers/filter", {})
    assert (status, [worker["name"] for worker in workers]) == (200, ["cpu-1-cpu"])
    left = over_ssh(FIFTH.name, "ls -d /etc/metalworks /opt/metalworks /etc/systemd/system/prefect-* 2>&1; :", "")
    assert left.count("No such file or directory") == 3, left


def test_the_site_is_healthy_at_the_end() -> None:
    code, verdict = smoke()
    assert (code, verdict["failures"]) == (0, [])

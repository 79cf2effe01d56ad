"""playbooks/gpu.yml reboots hosts one at a time, and none whose workers still run flows."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import testinfra
import yaml

from scripts.tests.warm_ansible import ansible_playbook

# A test of the site, which looks at both hosts.
testinfra_hosts = ["ansible://nvidia-none"]
SCENARIO = Path(__file__).resolve().parent.parent
FIRST, SECOND = "nvidia-repository", "nvidia-none"
BOOT_ID = "/proc/sys/kernel/random/boot_id"
WORKER = "prefect-worker-gpu.service"
# Like a worker, the first process starts another one for each flow run.
UNIT = "[Service]\nExecStart=/bin/sh -c 'sleep infinity & wait'\n"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Return an inventory in which both hosts are to be rebooted, as if the play before had found that."""
    place = tmp_path / "site"
    shutil.copytree(SCENARIO / "inventory", place, symlinks=False)
    hosts = yaml.safe_load((place / "hosts.yml").read_text())
    chosen = {"nvidia_reboot": {"hosts": {FIRST: None, SECOND: None}}}
    (place / "hosts.yml").write_text(yaml.safe_dump(hosts | chosen, sort_keys=False))
    groups = yaml.safe_load((place / "groups.yml").read_text())
    groups["nvidia"] = None
    (place / "groups.yml").write_text(yaml.safe_dump(groups))
    return place


@pytest.fixture
def boots() -> Iterator[dict[str, testinfra.host.Host]]:
    """Give each host a boot id that a reboot takes away: a container has that of the machine, which stays."""
    hosts = {name: testinfra.get_host(f"docker://{name}") for name in (FIRST, SECOND)}
    for host in hosts.values():
        host.check_output(f"echo before >/run/boot_id && mount --bind /run/boot_id {BOOT_ID}")
    yield hosts
    for host in hosts.values():
        if same_boot(host):
            host.check_output(f"umount {BOOT_ID}")


def same_boot(host: testinfra.host.Host) -> bool:
    return bool(host.check_output(f"cat {BOOT_ID}") == "before")


def gpu(site: Path, *options: str) -> CompletedProcess[str]:
    return ansible_playbook("--inventory", site, *options, SCENARIO.parent.parent / "playbooks/gpu.yml")


def test_a_host_whose_flows_run_is_not_rebooted_nor_the_next(site, boots) -> None:
    first = boots[FIRST]
    first.check_output(f'printf %s "$0" >/etc/systemd/system/{WORKER} && systemctl start {WORKER}', UNIT)
    try:
        done = gpu(site, "--extra-vars", "drain_seconds=1")
    finally:
        first.check_output(f"systemctl stop {WORKER} && rm /etc/systemd/system/{WORKER}")
    assert done.returncode != 0
    words = " ".join(done.stdout.split())
    assert f"{FIRST} was not rebooted: 1 flow runs are not over" in words
    assert "drain_seconds=7200" in words
    assert all(same_boot(host) for host in boots.values())


def test_hosts_are_rebooted_one_at_a_time(site, boots) -> None:
    done = gpu(site)
    assert done.returncode == 0, done.stdout
    assert not any(same_boot(host) for host in boots.values())
    assert done.stdout.count("PLAY [Reboot into the NVIDIA driver]") == 2
    order = [done.stdout.index(f"changed: [{name}]") for name in (FIRST, SECOND)]
    again = done.stdout.index("PLAY [Reboot into the NVIDIA driver]", order[0])
    assert order[0] < again < order[1]

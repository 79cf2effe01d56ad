"""What an operator does to a running platform: looks at a fault, adds a machine with one line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Reach

from scripts import lab_hosts
from scripts.common import BUILD, ROOT, environment

FIFTH = lab_hosts.Host("cpu-2", "198.51.100.32")


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)


def smoke() -> tuple[int, dict[str, object]]:
    code = run(sys.executable, "-m", "scripts.smoke").returncode
    return code, json.loads((BUILD / "smoke.json").read_text())


@pytest.fixture
def inventory(tmp_path: Path) -> Iterator[list[str]]:
    """The lab's inventory with one more line, and the machine that the line is about."""
    lab_hosts.add(FIFTH)
    line = tmp_path / "one-more.yml"
    line.write_text(f"cpu: {{hosts: {{{FIFTH.name}: {{ansible_host: {FIFTH.address}}}}}}}\n")
    yield ["-i", str(lab_hosts.INVENTORY), "-i", str(line)]
    lab_hosts.discard(FIFTH)


def test_a_stopped_service_is_named_and_told_by_the_exit_code(reach: Reach) -> None:
    services = reach("services-1")
    assert services.run("systemctl stop mlflow.service").rc == 0
    try:
        code, verdict = smoke()
    finally:
        assert services.run("systemctl start mlflow.service").rc == 0
    assert code == 1
    assert [failure for failure in verdict["failures"] if "mlflow.service" in failure]


def test_a_fifth_machine_takes_flow_runs(reach: Reach, inventory: list[str]) -> None:
    joined = run("ansible-playbook", *inventory, "site.yml", "--limit", FIFTH.name)
    assert joined.returncode == 0, joined.stdout
    assert FIFTH.name in reach("services-1").file("/etc/hosts").content_string
    # With the other worker of its pool stopped, only the new machine can take the run that smoke asks for.
    assert reach("cpu-1").run("systemctl stop prefect-worker-cpu.service").rc == 0
    try:
        judged = run("ansible-playbook", *inventory, "playbooks/smoke.yml", "--limit", FIFTH.name)
    finally:
        assert reach("cpu-1").run("systemctl start prefect-worker-cpu.service").rc == 0
    assert judged.returncode == 0, judged.stdout
    checks = json.loads((BUILD / "smoke.json").read_text())["checks"]
    assert [check["ok"] for check in checks if check["name"] == "flow on pool cpu"] == [True]


def test_all_is_well_in_the_end() -> None:
    code, verdict = smoke()
    assert (code, verdict["failures"]) == (0, [])

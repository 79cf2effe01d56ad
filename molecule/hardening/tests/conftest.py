"""A closed host, and two ways to it: from outside, and from the controller over SSH."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import testinfra

from scripts.common import ROOT

SCENARIO = Path(__file__).resolve().parent.parent
ADDRESS = "198.18.0.10"


def by_name(name: str):
    return testinfra.get_host(f"ansible://{name}?ansible_inventory={os.environ['MOLECULE_INVENTORY_FILE']}")


@pytest.fixture(scope="session")
def host():
    """The closed host, on which programs really listen: on ports that are open, and on one that is not."""
    host = by_name("hardening-host")
    for port in (443, 5432, 8000, 9999):
        host.check_output(
            f"systemctl reset-failed && systemctl is-active --quiet listen-{port} || "
            f"systemd-run --quiet --unit listen-{port} python3 -m http.server --directory /run {port}"
        )
    return host


@pytest.fixture(scope="session")
def attacker():
    return by_name("hardening-attacker")


@pytest.fixture(scope="session")
def reaches(attacker) -> Callable[[str, int], bool]:
    """Tell whether a connection from one of the attacker's addresses to a port of the host comes about."""

    def reaches(source: str, port: int) -> bool:
        program = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 2, (sys.argv[3], 0))"
        return attacker.run("python3 -c %s %s %s %s", program, ADDRESS, str(port), source).rc == 0

    return reaches


@pytest.fixture(scope="session")
def key(host, attacker, tmp_path_factory) -> Path:
    """A key that the host's user `ops` has let in, here and with the attacker."""
    key = tmp_path_factory.mktemp("ssh") / "id_ed25519"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    public = key.with_suffix(".pub").read_text().strip()
    host.check_output(f"echo '{public}' > /home/ops/.ssh/authorized_keys && chown ops: /home/ops/.ssh/authorized_keys")
    attacker.check_output("install -m 0600 /dev/null /root/id && echo %s > /root/id", key.read_text())
    return key


@pytest.fixture(scope="session")
def over_ssh(host, key, tmp_path_factory):
    """Run a playbook over SSH, as it is done with servers: as another user, with sudo, over a kept connection."""
    folder = tmp_path_factory.mktemp("inventory")
    address = host.check_output("hostname --all-ip-addresses").replace(ADDRESS, "").split()[0]
    (folder / "hosts.json").write_text(
        json.dumps(
            {
                "all": {
                    "hosts": {
                        "hardening-host": {
                            "ansible_host": address,
                            "ansible_user": "ops",
                            "ansible_ssh_private_key_file": str(key),
                            "ansible_control_path": f"{folder}/%%C",
                            "ansible_python_interpreter": "/usr/bin/python3",
                            "ansible_ssh_common_args": "-o IdentitiesOnly=yes -o StrictHostKeyChecking=accept-new"
                            f" -o UserKnownHostsFile={folder}/known",
                        }
                    }
                }
            }
        )
    )

    def run(**variables):
        command = ["ansible-playbook", "-i", folder / "hosts.json", SCENARIO / "converge.yml"]
        return subprocess.run(
            [*command, "--extra-vars", json.dumps(variables)], capture_output=True, text=True, cwd=ROOT, check=False
        )

    return run

"""Fixtures: a closed host, reached from outside and from the controller over SSH."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import testinfra

from scripts.tests.warm_ansible import ansible_playbook

SCENARIO = Path(__file__).resolve().parent.parent
ADDRESS = "198.18.0.10"
COMMAND = "python3 -c %s %s %s"


def by_name(name: str):
    return testinfra.get_host(f"ansible://{name}?ansible_inventory={os.environ['MOLECULE_INVENTORY_FILE']}")


@pytest.fixture(scope="session")
def host():
    """Return the closed host, with programs listening on open ports and on a closed one."""
    host = by_name("hardening-host")
    ports = "443 5432 8000 9999"
    host.check_output(
        f"systemctl reset-failed; for port in {ports}; do systemctl is-active --quiet listen-$port || "
        "systemd-run --quiet --unit listen-$port python3 -m http.server --directory /run $port; done;"
        f"for port in {ports}; do timeout 30 sh -c "
        "\"until ss --no-header --listening --numeric --tcp | grep --quiet '0.0.0.0:$port '; do sleep 0.1; done\" "
        "|| exit 1; done"
    )
    return host


@pytest.fixture(scope="session")
def attacker():
    return by_name("hardening-attacker")


@pytest.fixture(scope="session")
def reached(host, attacker) -> Callable[..., set[tuple[str, int]]]:
    """Return which of the attacker's addresses can connect to which ports of the host.

    Connects to all at once, because each dropped connection takes two seconds to time out.
    """
    program = """
import concurrent.futures, json, socket, sys
def tried(pair):
    try:
        socket.create_connection((sys.argv[1], pair[1]), 2, (pair[0], 0)).close()
    except OSError:
        return False
    return True
pairs = json.loads(sys.argv[2])
with concurrent.futures.ThreadPoolExecutor(len(pairs)) as pool:
    print(json.dumps([pair for pair, came in zip(pairs, pool.map(tried, pairs)) if came]))
"""

    def reached(sources: Iterable[str], ports: Iterable[int]) -> set[tuple[str, int]]:
        pairs = json.dumps(list(itertools.product(sources, ports)))
        return {(source, port) for source, port in json.loads(attacker.check_output(COMMAND, program, ADDRESS, pairs))}

    return reached


@pytest.fixture(scope="session")
def key(host, attacker, tmp_path_factory) -> Path:
    """Create a key that the host's user `ops` accepts, for the controller and the attacker."""
    key = tmp_path_factory.mktemp("ssh") / "id_ed25519"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    public = key.with_suffix(".pub").read_text().strip()
    host.check_output(f"echo '{public}' > /home/ops/.ssh/authorized_keys && chown ops: /home/ops/.ssh/authorized_keys")
    attacker.check_output("install -m 0600 /dev/null /root/id && echo %s > /root/id", key.read_text())
    return key


@pytest.fixture(scope="session")
def over_ssh(host, key, tmp_path_factory):
    """Run a playbook over SSH as for real servers: as another user, with sudo, over a persistent connection."""
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

    def run(*options: str, timeout: int = 20, **variables):
        options = ("--inventory", folder / "hosts.json", "--timeout", timeout, *options)
        return ansible_playbook(*options, SCENARIO / "converge.yml", "--extra-vars", json.dumps(variables))

    return run

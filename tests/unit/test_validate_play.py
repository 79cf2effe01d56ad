"""validate.yml on a site with one mistake of each kind reports all of them at once."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.repository import ROOT

HOSTS = {
    "services": {"hosts": {"services-1": {"ansible_host": "192.0.2.11"}}},
    "gpu": {"hosts": {"gpu_1": {"ansible_host": "192.0.2.11"}}},
    "gpus": {"hosts": {"gpu-9": {"ansible_host": "192.0.2.29"}}},
    "cpu": {
        "hosts": {
            "cpu-1": {"ansible_host": "127.0.0.1", "ansible_connection": "ssh", "ansible_port": 9},
            "cpu-2": {"ansible_host": "192.0.2.32", "ansible_python_interpreter": "/nowhere/python3"},
        }
    },
    "dev": {"hosts": {}},
}
MISTAKES = {
    "ansible_connection": "local",
    "ansible_become": False,
    "ansible_python_interpreter": sys.executable,
    "platform_users": [
        {"name": "ada", "role": "developer"},
        {"name": "ada", "role": "developer"},
        {"name": "eve", "role": "admin"},
        {"name": "bob", "role": "boss"},
        {"name": "backup", "role": "viewer"},
        {"name": "Ada Lovelace", "role": "developer", "ssh_public_keys": "~/.ssh/id_ed25519.pub"},
        {"name": "ops", "role": "admin"},
    ],
    "platform_domain": "ML.Example.org",
    "object_store_console_port": "http",
    "inference_services": [{"name": "delay", "model": "m", "port": "8000"}],
    "git_remotes": [{"url": "https://git/", "user": "x", "token": "{{ vault_git_token }}"}],
    "extra_ca_certificates": ["/nowhere/ca.pem"],
    "own_certificates": {
        "services-1": {"certificate": "/nowhere/c.pem", "key": "/nowhere/key.pem", "ca": "/nowhere/ca.pem"}
    },
    "mlflow_sokcet": "/run/x",
    "docker_users": ["evee"],
    "work_queues": {"urgent": 1, "default": 1},
    "ansible_user": "ops",
    "aptmirror": "https://mirror.example.org",
    "prefect_server_work_pools": "{{ no_such_variable }}",
    "validate_minimums": {"services": {"memory_mb": 10**9}},
}
SECRETS = {
    "vault_postgresql_mlflow_password": "x",
    "vault_postgresql_mlflow_auth_password": "",
    "vault_object_store_root_password": "x",
    "vault_object_store_secret_keys": {"mlflow": "x", "worker-gpu": "x", "ada": "x"},
    "vault_mlflow_admin_password": 12345678,
}
TOLD = [
    "host gpu-9: is only in `gpus`",
    "host gpu_1: is not a valid host name",
    "hosts services-1 and gpu_1: have the same address, 192.0.2.11",
    "variable `mlflow_sokcet`",
    "Did you mean `mlflow_socket`?",
    "Did you mean `apt_mirror`?",
    "are missing or empty: ",
    "`vault_postgresql_mlflow_auth_password`",
    "`vault_postgresql_prefect_password`",
    "`vault_object_store_secret_keys` (for backup, inference, worker-cpu, eve)",
    "secret `vault_mlflow_admin_password`: is a number, not text",
    "variable `extra_ca_certificates`: /nowhere/ca.pem cannot be read",
    "contains ada more than once",
    "variable `work_queues`: contains 1 more than once",
    'entry 4 (bob), role: "boss" is not a role',
    'entry 6 (Ada Lovelace), name: "Ada Lovelace" is not a login name',
    'entry 6 (Ada Lovelace), ssh_public_keys: "~/.ssh/id_ed25519.pub" is text, not a list',
    "variable `docker_users`: names evee, who is not in platform_users",
    "Did you mean `eve`?",
    "variable `platform_users`: backup is the name of an account of the system or the platform",
    "variable `platform_users`: ops is the account that Ansible logs in with",
    '"ML.Example.org" is not a domain',
    '"http" is text, not a port',
    'entry 1 (delay), port: "8000" is text, not a port',
    "variable `git_remotes`: cannot be computed ('vault_git_token' is undefined)",
    "secret `vault_object_store_root_password`: is shorter than 16 characters",
    "variable `own_certificates` of services-1: key /nowhere/key.pem cannot be read",
    "variable `own_certificates`: lacks gpu_1, cpu-1, cpu-2",
    "cannot be computed ('no_such_variable' is undefined)",
    "host services-1: has",
    "host services-1: does not have the address 192.0.2.11 itself",
    "host cpu-1: cannot be reached at 127.0.0.1",
    "host cpu-2: answers, but Ansible cannot run on it",
]


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def run(inventory: Path) -> tuple[int, str]:
    """Return exit status and output of validate.yml."""
    program = Path(sys.executable).parent / "ansible-playbook"
    done = subprocess.run(
        [str(program), "-i", str(inventory), "playbooks/validate.yml"],
        cwd=ROOT,
        env=os.environ | {"ANSIBLE_CALLBACK_RESULT_FORMAT": "yaml", "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def validate(place: Path, hosts: dict[str, Any], choices: dict[str, Any]) -> tuple[int, str]:
    """Return exit status and output of validate.yml for a site with these files."""
    shutil.copytree(ROOT / "inventory/example", place, symlinks=False)
    (place / "hosts.yml").write_text(json.dumps(hosts))
    (place / "group_vars/all/site.yml").write_text(json.dumps(choices))
    (place / "group_vars/all/vault.yml").write_text(json.dumps(SECRETS))
    return run(place)


def test_every_mistake_is_reported_at_once(tmp_path: Path, taken_port: int) -> None:
    status, words = validate(tmp_path / "ours", HOSTS, MISTAKES | {"object_store_port": taken_port})
    assert status != 0
    assert [
        told for told in [*TOLD, f"port {taken_port}, which minio.service needs, is in use by"] if told not in words
    ] == []
    assert f"{tmp_path}/ours/group_vars/all/site.yml:1" in words  # where the misspelt variable stands
    # What follows from any of these is not told beside it.
    assert words.count("cannot be computed") == 2 * 2, words  # Ansible prints the list twice
    assert "Traceback" not in words


def test_site_without_hosts_is_reported(tmp_path: Path) -> None:
    """No play would match a host, which Ansible itself counts as success."""
    status, words = validate(tmp_path / "ours", {name: {"hosts": {}} for name in HOSTS}, {})
    assert status != 0
    assert "groups `postgresql`, `object_store`, `mlflow`, `prefect_server`, `gateway`: have no host" in words


def test_inventory_elsewhere_is_told_how_to_link_the_product(tmp_path: Path) -> None:
    place = tmp_path / "ours"
    shutil.copytree(ROOT / "inventory/example", place, symlinks=True)
    status, words = run(place)
    assert status != 0
    assert f"inventory {place}: does not load the variables of the platform" in words
    assert f"{place}/group_vars/all/00-product" in words
    assert "is undefined" not in words

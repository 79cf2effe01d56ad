"""Search every file, journal and command line of every host for each generated secret: it is only where it belongs."""

from __future__ import annotations

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor

import clients
import pytest

from scripts.lab import hosts as lab_hosts

HOSTS = ["services-1", "gpu-1", "cpu-1", "dev-1", "dev-2"]
# Settings of services and credentials of users, but not the gateway's hashes.
BELONGS = ("/etc/metalworks/", "/home/")
SEARCH = """
import os, subprocess
from pathlib import Path
SKIPPED = {"/var/lib/postgresql", "/var/lib/minio", "/var/cache/metalworks"}
def look(where, content, mode=0):
    for name, text in SECRETS.items():
        if text.encode() in content:
            FOUND.append([where, name, mode & 0o777])
FOUND = []
for root in ("/etc", "/var", "/opt/metalworks", "/home", "/root", "/run", "/tmp", "/usr/local"):
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in ("site-packages", ".venv", "udev")
                      and f"{folder}/{name}" not in SKIPPED]
        for path in (Path(folder, name) for name in files):
            if path.is_file() and not path.is_symlink() and path.stat().st_size < 2**26:
                look(str(path), path.read_bytes(), path.stat().st_mode)
# The plain text, which the files above contain compressed.
journal = ["journalctl", "--no-pager", "--all", "--output=export"]
look("the journal", subprocess.run(journal, capture_output=True).stdout)
for process in (path for path in Path("/proc").iterdir() if path.name.isdigit()):
    try:
        command = (process / "cmdline").read_bytes()
    except OSError:
        continue
    look(f"the command line {command[:60]}", command)
"""


def search(name: str, wanted: dict[str, str]) -> list[tuple[str, str, int]]:
    """Search a host; the program and the secrets go through stdin and leave no trace."""
    program = f"SECRETS = {wanted!r}\n{SEARCH}\nimport json; print(json.dumps(FOUND))\n"
    found = json.loads(clients.over_ssh(name, "sudo python3 -", program))
    return [(place, secret, mode) for place, secret, mode in found]


def search_everywhere(wanted: dict[str, str]) -> dict[str, list[tuple[str, str, int]]]:
    """Search all hosts at once."""
    with ThreadPoolExecutor() as pool:
        return dict(zip(HOSTS, pool.map(lambda name: search(name, wanted), HOSTS), strict=True))


@pytest.fixture(scope="module")
def everywhere() -> dict[str, list[tuple[str, str, int]]]:
    """Return the places of secrets on each host."""
    return search_everywhere(clients.by_name(clients.secrets()))


@pytest.mark.parametrize("name", HOSTS)
def test_secrets_are_found_only_where_they_belong(everywhere: dict[str, list[tuple[str, str, int]]], name: str) -> None:
    found = everywhere[name]
    assert found, "the search finds nothing at all: is it broken?"
    assert [(place, secret) for place, secret, _ in found if not place.startswith(BELONGS)] == []
    assert [(place, oct(mode)) for place, _, mode in found if mode & 0o007] == []
    assert [place for place, secret, _ in found if secret.startswith(("vault_ca_", "vault_mlflow_admin"))
            and not place.startswith("/etc/metalworks/mlflow")] == []  # fmt: skip


def test_the_search_finds_leaked_secrets() -> None:
    """In a world-readable file, on a host that does not have the secret otherwise."""
    leaked = {"leaked": "a-secret-that-was-made-up-for-this-test"}
    command = ["ssh", "-F", str(lab_hosts.SSH_CONFIG), "cpu-1", "tee /tmp/leak"]
    subprocess.run(command, input=leaked["leaked"], text=True, check=True, capture_output=True)
    try:
        assert ("/tmp/leak", "leaked", 0o644) in search("cpu-1", leaked)
    finally:
        subprocess.run([*command[:-1], "rm /tmp/leak"], check=True)
